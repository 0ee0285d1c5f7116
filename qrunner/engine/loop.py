"""The loop that drives a runner: claim, dispose, fate, commit.

Guarantees: at most ``concurrency`` entries in hand, and as many again that only wait for somebody who is silent; an
entry leaves our hand by exactly one commit. A stop is not an error: what is in hand is finished within ``grace``, or put back as if it had not been claimed. What killed
its process runs alone until it is settled, or has lived for a while.

Failures: a full or failing disk makes the runner ``waiting``; it keeps what it has in hand and tries again. A runner
that says that it is ``Unready`` waits as well, and what it had in hand at no cost.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

from qrunner.config import RunnerConfig
from qrunner.engine.committing import Committer
from qrunner.engine.disposal import fate_of, tell
from qrunner.engine.driver import LOOK_S, Driver
from qrunner.engine.idleness import Idleness
from qrunner.engine.suspects import Suspects
from qrunner.engine.trouble import Trouble
from qrunner.engine.verdict import Judge, Verdict
from qrunner.errors import LeaseHeld, TemporaryFailure
from qrunner.fate import Settled
from qrunner.format import crash_marks
from qrunner.loading import load_function
from qrunner.log import event
from qrunner.message import Entry
from qrunner.runner import Desk, Runner
from qrunner.site import Site
from qrunner.slices import cut
from qrunner.switchboard import Claim, Hop, Lease, Recovered, Ref

_LEASE_RETRY_S = 1.0
_TWIN_S = 1.0
_BELLLESS_POLL_S = 2.0
# Nothing is kept waiting by it: what comes rings, and is claimed after a look.
_IDLE_LOOK_S = 5.0
_LETTING_GO_S = 3.0
# To read and to prove so many bytes takes a while.
_MUCH = 1 << 20
_UNWRITTEN_S = 1.0
# Entries that never wait for anybody must not keep the loop from everything else.
_IN_A_ROW = 8


class Engine(Driver):
    """Drives one runner on one slice of its queue."""

    def __init__(
        self, site: Site, config: RunnerConfig, slice: int, runner_class: type[Runner], *, log: logging.Logger
    ) -> None:
        super().__init__(site, config, slice, runner_class, log=log)
        self.range = cut([one.weight for one in config.slices])[slice]
        self.judge = Judge(site, config, log)
        self._bounced = [self.runner.bounced, *map(load_function, config.bounced)]
        self._concurrency = config.slices[slice].concurrency
        self._lease: Lease | None = None
        self._claims: dict[str, Claim] = {}
        self._conclusions: dict[str, Mapping[str, Any]] = {}
        self._will_write = False
        self._silent: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._deciding: set[asyncio.Task[Any]] = set()
        self._suspects = Suspects()
        self._has_bell = False
        self._holds = self._read_much = False
        self._was_busy = True
        self._next_poll_ns = 0
        self._trouble = Trouble(self.clock)
        # Who has one entry in hand at a time has nothing to do beside its commit.
        self._committer = Committer(lambda hop: self.lease.commit(hop), at_once=self._concurrency == 1)
        self._unready = False
        self._idleness = Idleness(site, config)

    def _desk(self) -> Desk:
        return Desk(self.config, self.slice, self.site, self, self.log, stopping=self._stopping)

    @property
    def lease(self) -> Lease:
        """Our range; there is one between ``open`` and ``close``."""
        assert self._lease is not None
        return self._lease

    @property
    def in_hand(self) -> int:
        """Entries claimed now."""
        return len(self._claims)

    @property
    def nonce(self) -> str:
        """Names this process among the claimants; empty without a lease."""
        return self._lease.holder.nonce if self._lease is not None else ""

    # The life of a runner

    async def open(self, *, once: bool = False) -> bool:
        """Takes the range, recovers what lies in it, and starts the runner; False: stopped before that.

        :raises LeaseHeld: with ``once``, and somebody else owns the range.
        """
        if not await self._take_range(once):
            return False
        self._has_bell = self.lease.subscribe(self._ring)
        await self._refresh()
        await self.runner.start()
        self._hooks.begin()
        self._become("running")
        self.came_up()
        return True

    async def _take_range(self, once: bool) -> bool:
        take = self.site.spool.lease
        while not self._stopping.is_set():
            try:
                self._lease = take(
                    self.config.queue,
                    self.range,
                    self.config.name,
                    self.slice,
                    max_crashes=self.config.max_crashes,
                )
                return True
            except (LeaseHeld, OSError) as error:
                if once:
                    raise
                self._become("waiting", str(error))
            await self.clock.wait(self._stopping, _LEASE_RETRY_S * random.uniform(0.8, 1.2))
        return False

    async def close(self) -> None:
        """Lets go of everything and ends the runner."""
        if self._lease is None:
            self._become("stopped")
            return
        self._lease.stopping()
        await self._drain()
        await self._hooks.cleanup(self.config.grace_s)
        self._committer.close()
        if not self._tasks:
            # A commit that hangs in the disk keeps the range for as long as this process lives.
            self._lease.release()
            self._lease = None
        if self.state != "failed":
            self._become("stopped")

    def stop(self) -> None:
        if self._lease is not None:
            self._lease.stopping()
        super().stop()

    def cut_short(self) -> None:
        """Ends the grace: what is in hand is put back now."""
        for task in self._deciding:
            task.cancel()

    async def _drain(self) -> None:
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self.config.grace_s)
        self.cut_short()
        if self._tasks:
            # However short the grace: what was cut short has to let go of what it holds.
            await asyncio.wait(self._tasks, timeout=max(self.config.grace_s, _LETTING_GO_S))

    def _ring(self) -> None:
        self._wake.set()

    # The loop

    async def _live(self, once: bool) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            busy = await self._work()
            if not busy and once:
                return
            if self._stopping.is_set():
                return
            await self.clock.wait(self._wake, self._nap_s())

    async def step(self) -> bool:
        """Does all that is due now, to its end; whether that was anything. For a site in one process."""
        before = self.counters.processed
        self._wake.clear()
        while await self._work():
            if not self._tasks:
                break
            # Until one of them has ended, or makes room for another.
            await self._wake.wait()
            self._wake.clear()
        return self.counters.processed > before

    async def _work(self) -> bool:
        """One turn: learns, claims, and runs the hooks; whether anything is in hand or was done."""
        await self._poll()
        self._hooks.run_periodic()
        if self._is_suspended():
            # What waits is due all the same: that is not idleness.
            return bool(self._tasks)
        if await self._waits_for_idleness():
            return True
        self._fill()
        busy = bool(self._tasks)
        if self._was_busy and not busy and not self._trouble.is_on:
            await self._hooks.idle()
        self._was_busy = busy
        return busy

    def _is_suspended(self) -> bool:
        """Whether an operator wants nothing to be claimed here; what is in hand is finished."""
        find = self.site.suspensions.find
        found = find("runner", self.config.name) or find("queue", self.config.queue)
        self._holds = found is not None
        if not self._trouble.is_on:
            if found is not None:
                self._become("suspended", str(found))
            elif self.state == "suspended":
                self._become("running")
        return self._holds

    async def _waits_for_idleness(self) -> bool:
        """Whether what is due has to wait until the machine is idle; what is in hand is finished."""
        reason = await self._idleness.why_not()
        if reason and self._has_due() and not self._trouble.is_on:
            self._holds = True
            self._wait_for_idleness(reason)
            return True
        if self.patient:
            self._become("running")
        return False

    def _has_due(self) -> bool:
        """Whether anything would be begun now."""
        due_ns = self._next_due_ns()
        return bool(self._suspects.waiting) or (due_ns is not None and due_ns <= self.clock.now_ns())

    async def _poll(self) -> None:
        now = self.clock.monotonic_ns()
        if now >= self._next_poll_ns or (self._lease is not None and self.lease.stale):
            await self._refresh()

    async def _refresh(self) -> None:
        poll_s = (
            self.config.poll_interval_s
            if self._has_bell
            else min(_BELLLESS_POLL_S, self.config.poll_interval_s)
        )
        self._next_poll_ns = self.clock.monotonic_ns() + int(poll_s * random.uniform(0.75, 1.25) * 1e9)
        try:
            found = await asyncio.to_thread(self.lease.refresh)
        except OSError as error:
            self._meet(error)
            self._next_poll_ns = self._trouble.until_ns
        else:
            self._learn(found)
            if not self._unready or self._next_due_ns() is None:
                self._untroubled()

    def _learn(self, found: Recovered) -> None:
        self._suspects.accuse(found.suspects)
        self.has_blamed = self.has_blamed or bool(found.suspects or found.shunted)
        for id in found.shunted:
            self.counters.count(failed=True)
            event(
                self.log, "shunted", level=logging.ERROR, id=id, reason="killed its process again and again"
            )
        if found.rolled or found.suspects or found.finished:
            event(
                self.log,
                "recovered",
                suspects=sorted(found.suspects) or None,
                rolled=found.rolled or None,
                finished=found.finished or None,
            )

    def _nap_s(self) -> float:
        """Until the next thing that comes by itself: a due time, the poll, a hook."""
        now = self.clock.monotonic_ns()
        # Sooner than anything else may come, an operator may want us to claim nothing, or to go on.
        look_s = LOOK_S if self._holds or self._tasks else _IDLE_LOOK_S
        ends = [self._next_poll_ns, now + int(look_s * 1e9)]
        if self._hooks.next_ns is not None:
            ends.append(self._hooks.next_ns)
        if self._trouble.is_on:
            ends.append(self._trouble.until_ns)
        elif self._has_room():
            due_ns = self._next_due_ns()
            if due_ns is not None:
                ends.append(now + max(0, due_ns - self.clock.now_ns()))
        if self._is_alone():
            ends.append(self._suspects.alone_until_ns)
        return max(0.0, (min(ends) - now) / 1e9)

    def _has_room(self) -> bool:
        if self._holds or not self._has_hands():
            return False
        return not self._suspects.waiting and not self._is_alone()

    def _has_hands(self, *, but: int = 0) -> bool:
        """Whether one more may be in hand; ``but``: these are about to let go."""
        return len(self._tasks) - but - min(len(self._silent), self._concurrency) < self._concurrency

    def _next_due_ns(self) -> int | None:
        return self.lease.next_due_ns()

    def _meet(self, error: OSError) -> None:
        """The disk: nothing more is claimed for a while."""
        self._become(
            "waiting", f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
        )
        self._trouble.meet()

    def _take_in(self, unready: str) -> None:
        """What a commit tells of the runner: that it can't work now, and why, or that it can."""
        if unready:
            self._unready = True
            self._become("waiting", unready)
            self._trouble.meet()
        else:
            self._untroubled()

    def _untroubled(self) -> None:
        self._unready = False
        if self.state == "waiting" and not self.patient:
            self._become("running")
        self._trouble.end()

    # Claiming

    def _fill(self) -> None:
        """Claims what is due, as much as there is room for."""
        self._read_much = False
        if self._stopping.is_set() or self._trouble.is_on:
            return
        while self._has_hands() and not self._is_alone():
            if self._suspects.waiting:
                if self._tasks:
                    return
                began = self._begin(self._suspects.waiting.popleft(), alone=True)
            else:
                refs = self.lease.due(self.clock.now_ns(), 1)
                if not refs:
                    return
                if refs[0].id in self._suspects.known:
                    self._suspects.queue(refs[0])
                    continue
                began = self._begin(refs[0])
            if not began:
                return
            if self._read_much:
                # What is in hand comes first: it would wait until all the others have been read as well.
                self._wake.set()
                return

    def _is_alone(self) -> bool:
        return bool(self._tasks) and self.clock.monotonic_ns() < self._suspects.alone_until_ns

    def _begin(self, ref: Ref, *, alone: bool = False) -> bool:
        """Claims an entry and starts on it; False: the disk is in trouble."""
        try:
            claim = self._claimed(ref, alone=alone)
        except OSError as error:
            self._meet(error)
            # Behind the others: what stands in the way of this one alone must not keep them waiting.
            self.lease.renew(ref, self.clock.now_ns() + int(self._trouble.next_s * 1e9))
            return False
        if claim is not None:
            self._spawn(self._handle_from(claim))
        return True

    def _claimed(self, ref: Ref, *, alone: bool = False) -> Claim | None:
        """The entry, in hand; None: it is gone, or not to be begun now."""
        if ref.id in self._claims:
            # A stranger has copied the file. We can tell one from the other by their names, a runner can't.
            self.lease.renew(ref, self.clock.now_ns() + int(_TWIN_S * 1e9))
            return None
        claim = self.lease.claim(ref)
        if claim is None:
            self._suspects.settle(ref.id)
            return None
        marks = len(crash_marks(self.config.queue, claim.entry.history))
        if marks and not alone:
            # It was a suspect before our time.
            self.lease.put_back(claim)
            self._suspects.queue(ref)
            return None
        if alone:
            self._suspects.begin(marks, self.clock.monotonic_ns())
        self._claims[ref.id] = claim
        self._read_much = claim.entry.size > _MUCH
        return claim

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._wake.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            event(self.log, "a bug in qrunner", level=logging.CRITICAL, exc=error)

    # One entry

    async def _handle_from(self, claim: Claim) -> None:
        """An entry, and the next one that is due in its place, for as long as nothing else is to be seen to."""
        in_a_row = 0
        while True:
            await self._handle(claim)
            in_a_row += 1
            if self._read_much or in_a_row % _IN_A_ROW == 0:
                await asyncio.sleep(0)
            following = self._following()
            if following is None:
                return
            claim = following

    def _following(self) -> Claim | None:
        """The next entry, for who has just finished one. What is out of the ordinary is left to the loop."""
        if self._stopping.is_set() or self._trouble.is_on or self._suspects.waiting or self._is_alone():
            return None
        if self.config.only_when_idle is not None or not self._has_hands(but=1) or self._is_suspended():
            return None
        refs = self.lease.due(self.clock.now_ns(), 1)
        if not refs or refs[0].id in self._suspects.known:
            for ref in refs:
                self._suspects.queue(ref)
            return None
        try:
            return self._claimed(refs[0])
        except OSError:
            # The loop meets the same, unless it has passed.
            self.lease.renew(refs[0])
            return None

    async def _handle(self, claim: Claim) -> None:
        id = claim.entry.id
        try:
            verdict = await self._decide(claim)
            if verdict is not None:
                await self._commit_or_shunt([claim], verdict)
                self._suspects.settle(id)
        finally:
            self._conclusions.pop(id, None)
            self._claims.pop(id, None)
            self._silent.discard(id)

    async def _commit_or_shunt(self, claims: Sequence[Claim], verdict: Verdict) -> None:
        try:
            await self.commit(claims, verdict)
        except Exception as error:  # content that no file can hold, such as metadata that is not JSON
            await self.commit(claims, self.judge.judge_error(claims, error))

    async def _decide(self, claim: Claim) -> Verdict | None:
        """What becomes of the entry; None: it was put back, because we stop."""
        task = asyncio.current_task()
        assert task is not None
        # Only a decision may be cut short; a commit that has begun is left to its end.
        self._deciding.add(task)
        limit: asyncio.Timeout | None = None
        try:
            if self.config.timeout_s is None:
                fate = await fate_of(self.handlers, self.runner.dispose, claim.entry)
            else:
                limit = asyncio.timeout(self.config.timeout_s)
                async with limit:
                    fate = await fate_of(self.handlers, self.runner.dispose, claim.entry)
            if not (isinstance(fate, Settled) and fate.is_end):
                await self._write_in_the_end(claim)
            return self.judge.judge([claim], fate)
        except asyncio.CancelledError as error:
            if not self._stopping.is_set():
                return await self._judge_error(claim, error)
        except TimeoutError as error:
            if limit is None or not limit.expired():
                return await self._judge_error(claim, error)
            text = f"not done within {self.config.timeout_s:g} s"
            return await self._judge_error(claim, TemporaryFailure(text, status="4.4.7"))
        except BaseException as error:  # SystemExit too: an entry decides nothing about its runner
            return await self._judge_error(claim, error)
        finally:
            self._deciding.discard(task)
        await self._put_back(claim)
        return None

    async def _judge_error(self, claim: Claim, error: BaseException) -> Verdict:
        await self._write_in_the_end(claim)
        return self.judge.judge_error([claim], error)

    async def note(self, entry: Entry, record: Mapping[str, Any], *, sync: bool = False) -> None:
        """Adds a line to the history of an entry in hand (``Progress``)."""
        if sync:
            self._write_conclusion(entry.id)
            await asyncio.to_thread(self.lease.note, self._claims[entry.id], record, sync=True)
        else:
            self.jot(entry, record)

    def jot(self, entry: Entry, record: Mapping[str, Any]) -> None:
        """``note``, without waiting."""
        self._write_conclusion(entry.id)
        self.lease.note(self._claims[entry.id], record)

    def conclude(self, entry: Entry, record: Mapping[str, Any]) -> None:
        """Keeps a line until the next turn of the loop (``Progress``)."""
        self._write_conclusion(entry.id)
        self._conclusions[entry.id] = record
        if not self._will_write:
            # One for all of this turn. Most will have ended by then.
            self._will_write = True
            asyncio.get_running_loop().call_soon(self._write_late)

    def _write_late(self) -> None:
        self._will_write = False
        for id in list(self._conclusions):
            self._not_at_once(id)

    def _not_at_once(self, id: str) -> None:
        try:
            self._write_conclusion(id)
        except OSError as error:
            # Its commit tries again, for as long as it takes.
            event(self.log, "outcome not written", level=logging.WARNING, id=id, reason=str(error))

    def _write_conclusion(self, id: str) -> None:
        if (record := self._conclusions.get(id)) is not None and (claim := self._claims.get(id)) is not None:
            self.lease.note(claim, record)
            del self._conclusions[id]

    def _write_conclusions(self, claims: Sequence[Claim], hop: Hop) -> None:
        """What does not end at once, by this very commit, is to be found by whoever comes after us."""
        for claim in claims if self._conclusions else ():
            if not (self._committer.is_prompt and hop.is_plain and claim in hop.finished):
                self._write_conclusion(claim.entry.id)

    async def _write_in_the_end(self, claim: Claim) -> None:
        """Writes a conclusion, however long the disk takes to allow it."""
        id = claim.entry.id
        while id in self._conclusions:
            self._not_at_once(id)
            if id in self._conclusions:
                await self.clock.wait(asyncio.Event(), _UNWRITTEN_S)

    def waits(self, entry: Entry) -> None:
        """Another entry may be claimed in the place of this one (``Progress``)."""
        if entry.id in self._claims:
            self._silent.add(entry.id)
            self._wake.set()

    async def commit(self, claims: Sequence[Claim], verdict: Verdict) -> tuple[str, ...]:
        """Commits, however long the disk takes to allow it; the ids of what was added."""
        while True:
            try:
                self._write_conclusions(claims, verdict.hop)
                ids = await self._committer.commit(verdict.hop)
                break
            except OSError as error:
                self._meet(error)
                wait_s = self._trouble.next_s
            if self._stopping.is_set():
                # Nothing was done: the entry goes back, or stays claimed for the next owner, unblamed.
                for claim in claims:
                    await self._put_back(claim)
                return ()
            await self.clock.wait(self._stopping, wait_s)
        for claim in claims if self._conclusions else ():
            self._conclusions.pop(claim.entry.id, None)
        self._take_in(verdict.unready)
        self._tell(claims, verdict, ids)
        if verdict.bounces:
            await self._call_bounced(verdict)
        return ids

    async def _call_bounced(self, verdict: Verdict) -> None:
        """The site's hook, once the commit stands. A stop cuts it short with the grace."""
        task = asyncio.current_task()
        assert task is not None
        self._deciding.add(task)
        try:
            await tell(self._bounced, verdict.bounces, self.config.timeout_s, self.log)
        except asyncio.CancelledError:
            task.uncancel()
            event(self.log, "bounced was cut short", level=logging.WARNING)
        finally:
            self._deciding.discard(task)

    def _tell(self, claims: Sequence[Claim], verdict: Verdict, ids: tuple[str, ...]) -> None:
        for claim in claims:
            self.counters.count(failed=verdict.failed)
            event(
                self.log,
                verdict.what,
                level=logging.WARNING if verdict.failed else logging.INFO,
                id=claim.entry.id,
                **{"reason": verdict.reason or None, "new": list(ids) or None, **verdict.fields},
            )

    async def _put_back(self, claim: Claim) -> None:
        await self._write_in_the_end(claim)
        try:
            self.lease.put_back(claim)
        except OSError as error:
            event(self.log, "stays claimed", level=logging.WARNING, id=claim.entry.id, reason=str(error))
