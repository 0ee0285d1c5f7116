"""Reading files of a queue directory, any of which may be a stranger's."""

from __future__ import annotations

import errno
import os
import stat

from qrunner.errors import CorruptEntry
from qrunner.format import Name, Opened, open_file

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
    try:
        # A FIFO blocks an open, a link leads elsewhere: neither is an entry.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in _TRY_AGAIN:
            raise
        raise CorruptEntry(f"it can't be opened: {error.strerror}") from None
    try:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode):
            raise CorruptEntry("it is not a regular file")
        with open(fd, "rb", buffering=0, closefd=False) as file:
            return file.read()
    finally:
        os.close(fd)


def open_path(path: str, queue: str, name: Name) -> Opened:
    """The entry in a file. :raises CorruptEntry: there is none in it."""
    return open_file(queue, name, read_path(path))
