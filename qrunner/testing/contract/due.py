"""What is due, and the bell."""

from __future__ import annotations

from qrunner.slices import WHOLE, cut
from qrunner.switchboard import Hop, Lease, Move, Spool
from qrunner.testing.clock import FakeClock
from qrunner.testing.contract.steps import SECOND_NS, Steps, draft, places


class Due(Steps):
    """Entries are given at their time, each once."""

    def test_an_entry_is_not_due_before_its_delay_is_over(
        self, spool: Spool, lease: Lease, clock: FakeClock
    ) -> None:
        id = spool.enqueue("in", draft(), delay_s=60)
        lease.refresh()
        assert lease.due(clock.now_ns(), 10) == []
        assert lease.peek(clock.now_ns()) == []
        assert lease.next_due_ns() == clock.now_ns() + 60 * SECOND_NS
        clock.advance(60)
        assert [ref.id for ref in lease.due(clock.now_ns(), 10)] == [id]
        assert lease.next_due_ns() is None

    def test_due_gives_the_oldest_first_and_each_once(
        self, spool: Spool, lease: Lease, clock: FakeClock
    ) -> None:
        ids = [spool.enqueue("in", draft(), delay_s=delay) for delay in range(5)]
        clock.advance(60)
        lease.refresh()
        assert [ref.id for ref in lease.due(clock.now_ns(), 3)] == ids[:3]
        assert [ref.id for ref in lease.due(clock.now_ns(), 3)] == ids[3:]
        assert lease.due(clock.now_ns(), 3) == []

    def test_refresh_gives_again_what_was_not_claimed(
        self, spool: Spool, lease: Lease, clock: FakeClock
    ) -> None:
        id = spool.enqueue("in", draft())
        for _ in range(2):
            lease.refresh()
            assert [ref.id for ref in lease.due(clock.now_ns(), 10)] == [id]

    def test_a_ref_given_back_comes_again_at_its_time_or_later(
        self, spool: Spool, lease: Lease, clock: FakeClock
    ) -> None:
        spool.enqueue("in", draft())
        lease.refresh()
        (ref,) = lease.due(clock.now_ns(), 10)
        lease.renew(ref)
        (ref,) = lease.due(clock.now_ns(), 10)
        lease.renew(ref, clock.now_ns() + 5 * SECOND_NS)
        assert lease.due(clock.now_ns(), 10) == []
        assert lease.next_due_ns() == clock.now_ns() + 5 * SECOND_NS
        clock.advance(5)
        (later,) = lease.due(clock.now_ns(), 10)
        claim = lease.claim(later)
        assert claim is not None
        assert claim.entry.due_ns == clock.now_ns() - 5 * SECOND_NS

    def test_a_lease_sees_its_range_only(self, spool: Spool, clock: FakeClock) -> None:
        ids = [spool.enqueue("in", draft()) for _ in range(40)]
        seen = []
        for number, part in enumerate(cut([1, 2, 1])):
            lease = spool.lease("in", part, "in", number)
            lease.refresh()
            mine = [ref.id for ref in lease.due(clock.now_ns(), 100)]
            assert all(part.owns(id) for id in mine)
            seen += mine
        assert sorted(seen) == sorted(ids)

    def test_a_bell_rings_when_something_is_enqueued(
        self, spool: Spool, lease: Lease, clock: FakeClock
    ) -> None:
        def ring() -> None:
            spool.enqueue("in", draft())

        assert self.heard(lease, ring, clock) == 1

    def test_a_bell_rings_when_something_is_moved_in(
        self, spool: Spool, lease: Lease, clock: FakeClock
    ) -> None:
        id = spool.enqueue("out", draft())
        outgoing = spool.lease("out", WHOLE, "out", 0)
        claim = self.take(outgoing)

        def ring() -> None:
            outgoing.commit(Hop(moved=(Move(claim, "in", clock.now_ns()),)))

        assert self.heard(lease, ring, clock) == 1
        assert places(spool)[id] == [("queue", "in")]

    def test_a_bell_rings_when_an_operator_moves_something_in(
        self, spool: Spool, lease: Lease, clock: FakeClock
    ) -> None:
        spool.enqueue("out", draft())
        (ref,) = spool.peek("out")
        assert self.heard(lease, lambda: spool.shift(ref, queue="in"), clock) == 1

    def test_a_queue_has_work_while_something_is_due_or_in_hand(
        self, spool: Spool, lease: Lease, clock: FakeClock
    ) -> None:
        assert not spool.has_work("in", clock.now_ns())
        assert not spool.has_work("nowhere", clock.now_ns())
        spool.enqueue("in", draft(), delay_s=60)
        assert not spool.has_work("in", clock.now_ns())
        clock.advance(60)
        assert spool.has_work("in", clock.now_ns())
        lease.refresh()
        claim = lease.claim(lease.due(clock.now_ns(), 1)[0])
        assert claim is not None
        assert spool.has_work("in", clock.now_ns())
        lease.commit(Hop(moved=(Move(claim, "in", clock.now_ns() + SECOND_NS),)))
        assert not spool.has_work("in", clock.now_ns())
