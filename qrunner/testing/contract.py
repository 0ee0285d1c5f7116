"""The suite that every switchboard passes: subclass it in a test module of your backend.

::

    class TestMySpool(SwitchboardContract):
        def make_spool(self, clock: FakeClock) -> Spool:
            return MySpool(clock)

        def kill(self, lease: Lease) -> None:
            lease.connection.drop()

Guarantees: only what ``qrunner.switchboard`` promises is asked for, through its own methods.

Not guaranteed: durability. What outlives a process or a power cut can't be shown from inside of one process.
"""

from __future__ import annotations

import asyncio
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from qrunner.errors import CorruptEntry, LeaseHeld, QueueError
from qrunner.message import Draft, Entry, Envelope, Recipient
from qrunner.slices import WHOLE, Range, cut
from qrunner.switchboard import AREAS, Add, Area, Claim, Hop, Lease, Move, Ref, Spool
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


class SwitchboardContract(ABC):
    """What a backend's tests subclass; the tests make a new spool each, with the queues ``in out reports``."""

    @abstractmethod
    def make_spool(self, clock: FakeClock) -> Spool:
        """An empty spool that asks ``clock`` for the time."""

    @abstractmethod
    def kill(self, lease: Lease) -> None:
        """Ends a lease as the death of its process would: nothing is put back, nobody says why."""

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

    # -- taking in

    def test_an_id_is_forty_hexadecimal_digits_and_never_the_same_twice(self, spool: Spool) -> None:
        ids = {spool.enqueue("in", draft()) for _ in range(20)}
        assert len(ids) == 20
        assert all(len(id) == 40 and set(id) <= set("0123456789abcdef") for id in ids)

    def test_what_was_enqueued_can_be_read(self, spool: Spool, clock: FakeClock) -> None:
        recipients = (
            Recipient("bob@example.net", "SUCCESS,FAILURE", "rfc822;bob@old.example"),
            Recipient("eve"),
        )
        envelope = Envelope(
            "ann@example.org", recipients, envid="x1", ret="HDRS", body="8BITMIME", smtputf8=True
        )
        message = b"\x00\xff no header\r\nFrom here\r\n.\r\n"
        id = spool.enqueue("in", Draft(message, envelope, {"tags": ["a", {"b": 1.5}]}, parents=("f" * 40,)))
        (ref,) = spool.peek("in")
        entry = spool.read(ref)
        assert (ref.id, ref.queue, ref.area, ref.active) == (id, "in", "queue", False)
        assert (entry.id, entry.queue, entry.message, entry.envelope) == (id, "in", message, envelope)
        assert (dict(entry.meta), entry.parents) == ({"tags": ["a", {"b": 1.5}]}, ("f" * 40,))
        assert entry.arrival_ns == entry.due_ns == clock.now_ns()
        assert (entry.history, entry.attempts) == ((), 0)

    def test_addresses_that_are_not_utf_8_come_back_as_they_were(self, spool: Spool) -> None:
        odd = b'"a\xff b"@example.org'.decode("utf-8", "surrogateescape")
        spool.enqueue("in", draft(odd, "ü@example.net", sender=odd))
        (ref,) = spool.peek("in")
        assert (spool.read(ref).sender, spool.read(ref).recipients) == (odd, (odd, "ü@example.net"))

    def test_an_empty_message_without_sender_is_an_entry(self, spool: Spool, lease: Lease) -> None:
        spool.enqueue("in", draft(message=b"", sender=""))
        claim = self.take(lease)
        lease.note(claim, {"t": 1, "what": "release"})
        assert (claim.entry.message, claim.entry.sender, len(claim.entry.history)) == (b"", "", 1)

    def test_enqueueing_into_no_queue_is_refused(self, spool: Spool) -> None:
        with pytest.raises(QueueError):
            spool.enqueue("nowhere", draft())
        assert places(spool) == {}

    def test_several_are_accepted_together_or_not_at_all(self, spool: Spool, clock: FakeClock) -> None:
        adds = [Add(draft(), queue, clock.now_ns() + n) for n, queue in enumerate(["in", "out", "in"])]
        ids = spool.enqueue_all(adds)
        assert places(spool) == {id: [("queue", add.queue)] for id, add in zip(ids, adds, strict=True)}
        assert [ref.due_ns - clock.now_ns() for ref in spool.peek("in")] == [0, 2]
        with pytest.raises(QueueError):
            spool.enqueue_all([*adds, Add(draft(), "nowhere", 0)])
        assert set(places(spool)) == set(ids)

    def test_sixteen_threads_enqueue_at_once_and_each_message_is_there_once(self, spool: Spool) -> None:
        with ThreadPoolExecutor(16) as threads:
            ids = list(threads.map(lambda n: spool.enqueue("in", draft(f"{n}@example.org")), range(160)))
        assert len(set(ids)) == 160
        assert places(spool) == {id: [("queue", "in")] for id in ids}

    def test_preparing_again_changes_nothing(self, spool: Spool) -> None:
        id = spool.enqueue("in", draft())
        spool.prepare(QUEUES)
        assert set(spool.queues()) == set(QUEUES)
        assert places(spool) == {id: [("queue", "in")]}

    # -- looking

    def test_peek_gives_the_oldest_due_first(self, spool: Spool) -> None:
        delays = [30.0, 0.0, 20.0, 10.0]
        ids = {delay: spool.enqueue("in", draft(), delay_s=delay) for delay in delays}
        assert [ref.id for ref in spool.peek("in")] == [ids[delay] for delay in sorted(delays)]

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

    def test_looking_claims_nothing(self, spool: Spool, lease: Lease, clock: FakeClock) -> None:
        id = spool.enqueue("in", draft())
        lease.refresh()
        for _ in range(2):
            (ref,) = lease.peek(clock.now_ns())
            entry = lease.read(ref)
            assert entry is not None
            assert entry.id == id
        assert [ref.active for ref in spool.peek("in")] == [False]
        assert [ref.id for ref in lease.due(clock.now_ns(), 10)] == [id]

    def test_reading_what_has_gone_says_so(self, spool: Spool, lease: Lease) -> None:
        spool.enqueue("in", draft())
        (ref,) = spool.peek("in")
        assert spool.remove(ref)
        with pytest.raises(FileNotFoundError):
            spool.read(ref)
        assert lease.read(ref) is None
        assert lease.claim(ref) is None

    # -- what is due

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

    # -- leases

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

    # -- claiming

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

    # -- commits

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

    # -- an operator's hand

    def test_hold_and_release_keep_the_entry_as_it_was(self, spool: Spool, clock: FakeClock) -> None:
        spool.enqueue("in", draft(), delay_s=9)
        (ref,) = spool.peek("in")
        before = spool.read(ref)
        assert spool.shift(ref, area="hold", record={"what": "hold", "reason": "wait"})
        (held,) = spool.peek("in", "hold")
        assert (held.queue, held.id, held.due_ns) == ("in", ref.id, ref.due_ns)
        assert spool.shift(held, record={"what": "release"})
        (back,) = spool.peek("in")
        after = spool.read(back)
        assert [line["what"] for line in after.history] == ["hold", "release"]
        assert dataclasses.replace(after, history=()) == before

    def test_an_operator_makes_an_entry_due_now(self, spool: Spool, lease: Lease, clock: FakeClock) -> None:
        id = spool.enqueue("in", draft(), delay_s=3600)
        (ref,) = spool.peek("in")
        assert spool.shift(ref, due_ns=clock.now_ns())
        lease.refresh()
        assert [one.id for one in lease.due(clock.now_ns(), 10)] == [id]

    def test_an_operator_moves_an_entry_to_another_queue(self, spool: Spool) -> None:
        id = spool.enqueue("in", draft())
        (ref,) = spool.peek("in")
        assert spool.shift(ref, queue="out")
        assert places(spool) == {id: [("queue", "out")]}
        assert not spool.shift(ref, queue="reports")
        assert not spool.remove(ref)
        assert places(spool) == {id: [("queue", "out")]}

    def test_an_operator_ends_an_entry(self, spool: Spool) -> None:
        spool.enqueue("in", draft())
        (ref,) = spool.peek("in")
        assert spool.remove(ref)
        assert not spool.remove(ref)
        assert places(spool) == {}

    @pytest.mark.parametrize("area", ["queue", "hold", "shunt"])
    def test_an_operator_ends_an_entry_with_what_follows_from_it(
        self, spool: Spool, area: Area, clock: FakeClock
    ) -> None:
        id = spool.enqueue("in", draft())
        (ref,) = spool.peek("in")
        if area != "queue":
            assert spool.shift(ref, area=area)
            (ref,) = spool.peek("in", area)
        seen: list[Entry] = []

        def follow(entry: Entry) -> Sequence[Add]:
            seen.append(entry)
            return [Add(draft(message=b"1"), "out", clock.now_ns()), Add(draft(), "reports", clock.now_ns())]

        ids = spool.conclude(ref, follow)
        assert ids is not None
        assert places(spool) == {ids[0]: [("queue", "out")], ids[1]: [("queue", "reports")]}
        assert [(entry.id, entry.message) for entry in seen] == [(id, MESSAGE)]
        assert spool.conclude(ref, follow) is None
        assert len(seen) == 1

    def test_an_operator_ends_an_entry_from_which_nothing_follows(self, spool: Spool) -> None:
        spool.enqueue("in", draft())
        (ref,) = spool.peek("in")
        assert spool.conclude(ref, lambda entry: ()) == ()
        assert places(spool) == {}

    def test_what_a_runner_has_in_hand_an_operator_can_not_end(
        self, spool: Spool, lease: Lease, clock: FakeClock
    ) -> None:
        id = spool.enqueue("in", draft())
        (before,) = spool.peek("in")
        lease.refresh()
        claim = lease.claim(lease.due(clock.now_ns(), 1)[0])
        assert claim is not None
        for ref in (before, *spool.peek("in")):
            assert spool.conclude(ref, lambda entry: pytest.fail("it was not ours")) is None
        lease.put_back(claim)
        assert places(spool) == {id: [("queue", "in")]}

    @pytest.mark.parametrize("area", ["queue", "hold"])
    def test_an_end_that_fails_changes_nothing(self, spool: Spool, lease: Lease, area: Area) -> None:
        id = spool.enqueue("in", draft())
        (ref,) = spool.peek("in")
        assert area == "queue" or spool.shift(ref, area=area)
        (before,) = spool.peek("in", area)
        entry = spool.read(before)

        def follow(entry: Entry) -> Sequence[Add]:
            raise QueueError("there is no such report")

        with pytest.raises(QueueError, match="no such report"):
            spool.conclude(before, follow)
        lease.refresh()
        (after,) = spool.peek("in", area)
        assert (after, spool.read(after)) == (before, entry)
        assert places(spool) == {id: [(area, "in")]}

    # -- deaths

    def test_what_a_dead_process_had_in_hand_is_put_back_and_suspected(
        self, spool: Spool, lease: Lease, clock: FakeClock
    ) -> None:
        ids = {spool.enqueue("in", draft()) for _ in range(2)}
        assert [claim.suspect for claim in self.take_all(lease)] == [False, False]
        self.kill(lease)
        after = spool.lease("in", WHOLE, "in", 0)
        assert after.refresh().suspects == ids
        claims = self.take_all(after)
        assert {claim.entry.id for claim in claims} == ids
        assert all(claim.suspect for claim in claims)
        assert [crash["alone"] for claim in claims for crash in crashes(claim.entry)] == [False, False]
        assert all(claim.entry.attempts == 0 for claim in claims)

    def test_a_look_at_the_living_takes_nothing_from_them(self, spool: Spool, lease: Lease) -> None:
        id = spool.enqueue("in", draft())
        claim = self.take(lease)
        for _ in range(2):
            found = lease.refresh()
            assert (found.suspects, found.shunted, found.finished) == (set(), [], [])
        lease.commit(Hop(finished=(claim,)))
        assert id not in places(spool)

    def test_refresh_twice_marks_a_death_once(self, spool: Spool, lease: Lease) -> None:
        id = spool.enqueue("in", draft())
        self.take(lease)
        self.kill(lease)
        after = spool.lease("in", WHOLE, "in", 0)
        assert after.refresh().suspects == {id}
        assert after.refresh().suspects == set()
        assert len(crashes(self.all(spool, "in")[0])) == 1

    def test_what_was_in_hand_at_a_release_is_put_back_unblamed(self, spool: Spool, lease: Lease) -> None:
        id = spool.enqueue("in", draft())
        self.take(lease)
        lease.release()
        after = spool.lease("in", WHOLE, "in", 0)
        assert after.refresh().suspects == set()
        claim = self.take(after)
        assert (claim.entry.id, claim.suspect, claim.entry.history) == (id, False, ())

    def test_a_death_that_was_announced_blames_nobody(self, spool: Spool, lease: Lease) -> None:
        spool.enqueue("in", draft())
        self.take(lease)
        lease.stopping()
        self.kill(lease)
        after = spool.lease("in", WHOLE, "in", 0)
        assert after.refresh().suspects == set()
        assert not self.take(after).suspect

    def test_a_death_that_was_explained_blames_nobody(self, spool: Spool, lease: Lease) -> None:
        spool.enqueue("in", draft())
        self.take(lease)
        spool.explain(lease.holder.node, lease.holder.pid)
        self.kill(lease)
        after = spool.lease("in", WHOLE, "in", 0)
        assert after.refresh().suspects == set()
        assert not self.take(after).suspect

    def test_an_entry_that_dies_with_its_process_three_times_is_shunted(
        self, spool: Spool, clock: FakeClock
    ) -> None:
        id = spool.enqueue("in", draft())
        assert self.shunted_after(spool, clock, 3) == [[], [], [id]]
        assert places(spool) == {id: [("shunt", "in")]}
        (ref,) = spool.peek("in", "shunt")
        assert spool.read(ref).history[-1]["what"] == "shunt"

    def test_a_death_while_looking_is_told_once_to_the_next_owner(self, spool: Spool, lease: Lease) -> None:
        lease.looking(True)
        self.kill(lease)
        after = spool.lease("in", WHOLE, "in", 0)
        assert after.refresh().looked
        assert not after.refresh().looked

    def test_who_has_stopped_looking_has_not_died_of_it(self, spool: Spool, lease: Lease) -> None:
        lease.looking(True)
        lease.looking(False)
        self.kill(lease)
        assert not spool.lease("in", WHOLE, "in", 0).refresh().looked

    def test_who_was_about_to_stop_has_not_died_of_looking(self, spool: Spool, lease: Lease) -> None:
        lease.looking(True)
        lease.stopping()
        self.kill(lease)
        assert not spool.lease("in", WHOLE, "in", 0).refresh().looked

    def test_an_entry_that_was_always_in_company_is_not_shunted(self, spool: Spool, clock: FakeClock) -> None:
        for _ in range(2):
            spool.enqueue("in", draft())
        assert self.shunted_after(spool, clock, 4) == [[], [], [], []]

    def test_an_entry_that_owes_nobody_any_more_is_finished_at_recovery(
        self, spool: Spool, lease: Lease
    ) -> None:
        id = spool.enqueue("in", draft("bob"))
        claim = self.take(lease)
        lease.note(claim, {"t": 1, "what": "delivered", "to": ["bob"], "host": "mta", "reply": "250 ok"})
        self.kill(lease)
        after = spool.lease("in", WHOLE, "in", 0)
        assert after.refresh().finished == [id]
        assert places(spool) == {}

    def test_one_whose_sender_is_still_to_be_told_of_success_is_put_back_at_recovery(
        self, spool: Spool, lease: Lease
    ) -> None:
        id = spool.enqueue("in", draft("bob"))
        claim = self.take(lease)
        lease.note(
            claim, {"what": "delivered", "to": ["bob"], "host": "mta", "reply": "250 ok", "relayed": True}
        )
        self.kill(lease)
        after = spool.lease("in", WHOLE, "in", 0)
        assert after.refresh().finished == []
        claim = self.take(after)
        assert (claim.entry.id, claim.entry.recipients) == (id, ())
        after.note(claim, {"what": "relayed", "to": ["bob"]})
        self.kill(after)
        assert spool.lease("in", WHOLE, "in", 0).refresh().finished == [id]

    def test_delivered_recipients_are_not_owed_after_a_death(self, spool: Spool, lease: Lease) -> None:
        spool.enqueue("in", draft("bob", "eve"))
        claim = self.take(lease)
        lease.note(claim, {"t": 1, "what": "delivered", "to": ["bob"], "host": "mta", "reply": "250 ok"})
        self.kill(lease)
        after = spool.lease("in", WHOLE, "in", 0)
        after.refresh()
        assert self.take(after).entry.recipients == ("eve",)

    def test_a_delivery_without_an_answer_is_ambiguous_after_a_death(
        self, spool: Spool, lease: Lease
    ) -> None:
        spool.enqueue("in", draft("bob"))
        lease.note(self.take(lease), {"what": "sending", "to": ["bob"], "host": "mta"})
        self.kill(lease)
        after = spool.lease("in", WHOLE, "in", 0)
        after.refresh()
        claim = self.take(after)
        assert claim.entry.recipients == ("bob",)
        (line,) = [line for line in claim.entry.history if line["what"] == "ambiguous"]
        assert (line["to"], line["host"]) == (["bob"], "mta")

    # -- steps of the tests

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


