"""How often an address has bounced of late: one a day at most, and each counts half as much after some time.

::

    var/bounce/RUNNER/XX.json    the days on which addresses whose sha1 begins with XX have bounced, with their weights
    var/bounce/RUNNER/XX.lock    held for a read and a rename

A day is one of the entry's arrival, UTC. So an entry that is looked at again, after a crash or for the tenth attempt,
is not counted again; and fifty messages that a full mailbox returns on one day count as one.

Guarantees: what ``count`` returned from survives a power loss. Processes of one machine count together; none sees a
torn file.

Not guaranteed: that several machines count together. A file that is none is begun anew.

Failures: ``OSError``, and nothing was counted: a full disk, or a lock that its holder does not give back.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha1
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

DAY_NS = 86_400 * 10**9
_HALVINGS = 10
_MOST_DAYS = 400
_PATIENCE_S = 10.0
_POLL_S = 0.002

# Day since 1970 → weight.
Days = Mapping[int, float]


def score(days: Days, now_ns: int, half_life_s: float) -> float:
    """The sum of the weights, each halved with every half life that has passed since."""
    today, half_life_days = now_ns // DAY_NS, half_life_s / 86_400
    # A day that has not come yet was counted while the clock was wrong.
    passed = [(today - day, weight) for day, weight in days.items() if day <= today]
    return sum(weight * math.pow(2.0, -age / half_life_days) for age, weight in passed)


def counted(days: Days, at_ns: int, weight: float, half_life_s: float) -> dict[int, float]:
    """The days with one more bounce; those that no longer matter are left out."""
    day = at_ns // DAY_NS
    more = {**days, day: max(weight, days.get(day, 0.0))}
    return {
        one: heavy for one, heavy in sorted(more.items()) if one >= day - _kept(half_life_s) and heavy > 0
    }


def _kept(half_life_s: float) -> int:
    """How many days matter."""
    return min(_MOST_DAYS, int(_HALVINGS * half_life_s / 86_400) + 1)


class Scores(Protocol):
    """Who has bounced when; a book for each runner."""

    def days(self, book: str, address: str) -> Days:
        """The days that are counted against the address."""
        ...

    def count(self, book: str, address: str, at_ns: int, weight: float, half_life_s: float) -> Days:
        """Counts a bounce of that time, unless its day is counted already; the days from then on. Any thread.

        :raises OSError: it is not counted.
        """
        ...

    def forget(self, book: str, address: str) -> None:
        """Nothing is counted against the address any more, as for one that has subscribed anew. :raises OSError:"""
        ...


@dataclass
class MemoryScores:
    """The scores of a single process."""

    _books: dict[tuple[str, str], dict[int, float]] = field(default_factory=dict)

    def days(self, book: str, address: str) -> Days:
        return dict(self._books.get((book, address.lower()), {}))

    def count(self, book: str, address: str, at_ns: int, weight: float, half_life_s: float) -> Days:
        days = counted(self.days(book, address), at_ns, weight, half_life_s)
        self._books[book, address.lower()] = days
        return days

    def forget(self, book: str, address: str) -> None:
        self._books.pop((book, address.lower()), None)


class FileScores:
    """The scores in a folder, which is made when it is needed; the folder above must be there.

    :param durable: False leaves out the syncs, for tests.
    """

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        self._folder, self._durable = folder, durable

    def days(self, book: str, address: str) -> Days:
        return _read(self._shard(book, address)).get(address.lower(), {})

    def count(self, book: str, address: str, at_ns: int, weight: float, half_life_s: float) -> Days:
        path, key = self._shard(book, address), address.lower()
        with self._held(path):
            known = _read(path)
            days = counted(known.get(key, {}), at_ns, weight, half_life_s)
            if days != known.get(key):
                self._write(path, {**_fresh(known, at_ns, half_life_s), key: days})
        return days

    def forget(self, book: str, address: str) -> None:
        path, key = self._shard(book, address), address.lower()
        if key in _read(path):
            with self._held(path):
                self._write(path, {one: days for one, days in _read(path).items() if one != key})

    def _shard(self, book: str, address: str) -> Path:
        digest = sha1(address.lower().encode("utf-8", "surrogateescape"), usedforsecurity=False).hexdigest()
        return self._folder / book / f"{digest[:2]}.json"

    @contextlib.contextmanager
    def _held(self, path: Path) -> Iterator[None]:
        for folder in (self._folder, path.parent):
            if not folder.is_dir():
                folder.mkdir(mode=0o700, exist_ok=True)
                self._sync(folder.parent)
        lock = FileLock(path.with_suffix(".lock"), mode=0o600, thread_local=False, fallback_to_soft=False)
        try:
            lock.acquire(timeout=_PATIENCE_S, poll_interval=_POLL_S)
        except Timeout:
            raise OSError(errno.EAGAIN, "another process holds it", lock.lock_file) from None
        try:
            yield
        finally:
            lock.release()

    def _write(self, path: Path, known: Mapping[str, Days]) -> None:
        fresh = path.with_name(f".{path.name}.new")
        data = json.dumps(
            {key: {str(day): weight for day, weight in days.items()} for key, days in known.items()}
        )
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        with open(os.open(fresh, flags, mode=0o600), "w", encoding="ascii") as file:
            file.write(data)
            file.flush()
            if self._durable:
                os.fsync(file.fileno())
        os.replace(fresh, path)
        self._sync(path.parent)

    def _sync(self, folder: Path) -> None:
        if not self._durable:
            return
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _fresh(known: Mapping[str, Days], at_ns: int, half_life_s: float) -> dict[str, Days]:
    """Without the addresses of which nothing has come for so long that it does not matter."""
    first = at_ns // DAY_NS - _kept(half_life_s)
    return {key: days for key, days in known.items() if days and max(days) >= first}


def _read(path: Path) -> dict[str, Days]:
    """What the file says; a torn or foreign one says nothing. :raises OSError: it is there and can't be read."""
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    found: dict[str, Days] = {}
    for key, days in value.items() if isinstance(value, dict) else ():
        with contextlib.suppress(AttributeError, TypeError, ValueError):
            found[key] = {int(day): float(weight) for day, weight in days.items()}
    return found
