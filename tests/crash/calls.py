"""Death at a chosen call: the calls by which a process changes a file system, counted, and one of them its last.

Guarantees: every change that the spool makes goes through here; ``test_calls`` compares with what strace sees.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from qrunner.switchboard import disk

CHANGES = (
    "fchmod",
    "fsync",
    "ftruncate",
    "link",
    "mkdir",
    "open",
    "rename",
    "replace",
    "rmdir",
    "symlink",
    "truncate",
    "unlink",
    "utime",
    "write",
)
REAL = {name: getattr(os, name) for name in (*CHANGES, "listdir")}
CREATES = os.O_CREAT | os.O_TRUNC | (os.O_TMPFILE & ~os.O_DIRECTORY)


@dataclass(frozen=True, slots=True)
class Point:
    """Where to die: before the nth change (from 0), or having written half of it."""

    at: int
    torn: bool = False

    def __str__(self) -> str:
        return f"{self.at}{' torn' if self.torn else ''}"


@dataclass(slots=True)
class Calls:
    """The changes of a transition, in order; dies at ``point``, calls ``between`` before each."""

    point: Point | None = None
    between: Callable[[], None] | None = None
    names: list[str] = field(default_factory=list)
    # Directories in which something may have come to be.
    touched: set[str] = field(default_factory=set)
    _inside: bool = False

    @contextmanager
    def counted(self) -> Iterator[Calls]:
        """While inside, every change counts."""
        patches = [patch.object(os, name, self._wrap(name)) for name in CHANGES]
        patches.append(patch.object(disk, "_libc", _Libc(self)))
        for one in patches:
            one.start()
        try:
            yield self
        finally:
            for one in patches:
                one.stop()

    def _wrap(self, name: str) -> Callable[..., Any]:
        real = REAL[name]

        def call(*arguments: Any, **named: Any) -> Any:
            if name != "open" or arguments[1] & CREATES:
                self.step(name, *arguments)
            return real(*arguments, **named)

        return call

    def step(self, name: str, *arguments: Any) -> None:
        """One change is about to be made."""
        if self._inside:
            return
        number = len(self.names)
        self.names.append(name)
        if name in ("rename", "replace", "renameat2"):
            self.touched.add(os.path.dirname(os.fspath(arguments[1])))
        if self.between is not None:
            self._inside = True
            self.between()
            self._inside = False
        if self.point is not None and self.point.at == number:
            if self.point.torn:
                fd, data = arguments
                REAL["write"](fd, bytes(data)[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)


class _Libc:
    """In the place of the C library, as far as the spool calls it directly."""

    def __init__(self, calls: Calls) -> None:
        self._calls, self._real = calls, disk._libc

    def renameat2(self, old: int, source: bytes, new: int, target: bytes, flags: int) -> int:
        self._calls.step("renameat2", source.decode(), target.decode())
        code: int = self._real.renameat2(old, source, new, target, flags)
        return code
