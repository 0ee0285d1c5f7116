"""Disks that fail: the nth call on files that this process makes fails, alone or with all that follow."""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from qrunner.switchboard import disk as disk_module

# What asks the disk for room, or may have to.
GROWING = frozenset({"create", "write", "link", "rename", "fsync", "mkdir"})
CHANGING = GROWING | {"unlink", "ftruncate"}
ANY = CHANGING | {"open", "listdir"}


@dataclass(frozen=True, slots=True)
class Fault:
    """A kind of trouble.

    :param lasting: once it has begun it stays.
    :param calls: the calls that it concerns; only they are counted.
    :param partly: a write that fails has written half of its bytes before.
    """

    code: int
    calls: frozenset[str] = ANY
    lasting: bool = False
    partly: bool = False

    def __str__(self) -> str:
        lasts = " from then on" if self.lasting else ""
        return f"{errno.errorcode[self.code]}{lasts}{' after half a write' if self.partly else ''}"


FAULTS = (
    Fault(errno.EIO),
    Fault(errno.ENOSPC, GROWING),
    Fault(errno.ENOSPC, frozenset({"write"}), partly=True),
    Fault(errno.EMFILE, frozenset({"open", "create", "listdir"})),
    Fault(errno.EDQUOT, GROWING, lasting=True),
    Fault(errno.EROFS, CHANGING, lasting=True),
    Fault(errno.EIO, ANY, lasting=True),
)


@dataclass(slots=True)
class FailingDisk:
    """Calls are counted, and fail from the ``at``-th on (from 1; 0: none does)."""

    fault: Fault
    at: int = 0
    count: int = 0
    failed: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def mounted(self) -> Iterator[FailingDisk]:
        """While this lasts."""
        names = (
            "open",
            "write",
            "fsync",
            "link",
            "rename",
            "unlink",
            "ftruncate",
            "mkdir",
            "listdir",
            "replace",
        )
        with ExitStack() as stack:
            for name in names:
                stack.enter_context(patch.object(os, name, self._wrapped(name, getattr(os, name))))
            stack.enter_context(patch.object(disk_module, "_libc", self))
            yield self

    def _wrapped(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **more: Any) -> Any:
            code = self._next(_kind(name, arguments))
            if code and self.fault.partly and len(self.failed) == 1:
                # The kernel takes what there is room for; the write for the rest is told why.
                return call(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
            if code:
                raise OSError(code, os.strerror(code))
            return call(*arguments, **more)

        return wrapped

    def renameat2(self, *arguments: Any) -> int:
        """Stands in for the C library's."""
        code = self._next("rename")
        if code:
            ctypes.set_errno(code)
            return -1
        result: int = _libc.renameat2(*arguments)
        return result

    def _next(self, kind: str) -> int:
        if kind not in self.fault.calls:
            return 0
        with self._lock:
            self.count += 1
            if self.count == self.at or (self.at and self.count > self.at and self._goes_on):
                self.failed.append(kind)
                return self.fault.code
        return 0

    @property
    def _goes_on(self) -> bool:
        # A write that was done in part is followed by one for the rest, which is not.
        return self.fault.lasting or (self.fault.partly and self.count == self.at + 1)


_libc = ctypes.CDLL(None, use_errno=True)


def _kind(name: str, arguments: tuple[Any, ...]) -> str:
    if name == "open":
        return "create" if arguments[1] & (os.O_CREAT | (os.O_TMPFILE & ~os.O_DIRECTORY)) else "open"
    return "rename" if name == "replace" else name
