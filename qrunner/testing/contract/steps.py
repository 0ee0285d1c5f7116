"""What the parts of the suite share: an empty spool, the death of a process, and steps."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence

import pytest

from qrunner.message import Draft, Entry, Envelope
from qrunner.slices import WHOLE
from qrunner.switchboard import AREAS, Area, Claim, Lease, Ref, Spool, Staging
from qrunner.testing.clock import FakeClock

QUEUES = ("in", "out", "reports")
MESSAGE = b"Subject: hello\n\nworld\n"
SECOND_NS = 10**9
_LIMIT_S = 10.0


def draft(*recipients: str, message: bytes = MESSAGE, sender: str = "ann@example.org") -> Draft:
    """A message on its way into a queue; to one recipient, if none is named."""
    return Draft(message, Envelope.of(sender, recipients or ("bob@example.net",)))


def places(spool: Spool) -> dict[str, list[tuple[Area, str]]]:
    """Where each entry is; more than one place for an id is a broken promise."""
    found: dict[str, list[tuple[Area, str]]] = {}
    for queue in spool.queues():
        for area in AREAS:
            for ref in spool.peek(queue, area):
                found.setdefault(ref.id, []).append((area, queue))
    return found


class Steps(ABC):
    """What a backend's tests say of it, and the steps that the parts of the suite are made of."""

    @abstractmethod
    def make_spool(self, clock: FakeClock) -> Spool:
        """An empty spool that asks ``clock`` for the time."""

    @abstractmethod
    def kill(self, lease: Lease | Staging) -> None:
        """Ends a lease, or a door's, as the death of its process would: nothing is put back, nobody says why."""

    @pytest.fixture
    def clock(self) -> FakeClock:
        """A clock that stands still."""
        return FakeClock()

    @pytest.fixture
    def spool(self, clock: FakeClock) -> Spool:
        """A spool with its queues."""
        spool = self.make_spool(clock)
        spool.prepare(QUEUES)
        return spool

    @pytest.fixture
    def lease(self, spool: Spool) -> Lease:
        """All of ``in``."""
        return spool.lease("in", WHOLE, "in", 0)

    def take(self, lease: Lease) -> Claim:
        """The one entry that is due, in hand."""
        (claim,) = self.take_all(lease)
        return claim

    def take_all(self, lease: Lease) -> list[Claim]:
        """Everything in the range, however late it is due, in hand."""
        lease.refresh()
        claims = [lease.claim(ref) for ref in lease.due(2**62, 1000)]
        return [claim for claim in claims if claim is not None]

    def all(self, spool: Spool, queue: str) -> list[Entry]:
        """The entries of a queue."""
        return [spool.read(ref) for ref in spool.peek(queue)]

    def shunted_after(self, spool: Spool, clock: FakeClock, deaths: int) -> list[list[str]]:
        """What was shunted after each of so many deaths, all that is there in hand each time."""
        shunted = []
        for _ in range(deaths):
            lease = spool.lease("in", WHOLE, "in", 0)
            self.take_all(lease)
            self.kill(lease)
            clock.advance(1)
            after = spool.lease("in", WHOLE, "in", 0)
            shunted.append(after.refresh().shunted)
            after.release()
        return shunted

    def heard(self, lease: Lease, act: object, clock: FakeClock) -> int:
        """How many entries are due when the bell has rung after ``act``; without a bell, after a look."""
        assert callable(act)

        async def listen() -> Sequence[Ref]:
            rung = asyncio.Event()
            has_bell = lease.subscribe(rung.set)
            lease.refresh()
            assert lease.due(clock.now_ns(), 10) == []
            rung.clear()
            await asyncio.to_thread(act)
            if has_bell:
                await asyncio.wait_for(rung.wait(), _LIMIT_S)
            if lease.stale or not has_bell:
                lease.refresh()
            lease.subscribe(None)
            return lease.due(clock.now_ns(), 10)

        return len(asyncio.run(listen()))


def crashes(entry: Entry) -> list[dict[str, object]]:
    """The marks of deaths in an entry's history."""
    return [dict(line) for line in entry.history if line["what"] == "crash"]
