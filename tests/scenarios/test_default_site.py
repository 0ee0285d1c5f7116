"""The default site in etc/: what `make demo` and `make run` start."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sites import wait_for

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def demo(folder: Path) -> subprocess.Popen[str]:
    """Begins it as `make demo` does, its site in a temporary directory of its own."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "etc" / "demo.py")],
        env={**ENVIRONMENT, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def masters(folder: Path) -> list[str]:
    """Processes that run a site below a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:
            continue
        if str(folder).encode() in command:
            found.append(command.decode())
    return found


def test_the_demonstration_delivers_everything_once_although_a_host_is_killed(tmp_path: Path) -> None:
    process = demo(tmp_path)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, out + err
    assert "mta2 is killed" in out
    (total,) = re.findall(r"^total +100 +300 +(\d+) +(\d+) +300$", out, re.MULTILINE)
    assert int(total[1]) > 0
    assert "each once and byte for byte: yes" in out
    assert "\x1b" not in out
    assert list(tmp_path.iterdir()) == []
    assert masters(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demonstration_that_is_interrupted_stops_what_it_has_started(
    tmp_path: Path, number: signal.Signals
) -> None:
    process = demo(tmp_path)
    wait_for(lambda: any("qrunner.master" in one for one in masters(tmp_path)))
    process.send_signal(number)
    out, err = process.communicate(timeout=100)
    assert process.returncode == 130, out + err
    assert "qrunner-ctl stop: stopped" in out
    assert masters(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_the_default_configuration_is_right(tmp_path: Path) -> None:
    # In a copy, since who may write in this checkout is no matter of the configuration.
    shutil.copytree(ROOT / "etc", tmp_path / "etc")
    for path in (tmp_path / "etc").rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    (tmp_path / "qfiles").mkdir(mode=0o700)
    command = [sys.executable, "-P", "-c", "from qrunner.ctl import main; main()"]
    command += ["-c", str(tmp_path / "etc" / "qrunner.toml"), "check"]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
