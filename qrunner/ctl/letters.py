"""Where ``inject`` finds messages: standard input, files, mboxes, Maildirs; and the envelope that each place gives them.

Who delivered a message before wrote its envelope on top of it: the sender in the ``From `` line of an mbox and in
``Return-Path``, the recipient in ``Delivered-To`` or ``X-Original-To``.

Guarantees: whatever lies there is only read. Of an mbox, what is there when it is opened, once nobody who locks it is
writing to it; of a Maildir, what has a name in ``new`` or ``cur`` then, in the order of these names.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha1
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from qrunner.ctl import mbox
from qrunner.ctl.context import say
from qrunner.delivered import envelope_of
from qrunner.errors import QRunnerError, QueueError
from qrunner.inject import uncensored, without_from_line

_NEAR = 4096


@dataclass(frozen=True, slots=True)
class Letter:
    """A message as it was found: where, and which envelope its place gives it; None: none.

    ``message`` is None where it can't be had, and ``trouble`` says why. ``mark`` is its box's own.
    """

    where: str
    message: bytes | None
    sender: str | None = None
    recipients: tuple[str, ...] = ()
    trouble: str = ""
    mark: Any = None


class Changed(QRunnerError):
    """What lies there is not what a run that was interrupted had begun with."""


class Box(Protocol):
    """A place with many messages, of which a run can say how far it came.

    ``kind`` and ``place`` name it, ``length`` is how much there is and ``done`` how much of it was read.
    """

    kind: str
    place: str
    length: int
    done: int

    def skip(self, notes: Sequence[Mapping[str, Any]]) -> bool:
        """Goes on behind what these notes say, each that of a batch; False: what lies there is something else now."""
        ...

    def letters(self) -> Iterator[Letter]:
        """What is left, in order."""
        ...

    def note(self, letters: Sequence[Letter]) -> Mapping[str, Any]:
        """What to remember once these, and all before them, were taken."""
        ...

    def close(self) -> None:
        """Lets go of it."""
        ...


@dataclass(slots=True)
class MboxFile:
    """An mbox. What is remembered is an offset, and a digest of what stands before it."""

    place: str
    quoting: mbox.Quoting = "mboxrd"
    largest: int = 0
    kind: str = "mbox"
    length: int = 0
    done: int = 0
    number: int = 0
    _file: BinaryIO = field(init=False)

    def __post_init__(self) -> None:
        # A pipe would block whoever opens it, and can't be gone on with.
        self._file = open(os.open(self.place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # noqa: SIM115
        if not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
            self.close()
            raise OSError(errno.EINVAL, "is not a regular file", self.place)
        self.length = self._size()

    def _size(self) -> int:
        """How long it is while nobody is adding to it. :raises QueueError: somebody is."""
        descriptor = self._file.fileno()
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                self.close()
                raise QueueError(f"{self.place}: somebody is writing to it") from None
            # A file system without locks.
            return os.fstat(descriptor).st_size
        size = os.fstat(descriptor).st_size
        fcntl.lockf(descriptor, fcntl.LOCK_UN)
        return size

    def skip(self, notes: Sequence[Mapping[str, Any]]) -> bool:
        last = notes[-1]
        if last["to"] > self.length or self._near(last["to"]) != last["near"]:
            return False
        if last["to"] < self.length and self._bytes_at(last["to"], 5) != b"From ":
            return False
        self.done, self.number = last["to"], last["number"]
        return True

    def _near(self, offset: int) -> str:
        before = self._bytes_at(max(0, offset - _NEAR), min(offset, _NEAR))
        return sha1(before, usedforsecurity=False).hexdigest()

    def _bytes_at(self, offset: int, count: int) -> bytes:
        """Without moving the place at which it is read."""
        return os.pread(self._file.fileno(), count, offset)

    def letters(self) -> Iterator[Letter]:
        found = mbox.pieces(self._file, self.done, self.length, quoting=self.quoting, largest=self.largest)
        for piece in found:
            self.done, self.number = piece.end, self.number + 1
            where, mark = f"{self.place}, message {self.number}", (piece.end, self.number)
            if piece.message is None:
                yield Letter(
                    where, None, trouble=f"{piece.size} bytes, larger than {self.largest}", mark=mark
                )
            else:
                yield _delivered(where, piece.message, mbox.sender_of(piece.from_line), mark)

    def note(self, letters: Sequence[Letter]) -> Mapping[str, Any]:
        to, number = letters[-1].mark
        return {"to": to, "near": self._near(to), "number": number}

    def close(self) -> None:
        self._file.close()


@dataclass(slots=True)
class Maildir:
    """A Maildir. What is remembered are names, without the flags that a reader of it changes."""

    place: str
    largest: int = 0
    kind: str = "maildir"
    length: int = 0
    done: int = 0
    _names: list[str] = field(default_factory=list)
    _paths: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._paths = self._look()
        self._names = sorted(self._paths)
        self.length = len(self._names)

    def _look(self) -> dict[str, str]:
        """What lies there, by its name without flags. A message that is in both is on its way, and is one."""
        found = {}
        for folder in ("new", "cur"):
            try:
                names = os.listdir(f"{self.place}/{folder}")
            except (FileNotFoundError, NotADirectoryError):
                raise FileNotFoundError(
                    errno.ENOENT, f"no Maildir: it has no folder {folder}", self.place
                ) from None
            found.update({name.partition(":")[0]: f"{folder}/{name}" for name in names if name[0] != "."})
        return found

    def skip(self, notes: Sequence[Mapping[str, Any]]) -> bool:
        taken = {name for note in notes for name in note["names"]}
        self._names = [name for name in self._names if name not in taken]
        self.done = self.length - len(self._names)
        return True

    def letters(self) -> Iterator[Letter]:
        for name in self._names:
            self.done += 1
            yield self._letter(name)

    def _letter(self, name: str) -> Letter:
        where = f"{self.place}, {name}"
        try:
            message = self._read(name)
        except OSError as error:
            return Letter(where, None, trouble=error.strerror or str(error), mark=name)
        if message is None:
            return Letter(where, None, trouble=f"larger than {self.largest} bytes", mark=name)
        return _delivered(where, message, None, name)

    def _read(self, name: str) -> bytes | None:
        """Its bytes; None: they are too many. Its reader may just have given it other flags."""
        with contextlib.suppress(FileNotFoundError):
            return read_message(f"{self.place}/{self._paths[name]}", self.largest)
        self._paths = {**self._paths, **self._look()}
        return read_message(f"{self.place}/{self._paths[name]}", self.largest)

    def note(self, letters: Sequence[Letter]) -> Mapping[str, Any]:
        return {"names": [letter.mark for letter in letters]}

    def close(self) -> None:
        return


def read_message(path: str, largest: int = 0) -> bytes | None:
    """A regular file's bytes; None: they are more than ``largest``."""
    # What a stranger made there may be a pipe, which blocks whoever opens it, or a link.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", path)
        return None if largest and about.st_size > largest else file.read()


