"""`qrunner-inject` as a process, 4 KB, file and directory synced, beside an interpreter that does nothing.

A mail server starts one for every message, so what is measured is what it waits for: from fork to exit. The peer is
`python3 -I -S -c pass`: less than that no program in Python can take.

Options: `--quick`, `--runs N`, `--size BYTES`, `--directory DIR` (on the file system to measure; default: a temporary
one), `--json`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from interleaved import document, measure, table

PROGRAM = Path(__file__).resolve().parent.parent / "bin" / "qrunner-inject"
PYTHON = "/usr/bin/python3"
PEER = "python3 -I -S -c pass"


def main() -> int:
    """Measure and print."""
    asked = options()
    message = (b"Subject: a benchmark\n\n" + b"x" * 71 + b"\n") * asked.size
    with tempfile.TemporaryDirectory(dir=asked.directory) as root, tempfile.TemporaryFile() as stdin:
        for number in range(256):
            Path(root, "in", f"{number:02x}").mkdir(parents=True)
        stdin.write(message[: asked.size])

        def process(*command: str) -> None:
            stdin.seek(0)
            subprocess.run(command, stdin=stdin, check=True)

        inject = [str(PROGRAM), "-Q", root, "-f", "ann@a.example", "--", "bob@b.example"]
        byte_code = compiled(root)
        ways = {
            PEER: lambda: process(PYTHON, "-I", "-S", "-c", "pass"),
            "qrunner-inject": lambda: process(*inject),
            "  the same as byte code": lambda: process(PYTHON, "-IS", byte_code, *inject[1:]),
            "fsync of a file and its directory": lambda: sync(root, message[: asked.size]),
        }
        found = measure(ways, asked.runs)
    print(json.dumps(document(found, PEER), indent=2) if asked.json else table(found, PEER))
    return 0


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="qrunner-inject as a process.")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--runs", type=int)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--directory")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    asked.runs = asked.runs or (40 if asked.quick else 300)
    return asked


def compiled(root: str) -> str:
    """The program as byte code: beside it one sees what compiling the file at every start costs."""
    target = str(Path(root, "inject.pyc"))
    program = "import py_compile, sys; py_compile.compile(*sys.argv[1:])"
    subprocess.run([PYTHON, "-c", program, str(PROGRAM), target], check=True)
    return target


def sync(root: str, message: bytes) -> None:
    """What the disk alone takes."""
    directory = os.open(root, os.O_RDONLY)
    file = os.open(".", os.O_TMPFILE | os.O_WRONLY, dir_fd=directory)
    os.write(file, message)
    os.fsync(file)
    os.link(f"/proc/self/fd/{file}", os.urandom(8).hex(), dst_dir_fd=directory)
    os.fsync(directory)
    os.close(file)
    os.close(directory)


if __name__ == "__main__":
    sys.exit(main())
