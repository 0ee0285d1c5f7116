"""Deaths of processes."""

from __future__ import annotations

from qrunner.slices import WHOLE
from qrunner.switchboard import Hop, Lease, Spool
from qrunner.testing.clock import FakeClock
from qrunner.testing.contract.steps import Steps, crashes, draft, places


class Deaths(Steps):
    """What the dead had in hand comes back, and poison is found."""

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
