"""Whatever happens to a switchboard, in whatever order: every entry is in one place, or was finished by somebody."""

from __future__ import annotations

import random
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from qrunner.format import Nonces
from qrunner.message import Draft, Envelope
from qrunner.slices import cut
from qrunner.switchboard import AREAS, Add, Claim, Hop, Lease, Move, Spool
from qrunner.switchboard.claims import FilesLease
from qrunner.switchboard.files import FilesSpool
from qrunner.switchboard.memory import MemoryLease, MemorySpool
from qrunner.testing.clock import FakeClock

QUEUES = ("in", "out")
queues = st.sampled_from(QUEUES)
picks = st.integers(0, 1000)


class Conservation(RuleBasedStateMachine):
    """Enqueues, claims, commits of every kind, deaths, changes of the map and an operator, as Hypothesis likes."""

    spool: Spool

    def __init__(self) -> None:
        super().__init__()
        # Nonces and arrivals, and with them ids and ranges, are the same each time a case is replayed.
        self.dice = patch("os.urandom", random.Random(0).randbytes)
        self.dice.start()
        self.nonces = patch("qrunner.format._nonces", Nonces())
        self.nonces.start()
        self.clock = FakeClock(datetime.now(UTC))
        self.alive: set[str] = set()
        self.leases: dict[str, list[Lease]] = {queue: [] for queue in QUEUES}
        self.hands: list[tuple[Lease, Claim]] = []

    @initialize()
    def begin(self) -> None:
        self.spool.prepare(QUEUES)
        for queue in QUEUES:
            self.map(queue, [1])

    # What happens

    @rule(queue=queues, delay=st.sampled_from([0.0, 0.0, 5.0]), size=st.integers(0, 3))
    def enqueue(self, queue: str, delay: float, size: int) -> None:
        self.alive.add(self.spool.enqueue(queue, self.draft(size), delay_s=delay))

    @rule(queue=queues, pick=picks, limit=st.integers(1, 3))
    def claim(self, queue: str, pick: int, limit: int) -> None:
        lease = self.leases[queue][pick % len(self.leases[queue])]
        self.count(lease)
        for ref in lease.due(self.clock.now_ns(), limit):
            if (claim := lease.claim(ref)) is not None:
                self.hands.append((lease, claim))

    @precondition(lambda self: self.hands)
    @rule(
        pick=picks,
        queue=queues,
        area=st.sampled_from(["queue", "queue", "hold", "shunt"]),
        rewrite=st.booleans(),
    )
    def move(self, pick: int, queue: str, area: str, rewrite: bool) -> None:
        lease, claim = self.hands.pop(pick % len(self.hands))
        content = claim.entry.with_header("X", "1") if rewrite else None
        place = claim.entry.queue if area != "queue" else queue
        lease.commit(Hop(moved=(Move(claim, place, self.clock.now_ns(), area, content, ({"what": "hop"},)),)))  # type: ignore[arg-type]

    @precondition(lambda self: self.hands)
    @rule(pick=picks)
    def finish(self, pick: int) -> None:
        lease, claim = self.hands.pop(pick % len(self.hands))
        lease.commit(Hop(finished=(claim,)))
        self.alive.remove(claim.entry.id)

    @precondition(lambda self: self.hands)
    @rule(pick=picks, children=st.integers(0, 3), stays=st.booleans())
    def split_or_merge(self, pick: int, children: int, stays: bool) -> None:
        lease, first = self.hands[pick % len(self.hands)]
        mine = [claim for owner, claim in self.hands if owner is lease]
        self.hands = [pair for pair in self.hands if pair[0] is not lease]
        gone = [claim for claim in mine if not (stays and claim is first)]
        moved = (Move(first, first.entry.queue, self.clock.now_ns()),) if stays else ()
        added = tuple(Add(self.draft(n), QUEUES[n % 2], self.clock.now_ns()) for n in range(children))
        self.alive |= set(lease.commit(Hop(tuple(gone), moved, added)))
        self.alive -= {claim.entry.id for claim in gone}

    @precondition(lambda self: self.hands)
    @rule(pick=picks)
    def note(self, pick: int) -> None:
        lease, claim = self.hands[pick % len(self.hands)]
        lease.note(claim, {"what": "attempt", "text": "no"})

    @precondition(lambda self: self.hands)
    @rule(pick=picks)
    def put_back(self, pick: int) -> None:
        lease, claim = self.hands.pop(pick % len(self.hands))
        lease.put_back(claim)

    @rule(queue=queues, weights=st.lists(st.integers(1, 5), min_size=1, max_size=3), dies=st.booleans())
    def map(self, queue: str, weights: list[int], dies: bool = False) -> None:
        for lease in self.leases[queue]:
            self.kill(lease) if dies else lease.release()
        gone = self.leases[queue]
        self.hands = [pair for pair in self.hands if pair[0] not in gone]
        self.leases[queue] = [self.spool.lease(queue, part, queue, n) for n, part in enumerate(cut(weights))]
        for lease in self.leases[queue]:
            self.count(lease)

    @rule(queue=queues, area=st.sampled_from(AREAS), to=st.sampled_from(["queue", "hold", "end"]), pick=picks)
    def operate(self, queue: str, area: str, to: str, pick: int) -> None:
        refs = list(self.spool.peek(queue, area))  # type: ignore[arg-type]
        if not refs:
            return
        ref = refs[pick % len(refs)]
        if to == "end":
            if self.spool.remove(ref):
                self.alive.remove(ref.id)
        else:
            self.spool.shift(ref, area=to, queue=QUEUES[pick % 2])  # type: ignore[arg-type]

    @rule(by=st.sampled_from([1.0, 10.0]))
    def time_passes(self, by: float) -> None:
        self.clock.advance(by)

    # What holds

    @invariant()
    def every_entry_is_in_one_place(self) -> None:
        found = [
            ref.id for queue in self.spool.queues() for area in AREAS for ref in self.spool.peek(queue, area)
        ]
        assert sorted(found) == sorted(self.alive)

    @invariant()
    def what_is_in_hand_is_active_and_nothing_else(self) -> None:
        active = {ref.id for queue in QUEUES for ref in self.spool.peek(queue) if ref.active}
        assert active == {claim.entry.id for _, claim in self.hands}

    def teardown(self) -> None:
        """At last everything can be had: what is in a queue is claimed by the owner of its range."""
        self.nonces.stop()
        self.dice.stop()
        self.clock.advance(60)
        self.hands.clear()
        for queue in QUEUES:
            self.map(queue, [1, 2])
            got = [
                lease.claim(ref)
                for lease in self.leases[queue]
                for ref in lease.due(self.clock.now_ns(), 1000)
            ]
            assert {claim.entry.id for claim in got if claim} == {ref.id for ref in self.spool.peek(queue)}

    # Steps

    def kill(self, lease: Lease) -> None:
        raise AssertionError("a backend says how its processes die")

    def count(self, lease: Lease) -> None:
        self.alive -= set(lease.refresh().finished)

    def draft(self, size: int) -> Draft:
        return Draft(b"x" * size + b"\n" * (size % 2), Envelope.of("ann", ["bob"]), arrival_ns=1)


class MemoryConservation(Conservation):
    def __init__(self) -> None:
        super().__init__()
        self.spool = MemorySpool(self.clock)

    def kill(self, lease: Lease) -> None:
        assert isinstance(lease, MemoryLease)
        lease.abandon()


class FilesConservation(Conservation):
    def __init__(self) -> None:
        super().__init__()
        self._root = tempfile.TemporaryDirectory()
        self.spool = FilesSpool(Path(self._root.name) / "qfiles", self.clock, durable=False)

    def kill(self, lease: Lease) -> None:
        assert isinstance(lease, FilesLease)
        lease._held.lock.release()

    def teardown(self) -> None:
        super().teardown()
        self._root.cleanup()


TestMemory = MemoryConservation.TestCase
TestMemory.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestFiles = FilesConservation.TestCase
TestFiles.settings = settings(max_examples=5, stateful_step_count=25, deadline=None)


@pytest.mark.stress
class TestManyFiles(FilesConservation.TestCase):  # type: ignore[misc]
    settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