def of_input() -> Letter:
    """The message on standard input, with the envelope of the environment, as the MTA's pipe takes it."""
    if sys.stdin.isatty():
        say("the message, ended by Ctrl-D:")
    message, place = without_from_line(sys.stdin.buffer.read()), "standard input"
    sender, original = os.environ.get("SENDER"), os.environ.get("ORIGINAL_RECIPIENT")
    if sender is not None:
        sender = uncensored(sender, message, b"return-path:")
    if original:
        return Letter(place, message, sender, (uncensored(original, message, b"x-original-to:"),))
    return Letter(place, message, sender, from_environment())


def from_environment() -> tuple[str, ...]:
    """The recipient that an MTA names."""
    found = os.environ.get("ORIGINAL_RECIPIENT") or os.environ.get("RECIPIENT")
    return (found,) if found else ()


def of_file(place: str) -> Letter:
    """The message in a file."""
    data = Path(place).read_bytes()
    message = without_from_line(data)
    return _delivered(place, message, mbox.sender_of(data) if message != data else None)


def _delivered(where: str, message: bytes, sender: str | None, mark: Any = None) -> Letter:
    """A message that was delivered before; whoever did that wrote its envelope on top of it."""
    found = envelope_of(message)
    return Letter(where, message, found.sender if sender is None else sender, found.recipients, mark=mark)
