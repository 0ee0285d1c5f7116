"""What has come into a maildir, and the move from ``new`` to ``cur`` that makes it ours.

Guarantees: a file is read when it is complete: nobody has it open for writing, or, where the kernel does not tell, it
has not changed for five seconds, or was moved there before our eyes. Nothing is ever overwritten in ``cur``.

Not guaranteed: that it stays. Other programs may move or delete what is in ``new`` meanwhile. A file that was moved from
``cur`` back to ``new`` has come again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import os
import re
import signal
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qrunner.maildir.lock import Lock
from qrunner.switchboard.disk import rename_new
from qrunner.switchboard.files import boot_id

LOCK = "qrunner.lock"
SETTLED_S = 5.0
# A message has to fit into memory, several times.
LARGEST = 1 << 30
_DELIVERED = re.compile(r"[0-9]{1,15}")


class Unfit(Exception):
    """What has come can't be read as a message, and is left where it is. The text says why."""


class Unfinished(Exception):
    """It may still be written. ``again_s``: when to look again; None: when the writer has closed it, or at the poll."""

    def __init__(self, again_s: float | None) -> None:
        super().__init__(again_s)
        self.again_s = again_s


@dataclass(frozen=True, slots=True, eq=False)
class Letter:
    """A message that has come: the file's name, which file that is, and its bytes."""

    name: str
    inode: int
    message: bytes


@dataclass(frozen=True, slots=True)
class _Seen:
    """A file that may still be written, and since when (monotonic) it has been as it is."""

    inode: int
    size: int
    changed_ns: int
    since_s: float


