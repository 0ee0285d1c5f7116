"""Mailman 3, from PyPI, in an environment of its own that is made once and kept beside the checkout's other builds."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import venv
from pathlib import Path

from rig.sites import REPOSITORY

VERSION = "3.3.10"
# With the interpreter that measures us.
HOME = REPOSITORY / "build" / "bench" / f"mailman-{VERSION}-python-{platform.python_version()}"


def python() -> str:
    """The interpreter that has it."""
    program = HOME / "bin" / "python"
    stamp = HOME / ".complete"
    if not stamp.exists():
        venv.create(HOME, with_pip=True, clear=True)
        command = [str(program), "-m", "pip", "install", "--quiet", f"mailman=={VERSION}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        stamp.touch()
    return str(program)


def worked(
    interpreter: str, worker: str, directory: Path, count: int, threads: int, *more: str, size: int = 4096
) -> dict[str, float]:
    """What a worker of this folder has measured."""
    script = Path(__file__).with_name(worker)
    command = [interpreter, str(script), str(directory), str(count), str(threads), str(size), *more]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY) if interpreter == sys.executable else ""}
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    figures: dict[str, float] = json.loads(found.stdout)
    return figures
