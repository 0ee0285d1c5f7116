"""Where a door listens: a TCP address, or a Unix socket.

Guarantees: a Unix socket is the owner's alone unless it is told otherwise, from the moment in which it can be seen;
what another living process listens at, and any file that is not a socket of ours, is left as it is. One that a dead
process left is replaced. Without descriptors left, connections wait; nothing spins.

Failures: `ConfigError` says what stands in the way.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from qrunner.config import Listen
from qrunner.errors import ConfigError
from qrunner.log import event
from qrunner.smtpd.room import Room

# What `struct sockaddr_un` has room for, less the NUL.
_LONGEST_PATH = 107
_BACKLOG = 512
_DEAD = (errno.ECONNREFUSED, errno.ENOENT)
Factory = Callable[[], asyncio.BaseProtocol]


class _TurnedAway(asyncio.Protocol):
    """A connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        transport.write(b"421 4.7.0 too many connections: try again later\r\n")
        transport.close()


class Listener:
    """Listens at one place.

    :param make: makes the protocol of a connection, which enters the room.
    ``port``: the TCP port, also where any was asked for.

    :param mode: of a Unix socket.
    """

    def __init__(
        self, place: Listen, make: Factory, room: Room, log: logging.Logger, *, mode: int = 0o600
    ) -> None:
        self._place, self._make, self._room, self._log, self._mode = place, make, room, log, mode
        self._server: asyncio.Server | None = None
        self._socket_file: _SocketFile | None = None
        self._was_full = False
        self.port = place.port

    async def open(self) -> None:
        """Listens from now on. :raises ConfigError: it can't."""
        loop = asyncio.get_running_loop()
        try:
            if self._place.path is not None:
                self._socket_file = _SocketFile(self._place.path, self._mode)
                self._server = await loop.create_server(
                    self._arrived, sock=self._socket_file.open(), backlog=_BACKLOG
                )
            else:
                host, port = self._place.host or None, self._place.port
                self._server = await loop.create_server(self._arrived, host, port, backlog=_BACKLOG)
                self.port = int(self._server.sockets[0].getsockname()[1])
        except OSError as error:
            self.close()
            raise ConfigError(f"can't listen at {self._place}: {error.strerror or error}") from error
        event(self._log, "listening", at=str(self._place))

    def _arrived(self) -> asyncio.BaseProtocol:
        if self._room.is_full:
            if not self._was_full:
                self._was_full = True
                event(self._log, "too many connections", level=logging.WARNING)
            return _TurnedAway()
        self._was_full = False
        return self._make()

    def close(self) -> None:
        """Takes no more connections; those that there are go on."""
        if self._server is not None:
            self._server.close()
        if self._socket_file is not None:
            self._socket_file.close()
        self._server = self._socket_file = None


class _SocketFile:
    """A Unix socket under its name.

    A lock beside it, held for as long as it is ours, keeps two doors from taking it from each other.
    """

    def __init__(self, path: Path, mode: int) -> None:
        self._path, self._mode = path, mode
        self._lock = FileLock(f"{path}.lock", 0, mode=0o600, thread_local=False, fallback_to_soft=False)
        self._ours: tuple[int, int] | None = None

    def open(self) -> socket.socket:
        """A socket that listens. :raises ConfigError, OSError: it can't be had."""
        if len(os.fsencode(self._path)) > _LONGEST_PATH:
            raise ConfigError(
                f"{self._path}: a Unix socket's path has {_LONGEST_PATH} bytes at most: take a shorter one"
            )
        _check_folder(self._path.parent)
        try:
            self._lock.acquire()
        except Timeout:
            raise ConfigError(f"{self._path}: another door listens there") from None
        _check_replaceable(self._path)
        return self._bound()

    def _bound(self) -> socket.socket:
        """Made under another name and renamed: nobody finds it before it is as it is meant to be."""
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fresh = f".{self._path.name}.new"
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(fresh, dir_fd=folder)
            # By the folder's descriptor the path is short whatever the folder is called.
            made.bind(f"/proc/self/fd/{folder}/{fresh}")
            os.chmod(fresh, self._mode, dir_fd=folder)
            made.listen(_BACKLOG)
            os.rename(fresh, self._path.name, src_dir_fd=folder, dst_dir_fd=folder)
            status = os.stat(self._path.name, dir_fd=folder, follow_symlinks=False)
            self._ours = status.st_dev, status.st_ino
        except BaseException:
            made.close()
            raise
        finally:
            os.close(folder)
        return made

    def close(self) -> None:
        """Takes the name away, if it is still ours."""
        with contextlib.suppress(OSError):
            status = os.lstat(self._path)
            if (status.st_dev, status.st_ino) == self._ours:
                os.unlink(self._path)
        self._ours = None
        self._lock.release()


def _check_folder(folder: Path) -> None:
    """In a folder that others may write to, another's socket could take the place of ours."""
    try:
        status = folder.stat()
    except FileNotFoundError:
        raise ConfigError(f"{folder} is not there: make it, for the user that everything runs as") from None
    if status.st_uid not in (os.geteuid(), 0) or status.st_mode & 0o022:
        raise ConfigError(f"{folder}: others may write to it: give it to the user that everything runs as")


def _check_replaceable(path: Path) -> None:
    """:raises ConfigError: somebody lives there, or it is not ours."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode) or status.st_uid != os.geteuid():
        raise ConfigError(f"{path} is there and is no socket of ours: remove it, or listen elsewhere")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1)
        # Whoever is too busy to answer lives as well.
        if client.connect_ex(str(path)) not in _DEAD:
            raise ConfigError(f"{path}: another process listens there")
