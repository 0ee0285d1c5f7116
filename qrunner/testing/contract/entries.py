"""Taking entries in, and looking at them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from qrunner.errors import QueueError
from qrunner.message import Draft, Envelope, Recipient
from qrunner.switchboard import AREAS, Add, Lease, Spool
from qrunner.testing.clock import FakeClock
from qrunner.testing.contract.steps import QUEUES, Steps, draft, places


class Entries(Steps):
    """What is accepted is there, as it was given."""

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

    def test_a_glance_tells_what_the_entry_does_but_for_its_message(self, spool: Spool, lease: Lease) -> None:
        spool.enqueue(
            "in", Draft(b"Subject: x\n\n" * 2000, Envelope.of("ann", ["bob", "eve"]), {"list": "dev"})
        )
        claim = self.take(lease)
        lease.note(claim, {"what": "attempt", "text": "later"})
        lease.note(claim, {"what": "delivered", "to": ["bob"]})
        (ref,) = spool.peek("in")
        glance, entry = spool.glance(ref), spool.read(ref)
        assert glance.recipients == ("eve",)
        for name in ("id", "queue", "sender", "recipients", "arrival_ns", "due_ns", "size", "attempts"):
            assert getattr(glance, name) == getattr(entry, name)
        assert (dict(glance.meta), glance.history) == (dict(entry.meta), entry.history)

    def test_a_glance_at_what_has_moved_finds_nothing(self, spool: Spool) -> None:
        spool.enqueue("in", draft())
        (ref,) = spool.peek("in")
        spool.remove(ref)
        with pytest.raises(FileNotFoundError):
            spool.glance(ref)

    def test_counts_are_those_of_what_is_there(self, spool: Spool, lease: Lease, clock: FakeClock) -> None:
        for delay in (0, 0, 0, 5, 9):
            spool.enqueue("in", draft(), delay_s=delay)
        lease.refresh()
        assert lease.claim(lease.due(clock.now_ns(), 1)[0])
        counts = spool.counts("in", clock.now_ns())
        assert (counts.ready, counts.deferred, counts.active, counts.depth) == (2, 2, 1, 5)
        assert counts.next_due_ns == clock.now_ns() + 5 * 10**9
        assert counts.first == next(spool.peek("in"))
        assert spool.shift(list(spool.peek("in"))[-1], area="hold")
        assert [spool.counts("in", clock.now_ns(), area).depth for area in AREAS] == [4, 1, 0, 0]

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

    def test_peek_gives_the_oldest_due_first(self, spool: Spool) -> None:
        delays = [30.0, 0.0, 20.0, 10.0]
        ids = {delay: spool.enqueue("in", draft(), delay_s=delay) for delay in delays}
        assert [ref.id for ref in spool.peek("in")] == [ids[delay] for delay in sorted(delays)]

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
