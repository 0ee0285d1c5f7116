"""Word from the kernel that names appeared in directories: inotify(7), without a package.

Guarantees: an event a name, in order, or one event that says that events were lost.

Failures: ``OSError`` where the kernel gives no watches (its limits, or a system without inotify): the caller polls.
"""

from __future__ import annotations

import ctypes
import os
import struct
from dataclasses import dataclass, field

_CREATE, _MOVED_TO, _CLOSE_WRITE, _DELETE_SELF, _MOVE_SELF = 0x100, 0x80, 0x8, 0x400, 0x800
_Q_OVERFLOW, _IGNORED, _UNMOUNT, _ONLYDIR = 0x4000, 0x8000, 0x2000, 0x01000000
_HEADER = struct.Struct("iIII")
# The longest event is one of a name of 255 bytes, which is filled up with zeros.
_AT_ONCE, _LONGEST = 65_536, _HEADER.size + 256
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Event:
    """A name that appeared in a directory; or ``lost``: list the directories again.

    ``whole``: a file was moved there, or whoever wrote it has closed it. One that was linked there is whole as well,
    but looks like one that is just being begun.
    """

    directory: str
    name: bytes
    lost: bool = False
    whole: bool = field(default=False, compare=False)


class Watch:
    """Watches directories. ``fileno`` is readable when there are events."""

    def __init__(self) -> None:
        try:
            init = _libc.inotify_init1
        except AttributeError:
            raise OSError("this system has no inotify") from None
        self._fd: int = init(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise _error("inotify")
        self._directories: dict[int, str] = {}

    def add(self, directory: str, *, written: bool = False) -> None:
        """Watches a directory for names that appear in it.

        :param written: also for files in it that were open for writing and are closed; one more event of their names.
        """
        # A file linked from an unnamed one shows as created only, one that is renamed into place as moved only.
        mask = _CREATE | _MOVED_TO | _DELETE_SELF | _MOVE_SELF | _ONLYDIR | (_CLOSE_WRITE if written else 0)
        number = _libc.inotify_add_watch(self._fd, os.fsencode(directory), mask)
        if number < 0:
            raise _error(directory)
        self._directories[number] = directory

    def fileno(self) -> int:
        """For an event loop."""
        return self._fd

    def read(self) -> list[Event]:
        """What there is; empty if nothing."""
        events: list[Event] = []
        while True:
            try:
                data = os.read(self._fd, _AT_ONCE)
            except BlockingIOError:
                return events
            at = 0
            while at < len(data):
                number, mask, _, length = _HEADER.unpack_from(data, at)
                name = data[at + _HEADER.size : at + _HEADER.size + length].rstrip(b"\0")
                at += _HEADER.size + length
                directory = self._directories.get(number, "")
                if mask & _MOVE_SELF:
                    # It is somewhere else now, and what appears there must not be told under the old name.
                    _libc.inotify_rm_watch(self._fd, number)
                if mask & _IGNORED:
                    self._directories.pop(number, None)
                if mask & (_Q_OVERFLOW | _DELETE_SELF | _MOVE_SELF | _IGNORED | _UNMOUNT):
                    events.append(Event(directory, b"", lost=True))
                elif name:
                    events.append(Event(directory, name, whole=bool(mask & (_MOVED_TO | _CLOSE_WRITE))))
            if len(data) < _AT_ONCE - _LONGEST:
                return events

    def close(self) -> None:
        """Ends the watches."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _error(what: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code), what)
