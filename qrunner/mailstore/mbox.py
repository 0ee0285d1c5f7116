"""An mbox: one file, a message after the other, in the form ``mboxrd``.

A message begins with a line ``From SENDER DATE``, the date in UTC as of asctime(3) (RFC 4155), and ends with an empty
line. Each line of it that is ``From `` after any number of ``>`` gets one more ``>``; taking one off again gives back the
message as it was, but for a last line end that it had not.

Guarantees: what ``append`` returns from is on stable storage, whole; what it raises from has left nothing, or will have
once the mbox is next opened here. Before anything is appended, a file beside it (``.NAME.undo``) says where, and with what
it begins, synced. So whoever opens the mbox next takes off what a death or a loss of power left there torn, and nothing
else: it is cut off only if it is the end of the file, and is what we were about to write, or zeros in its place.

Not guaranteed: anything against a program that appends without a lock. If one has done so behind what was torn, both are
left as they are.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from binascii import crc32
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from qrunner.format import history_line, parse_history
from qrunner.mailstore.locking import LockedFile
from qrunner.switchboard.disk import Disk, write_all

_FROM = re.compile(rb"^(>*From )", re.MULTILINE)
_UNFIT = re.compile(r"[\s\x00-\x1f\x7f]")
# So much of what is written is compared before it is taken for ours.
_PROOF = 1 << 16


def framed(sender: str, arrival: datetime, message: bytes) -> bytes:
    """A message as it stands in an mbox.

    :param sender: of the envelope; the null sender is ``MAILER-DAEMON``. What would end the word is a ``-``.
    """
    word = _UNFIT.sub("-", sender).encode("utf-8", "replace") or b"MAILER-DAEMON"
    head = b"From %s %s\n" % (word, arrival.ctime().encode())
    end = b"\n" if message.endswith(b"\n") or not message else b"\n\n"
    return head + _FROM.sub(rb">\1", message) + end


@dataclass(frozen=True, slots=True)
class Spot:
    """Where in an mbox a message is, or is to be. ``crc`` is that of its bytes there."""

    at: int
    size: int
    crc: int


@dataclass(frozen=True, slots=True)
class Mbox:
    """An mbox that is locked; see ``opened``. Any thread."""

    file: LockedFile
    disk: Disk
    # Who closes it while another thread still writes would give the descriptor to whatever is opened next.
    _at_work: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    @contextmanager
    def opened(cls, path: str, disk: Disk) -> Iterator[Mbox]:
        """An mbox, locked, with nothing of ours torn in it. :raises Locked, OSError: it can't be had now."""
        one = cls.take(path, disk)
        try:
            yield one
        finally:
            one.close()

    @classmethod
    def take(cls, path: str, disk: Disk) -> Mbox:
        """``opened``, for who closes it by himself."""
        file = LockedFile.take(path, disk)
        one = cls(file, disk)
        try:
            one._take_back()
        except BaseException:
            file.close()
            raise
        return one

    def close(self) -> None:
        """Unlocks it, once nothing is under way."""
        with self._at_work:
            self.file.close()

    def holds(self, spot: Spot) -> bool:
        """Whether this is there, byte for byte; then it is on stable storage from here on."""
        with self._at_work:
            if not self._reads(spot):
                return False
            self.disk.sync_file(self.file.fd)
            self.disk.sync_directory(os.path.dirname(self.file.path))
            return True

    def spot_for(self, record: bytes) -> Spot:
        """Where ``append`` would put it."""
        size = self._size()
        return Spot(size + len(self._gap(size)), len(record), crc32(record))

    def append(self, record: bytes) -> None:
        """Adds a message. :raises OSError: it is not there."""
        with self._at_work:
            self._append(record)

    def _append(self, record: bytes) -> None:
        size = self._size()
        data = self._gap(size) + record
        try:
            self._remember(size, data)
            self._write(size, data)
        except BaseException:
            # What can't be cut off now is cut off by whoever comes next.
            with contextlib.suppress(OSError):
                self._cut(size)
                self._forget()
            raise
        self._forget()

    def _write(self, size: int, data: bytes) -> None:
        os.lseek(self.file.fd, size, os.SEEK_SET)
        write_all(self.file.fd, [data])
        self.disk.sync_file(self.file.fd)
        if not size:
            self.disk.sync_directory(os.path.dirname(self.file.path))

    def _cut(self, size: int) -> None:
        os.ftruncate(self.file.fd, size)
        self.disk.sync_file(self.file.fd)

    def _size(self) -> int:
        return os.fstat(self.file.fd).st_size

    def _gap(self, size: int) -> bytes:
        """What is missing at the end for another message to begin: another program's last one may lack its line."""
        last = os.pread(self.file.fd, 2, max(0, size - 2))
        if not last or last == b"\n\n":
            return b""
        return b"\n" if last.endswith(b"\n") else b"\n\n"

    def _reads(self, spot: Spot) -> bool:
        found = os.pread(self.file.fd, spot.size, spot.at)
        return len(found) == spot.size and crc32(found) == spot.crc

    # What was begun

    @property
    def _undo(self) -> str:
        directory, name = os.path.split(self.file.path)
        return f"{directory}/.{name}.undo"

    def _remember(self, size: int, data: bytes) -> None:
        """Writes down what is about to be appended."""
        head = {"at": size, "size": len(data), "crc": crc32(data)}
        flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        is_new = not os.path.lexists(self._undo)
        fd = os.open(self._undo, flags | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            write_all(fd, [history_line(head), data[:_PROOF]])
            self.disk.sync_file(fd)
        finally:
            os.close(fd)
        if is_new:
            self.disk.sync_directory(os.path.dirname(self._undo))

    def _forget(self) -> None:
        """It is done, or undone. What can't forget this looks again, and finds nothing to do."""
        with contextlib.suppress(OSError):
            os.truncate(self._undo, 0)

    def _take_back(self) -> None:
        """Cuts off what was begun and is not whole."""
        try:
            fd = os.open(self._undo, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        with open(fd, "rb") as file:
            (head, *_), proof = parse_history(file.readline()) or [{}], file.read(_PROOF)
        # A line that is not whole: the append had not begun.
        if head and self._is_torn(head, proof):
            self._cut(head["at"])
        if head:
            self._forget()

    def _is_torn(self, head: Mapping[str, Any], proof: bytes) -> bool:
        at, size = head["at"], head["size"]
        there = self._size() - at
        if not 0 < there <= size or self._reads(Spot(at, size, head["crc"])):
            return False
        # After a loss of power there may be zeros where something was to be written (docs/INTERNALS.md).
        found = os.pread(self.file.fd, min(there, _PROOF), at)
        return len(found) <= len(proof) and all(
            byte in (0, ours) for byte, ours in zip(found, proof, strict=False)
        )
