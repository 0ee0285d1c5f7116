"""`qrunner-inject` as a process, 4 KB, file and directory synced, beside an interpreter that does nothing.

A mail server starts one for every message, so what is measured is what it waits for: from fork to exit. The peer is
`python3 -I -S -c pass`: less than that no program in Python can take. The other peer is Postfix's `sendmail`, whose
message is in the maildrop directory, synced, when it ends.

Options: `--quick`, `--runs N`, `--directory DIR` (on the file system to measure), `--json`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rig.peers import postfix
from rig.rounds import Claim, in_turns, options, report
from rig.sinks import smtp_sink

PROGRAM = Path(__file__).resolve().parent.parent / "bin" / "qrunner-inject"
PYTHON = "/usr/bin/python3"
PEER = "python3 -I -S -c pass"
SENDMAIL = "Postfix's sendmail"
SIZE = 4096
CLAIM = Claim("pipe", "the pipe as a process, durable", "ms", at_most=1.7)
BESIDE = Claim("pipe-sendmail", "the pipe as a process, beside sendmail", "ms", at_most=1.7)


def main() -> int:
    """Measure and print."""
    asked = options(__doc__, runs=300, quick_runs=25)
    message = (b"Subject: a benchmark\n\n" + b"x" * 71 + b"\n") * SIZE
    with (
        tempfile.TemporaryDirectory(dir=asked.directory) as root,
        tempfile.TemporaryFile() as stdin,
        smtp_sink() as sink,
    ):
        Path(root).chmod(0o755)
        for number in range(256):
            Path(root, "in", f"{number:02x}").mkdir(parents=True)
        stdin.write(message[:SIZE])

        def process(*command: str) -> None:
            stdin.seek(0)
            subprocess.run(command, stdin=stdin, check=True)

        inject = [str(PROGRAM), "-Q", root, "-f", "ann@a.example", "--", "bob@b.example"]
        byte_code = compiled(root)
        with postfix(Path(root, "mta"), sink.port, delivers=False) as mta:
            etc = str(mta.root / "etc")
            ways = {
                PEER: lambda: process(PYTHON, "-I", "-S", "-c", "pass"),
                SENDMAIL: lambda: process(
                    "/usr/sbin/sendmail", "-C", etc, "-i", "-f", "ann@a.example", "bob@b.example"
                ),
                "qrunner-inject": lambda: process(*inject),
                "  the same as byte code": lambda: process(PYTHON, "-IS", byte_code, *inject[1:]),
                "fsync of a file and its directory": lambda: sync(root, message[:SIZE]),
            }
            found = in_turns(ways, asked.runs)
    report(CLAIM, {name: found[name] for name in found if name != SENDMAIL}, peer=PEER, asked=asked)
    return report(
        BESIDE, {name: found[name] for name in (SENDMAIL, "qrunner-inject")}, peer=SENDMAIL, asked=asked
    )


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
