"""Locks on single bytes of a file, for processes of one machine: thousands of them cost one descriptor.

Guarantees: a lock belongs to the open file and ends with the process, however that ends. The file need not be as long
as the byte's number.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

# l_type, l_whence, l_start, l_len, l_pid of struct flock where a file's size has 64 bits.
_FLOCK = struct.Struct("hhqqi4x")


class ByteLocks:
    """Locks on single bytes of a file (``F_OFD_SETLK``): between processes the kernel's, within one a set."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._mine: set[int] = set()

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    def take(self, place: int) -> bool:
        """Whether it is ours now; what we hold already can't be taken again."""
        if place in self._mine or not self._locked(fcntl.F_OFD_SETLK, place):
            return False
        self._mine.add(place)
        return True

    def give(self, place: int) -> None:
        """Gives it up; twice is as good as once."""
        if place in self._mine:
            self._mine.discard(place)
            fcntl.fcntl(self.descriptor(), fcntl.F_OFD_SETLK, _flock(fcntl.F_UNLCK, place))

    def is_taken_by_others(self, place: int) -> bool:
        """Whether another process holds it."""
        try:
            found = fcntl.fcntl(self.descriptor(), fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK, place))
        except OSError:
            return False
        return int(_FLOCK.unpack(found)[0]) != fcntl.F_UNLCK

    @contextlib.contextmanager
    def alone(self, place: int) -> Iterator[None]:
        """Waits for it. Who holds it does so for a read and a write; the event loop waits meanwhile."""
        fcntl.fcntl(self.descriptor(), fcntl.F_OFD_SETLKW, _flock(fcntl.F_WRLCK, place))
        try:
            yield
        finally:
            fcntl.fcntl(self.descriptor(), fcntl.F_OFD_SETLK, _flock(fcntl.F_UNLCK, place))

    def read(self, place: int, count: int) -> bytes:
        """So many bytes of the file, or as many as there are. Makes no file. :raises OSError: there is none."""
        if self._descriptor is not None:
            return os.pread(self._descriptor, count, place)
        descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(descriptor, count, place)
        finally:
            os.close(descriptor)

    def _locked(self, command: int, place: int) -> bool:
        try:
            fcntl.fcntl(self.descriptor(), command, _flock(fcntl.F_WRLCK, place))
        except BlockingIOError:
            return False
        return True

    def descriptor(self) -> int:
        """The file, opened when it is first needed."""
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return self._descriptor


def _flock(kind: int, place: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, place, 1, 0)