class Maildir:
    """A maildir of which we hold the lock."""

    def __init__(self, path: Path, who: str) -> None:
        """:param who: is written into the lock's file, for whoever finds it taken.
        :raises LeaseHeld: another process reads it; the message names it. OSError: there is no maildir that we may use.
        """
        self.path = os.path.realpath(path)
        self.new, self.cur = f"{self.path}/new", f"{self.path}/cur"
        self._seen: dict[str, _Seen] = {}
        self._whole: set[str] = set()
        self._expect_folders()
        self.lock = Lock(f"{self.path}/{LOCK}", who, boot_id())

    def close(self) -> None:
        """Lets others read it."""
        self.lock.release()

    @property
    def door(self) -> str:
        """A name for what is staged from it: that of the place, so that it does not change with the runner's."""
        return "maildir-" + hashlib.sha1(os.fsencode(self.path), usedforsecurity=False).hexdigest()[:16]

    def check(self) -> None:
        """:raises OSError: it is not there any more: unmounted, or another one in its place."""
        self._expect_folders()
        try:
            ours, there = self.lock.about, os.stat(f"{self.path}/{LOCK}")
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, "its lock has gone", f"{self.path}/{LOCK}") from None
        if (ours.st_dev, ours.st_ino) != (there.st_dev, there.st_ino):
            raise FileNotFoundError(errno.ENOENT, "there is another maildir in its place", self.path)

    def _expect_folders(self) -> None:
        for directory in (self.new, self.cur):
            try:
                mode = os.lstat(directory).st_mode
            except FileNotFoundError:
                raise FileNotFoundError(errno.ENOENT, "there is no such maildir", directory) from None
            # A link could lead to where no maildir is, and its files be taken for mail.
            if not stat.S_ISDIR(mode):
                raise NotADirectoryError(errno.ENOTDIR, "this is no folder of a maildir", directory)

    @property
    def may_move(self) -> bool:
        """Whether we may move files from ``new`` to ``cur`` at all."""
        return all(os.access(directory, os.W_OK | os.X_OK) for directory in (self.new, self.cur))

    # What has come

    def names(self) -> list[str]:
        """What lies in ``new``, about in the order in which it was delivered. Hidden names are not mail."""
        names = [name for name in os.listdir(self.new) if not name.startswith(".")]
        self._seen = {name: self._seen[name] for name in names if name in self._seen}
        self._whole.intersection_update(names)
        return sorted(names, key=_delivered)

    def is_whole(self, name: str) -> None:
        """Somebody has seen the file being moved there, or its writer closing it."""
        self._whole.add(name)

    def read(self, name: str, now_s: float) -> Letter:
        """The message of that name.

        :param now_s: of a monotonic clock.
        :raises Unfit: it is none. Unfinished: not now. FileNotFoundError: it has gone.
        """
        try:
            fd = os.open(f"{self.new}/{name}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno in _TRY_AGAIN:
                raise
            raise Unfit(f"it can't be opened: {error.strerror}") from None
        try:
            return self._read(fd, name, now_s)
        finally:
            os.close(fd)

    def _read(self, fd: int, name: str, now_s: float) -> Letter:
        before = os.fstat(fd)
        if not stat.S_ISREG(before.st_mode):
            raise Unfit("it is not a regular file")
        if before.st_size > LARGEST:
            raise Unfit(f"it is larger than {LARGEST} bytes")
        self._expect_complete(fd, name, before, now_s)
        with open(fd, "rb", buffering=0, closefd=False) as file:
            message = file.readall()
        after = os.fstat(fd)
        if (len(message), after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise Unfinished(SETTLED_S)
        return Letter(name, before.st_ino, message)

    def _expect_complete(self, fd: int, name: str, about: os.stat_result, now_s: float) -> None:
        """:raises Unfinished: somebody may still be writing it."""
        is_free = nobody_writes(fd)
        if is_free is False:
            raise Unfinished(None)
        # An empty one may be about to be opened again, by whoever has only just made it.
        if about.st_size and (is_free or name in self._whole):
            return
        looks = (about.st_ino, about.st_size, about.st_mtime_ns)
        seen = self._seen.get(name)
        if seen is None or (seen.inode, seen.size, seen.changed_ns) != looks:
            self._seen[name] = seen = _Seen(*looks, now_s)
        if now_s - seen.since_s < SETTLED_S:
            raise Unfinished(SETTLED_S - (now_s - seen.since_s))

    # What becomes of it

    def holds(self, name: str, inode: int) -> bool:
        """Whether that very file is still in ``new``."""
        try:
            return os.lstat(f"{self.new}/{name}").st_ino == inode
        except FileNotFoundError:
            return False

    def take(self, name: str) -> bool:
        """Moves a file to ``cur``, as one that nobody has read; not synced. False: it has gone from ``new``.

        :raises OSError: it is where it was.
        """
        for target in _names_in_cur(name):
            try:
                rename_new(f"{self.new}/{name}", f"{self.cur}/{target}")
                return True
            except FileExistsError:
                continue
            except FileNotFoundError:
                self.check()
                return False
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG:
                    raise
        raise AssertionError("there is always another name")


_TRY_AGAIN = frozenset({errno.EMFILE, errno.ENFILE, errno.EIO, errno.ENOMEM, errno.EINTR, errno.ESTALE})


def _names_in_cur(name: str) -> Iterator[str]:
    """The names that a file may get in ``cur``, best first; without end."""
    base, info, flags = name.partition(":2,")
    end = f"{info or ':2,'}{flags}"
    yield base + end
    # Somebody else's has that name, or it is too long for one.
    short = os.fsdecode(os.fsencode(base)[:100]) + "." + hashlib.sha1(os.fsencode(name)).hexdigest()
    for number in itertools.count(1):
        yield f"{short}.q{number}:2,"


def _delivered(name: str) -> tuple[int, str]:
    """For sorting: a name begins with the second of its delivery."""
    found = _DELIVERED.match(name)
    return (int(found[0]) if found else 0, name)


def nobody_writes(fd: int) -> bool | None:
    """Whether nobody has the file open for writing (fcntl(2), "Leases"); None: the kernel does not tell.

    It tells the file's owner, and not on network file systems.
    """
    try:
        # For the moment that we hold the lease, a writer who comes has us told by a signal that is ignored.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return False
    except (OSError, AttributeError):
        return None
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return True
