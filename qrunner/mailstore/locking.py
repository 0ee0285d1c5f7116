"""A mailbox's file, locked as mailers lock it: by the kernel and by a file beside it.

The kernel's lock is one of the open file (``F_OFD_SETLK``), which excludes those of ``fcntl`` and ``lockf``, and the other
threads of this process too. The other lock is ``NAME.lock``, made by a link, with our process in it. Both are tried without
waiting, the kernel's first, as Debian asks of its mail programs: who does it in another order is met by no deadlock.

Guarantees: who holds it is alone among all that take either lock, on this machine. What a dead process held is free:
the kernel's lock at once, ``NAME.lock`` once its process is seen to be gone, or after the five minutes that are the custom.

Not guaranteed: anything against programs that take neither. On a network file system, more than its locks are worth.

Failures: ``Locked`` at once; ``OSError``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
import time
from dataclasses import dataclass

from qrunner.rundir import is_alive
from qrunner.switchboard.disk import Disk, Staged, make_directories

_STALE_S = 300.0
_LONGEST = 1_000
_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Locked(Exception):
    """Somebody else has it; the text says who, as far as that is known."""


@dataclass(frozen=True, slots=True)
class LockedFile:
    """A mailbox's file, open and locked until ``close``."""

    path: str
    fd: int

    @classmethod
    def take(cls, path: str, disk: Disk) -> LockedFile:
        """Opens and locks it; one that is not there is made, and so are the folders above it.

        :raises Locked: somebody else has it. OSError: it can't be had, or is no regular file.
        """
        make_directories([os.path.dirname(path)], disk)
        while True:
            fd = os.open(path, _FLAGS | os.O_CREAT, 0o600)
            try:
                _lock(fd, path)
                if _is_at(fd, path):
                    _lock_beside(path, disk)
                    return cls(path, fd)
            except BaseException:
                os.close(fd)
                raise
            # It was put away while we waited for nothing: the one that has the name now is meant.
            os.close(fd)

    def close(self) -> None:
        """Gives both locks back."""
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_beside(self.path))
        finally:
            os.close(self.fd)


def _lock(fd: int, path: str) -> None:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", path)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            raise Locked(f"{path} is locked by another program") from None
        raise


def _is_at(fd: int, path: str) -> bool:
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(fd))


def _beside(path: str) -> str:
    return f"{path}.lock"


def _lock_beside(path: str, disk: Disk) -> None:
    directory, name = os.path.split(_beside(path))
    staged = disk.stage(directory, name, [f"{os.getpid()}\n{socket.gethostname()}\n".encode()])
    try:
        _link(staged, path)
    except BaseException:
        staged.withdraw()
        raise
    finally:
        staged.close()


def _link(staged: Staged, path: str) -> None:
    try:
        staged.link()
    except FileExistsError:
        if not _is_stale(_beside(path)):
            raise Locked(f"{path} is locked by another program: {_beside(path)} is there") from None
        # We have the kernel's lock, so no other of ours is at this.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_beside(path))
        try:
            staged.link()
        except FileExistsError:
            raise Locked(f"{path} is locked by another program, which was faster") from None


def _is_stale(lock: str) -> bool:
    try:
        with open(lock, "rb", opener=_open_nothing_else) as file:
            age_s = time.time() - os.fstat(file.fileno()).st_mtime
            pid, _, host = file.read(_LONGEST).partition(b"\n")
    except FileNotFoundError:
        return True
    here = host.strip() in (b"", socket.gethostname().encode())
    is_dead = pid.isdigit() and int(pid) > 0 and here and not is_alive(int(pid))
    return is_dead or age_s > _STALE_S


def _open_nothing_else(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
