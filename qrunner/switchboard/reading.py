"""Reading files of a queue directory, any of which may be a stranger's."""

from __future__ import annotations

import errno
import os
import stat

from qrunner.errors import CorruptEntry
from qrunner.format import HEAD_SIZE, Name, Opened, lengths, open_file

_LONGEST_HISTORY = 256 << 20
# What waiting can mend says nothing about the file; everything else does.
_TRY_AGAIN = frozenset({errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOMEM, errno.EINTR, errno.ESTALE})


def names_in(directory: str) -> list[str]:
    """The names in a directory; none if it is not there."""
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []


def read_path(path: str) -> bytes:
    """A regular file's bytes.

    :raises CorruptEntry: it is no regular file, or may not be read.
    """
    fd = _opened(path)
    try:
        return _whole(fd)
    finally:
        os.close(fd)


def _opened(path: str) -> int:
    try:
        # A FIFO blocks an open, a link leads elsewhere: neither is an entry.
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in _TRY_AGAIN:
            raise
        raise CorruptEntry(f"it can't be opened: {error.strerror}") from None


def _whole(fd: int) -> bytes:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise CorruptEntry("it is not a regular file")
    with open(fd, "rb", buffering=0, closefd=False) as file:
        return file.read()


def open_path(path: str, queue: str, name: Name) -> Opened:
    """The entry in a file. :raises CorruptEntry: there is none in it."""
    fd = _opened(path)
    try:
        about = os.fstat(fd)
        if stat.S_ISREG(about.st_mode):
            # Before the rest is read: a stranger's file can be larger than our memory.
            json_len, message_len, _ = lengths(os.pread(fd, HEAD_SIZE, 0), about.st_size)
            if about.st_size > HEAD_SIZE + json_len + message_len + _LONGEST_HISTORY:
                raise CorruptEntry(f"a history longer than {_LONGEST_HISTORY} bytes")
        return open_file(queue, name, _whole(fd))
    finally:
        os.close(fd)
