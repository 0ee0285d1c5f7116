"""An operator's hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from qrunner.errors import QueueError
from qrunner.message import Entry
from qrunner.switchboard import Add, Area, Lease, Spool
from qrunner.testing.clock import FakeClock
from qrunner.testing.contract.steps import MESSAGE, Steps, draft, places


class Operators(Steps):
    """What nobody has in hand can be moved and ended."""

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
