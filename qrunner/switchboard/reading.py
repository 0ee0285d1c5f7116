"""Reading files of a queue directory, any of which may be a stranger's."""

from __future__ import annotations

import errno
import os
import stat

from qrunner.errors import CorruptEntry
from qrunner.format import HEAD_SIZE, Name, Opened, glance_at, lengths, open_file, open_parts
from qrunner.message import Glance

LONGEST_TAIL = 256 << 20
# A FIFO blocks an open, a link leads elsewhere: neither is an entry.
_ENTRY = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# What waiting can mend says nothing about the file; everything else does.
_PIECE = 1 << 20
_GLANCE = 1 << 13
_TRY_AGAIN = frozenset({errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOMEM, errno.EINTR, errno.ESTALE})


def names_in(directory: str) -> list[str]:
    """The names in a directory; none if it is not there."""
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []


def read_path(path: str, limit: int | None = None) -> bytes:
    """A regular file's bytes.

    :param limit: more bytes than that are not what was asked for; a stranger's file can be larger than our memory.
    :raises CorruptEntry: it is no regular file, or larger, or may not be read.
    """
    fd = _opened(path)
    try:
        return _whole(fd, limit)
    finally:
        os.close(fd)


def _opened(path: str) -> int:
    try:
        return os.open(path, _ENTRY)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in _TRY_AGAIN:
            raise
        raise CorruptEntry(f"it can't be opened: {error.strerror}") from None


def _whole(fd: int, limit: int | None = None) -> bytes:
    about = os.fstat(fd)
    if not stat.S_ISREG(about.st_mode):
        raise CorruptEntry("it is not a regular file")
    if limit is not None and about.st_size > limit:
        raise CorruptEntry(f"it is longer than {limit} bytes")
    return _read(fd, about.st_size)


def _read(fd: int, size: int) -> bytes:
    """All there is; a little more than the size is asked for, to see the end."""
    data = os.read(fd, size + 1)
    if not data or len(data) == size:
        return data
    parts = [data]
    while part := os.read(fd, _PIECE):
        parts.append(part)
    return b"".join(parts)


def open_path(path: str, queue: str, name: Name) -> Opened:
    """The entry in a file. :raises CorruptEntry: there is none in it."""
    fd = _opened(path)
    try:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode):
            raise CorruptEntry("it is not a regular file")
        if about.st_size > _PIECE:
            return _in_parts(fd, about.st_size, queue, name)
        return open_file(queue, name, _read(fd, about.st_size))
    finally:
        os.close(fd)


def _in_parts(fd: int, size: int, queue: str, name: Name) -> Opened:
    """A large entry, its message read to where it stays: a copy of it costs as much as its checksum."""
    # Before it is read: a stranger's file can be larger than our memory.
    json_len, message_len, _ = lengths(os.pread(fd, HEAD_SIZE, 0), size)
    if size > HEAD_SIZE + json_len + message_len + LONGEST_TAIL:
        raise CorruptEntry(f"it is longer than {HEAD_SIZE + json_len + message_len + LONGEST_TAIL} bytes")
    head, message = _part(fd, HEAD_SIZE + json_len), _part(fd, message_len)
    return open_parts(queue, name, head, message, _read(fd, size - len(head) - len(message)))


def _part(fd: int, size: int) -> bytes:
    """So many bytes, if there are as many."""
    data = os.read(fd, size) if size else b""
    while len(data) < size and (more := os.read(fd, size - len(data))):
        data += more
    return data


def glance_at_path(path: str, queue: str, id: str, due_ns: int) -> Glance:
    """The entry in a file without its message, however long that is. :raises CorruptEntry: there is none in it."""
    fd = _opened(path)
    try:
        data = os.read(fd, _GLANCE)
        size = len(data) if len(data) < _GLANCE else os.fstat(fd).st_size
        json_len, message_len, digest = lengths(data, size)
        body, after = HEAD_SIZE + json_len, HEAD_SIZE + json_len + message_len
        line, tail = data[HEAD_SIZE:body], data[after:]
        if size > len(data):
            line = line if body <= len(data) else os.pread(fd, json_len, HEAD_SIZE)
            tail = os.pread(fd, min(size - after, LONGEST_TAIL), after)
    finally:
        os.close(fd)
    return glance_at(queue, id, due_ns, line, message_len, digest, tail)
