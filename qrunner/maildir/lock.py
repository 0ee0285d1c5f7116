"""The lock of a maildir, ``qrunner.lock`` in it: one reader, whoever it is, and what its site's code had in hand.

The file's first line says who holds the lock, for whoever finds it taken. The second is for the next holder: which
messages handlers were looking at, so that one that kills its process again and again is found out; and which have
marks of such deaths already.

Guarantees: the lock ends with its process. A death is nobody's fault if the machine went down, or the holder was about
to stop.

Not guaranteed: more than the file system's locks keep.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from qrunner.errors import LeaseHeld

_LONGEST = 1 << 20


@dataclass(frozen=True, slots=True)
class Marks:
    """Unexplained deaths at which a message was in hand, and how many of them it was there alone."""

    deaths: int = 0
    alone: int = 0

    def one_more(self, alone: bool) -> Marks:
        return Marks(self.deaths + 1, self.alone + alone)

    def is_poison(self, max_crashes: int) -> bool:
        """Whether they are enough: as many as that, all but one of them alone, and one alone at least."""
        return self.deaths >= max_crashes and self.alone >= max(1, max_crashes - 1)


class Lock:
    """The lock, held.

    ``marks``: of messages that were in hand at a death, by the names of their files.
    """

    def __init__(self, path: str, who: str, boot: str) -> None:
        """:raises LeaseHeld: another process has it; the message names it. OSError: it can't be had."""
        self._who, self._boot = who.replace("\n", " "), boot
        self._hands: set[str] = set()
        self._mutex = threading.Lock()
        self._fd = _locked(path)
        self.marks: dict[str, Marks] = _marks_of(os.pread(self._fd, _LONGEST, 0), boot)
        self._write()

    @property
    def about(self) -> os.stat_result:
        """Of the file that is locked."""
        return os.fstat(self._fd)

    def hold(self, names: Collection[str]) -> None:
        """Code that may kill this process is about to look at these."""
        with self._mutex:
            self._hands.update(names)
            self._write()

    def let(self, names: Collection[str]) -> None:
        """It has, and we live."""
        with self._mutex:
            self._hands.difference_update(names)
            for name in names:
                self.marks.pop(name, None)
            self._write()

    def forget_all_but(self, names: Collection[str]) -> None:
        """These are there; who is not can't kill anybody."""
        self.marks = {name: marks for name, marks in self.marks.items() if name in names}

    def stopping(self) -> None:
        """A death from here on is nobody's fault."""
        with self._mutex:
            self._boot = ""
            self._write()

    def _write(self) -> None:
        note = {
            "boot": self._boot,
            "hands": sorted(self._hands),
            "marks": {name: [marks.deaths, marks.alone] for name, marks in self.marks.items()},
        }
        # Not synced: a power cut blames nobody. Nor is a disk without room for it any reason to stop.
        with contextlib.suppress(OSError):
            data = f"{self._who}\n{json.dumps(note)}\n".encode("utf-8", "replace")
            os.pwrite(self._fd, data, 0)
            os.ftruncate(self._fd, len(data))

    def release(self) -> None:
        """Lets another have it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _marks_of(text: bytes, boot: str) -> dict[str, Marks]:
    """What a former holder's note says; a note that can't be read says nothing."""
    try:
        note: dict[str, Any] = json.loads(text.split(b"\n")[1])
        marks = {str(name): Marks(int(deaths), int(alone)) for name, (deaths, alone) in note["marks"].items()}
        hands = [str(name) for name in note["hands"]] if note["boot"] == boot else []
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError):
        return {}
    return marks | {name: marks.get(name, Marks()).one_more(len(hands) == 1) for name in hands}


def _locked(path: str) -> int:
    """A descriptor that holds the lock."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        who = os.pread(fd, _LONGEST, 0).decode("utf-8", "replace").partition("\n")[0] or "another process"
        os.close(fd)
        raise LeaseHeld(f"the maildir {os.path.dirname(path)} is read by {who}") from None
    except BaseException:
        os.close(fd)
        raise
    return fd
