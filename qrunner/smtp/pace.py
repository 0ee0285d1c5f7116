"""How often a host is sent a message: ``rate``, over all processes of this machine, and smoothly.

A host has a bucket of turns that fills steadily, and holds only a few: a twentieth of the rate, at most ten. Who finds
it empty may take a turn of the next seconds and wait for it; beyond that, one is told when to come again, and no two
are told the same moment, so that a long backlog comes as evenly as the turns do.

::

    var/host/.pace      a table of no fixed length; who changes a host's part of it holds a lock on a byte of it

Guarantees: no stretch of time as long as the rate's own has more turns in it than the rate says; at least nineteen of
twenty are given while somebody wants them. Who dies, or gives a turn back, blocks nobody.

Not guaranteed: that this is remembered over a restart of the machine, or order among those that were told to come again.

Failures: a table that can't be written, on a full disk, is kept in memory by each process for as long.
"""

from __future__ import annotations

import os
import random
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha1
from pathlib import Path

from qrunner.smtp.bytelocks import ByteLocks

PATIENCE_MAX_S = 60.0
LINE_MAX_S = 900.0
_BURST = 10
_SHARE = 20
_KNOWN = 1_000


@dataclass(frozen=True, slots=True)
class Turn:
    """Whether a message may go, ``wait_s`` seconds from now; else it may ask again after that."""

    may: bool
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Bucket:
    """What is known of one host: when its next turn is, were the bucket to hold only one; and when those who were told
    to come again will have come. Nanoseconds since the machine was started."""

    next_ns: int = 0
    line_ns: int = 0


@dataclass(frozen=True, slots=True)
class Pace:
    """A rate, taken apart: a turn each ``every_ns``, but for what the bucket holds, ``ahead_ns`` of them."""

    every_ns: int
    ahead_ns: int

    @classmethod
    def of(cls, rate: tuple[int, float]) -> Pace:
        """
        :param rate: so many, in so many seconds. What the bucket holds is taken off them: a burst and the steady
            turns after it are no more than that.
        """
        count, span_s = rate
        burst = max(1, min(_BURST, count // _SHARE))
        every_ns = max(1, round(span_s * 1e9 / (count - burst + 1)))
        return cls(every_ns, (burst - 1) * every_ns)

    def turn(self, bucket: Bucket, now_ns: int, within_s: float, dice: float) -> tuple[Bucket, Turn]:
        """Takes a turn that comes within so many seconds, or a place in the line behind it; what is known from then on.

        :param dice: in [0, 1), for those for whom the line is too long.
        """
        bucket = self._sound(bucket, now_ns)
        start_ns = max(bucket.next_ns, now_ns)
        wait_ns = max(0, start_ns - self.ahead_ns - now_ns)
        if wait_ns <= within_s * 1e9:
            return replace(bucket, next_ns=start_ns + self.every_ns), Turn(True, wait_ns / 1e9)
        line_ns = max(bucket.line_ns, start_ns) + self.every_ns
        if line_ns - now_ns <= LINE_MAX_S * 1e9:
            return replace(bucket, line_ns=line_ns), Turn(False, (line_ns - now_ns) / 1e9)
        return bucket, Turn(False, LINE_MAX_S * (0.5 + 0.5 * dice))

    def given_back(self, bucket: Bucket) -> Bucket:
        """After a turn that was not used."""
        return replace(bucket, next_ns=max(0, bucket.next_ns - self.every_ns))

    def _sound(self, bucket: Bucket, now_ns: int) -> Bucket:
        """Without what can't be, since the machine was started anew, or the rate was another."""
        furthest_ns = now_ns + self.ahead_ns + self.every_ns + round(PATIENCE_MAX_S * 1e9)
        if bucket.next_ns > furthest_ns:
            return Bucket()
        return bucket if bucket.line_ns <= now_ns + LINE_MAX_S * 1e9 else replace(bucket, line_ns=0)


class Paces:
    """The buckets of all hosts, in a table that all processes share.

    A host's name leads to a part of the table that holds eight of them; of more than eight that are busy at once and
    share a part, which nothing but a great many makes likely, some are taken for hosts that were left in peace.
    """

    def __init__(self, path: Path) -> None:
        self._locks = ByteLocks(path)
        self._unwritten: dict[str, Bucket] = {}

    def turn(self, name: str, rate: tuple[int, float], within_s: float) -> Turn:
        """A turn to send this host a message. ``within_s``: how long the caller would wait for it."""
        pace, now_ns = Pace.of(rate), time.monotonic_ns()
        within_s, dice = min(within_s, PATIENCE_MAX_S), random.random()
        taken = Turn(False)

        def take(bucket: Bucket) -> Bucket:
            nonlocal taken
            bucket, taken = pace.turn(bucket, now_ns, within_s, dice)
            return bucket

        self._change(name, take)
        return taken

    def give_back(self, name: str, rate: tuple[int, float]) -> None:
        """A turn was not used."""
        self._change(name, Pace.of(rate).given_back)

    def wait_s(self, name: str) -> float:
        """How long what is handed over now would wait, as far as is known. Changes nothing."""
        try:
            found = _Part(self._locks.read(_place(name), _PART)).bucket(_tag(name))
        except OSError:
            return 0.0
        return max(0.0, (max(found.next_ns, found.line_ns) - time.monotonic_ns()) / 1e9)

    def _change(self, name: str, change: Callable[[Bucket], Bucket]) -> None:
        place, tag = _place(name), _tag(name)
        try:
            with self._locks.alone(place):
                part = _Part(os.pread(self._locks.descriptor(), _PART, place))
                bucket = change(self._unwritten.get(name) or part.bucket(tag))
                at, row = part.row(tag, bucket)
                os.pwrite(self._locks.descriptor(), row, place + at)
                self._unwritten.pop(name, None)
        except OSError:
            if len(self._unwritten) >= _KNOWN:
                self._unwritten.clear()
            self._unwritten[name] = change(self._unwritten.get(name, Bucket()))


_ROW = struct.Struct("<8sqq")
_ROWS, _PARTS = 8, 1 << 13
_PART = _ROW.size * _ROWS


def _place(name: str) -> int:
    number = int.from_bytes(sha1(name.encode(), usedforsecurity=False).digest()[:8], "big")
    return number % _PARTS * _PART


def _tag(name: str) -> bytes:
    return sha1(name.encode(), usedforsecurity=False).digest()[8:16]


class _Part:
    """Eight rows of the table; what the file does not reach is empty."""

    def __init__(self, data: bytes) -> None:
        self._rows = list(_ROW.iter_unpack(data.ljust(_PART, b"\0")))

    def bucket(self, tag: bytes) -> Bucket:
        return next(
            (Bucket(next_ns, line_ns) for own, next_ns, line_ns in self._rows if own == tag), Bucket()
        )

    def row(self, tag: bytes, bucket: Bucket) -> tuple[int, bytes]:
        """Where the bucket goes, and its bytes: its own row, or the one that matters least."""
        own = [at for at, row in enumerate(self._rows) if row[0] == tag]
        at = own[0] if own else min(range(_ROWS), key=lambda at: max(self._rows[at][1:]))
        return at * _ROW.size, _ROW.pack(tag, bucket.next_ns, bucket.line_ns)
