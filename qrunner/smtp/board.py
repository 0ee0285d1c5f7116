"""The board on which all processes of a machine keep the health of hosts, and share out their connections.

::

    var/host/NAME.json     health, replaced under NAME.lock
    var/host/NAME.probe    locked by who makes the probe
    var/host/NAME.seat.N   locked by who holds connection N
    var/host/NAME.want     touched by who finds all seats taken
    var/host/.pace         when hosts with a rate are next sent a message

Guarantees: locks end with the process that holds them, however it ends.

Not guaranteed: that health survives a power loss; it is learnt again (whether an operator has suspended a host stands
elsewhere, and does); that what another process has written is seen sooner than after a fiftieth of a second.

Failures: a board that can't be written (a full disk) is kept in memory by each process for as long.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from stat import S_ISREG
from typing import Protocol

from filelock import FileLock, Timeout

from qrunner.smtp.health import Health
from qrunner.smtp.pace import Paces, Turn
from qrunner.suspension import Suspension, machine_book

Change = Callable[[Health], Health]
Rate = tuple[int, float]
WANTED_S = 2.0
# Who holds the lock of a host's health does so for a read and a rename; the event loop waits meanwhile.
_POLL_S = 0.001
# What is asked for with every message is looked for only so often.
_LOOK_S = 0.02
_SEEN = 10_000


class Seat(Protocol):
    """The right to one connection, or to make the probe, for as long as it is held."""

    number: int

    def release(self) -> None:
        """Gives it up."""
        ...


class Board(Protocol):
    """What processes tell each other about hosts."""

    def read(self, name: str) -> Health:
        """What is known of a host; one never heard of is ``up``."""
        ...

    def change(self, name: str, change: Change) -> Health:
        """Reads, changes and writes, with nobody between."""
        ...

    def seat(self, name: str, seats: int) -> Seat | None:
        """One of the host's first ``seats`` connections, or None: they are taken."""
        ...

    def probe(self, name: str) -> Seat | None:
        """The right to make the probe, or None: somebody makes it."""
        ...

    def want(self, name: str) -> None:
        """Tells the others that a seat is waited for."""
        ...

    def wanted(self, name: str) -> bool:
        """Whether somebody else has just waited for one."""
        ...

    def turn(self, name: str, rate: Rate, within_s: float) -> Turn:
        """A turn to send the host a message, if there is one within so many seconds."""
        ...

    def give_back(self, name: str, rate: Rate) -> None:
        """A turn was not used."""
        ...


