"""Leases of ranges, and claims within them."""

from __future__ import annotations

import dataclasses

import pytest

from qrunner.errors import LeaseHeld
from qrunner.slices import WHOLE, Range, cut
from qrunner.switchboard import Hop, Lease, Spool
from qrunner.testing.clock import FakeClock
from qrunner.testing.contract.steps import QUEUES, Steps, draft, places


class Leases(Steps):
    """No range has two owners, no entry two hands."""

    def test_an_overlapping_lease_is_refused_by_its_holders_name(self, spool: Spool) -> None:
        low, high = cut([1, 1])
        held = spool.lease("in", low, "incoming", 3)
        beside = spool.lease("in", high, "incoming", 4)
        for part in (WHOLE, low, Range(low.hi - 1, low.hi), Range(0, 1)):
            with pytest.raises(LeaseHeld, match=r"incoming\[[34]\]"):
                spool.lease("in", part, "other", 0)
        nonces = {held.holder.nonce, beside.holder.nonce}
        assert {holder.nonce for holder in spool.holders("in")} == nonces
        assert list(spool.holders("out")) == []

    def test_two_queues_have_leases_of_their_own(self, spool: Spool) -> None:
        leases = [spool.lease(queue, WHOLE, queue, 0) for queue in QUEUES]
        assert [[one.nonce for one in spool.holders(queue)] for queue in QUEUES] == [
            [lease.holder.nonce] for lease in leases
        ]

    def test_a_released_range_can_be_taken(self, spool: Spool) -> None:
        spool.lease("in", WHOLE, "in", 0).release()
        assert list(spool.holders("in")) == []
        spool.lease("in", WHOLE, "in", 0)

    def test_the_range_of_a_dead_process_can_be_taken(self, spool: Spool, lease: Lease) -> None:
        self.kill(lease)
        spool.lease("in", WHOLE, "in", 0)

    def test_changed_ranges_strand_nothing(self, spool: Spool, clock: FakeClock) -> None:
        ids = [spool.enqueue("in", draft()) for _ in range(60)]
        done: list[str] = []
        for weights in ([1, 1, 1], [5, 1], [1], [1, 2, 3, 4]):
            leases = [spool.lease("in", part, "in", n) for n, part in enumerate(cut(weights))]
            for lease in leases:
                lease.refresh()
                for ref in lease.due(clock.now_ns(), 5):
                    claim = lease.claim(ref)
                    assert claim is not None
                    # Every third stays in hand, for whoever owns it under the next map.
                    if len(done) % 3:
                        lease.commit(Hop(finished=(claim,)))
                    done.append(ref.id)
            for lease in leases:
                lease.release()
        left = {ref.id for ref in spool.peek("in")}
        whole = spool.lease("in", WHOLE, "in", 0)
        whole.refresh()
        assert {ref.id for ref in whole.due(clock.now_ns(), 100)} == left
        assert left | set(done) == set(ids)

    def test_an_entry_in_hand_is_nobody_elses(self, spool: Spool, lease: Lease, clock: FakeClock) -> None:
        id = spool.enqueue("in", draft())
        lease.refresh()
        (ref,) = lease.due(clock.now_ns(), 10)
        assert lease.claim(ref) is not None
        assert lease.claim(ref) is None
        assert [(one.id, one.active) for one in spool.peek("in")] == [(id, True)]
        for seen in (ref, *spool.peek("in")):
            assert not spool.shift(seen, area="hold")
            assert not spool.remove(seen)
        lease.refresh()
        assert lease.due(clock.now_ns(), 10) == []
        assert places(spool) == {id: [("queue", "in")]}

    def test_what_was_put_back_is_as_before(self, spool: Spool, lease: Lease, clock: FakeClock) -> None:
        spool.enqueue("in", draft(), delay_s=1)
        clock.advance(10)
        claim = self.take(lease)
        before = claim.entry
        lease.put_back(claim)
        (ref,) = spool.peek("in")
        assert (ref.active, ref.due_ns) == (False, before.due_ns)
        assert spool.read(ref) == before
        assert self.take(lease).entry == before

    def test_a_note_is_in_the_history_at_once_and_for_good(
        self, spool: Spool, lease: Lease, clock: FakeClock
    ) -> None:
        spool.enqueue("in", draft("bob@example.net", "eve@example.net", message=b"no last newline"))
        claim = self.take(lease)
        lease.note(claim, {"t": 1, "what": "attempt", "text": "no", "status": "4.0.0"})
        lease.note(claim, {"t": 2, "what": "delivered", "to": ["bob@example.net"], "host": "mta"}, sync=True)
        assert [line["what"] for line in claim.entry.history] == ["attempt", "delivered"]
        assert (claim.entry.recipients, claim.entry.attempts) == (("eve@example.net",), 1)
        lease.put_back(claim)
        (ref,) = spool.peek("in")
        assert spool.read(ref) == dataclasses.replace(claim.entry, due_ns=ref.due_ns)
        assert spool.read(ref).message == b"no last newline"
