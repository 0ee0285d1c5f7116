"""The few operations on files from which the queue's promises are made.

Guarantees: no name is ever overwritten but by ``replace``; what ``publish`` returns from is on stable storage,
name and content.

Not guaranteed: anything on file systems that do not keep directory operations whole and in order (``doctor``
names them).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")
HIDDEN = ".new."
_NO_TMPFILE = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL})
_NOREPLACE = 1
_AT_FDCWD = -100
# So many syncs in flight at a time: what comes while the file system commits shares its next commit.
_IN_FLIGHT = 16
_libc = ctypes.CDLL(None, use_errno=True)


def rename_new(source: str, target: str) -> None:
    """Renames, never over something. :raises FileExistsError: the target is there."""
    call = getattr(_libc, "renameat2", None)
    if call is not None:
        if call(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _NOREPLACE) == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.EINVAL, errno.ENOSYS):
            raise OSError(code, os.strerror(code), source, None, target)
    # File systems without the flag (NFS): the range's lease keeps other runners away, the look keeps strangers safe.
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), source, None, target)
    os.rename(source, target)


def write_all(fd: int, parts: Sequence[bytes]) -> None:
    """Writes everything. :raises OSError: it could not; a part may have been written."""
    for part in parts:
        view = memoryview(part)
        while view:
            view = view[os.write(fd, view) :]


class opened:
    """A directory's descriptor, for a ``with``. As a class: each enqueue has one."""

    __slots__ = ("_fd", "_path")

    def __init__(self, path: str) -> None:
        self._path = path

    def __enter__(self) -> int:
        self._fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return self._fd

    def __exit__(self, *error: object) -> None:
        os.close(self._fd)


@dataclass(eq=False, slots=True)
class Staged:
    """A file written, without its name yet. ``temporary`` is a hidden name where unnamed files can't be had."""

    fd: int
    directory: str
    name: str
    temporary: str | None = None
    linked: bool = False

    def link(self) -> None:
        """Gives it its name, never over another."""
        with opened(self.directory) as directory:
            self.link_in(directory)

    def link_in(self, directory: int) -> None:
        """``link`` in its directory, which is open."""
        if self.temporary is not None:
            rename_new(self.temporary, f"{self.directory}/{self.name}")
            self.temporary = None
        else:
            # With a directory descriptor this is linkat(AT_SYMLINK_FOLLOW), which follows the magic link.
            os.link(f"/proc/self/fd/{self.fd}", self.name, dst_dir_fd=directory, follow_symlinks=True)
        self.linked = True

    def withdraw(self) -> bool:
        """Takes the name back; False: somebody has taken the entry already."""
        if self.temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(self.temporary)
        if not self.linked:
            return True
        try:
            os.unlink(f"{self.directory}/{self.name}")
        except FileNotFoundError:
            return False
        return True

    def close(self) -> None:
        """Lets go of the descriptor; an unnamed file is gone then."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@dataclass(slots=True)
class Disk:
    """Writes and syncs; with ``durable`` off (tests) the syncs are left out."""

    durable: bool = True
    # Its threads begin with the first syncs that go together.
    _pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_IN_FLIGHT, "sync"))

    def stage(self, directory: str, name: str, parts: Sequence[bytes]) -> Staged:
        """Writes a file that nobody can see. Not synced; ``publish`` does that."""
        staged = self._open(directory, name)
        try:
            write_all(staged.fd, parts)
        except BaseException:
            staged.withdraw()
            staged.close()
            raise
        return staged

    def _open(self, directory: str, name: str) -> Staged:
        try:
            fd = os.open(directory, os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
            return Staged(fd, directory, name)
        except OSError as error:
            if error.errno not in _NO_TMPFILE:
                raise
        return self._open_hidden(directory, name)

    def _open_hidden(self, directory: str, name: str) -> Staged:
        temporary = f"{directory}/{HIDDEN}{os.urandom(8).hex()}"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        return Staged(fd, directory, name, temporary)

    def write_hidden(self, directory: str, parts: Sequence[bytes]) -> str:
        """Writes and syncs a file under a hidden name, which is returned: for what is renamed over another."""
        staged = self._open_hidden(directory, "")
        assert staged.temporary is not None
        try:
            write_all(staged.fd, parts)
            self.sync_file(staged.fd)
        except BaseException:
            staged.withdraw()
            raise
        finally:
            staged.close()
        return staged.temporary

    def sync_file(self, fd: int) -> None:
        """The file's content is on stable storage."""
        if self.durable:
            os.fsync(fd)

    def sync_directory(self, directory: str, fd: int | None = None) -> None:
        """The directory's names are on stable storage. ``fd``: it is open already."""
        if fd is not None:
            self.sync_file(fd)
        elif self.durable:
            with opened(directory) as fd:
                os.fsync(fd)

    def sync_files(self, fds: Sequence[int]) -> None:
        """``sync_file`` of several, in flight together: the file system makes one commit of them, not one each.

        :raises OSError: of the first that failed; all have been tried, none is on its way any more.
        """
        self._together(self.sync_file, fds)

    def sync_directories(self, directories: Sequence[str]) -> None:
        """``sync_directory`` of several, in flight together; errors as ``sync_files``."""
        self._together(self.sync_directory, directories)

    def _together(self, sync: Callable[[T], None], things: Sequence[T]) -> None:
        if len(things) < 2 or not self.durable:
            for thing in things:
                sync(thing)
            return
        syncs = [self._pool.submit(sync, thing) for thing in things]
        # All of them, whatever one says: whoever is told of a failure closes the files.
        wait(syncs)
        for one in syncs:
            one.result()

    def publish(self, staged: Sequence[Staged]) -> None:
        """Makes files durable under their names. Any thread; callers at the same time share one write of the file
        system's journal, which is what a sync waits for.

        A sync that fails is not repeated: the kernel reports an error once, and then forgets.

        :raises OSError: none of these files has its name.
        """
        try:
            if len(staged) == 1:
                self._publish_one(staged[0])
            else:
                self.sync_files([one.fd for one in staged])
                for one in staged:
                    one.link()
                self.sync_directories(list(dict.fromkeys(one.directory for one in staged)))
        except BaseException as error:
            is_taken = self._taken(staged)
            if not (is_taken and isinstance(error, OSError)):
                raise
        finally:
            for one in staged:
                one.close()

    def _publish_one(self, staged: Staged) -> None:
        self.sync_file(staged.fd)
        with opened(staged.directory) as directory:
            staged.link_in(directory)
            self.sync_directory(staged.directory, directory)

    def _taken(self, staged: Sequence[Staged]) -> bool:
        """Withdraws names; True: runners have all of them in hand already, so that they are accepted after all.

        Of several, what a runner has stays with it, and the caller hears of a failure: twice is better than lost.
        """
        # The last first: where one name stands for the others, it is never there without them.
        withdrawn = [self._withdrawn(one) for one in reversed(staged)]
        return not any(withdrawn)

    def _withdrawn(self, staged: Staged) -> bool:
        try:
            return staged.withdraw()
        except OSError:
            return True  # it stands, and may not be durable: whoever asked for it has to keep the message
        finally:
            staged.linked = False


