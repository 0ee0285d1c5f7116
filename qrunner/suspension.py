"""What an operator has suspended: runners, queues, hosts and recipient domains; since when, until when, why.

::

    qfiles/.suspended.json    queues and domains: beside the mail, for every machine and configuration that works on it
    var/suspended.json        runners and hosts: this machine's

A suspension that has ended stays in its file for a while, since the time that mail has spent waiting for it is no
part of its lifetime.

Guarantees: a reader sees a whole file, the old or the new one; what ``suspend`` returned from survives a restart and
a power loss; one with an end ends by itself. A reader looks at most twice a second, and reads only what has changed.

Not guaranteed: that a machine on a network file system sees it sooner than that one shows a changed file.

Failures: a file that can't be read stops nothing, and what was known of it goes on; to change it is refused.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from qrunner.clock import rfc3339
from qrunner.errors import QRunnerError

KINDS = ("runner", "queue", "host", "domain")
BESIDE_THE_MAIL = ("queue", "domain")
WAIT_S = (1.0, 300.0)
_FILE = "suspended.json"
_LOOK_S = 0.5
_LOCK_S = 10.0
_KEPT_NS = 90 * 86_400 * 10**9
_KEPT = 1_000

Target = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Suspension:
    """One of them. ``until_ns`` None: until somebody ends it; in the past: it has ended."""

    kind: str
    name: str
    since_ns: int
    until_ns: int | None = None
    reason: str = ""
    by: str = ""

    @property
    def target(self) -> Target:
        """What it is about."""
        return self.kind, self.name

    def is_on(self, now_ns: int) -> bool:
        """Whether it has not ended."""
        return self.until_ns is None or now_ns < self.until_ns

    def wait_s(self, now_ns: int) -> float:
        """Seconds after which mail that met it looks again: as long as it has lasted, so that a short one costs little
        time and a long one little work; at most five minutes."""
        lasted_s = (now_ns - self.since_ns) / 1e9
        wait_s = min(max(lasted_s, WAIT_S[0]), WAIT_S[1])
        if self.until_ns is None:
            return wait_s
        return min(wait_s, max(WAIT_S[0], (self.until_ns - now_ns) / 1e9))

    def __str__(self) -> str:
        until = f" until {rfc3339(self.until_ns)}" if self.until_ns is not None else ""
        by = f" by {self.by}" if self.by else ""
        why = f": {self.reason}" if self.reason else ""
        return f"{self.kind} {self.name} is suspended{by}{until}{why}"


class Book:
    """One file of suspensions. A reader keeps what it has read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: tuple[Suspension, ...] = ()
        self._mark: tuple[int, ...] | None = None
        self._look_at_s = 0.0

    def read(self) -> tuple[Suspension, ...]:
        """All that stand in it, ended ones too."""
        now_s = time.monotonic()
        if now_s >= self._look_at_s:
            self._look_at_s = now_s + _LOOK_S
            with contextlib.suppress(OSError, ValueError):
                self._look()
        return self._known

    def _look(self) -> None:
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            self._known, self._mark = (), None
            return
        mark = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
        if mark != self._mark:
            self._known = _parsed(self.path.read_bytes())
            self._mark = mark

    def change(self, change: Callable[[Sequence[Suspension]], Iterable[Suspension]]) -> None:
        """Reads, changes and writes, with nobody between.

        :raises QRunnerError: it is not a file of suspensions, or somebody holds it. OSError: it could not be written.
        """
        lock = FileLock(self.path.with_suffix(".lock"), _LOCK_S, mode=0o600, fallback_to_soft=False)
        try:
            with lock:
                self._write(list(change(self._now())))
        except Timeout:
            raise QRunnerError(f"{lock.lock_file} is held by another process") from None
        self._look_at_s = 0.0

    def _now(self) -> tuple[Suspension, ...]:
        try:
            return _parsed(self.path.read_bytes())
        except FileNotFoundError:
            return ()
        except ValueError as error:
            raise QRunnerError(f"{self.path} can't be read, remove it: {error}") from None

    def _write(self, those: Sequence[Suspension]) -> None:
        data = json.dumps({"suspended": [asdict(one) for one in those[-_KEPT:]]}, indent=1).encode() + b"\n"
        fresh = self.path.with_name(f"{self.path.name}.new")
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode=0o600)
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.replace(fresh, self.path)
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _parsed(data: bytes) -> tuple[Suspension, ...]:
    """What stands in a file. :raises ValueError: it is none of ours."""
    try:
        return tuple(_suspension(one) for one in json.loads(data)["suspended"])
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"no list of suspensions: {error!r}") from None


