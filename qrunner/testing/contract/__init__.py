"""The suite that every switchboard passes: subclass it in a test module of your backend.

::

    class TestMySpool(SwitchboardContract):
        def make_spool(self, clock: FakeClock) -> Spool:
            return MySpool(clock)

        def kill(self, lease: Lease | Staging) -> None:
            lease.connection.drop()

Guarantees: only what ``qrunner.switchboard`` promises is asked for, through its own methods.

Not guaranteed: durability. What outlives a process or a power cut can't be shown from inside of one process.
"""

from __future__ import annotations

from abc import abstractmethod

import pytest

from qrunner.errors import CorruptEntry
from qrunner.slices import WHOLE
from qrunner.switchboard import Lease, Ref, Spool
from qrunner.testing.clock import FakeClock
from qrunner.testing.contract.commits import Commits
from qrunner.testing.contract.deaths import Deaths
from qrunner.testing.contract.doors import Doors
from qrunner.testing.contract.due import Due
from qrunner.testing.contract.entries import Entries
from qrunner.testing.contract.leases import Leases
from qrunner.testing.contract.operators import Operators
from qrunner.testing.contract.steps import QUEUES, draft, places

__all__ = ["QUEUES", "DamageContract", "SwitchboardContract", "draft", "places"]


class SwitchboardContract(Entries, Due, Leases, Commits, Operators, Deaths, Doors):
    """What a backend's tests subclass; the tests make a new spool each, with the queues ``in out reports``."""


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
