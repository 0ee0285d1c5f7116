"""The documents as tests read them: their fenced blocks, and commands as a shell would find them."""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_FENCE = re.compile(r"^```(\w+)?[ ]*([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language, what else stands behind the fence, its text, and its first line's number."""

    language: str
    words: tuple[str, ...]
    text: str
    line: int

    @property
    def title(self) -> str:
        """The file that it is, if it says so."""
        titles = [word.removeprefix("title=") for word in self.words if word.startswith("title=")]
        return titles[0] if titles else ""


def blocks(document: str) -> Iterator[Block]:
    """The fenced blocks of a document, by its path in the repository."""
    text = (ROOT / document).read_text("utf-8")
    for found in _FENCE.finditer(text):
        line = text.count("\n", 0, found.start(3)) + 1
        yield Block(found[1] or "", tuple(found[2].split()), found[3], line)


def write(block: Block, folder: Path) -> None:
    """Writes a block that is a file; ``append`` adds to it."""
    path = folder / block.title
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a" if "append" in block.words else "w", encoding="utf-8") as file:
        file.write(block.text)


def fits(shown: str, real: str) -> bool:
    """Whether a command printed what the document shows; ``…`` stands for anything, on a line of its own for any
    number of lines."""
    lines = [re.escape(line).replace("…", ".*") for line in shown.splitlines()]
    pattern = "".join(r"(?:.*\n)*?" if line == ".*" else line + "\n" for line in lines)
    return re.fullmatch(pattern, real if real.endswith("\n") or not real else real + "\n") is not None


def commands(folder: Path) -> dict[str, str]:
    """An environment in which this checkout's commands are found, whether or not they are installed."""
    folder.mkdir()
    package = f"export PYTHONPATH='{ROOT}'"
    scripts = {
        "qrunner-ctl": f"{package}\nexec '{sys.executable}' -c 'from qrunner.ctl import main; main()' \"$@\"",
        "qrunner-inject": f"exec '{sys.executable}' -I -S '{ROOT}/qrunner/inject.py' \"$@\"",
        "python": f"{package}\nexec '{sys.executable}' \"$@\"",
    }
    for name, text in scripts.items():
        script = folder / name
        script.write_text(f"#!/bin/sh\n{text}\n")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    kept = {name: os.environ[name] for name in ("HOME", "TMPDIR") if name in os.environ}
    path = os.pathsep.join([str(folder), os.environ.get("PATH", os.defpath)])
    return {**kept, "PATH": path, "LC_ALL": "C.UTF-8", "NO_COLOR": "1"}
