"""The pipe run as an MTA runs it: a real process on a real directory, and what came of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from qrunner import format
from qrunner.message import Entry

PROGRAM = Path(__file__).parent.parent / "bin" / "qrunner-inject"
MESSAGE = b"Subject: hello\nFrom: ann@example.org\n\nA line.\n"
# Where the interpreter that the program names is another one's, `make install` names it in the installed copy.
START = [str(PROGRAM)] if Path("/usr/bin/python3").exists() else [sys.executable, "-IS", str(PROGRAM)]
Result = subprocess.CompletedProcess[bytes]


def run(
    queue_dir: Path | str,
    *arguments: str | bytes,
    message: bytes = MESSAGE,
    environment: Mapping[str, str | bytes] | None = None,
    before: Sequence[str] = (),
    start: Sequence[str] = START,
    **how: object,
) -> Result:
    """Runs the program on a queue directory and collects what it says."""
    command: list[str | bytes] = [*before, *start, "-Q", str(queue_dir), *arguments]
    settings: dict[str, object] = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "timeout": 60,
        **how,
    }
    if "stdin" not in settings:
        settings["input"] = message
    environment = {"PATH": "/usr/bin:/bin", **(environment or {})}
    result: Result = subprocess.run(command, check=False, env=environment, **settings)  # type: ignore[call-overload]
    return result


def files(queue_dir: Path) -> list[Path]:
    """Every file under the queue directory, hidden ones included."""
    return sorted(path for path in queue_dir.rglob("*") if not path.is_dir())


def read(path: Path) -> Entry:
    """The entry in a file, proved by the format's own reader."""
    name = format.parse_name(path.name)
    assert name is not None, path
    return format.open_file("in", name, path.read_bytes()).entry


def only_entry(queue_dir: Path) -> Entry:
    """The one entry there is."""
    (path,) = files(queue_dir)
    return read(path)


def accepted(queue_dir: Path, *arguments: str | bytes, **how: object) -> Entry:
    """Injects and returns what came of it."""
    result = run(queue_dir, *arguments, **how)  # type: ignore[arg-type]
    assert (result.returncode, result.stdout) == (0, b"")
    return only_entry(queue_dir)


def refused(queue_dir: Path, *arguments: str | bytes, code: int = 75, **how: object) -> bytes:
    """Injects, sees it refused without remains, and returns the first line."""
    before = files(queue_dir) if queue_dir.is_dir() else []
    result = run(queue_dir, *arguments, **how)  # type: ignore[arg-type]
    assert result.returncode == code, result.stdout
    assert result.stdout.startswith(b"4.3.0 " if code == 75 else b"5.2.3 ")
    assert result.stdout.count(b"\n") == 1
    assert (files(queue_dir) if queue_dir.is_dir() else []) == before
    return bytes(result.stdout)


def lay_out(queue: Path) -> None:
    """Makes a queue with its sub-directories, as ``init`` does."""
    for number in range(256):
        (queue / f"{number:02x}").mkdir(parents=True, mode=0o700)