class DamageContract(SwitchboardContract):
    """For backends whose storage others can write to: what is no whole entry any more is set aside, untouched."""

    @abstractmethod
    def damage(self, spool: Spool, ref: Ref) -> None:
        """Alters the stored message behind the contract's back."""

    def test_a_damaged_entry_is_set_aside_byte_for_byte(
        self, spool: Spool, lease: Lease, clock: FakeClock
    ) -> None:
        id, whole = spool.enqueue("in", draft()), spool.enqueue("in", draft())
        (ref,) = [ref for ref in spool.peek("in") if ref.id == id]
        self.damage(spool, ref)
        damaged = spool.content(ref)
        with pytest.raises(CorruptEntry):
            spool.read(ref)
        assert self.take(lease).entry.id == whole
        (bad,) = spool.peek("in", "bad")
        assert (bad.id, spool.content(bad)) == (id, damaged)
        assert places(spool) == {id: [("bad", "in")], whole: [("queue", "in")]}

    def test_an_entry_that_is_damaged_in_the_hand_of_the_dead_is_set_aside(
        self, spool: Spool, lease: Lease
    ) -> None:
        id = spool.enqueue("in", draft())
        self.take(lease)
        (ref,) = spool.peek("in")
        self.damage(spool, ref)
        self.kill(lease)
        after = spool.lease("in", WHOLE, "in", 0)
        assert after.refresh().bad == [id]
        assert places(spool) == {id: [("bad", "in")]}

    def test_looking_at_a_damaged_entry_says_that_it_has_gone(self, spool: Spool, lease: Lease) -> None:
        spool.enqueue("in", draft())
        (ref,) = spool.peek("in")
        self.damage(spool, ref)
        assert lease.read(ref) is None
        assert len(list(spool.peek("in", "bad"))) == 1


def crashes(entry: Entry) -> list[dict[str, object]]:
    """The marks of deaths in an entry's history."""
    return [dict(line) for line in entry.history if line["what"] == "crash"]