def _suspension(value: dict[str, Any]) -> Suspension:
    until = value.get("until_ns")
    return Suspension(
        str(value["kind"]),
        str(value["name"]),
        int(value["since_ns"]),
        None if until is None else int(until),
        str(value.get("reason") or ""),
        str(value.get("by") or ""),
    )


def machine_book(state_dir: Path) -> Book:
    """The file of this machine's own."""
    return Book(state_dir / _FILE)


class Suspensions:
    """Everything that is suspended, for a site on this machine.

    :param now_ns: the wall clock.
    """

    def __init__(self, queue_dir: Path, state_dir: Path, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._shared, self._own = Book(queue_dir / f".{_FILE}"), machine_book(state_dir)
        self._now_ns = now_ns

    def _book(self, kind: str) -> Book:
        return self._shared if kind in BESIDE_THE_MAIL else self._own

    def find(self, kind: str, name: str) -> Suspension | None:
        """The suspension of this one, if it is suspended now."""
        for one in self._book(kind).read():
            if one.target == (kind, name) and one.is_on(self._now_ns()):
                return one
        return None

    def of_address(self, address: str) -> Suspension | None:
        """The suspension of a recipient's domain."""
        if not self._shared.read():
            return None
        return self.find("domain", domain_of(address))

    def now(self) -> list[Suspension]:
        """All that are on, by kind and name."""
        every = [*self._own.read(), *self._shared.read()]
        on = [one for one in every if one.is_on(self._now_ns())]
        return sorted(on, key=lambda one: (KINDS.index(one.kind) if one.kind in KINDS else 9, one.name))

    def lasted_s(
        self, targets: Collection[Target], since_ns: int, besides: Iterable[tuple[int, int]] = ()
    ) -> float:
        """For how many seconds since then any of these was suspended, or it was one of the other times."""
        now, total, end = self._now_ns(), 0, since_ns
        every = (one for one in (*self._own.read(), *self._shared.read()) if one.target in targets)
        times = [(one.since_ns, now if one.until_ns is None else min(one.until_ns, now)) for one in every]
        for since, until in sorted([*times, *besides]):
            total += max(0, until - max(since, end))
            end = max(end, until)
        return total / 1e9

    def any_known(self) -> bool:
        """Whether there was ever, as far as it is remembered, something suspended."""
        return bool(self._own.read() or self._shared.read())

    def suspend(self, target: Target, *, for_s: float | None = None, reason: str = "", by: str = "") -> None:
        """From now on, or with other words and another end if it is suspended already. Raises as ``Book.change``."""
        now = self._now_ns()
        until = None if for_s is None else now + round(for_s * 1e9)

        def change(those: Sequence[Suspension]) -> Iterable[Suspension]:
            on = [one for one in those if one.target == target and one.is_on(now)]
            since = on[0].since_ns if on else now
            left = [one for one in those if one not in on and not _is_forgotten(one, now)]
            return [*left, Suspension(*target, since, until, reason, by)]

        self._book(target[0]).change(change)

    def resume(self, target: Target) -> bool:
        """Ends it; False: it was not suspended. Raises as ``Book.change``."""
        now, found = self._now_ns(), False

        def change(those: Sequence[Suspension]) -> Iterable[Suspension]:
            nonlocal found
            for one in those:
                if one.target == target and one.is_on(now):
                    found = True
                    yield replace(one, until_ns=now)
                elif not _is_forgotten(one, now):
                    yield one

        if self.find(*target) is not None:
            self._book(target[0]).change(change)
        return found


def _is_forgotten(one: Suspension, now_ns: int) -> bool:
    return one.until_ns is not None and one.until_ns < now_ns - _KEPT_NS


def domain_of(address: str) -> str:
    """An address's domain as suspensions name it."""
    return address.rpartition("@")[2].rstrip(".").lower()
