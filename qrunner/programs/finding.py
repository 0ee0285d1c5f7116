"""Where programs are looked for, and whether one can be run."""

from __future__ import annotations

import os
import shutil

_USUAL_PATH = "/usr/local/bin:/usr/bin:/bin"


def unrunnable(program: str, path: str) -> str:
    """Why a program can't be run; empty if nothing is known against it.

    :param path: the folders in which one without a slash is looked for.
    """
    found = shutil.which(program, path=path)
    if found:
        return _lacking(found)
    if "/" not in program:
        return f"is not in {path}"
    if not os.path.exists(program):
        return "is not there"
    return "is a folder" if os.path.isdir(program) else "can't be executed"


def _lacking(program: str) -> str:
    """Whether what a script's first line names is missing (execve(2))."""
    try:
        with open(program, "rb") as file:
            line = file.readline(256)
    except OSError:
        return ""  # to be executed it need not be readable
    words = os.fsdecode(line[2:]).split() if line.startswith(b"#!") else []
    if words and not os.access(words[0], os.X_OK):
        return f"can't be executed: its first line names {words[0]}, which can't be"
    return ""


def search_path() -> str:
    """The ``PATH`` of programs: our own, without folders that depend on where we stand."""
    folders = os.environ.get("PATH", "").split(os.pathsep)
    return os.pathsep.join(folder for folder in folders if os.path.isabs(folder)) or _USUAL_PATH
