"""Make an installed qrunner-inject name an interpreter that this machine has.

The file comes with `#!/usr/bin/python3 -IS`: the system's interpreter, which every user can run, whichever
environment the rest lives in. Where there is none, or one older than 3.11, the line is made to name the
interpreter that this program runs with, by its own path and not the environment's, which may be moved.
"""

import os
import re
import subprocess
import sys

MODERN = "import sys; sys.exit(sys.version_info < (3, 11))"
LINE = re.compile(rb"#!(\S+)(?: (.*))?\n")


def runs(interpreter: str) -> bool:
    """True if this interpreter is here and is new enough."""
    try:
        return subprocess.run([interpreter, "-IS", "-c", MODERN], capture_output=True).returncode == 0
    except OSError:
        return False


def main(path: str) -> None:
    """Check the first line of the file at `path`, and replace the file if the line must be another."""
    with open(path, "rb") as file:
        text = file.read()
    line = LINE.match(text)
    if line is None:
        sys.exit(f"{path}: the first line names no interpreter")
    if runs(os.fsdecode(line[1])):
        return
    own = os.path.realpath(sys.executable)
    if b" " in os.fsencode(own) or len(own) > 100:
        sys.exit(
            f"{path}: {own} cannot stand in a first line; install Python 3.11 or later as /usr/bin/python3"
        )
    new = b" ".join(filter(None, [b"#!" + os.fsencode(own), line[2]])) + b"\n"
    scratch = f"{path}.new"
    with open(scratch, "wb") as file:
        file.write(new + text[line.end() :])
    os.chmod(scratch, 0o755)
    os.replace(scratch, path)
    print(
        f"{path} runs with {own}: there is no Python 3.11 or later at {os.fsdecode(line[1])}", file=sys.stderr
    )


if __name__ == "__main__":
    main(sys.argv[1])