def make_directories(paths: Iterable[str], disk: Disk) -> None:
    """Makes directories and those above them, mode 0700, durably; one that is there is left as it is."""
    grown: dict[str, None] = {}
    for path in paths:
        missing = []
        while not os.path.isdir(path):
            missing.append(path)
            path = os.path.dirname(path)
        for one in reversed(missing):
            with contextlib.suppress(FileExistsError):
                os.mkdir(one, 0o700)
            grown[os.path.dirname(one)] = None
    for parent in grown:
        disk.sync_directory(parent)


class Tail:
    """The end of a file in hand: whole lines are added to it, and a torn last line is closed first.

    :raises OSError: there is no such file, or it can't be opened.
    """

    __slots__ = ("_fd", "_left_at")

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        # As long as the file was when our own last line was its end.
        self._left_at = 0

    def add(self, lines: bytes, *, disk: Disk | None = None, once: bool = False) -> int:
        """As ``append``."""
        size = os.fstat(self._fd).st_size
        try:
            if not (once and os.pread(self._fd, len(lines), max(0, size - len(lines))) == lines):
                if size != self._left_at and os.pread(self._fd, 1, size - 1) != b"\n":
                    lines = b"\n" + lines
                write_all(self._fd, [lines])
                self._left_at = size + len(lines)
            if disk is not None:
                disk.sync_file(self._fd)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, size)
            raise
        return size

    def close(self) -> None:
        """Lets go of it."""
        os.close(self._fd)


def append(path: str, lines: bytes, *, disk: Disk | None = None, once: bool = False) -> int:
    """Adds whole lines to a file's end; a torn last line is closed first. ``disk``: synced on it.

    :param once: unless the file ends with them already.
    :return: how long the file was before.
    :raises OSError: nothing was added; where even that can't be undone, a line that is torn, or was not synced.
    """
    tail = Tail(path)
    try:
        return tail.add(lines, disk=disk, once=once)
    finally:
        tail.close()


def cut_back(path: str, size: int) -> None:
    """Takes back what ``append`` added, as far as the disk allows it."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.ftruncate(fd, size)
        finally:
            os.close(fd)
