"""Commits."""

from __future__ import annotations

import dataclasses

import pytest

from qrunner.errors import QueueError
from qrunner.message import Draft, Envelope, Recipient
from qrunner.slices import WHOLE
from qrunner.switchboard import Add, Area, Hop, Lease, Move, Spool
from qrunner.testing.clock import FakeClock
from qrunner.testing.contract.steps import MESSAGE, SECOND_NS, Steps, draft, places


class Commits(Steps):
    """Wholly or not at all, and once."""

    def test_what_is_finished_is_gone(self, spool: Spool, lease: Lease) -> None:
        spool.enqueue("in", draft())
        assert lease.commit(Hop(finished=(self.take(lease),))) == ()
        assert places(spool) == {}
        lease.refresh()
        assert lease.next_due_ns() is None

    def test_a_moved_entry_keeps_id_content_and_history(
        self, spool: Spool, lease: Lease, clock: FakeClock
    ) -> None:
        spool.enqueue("in", draft())
        claim = self.take(lease)
        lease.note(claim, {"t": 1, "what": "attempt", "text": "", "status": "4.0.0"})
        due = clock.now_ns() + 7 * SECOND_NS
        assert lease.commit(Hop(moved=(Move(claim, "out", due),))) == ()
        (entry,) = self.all(spool, "out")
        assert entry == dataclasses.replace(claim.entry, queue="out", due_ns=due)
        assert list(places(spool)) == [claim.entry.id]

    def test_records_of_a_move_are_written_with_it(
        self, spool: Spool, lease: Lease, clock: FakeClock
    ) -> None:
        spool.enqueue("in", draft("bob@example.net", "eve@example.net"))
        claim = self.take(lease)
        records = (
            {"t": 5, "what": "failed", "to": ["eve@example.net"], "reply": "550 no", "status": "5.1.1"},
            {"t": 5, "what": "attempt", "text": "later", "status": "4.0.0"},
        )
        lease.commit(Hop(moved=(Move(claim, "in", clock.now_ns() + SECOND_NS, records=records),)))
        (entry,) = self.all(spool, "in")
        assert [line["what"] for line in entry.history] == ["failed", "attempt"]
        assert (entry.attempts, entry.recipients) == (1, ("bob@example.net",))

    def test_a_deferred_entry_waits_in_its_queue_for_its_time(
        self, spool: Spool, lease: Lease, clock: FakeClock
    ) -> None:
        id = spool.enqueue("in", draft())
        due = clock.now_ns() + 300 * SECOND_NS
        lease.commit(Hop(moved=(Move(self.take(lease), "in", due),)))
        lease.refresh()
        assert lease.due(clock.now_ns(), 10) == []
        assert lease.next_due_ns() == due
        clock.advance("5m")
        assert [ref.id for ref in lease.due(clock.now_ns(), 10)] == [id]

    @pytest.mark.parametrize("area", ["hold", "shunt"])
    def test_what_is_set_aside_keeps_its_origin_and_its_reason(
        self, spool: Spool, lease: Lease, clock: FakeClock, area: Area
    ) -> None:
        id = spool.enqueue("in", draft())
        record = {"t": 1, "what": area, "reason": "look at this"}
        lease.commit(Hop(moved=(Move(self.take(lease), "in", clock.now_ns(), area, records=(record,)),)))
        (ref,) = spool.peek("in", area)
        assert (ref.id, ref.queue, ref.area, ref.active) == (id, "in", area, False)
        assert [dict(line) for line in spool.read(ref).history] == [record]
        assert places(spool) == {id: [(area, "in")]}
        lease.refresh()
        assert lease.due(clock.now_ns(), 10) == []

    def test_changed_content_keeps_id_arrival_and_history(
        self, spool: Spool, lease: Lease, clock: FakeClock
    ) -> None:
        envelope = Envelope("ann@example.org", (Recipient("bob", "NEVER"), Recipient("eve")), envid="e1")
        spool.enqueue("in", Draft(MESSAGE, envelope, {"a": 1, "b": 2}))
        arrival = clock.now_ns()
        clock.advance(60)
        claim = self.take(lease)
        lease.note(claim, {"t": 1, "what": "attempt", "text": "", "status": "4.0.0"})
        other = claim.entry.with_header("X-Seen", "1").replace(
            sender="list@example.org", recipients=["bob", "new"], meta={"a": None, "c": [3]}
        )
        lease.commit(Hop(moved=(Move(claim, "out", clock.now_ns(), content=other),)))
        (entry,) = self.all(spool, "out")
        assert (entry.id, entry.arrival_ns) == (claim.entry.id, arrival)
        assert entry.message == b"X-Seen: 1\n" + MESSAGE
        assert entry.envelope == dataclasses.replace(
            envelope, sender="list@example.org", recipients=(Recipient("bob", "NEVER"), Recipient("new"))
        )
        assert (entry.recipients, dict(entry.meta)) == (("bob", "new"), {"b": 2, "c": [3]})
        assert "attempt" in [line["what"] for line in entry.history]
        assert places(spool) == {entry.id: [("queue", "out")]}
        outgoing = spool.lease("out", WHOLE, "out", 0)
        again = self.take(outgoing)
        outgoing.commit(Hop(moved=(Move(again, "out", 0, content=again.entry.with_header("X-Seen", "2")),)))
        assert self.all(spool, "out")[0].message == b"X-Seen: 2\nX-Seen: 1\n" + MESSAGE

    def test_a_recipient_that_was_delivered_stays_so_when_the_content_changes(
        self, spool: Spool, lease: Lease, clock: FakeClock
    ) -> None:
        spool.enqueue("in", draft("bob", "eve"))
        claim = self.take(lease)
        lease.note(claim, {"t": 1, "what": "delivered", "to": ["bob"], "host": "mta", "reply": "250 ok"})
        changed = claim.entry.with_header("X-Seen", "1")
        lease.commit(Hop(moved=(Move(claim, "in", clock.now_ns(), content=changed),)))
        (entry,) = self.all(spool, "in")
        assert entry.recipients == ("eve",)

    def test_one_becomes_several_that_name_it(self, spool: Spool, lease: Lease, clock: FakeClock) -> None:
        parent = spool.enqueue("in", draft("bob", "eve"))
        claim = self.take(lease)
        parts = [Draft(MESSAGE, claim.entry.envelope.only([to]), parents=(parent,)) for to in ("bob", "eve")]
        due = clock.now_ns() + SECOND_NS
        ids = lease.commit(
            Hop(finished=(claim,), added=(Add(parts[0], "out", due), Add(parts[1], "reports", 0)))
        )
        assert places(spool) == {ids[0]: [("queue", "out")], ids[1]: [("queue", "reports")]}
        (first,), (second,) = self.all(spool, "out"), self.all(spool, "reports")
        assert (first.id, first.parents, first.recipients, first.due_ns) == (ids[0], (parent,), ("bob",), due)
        assert (second.id, second.parents, second.recipients) == (ids[1], (parent,), ("eve",))

    def test_several_become_one_that_names_them(self, spool: Spool, lease: Lease, clock: FakeClock) -> None:
        parents = {spool.enqueue("in", draft()) for _ in range(3)}
        claims = self.take_all(lease)
        digest = dataclasses.replace(draft(message=b"Subject: digest\n\n"), parents=tuple(sorted(parents)))
        (id,) = lease.commit(Hop(finished=tuple(claims), added=(Add(digest, "out", clock.now_ns()),)))
        (entry,) = self.all(spool, "out")
        assert (entry.id, set(entry.parents)) == (id, parents)
        assert places(spool) == {id: [("queue", "out")]}

    def test_an_entry_stays_and_its_report_goes_out(
        self, spool: Spool, lease: Lease, clock: FakeClock
    ) -> None:
        id = spool.enqueue("in", draft("bob", "eve"))
        claim = self.take(lease)
        failed = {"t": 1, "what": "failed", "to": ["eve"], "reply": "550 no", "status": "5.1.1"}
        stay = Move(claim, "in", clock.now_ns() + SECOND_NS, records=(failed,))
        report = Draft(b"Subject: sorry\n\n", Envelope.of("", ["ann@example.org"]), parents=(id,))
        (child,) = lease.commit(Hop(moved=(stay,), added=(Add(report, "reports", clock.now_ns()),)))
        (entry,), (sent,) = self.all(spool, "in"), self.all(spool, "reports")
        assert (entry.id, entry.recipients) == (id, ("bob",))
        assert (sent.id, sent.sender, sent.parents) == (child, "", (id,))
        assert places(spool) == {id: [("queue", "in")], child: [("queue", "reports")]}

    def test_a_hop_of_all_kinds_at_once(self, spool: Spool, lease: Lease, clock: FakeClock) -> None:
        for _ in range(3):
            spool.enqueue("in", draft())
        gone, moved, changed = self.take_all(lease)
        other = changed.entry.with_header("X-Seen", "1")
        now = clock.now_ns()
        moves = (Move(moved, "in", now, "hold"), Move(changed, "out", now, content=other))
        (child,) = lease.commit(Hop((gone,), moves, (Add(draft(), "reports", now),)))
        assert places(spool) == {
            moved.entry.id: [("hold", "in")],
            changed.entry.id: [("queue", "out")],
            child: [("queue", "reports")],
        }
        assert self.all(spool, "out")[0].message == other.message

    def test_a_commit_that_fails_changes_nothing(self, spool: Spool, lease: Lease, clock: FakeClock) -> None:
        for _ in range(2):
            spool.enqueue("in", draft())
        gone, moved = self.take_all(lease)
        unwritable = {"t": 1, "what": "attempt", "text": {1, 2}}
        hop = Hop((gone,), (Move(moved, "out", 0, records=(unwritable,)),), (Add(draft(), "reports", 0),))
        with pytest.raises((TypeError, ValueError)):
            lease.commit(hop)
        assert places(spool) == {gone.entry.id: [("queue", "in")], moved.entry.id: [("queue", "in")]}
        assert all(ref.active for ref in spool.peek("in"))
        lease.commit(Hop(finished=(gone, moved)))
        assert places(spool) == {}

    @pytest.mark.parametrize("kind", ["moved", "changed", "added", "several"])
    def test_a_commit_into_no_queue_is_refused_or_makes_it(
        self, spool: Spool, lease: Lease, kind: str
    ) -> None:
        id = spool.enqueue("in", draft())
        claim = self.take(lease)
        move = Move(claim, "nowhere", 0)
        changed = Move(claim, "nowhere", 0, content=claim.entry.with_header("X-Seen", "1"))
        out, nowhere = Add(draft(), "out", 0), Add(draft(), "nowhere", 0)
        hop, goes = {
            "moved": (Hop(moved=(move,)), ["nowhere"]),
            "changed": (Hop(moved=(changed,)), ["nowhere"]),
            "added": (Hop((claim,), added=(out, nowhere)), ["out", "nowhere"]),
            "several": (Hop(moved=(move,), added=(out,)), ["nowhere", "out"]),
        }[kind]
        try:
            ids = lease.commit(hop)
        except (OSError, QueueError):
            assert places(spool) == {id: [("queue", "in")]}
            lease.put_back(claim)
            assert self.take(lease).entry == claim.entry
        else:
            lease.refresh()
            there = [*([id] if hop.moved else []), *ids]
            assert places(spool) == {id: [("queue", queue)] for id, queue in zip(there, goes, strict=True)}
