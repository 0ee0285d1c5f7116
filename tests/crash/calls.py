"""Death at a chosen call: the calls by which a process changes a file system, counted, and one of them its last.

Guarantees: every change that the spool makes goes through here; ``test_calls`` compares with what strace sees.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import pytest

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


def points(calls: Sequence[str], every: int = 1) -> list[Point | None]:
    """Before each call, in the middle of each write, and after the last; of them all, one of ``every``, and the first."""
    whole = [Point(n) for n in range(len(calls))]
    found = [*whole, *(Point(n, torn=True) for n, name in enumerate(calls) if name == "write"), None][
        ::-every
    ]
    return found if found[-1] in (None, *whole[:1]) else [*found, whole[0]]


def slow_or_fast() -> pytest.MarkDecorator:
    """Whether the next runner takes what comes before its maker does anything else; that it does not, under stress."""
    return pytest.mark.parametrize(
        "eager",
        [pytest.param(False, marks=pytest.mark.stress), True],
        ids=["the next runner is slow", "the next runner is fast"],
    )


def before_or_within() -> pytest.MarkDecorator:
    """Whether a death comes before a change of a file, or, under stress, in the middle of it."""
    return pytest.mark.parametrize(
        "torn",
        [False, pytest.param(True, marks=pytest.mark.stress)],
        ids=["before it", "in the middle of it"],
    )


def some_or_all(every: int) -> pytest.MarkDecorator:
    """For what would take too long for each change of the code: one of so many points, and under stress all."""
    return pytest.mark.parametrize(
        "every", [every, pytest.param(1, marks=pytest.mark.stress)], ids=["some", "all"]
    )


@dataclass(slots=True)
class Calls:
    """The changes of a process, in order; once armed, dies at ``point`` and calls ``between`` before each.

    ``touched`` are the directories in which something may have come to be.
    """

    point: Point | None = None
    between: Callable[[], None] | None = None
    names: list[str] = field(default_factory=list)
    touched: set[str] = field(default_factory=set)
    armed: bool = False
    _one_by_one: threading.RLock = field(default_factory=threading.RLock)

    @contextmanager
    def watched(self) -> Iterator[Calls]:
        """While inside, every change is seen."""
        patches = [patch.object(os, name, self._wrap(name)) for name in CHANGES]
        patches.append(patch.object(disk, "_libc", _Libc(self)))
        with ExitStack() as stack:
            for one in patches:
                stack.enter_context(one)
            yield self

    def _wrap(self, name: str) -> Callable[..., Any]:
        real = REAL[name]

        def call(*arguments: Any, **named: Any) -> Any:
            if name != "open" or arguments[1] & CREATES:
                self.step(name, *arguments, **named)
            return real(*arguments, **named)

        return call

    def step(self, name: str, *arguments: Any, **named: Any) -> None:
        """One change is about to be made; those of several threads, one after the other."""
        with self._one_by_one:
            self._step(name, *arguments, **named)

    def _step(self, name: str, *arguments: Any, **named: Any) -> None:
        if name in ("rename", "replace", "renameat2"):
            self.touched.add(os.path.dirname(os.fspath(arguments[1])))
        elif name == "link":
            self.touched.add(os.readlink(f"/proc/self/fd/{named['dst_dir_fd']}"))
        elif name == "open":
            path = os.fspath(arguments[0])
            self.touched.add(path if os.path.isdir(path) else os.path.dirname(path))
        if self.armed:
            self._count(name, *arguments)

    def _count(self, name: str, *arguments: Any) -> None:
        number = len(self.names)
        self.names.append(name)
        if self.between is not None:
            self.armed = False
            self.between()
            self.armed = True
        if self.point is not None and self.point.at == number:
            if self.point.torn and name == "write":
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