class FileBoard:
    """The board in a folder. Who only looks changes nothing, and makes no folder either."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, tuple[tuple[int, int, int], Health]] = {}
        self._unwritten: dict[str, Health] = {}
        self._seen: dict[str, tuple[float, Health]] = {}
        self._my_wants: dict[str, int] = {}
        self._wants: dict[str, tuple[float, int | None]] = {}
        self._suspended = machine_book(folder.parent)
        self._paces = Paces(folder / ".pace")

    def lay_out(self) -> None:
        """Makes the folder; without it nothing is shared, and each process knows its own."""
        with contextlib.suppress(OSError):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def read(self, name: str) -> Health:
        now_s = time.monotonic()
        seen = self._seen.get(name)
        if seen is None or now_s >= seen[0]:
            if len(self._seen) >= _SEEN:
                self._seen.clear()
            self._seen[name] = seen = (now_s + _LOOK_S, self.look(name))
        return seen[1]

    def look(self, name: str) -> Health:
        """``read``, as it stands at this moment."""
        health = self._unwritten.get(name) or self._read(name)
        suspension = self._suspension(name)
        if suspension is None:
            return health
        return replace(health, suspended=True, suspension=suspension)

    def _suspension(self, name: str) -> Suspension | None:
        those = (one for one in self._suspended.read() if one.target == ("host", name))
        return next((one for one in those if one.is_on(time.time_ns())), None)

    def _read(self, name: str) -> Health:
        path = f"{self._folder}/{name}.json"
        try:
            stat = os.stat(path)
            mark = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
            if name in self._known and self._known[name][0] == mark:
                return self._known[name][1]
            # Of a FIFO the reading would never end.
            value = json.loads(Path(path).read_bytes()) if S_ISREG(stat.st_mode) else None
        except (OSError, ValueError, RecursionError):
            return Health(name)
        health = Health.of_json(name, value) if isinstance(value, dict) else Health(name)
        self._known[name] = (mark, health)
        return health

    def change(self, name: str, change: Change) -> Health:
        try:
            return self._changed(name, change)
        finally:
            self._seen.pop(name, None)

    def _changed(self, name: str, change: Change) -> Health:
        try:
            with _lock(self._folder / f"{name}.lock").acquire(poll_interval=_POLL_S):
                before = self.look(name)
                after = change(before)
                if after != before or name in self._unwritten:
                    self._write(name, after)
                self._unwritten.pop(name, None)
                return after
        except OSError:
            after = change(self.look(name))
            self._unwritten[name] = bare(after)
            return after

    def _write(self, name: str, health: Health) -> None:
        health = bare(health)
        temporary = self._folder / f".{name}.{os.getpid()}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(json.dumps(health.as_json(), separators=(",", ":")) + "\n")
        temporary.replace(self._folder / f"{name}.json")

    def seat(self, name: str, seats: int) -> Seat | None:
        start = random.randrange(seats) if seats > 0 else 0
        for offset in range(seats):
            number = (start + offset) % seats
            taken = self._take(f"{name}.seat.{number}", number)
            if taken is not None:
                return taken
        return None

    def probe(self, name: str) -> Seat | None:
        return self._take(f"{name}.probe", 0)

    def _take(self, name: str, number: int) -> Seat | None:
        lock = _lock(self._folder / name)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return None
        return _FileSeat(lock, number)

    def want(self, name: str) -> None:
        path = self._folder / f"{name}.want"
        try:
            path.touch(mode=0o600)
            self._my_wants[name] = path.stat().st_mtime_ns
        except OSError:
            return  # who can't ask waits a little longer

    def wanted(self, name: str) -> bool:
        now_s = time.monotonic()
        seen = self._wants.get(name)
        if seen is None or now_s >= seen[0]:
            self._wants[name] = seen = (now_s + _LOOK_S, self._asked_ns(name))
        asked_ns = seen[1]
        if asked_ns is None or asked_ns == self._my_wants.get(name):
            return False
        return abs(time.time_ns() - asked_ns) < WANTED_S * 1e9

    def _asked_ns(self, name: str) -> int | None:
        """When somebody last found all seats taken."""
        try:
            return os.stat(f"{self._folder}/{name}.want").st_mtime_ns
        except OSError:
            return None

    def turn(self, name: str, rate: Rate, within_s: float) -> Turn:
        return self._paces.turn(name, rate, within_s)

    def give_back(self, name: str, rate: Rate) -> None:
        self._paces.give_back(name, rate)

    def line_s(self, name: str) -> float:
        """How long mail that comes now would wait for its turn, as far as is known."""
        return self._paces.wait_s(name)


def bare(health: Health) -> Health:
    """Without what an operator's suspension adds: it must not outlast it."""
    return health if health.suspension is None else replace(health, suspended=False, suspension=None)


def _lock(path: Path) -> FileLock:
    return FileLock(path, mode=0o600, thread_local=False, fallback_to_soft=False)


class _FileSeat:
    """A lock that is held; the reference keeps it."""

    def __init__(self, lock: FileLock, number: int) -> None:
        self._lock, self.number = lock, number

    def release(self) -> None:
        self._lock.release()


class MemoryBoard:
    """The board of a single process. It knows no rates: what plays a host takes mail as fast as it comes.

    :param beside: another one, to share what is known of hosts. Seats are each board's own: pools in one event loop
        would wait for each other's idle connections in real time.
    """

    def __init__(self, beside: MemoryBoard | None = None) -> None:
        self._known: dict[str, Health] = beside._known if beside else {}
        self._probed: set[str] = beside._probed if beside else set()
        self._seated: set[str] = set()

    def read(self, name: str) -> Health:
        return self._known.get(name, Health(name))

    def change(self, name: str, change: Change) -> Health:
        self._known[name] = change(self.read(name))
        return self._known[name]

    def seat(self, name: str, seats: int) -> Seat | None:
        for number in range(seats):
            taken = _take(self._seated, f"{name}.{number}", number)
            if taken is not None:
                return taken
        return None

    def probe(self, name: str) -> Seat | None:
        return _take(self._probed, name, 0)

    def want(self, name: str) -> None:
        """Nobody else is there to be told."""

    def wanted(self, name: str) -> bool:
        return False

    def turn(self, name: str, rate: Rate, within_s: float) -> Turn:
        return Turn(True)

    def give_back(self, name: str, rate: Rate) -> None:
        """There are none."""


def _take(taken: set[str], key: str, number: int) -> Seat | None:
    if key in taken:
        return None
    taken.add(key)
    return _MemorySeat(taken, key, number)


class _MemorySeat:
    """A key in a set."""

    def __init__(self, taken: set[str], key: str, number: int) -> None:
        self._taken, self._key, self.number = taken, key, number

    def release(self) -> None:
        self._taken.discard(self._key)
