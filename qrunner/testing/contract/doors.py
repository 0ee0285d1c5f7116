"""Doors: entries that are kept until what they were taken from is the door's own."""

from __future__ import annotations

import dataclasses

import pytest

from qrunner.errors import LeaseHeld, QueueError
from qrunner.switchboard import Add, Lease, Spool
from qrunner.testing.clock import FakeClock
from qrunner.testing.contract.steps import SECOND_NS, Steps, draft, places


class Doors(Steps):
    """What is staged is in no queue and outlives its process, and is published once."""

    def add(self, clock: FakeClock, queue: str = "in", text: str = "") -> Add:
        """An entry on its way."""
        return Add(draft(message=b"Subject: %s\n\n" % text.encode()), queue, clock.now_ns())

    def test_what_is_staged_is_in_no_queue_until_it_is_published(
        self, spool: Spool, clock: FakeClock
    ) -> None:
        door = spool.staging("mail")
        ids = door.stage({"a": [self.add(clock)], "b": [self.add(clock), self.add(clock, "out")]})
        assert places(spool) == {}
        assert sorted(door.staged()) == ["a", "b"]
        door.publish(["b"])
        assert places(spool) == {ids["b"][0]: [("queue", "in")], ids["b"][1]: [("queue", "out")]}
        assert list(door.staged()) == ["a"]
        door.publish(["a", "b"])
        assert set(places(spool)) == {*ids["a"], *ids["b"]}
        assert list(door.staged()) == []

    def test_what_is_published_is_what_was_staged(self, spool: Spool, clock: FakeClock) -> None:
        door = spool.staging("mail")
        add = dataclasses.replace(self.add(clock, text="x"), due_ns=clock.now_ns() + SECOND_NS)
        ids = door.stage({"a": [add]})
        clock.advance(60)
        door.publish(["a"])
        (ref,) = spool.peek("in")
        entry = spool.read(ref)
        assert (entry.id, entry.message, entry.envelope) == (
            ids["a"][0],
            add.draft.message,
            add.draft.envelope,
        )
        assert (entry.due_ns, entry.history, entry.attempts) == (add.due_ns, (), 0)

    def test_what_is_dropped_is_gone(self, spool: Spool, clock: FakeClock) -> None:
        door = spool.staging("mail")
        door.stage({"a": [self.add(clock)], "b": [self.add(clock, text="b")]})
        door.drop(["a", "nobody knows it"])
        assert list(door.staged()) == ["b"]
        door.publish(["a"])
        assert places(spool) == {}

    def test_what_is_published_twice_is_there_once(self, spool: Spool, clock: FakeClock) -> None:
        door = spool.staging("mail")
        door.stage({"a": [self.add(clock)]})
        for _ in range(2):
            door.publish(["a", "a", "nobody knows it"])
            door.drop(["a"])
        assert len(places(spool)) == 1

    def test_nothing_may_follow_from_a_key(self, spool: Spool) -> None:
        door = spool.staging("mail")
        assert door.stage({"a": []}) == {"a": ()}
        assert list(door.staged()) == ["a"]
        door.publish(["a"])
        assert (list(door.staged()), places(spool)) == ([], {})

    def test_what_is_staged_again_takes_the_place_of_what_was(self, spool: Spool, clock: FakeClock) -> None:
        door = spool.staging("mail")
        door.stage({"a": [self.add(clock), self.add(clock)]})
        ids = door.stage({"a": [self.add(clock)]})
        door.publish(["a"])
        assert set(places(spool)) == set(ids["a"])

    @pytest.mark.parametrize("key", ["", "../../in", "a/b", "ü\n\0", "\udcff", "x" * 5000])
    def test_a_key_is_any_text(self, spool: Spool, clock: FakeClock, key: str) -> None:
        door = spool.staging("mail")
        door.stage({key: [self.add(clock)]})
        self.kill(door)
        again = spool.staging("mail")
        assert list(again.staged()) == [key]
        again.publish([key])
        assert len(places(spool)) == 1

    def test_what_belongs_to_a_queue_that_is_not_there_is_not_staged(
        self, spool: Spool, clock: FakeClock
    ) -> None:
        door = spool.staging("mail")
        with pytest.raises(QueueError):
            door.stage({"a": [self.add(clock)], "b": [self.add(clock, "nowhere")]})
        assert list(door.staged()) == []
        door.publish(["a", "b"])
        assert places(spool) == {}
        assert "nowhere" not in spool.queues()

    def test_a_door_has_one_holder(self, spool: Spool, clock: FakeClock) -> None:
        door = spool.staging("mail", "changes")
        with pytest.raises(LeaseHeld, match="changes"):
            spool.staging("mail")
        other = spool.staging("journal")
        other.stage({"a": [self.add(clock)]})
        assert list(door.staged()) == []
        assert set(spool.queues()) == {"in", "out", "reports"}
        door.release()
        spool.staging("mail").release()

    @pytest.mark.parametrize("killed", [False, True])
    def test_what_a_process_leaves_staged_its_successor_decides_about(
        self, spool: Spool, clock: FakeClock, killed: bool
    ) -> None:
        door = spool.staging("mail")
        adds = [self.add(clock), self.add(clock, "out")]
        ids = door.stage({"a": adds, "b": adds, "c": adds})
        door.publish(["c"])
        if killed:
            self.kill(door)
        else:
            door.release()
        after = spool.staging("mail")
        assert sorted(after.staged()) == ["a", "b"]
        after.drop(["a"])
        after.publish(["b"])
        assert set(places(spool)) == {*ids["b"], *ids["c"]}
        after.release()
        assert list(spool.staging("mail").staged()) == []

    def test_what_is_published_is_due_and_heard_of(
        self, spool: Spool, lease: Lease, clock: FakeClock
    ) -> None:
        door = spool.staging("mail")
        door.stage({"a": [self.add(clock)]})
        assert self.heard(lease, lambda: door.publish(["a"]), clock) == 1

    def test_an_entry_may_begin_aside_with_a_reason(self, spool: Spool, clock: FakeClock) -> None:
        reason = {"what": "shunt", "reason": "no recipients"}
        add = dataclasses.replace(self.add(clock), area="shunt", records=(reason,))
        door = spool.staging("mail")
        staged = door.stage({"a": [add]})["a"]
        door.publish(["a"])
        ids = [*staged, *spool.enqueue_all([add])]
        assert places(spool) == {id: [("shunt", "in")] for id in ids}
        for ref in spool.peek("in", "shunt"):
            (line,) = spool.read(ref).history
            assert (line["what"], line["reason"], line["t"]) == ("shunt", "no recipients", clock.now_ns())
            assert spool.shift(ref, record={"what": "release"})
        assert {ref.id for ref in spool.peek("in")} == set(ids)
