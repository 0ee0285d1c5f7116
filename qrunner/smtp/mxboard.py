"""The board for hosts that are found in the DNS: there may be a hundred thousand, so one that is well has no file.

::

    var/host/NAME.json     health, of a host that is not well
    var/host/.mx           a file of no bytes; who holds a lock on byte N of it has seat N

Every host has a stretch of bytes, found by its name: a seat for each connection, one for the probe, one for who
changes its health, one for who waits for a seat.

Guarantees: as of the board that it derives from. Locks belong to the open file and end with the process. Not
guaranteed: that two hosts never share a stretch; of a million, one pair does with a chance of one in a hundred, and
then shares its seats.
"""

from __future__ import annotations

import asyncio
import contextlib
from hashlib import sha1
from pathlib import Path

from qrunner.smtp.board import WANTED_S, Change, FileBoard, Seat, bare
from qrunner.smtp.bytelocks import ByteLocks
from qrunner.smtp.health import Health

_FORGOTTEN_NS = 86_400 * 10**9
_STRETCH = 1 << 14
_HEALTH, _PROBE, _WANT = _STRETCH - 1, _STRETCH - 2, _STRETCH - 3
_SEATS = _STRETCH - 3


class MxBoard(FileBoard):
    """The board in a folder, for hosts of any number."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._bytes = ByteLocks(folder / ".mx")

    def _changed(self, name: str, change: Change) -> Health:
        try:
            with self._bytes.alone(_place(name) + _HEALTH):
                return self._written(name, change)
        except OSError:
            after = change(self.look(name))
            self._unwritten[name] = bare(after)
            return after

    def _written(self, name: str, change: Change) -> Health:
        before = self.look(name)
        after = change(before)
        if _is_well(after):
            (self._folder / f"{name}.json").unlink(missing_ok=True)
            self._known.pop(name, None)
        elif after != before or name in self._unwritten:
            self._write(name, after)
        self._unwritten.pop(name, None)
        return after

    def sweep(self, now_ns: int) -> None:
        """Forgets hosts that nobody has tried for a day: mail for them, if there is any, tries them again."""
        with contextlib.suppress(OSError):
            for path in self._folder.glob("*.json"):
                health = self.look(path.stem)
                waited_ns = now_ns - path.stat().st_mtime_ns
                if "." in path.stem and waited_ns > _FORGOTTEN_NS and not health.suspended:
                    path.unlink(missing_ok=True)

    def seat(self, name: str, seats: int) -> Seat | None:
        place = _place(name)
        for number in range(min(seats, _SEATS)):
            if self._bytes.take(place + number):
                return _ByteSeat(self._bytes, place + number, number)
        return None

    def probe(self, name: str) -> Seat | None:
        place = _place(name) + _PROBE
        return _ByteSeat(self._bytes, place, 0) if self._bytes.take(place) else None

    def want(self, name: str) -> None:
        place = _place(name) + _WANT
        if self._bytes.take(place):
            asyncio.get_running_loop().call_later(WANTED_S, self._bytes.give, place)

    def wanted(self, name: str) -> bool:
        return self._bytes.is_taken_by_others(_place(name) + _WANT)


def _is_well(health: Health) -> bool:
    """Whether forgetting it would be no loss."""
    return health.is_spotless and not health.suspended


def _place(name: str) -> int:
    """Where the host's stretch begins: 2 to the power of 46 of them."""
    number = int.from_bytes(sha1(name.encode(), usedforsecurity=False).digest()[:8], "big")
    return (number >> 18) * _STRETCH


class _ByteSeat:
    """A byte that is held."""

    def __init__(self, locks: ByteLocks, place: int, number: int) -> None:
        self._locks, self._place, self.number = locks, place, number

    def release(self) -> None:
        self._locks.give(self._place)
