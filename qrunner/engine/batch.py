"""The loop of a ``BatchRunner``: looks at all that is due, claims what a pair names, commits pair by pair.

Guarantees: looking is not claiming. A pair is one commit; one of whose entries has gone meanwhile is dropped
whole, and the batch is called again. What is not named stays, at no cost in attempts. After a death while it looked,
each entry is shown alone once, in hand: what kills its process three times is shunted.

Not guaranteed: that of a death which takes two entries together, each harmless alone, anybody is found guilty.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, TypeVar

from qrunner.engine.disposal import handled
from qrunner.engine.loop import Engine
from qrunner.errors import TemporaryFailure
from qrunner.format import crash_marks
from qrunner.log import event
from qrunner.message import Entry
from qrunner.runner import BatchRunner
from qrunner.switchboard import Claim, Recovered, Ref
from qrunner.switchboard.poison import crash_mark
from qrunner.threads import in_thread

_PAUSE_S = (1.0, 60.0)
_END = object()
T = TypeVar("T")


class BatchEngine(Engine):
    """Drives a ``BatchRunner``."""

    _rung = True
    _looked_ns = -1
    _pause_s = _PAUSE_S[0]
    _harmless: frozenset[str] = frozenset()
    _somebody_did_it = False

    def _learn(self, found: Recovered) -> None:
        self._somebody_did_it = self._somebody_did_it or found.looked
        self.has_blamed = self.has_blamed or found.looked
        super()._learn(found)

    def _ring(self) -> None:
        self._rung = True
        super()._ring()

    async def _refresh(self) -> None:
        await super()._refresh()
        self._rung = True

    def _next_due_ns(self) -> int | None:
        return self.lease.next_due_ns(self._looked_ns)

    def _has_due(self) -> bool:
        due_ns = self.lease.next_due_ns() if self._rung else None
        return super()._has_due() or (due_ns is not None and due_ns <= self.clock.now_ns())

    def _fill(self) -> None:
        if self._tasks or self._stopping.is_set() or self._trouble.is_on:
            return
        now = self.clock.now_ns()
        due_ns = self._next_due_ns()
        if not (self._rung or (due_ns is not None and due_ns <= now)):
            return
        self._rung, self._looked_ns = False, now
        refs = self.lease.peek(now)
        if refs:
            self._spawn(self._pass(refs))

    async def _pass(self, refs: Sequence[Ref]) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._deciding.add(task)
        try:
            async with asyncio.timeout(self.config.timeout_s):
                await self._show(refs)
            self._pause_s = _PAUSE_S[0]
        except asyncio.CancelledError:
            if not self._stopping.is_set():
                self._pause("dispose_batch cancelled itself", None)
        except TemporaryFailure as error:
            self._pause(error.text, None, error.delay_s)
        except BaseException as error:  # SystemExit too; nothing that was not yielded has happened
            self._pause(f"{type(error).__name__}: {error}", error)
        finally:
            self._deciding.discard(task)

    def _pause(self, reason: str, error: BaseException | None, delay_s: float | None = None) -> None:
        event(self.log, "batch failed", level=logging.ERROR, reason=reason, exc=error)
        self._become("waiting", reason)
        pause_s = self._pause_s if delay_s is None else delay_s
        self._pause_s = min(_PAUSE_S[1], self._pause_s * 2)
        self._trouble.wait(pause_s)
        self._rung = True

    async def _show(self, refs: Sequence[Ref]) -> None:
        """Shows the runner what is due, and commits the pairs it yields."""
        known: dict[str, tuple[Ref, Entry]] = {}
        for ref in refs:
            entry = self.lease.read(ref)
            if entry is not None:
                known.setdefault(ref.id, (ref, entry))
        await self._try_suspects(known)
        if known and not self._stopping.is_set():
            self.lease.looking(True)
            try:
                await self._show_together(known)
            finally:
                with contextlib.suppress(OSError):
                    self.lease.looking(False)

    async def _try_suspects(self, known: dict[str, tuple[Ref, Entry]]) -> None:
        """Shows each that may have killed its process alone, in hand. Whom it kills again is not shown together."""
        for id, (ref, entry) in list(known.items()):
            marked = bool(crash_marks(self.config.queue, entry.history))
            if id in self._harmless or not (marked or self._somebody_did_it):
                continue
            if self._stopping.is_set():
                return
            if not await self._try_alone(ref, marked=marked):
                del known[id]
            self._harmless |= {id}
        self._harmless &= known.keys()
        self._somebody_did_it = False

    async def _try_alone(self, ref: Ref, *, marked: bool) -> bool:
        """Whether it is still there afterwards."""
        claim = self.lease.claim(ref)
        if claim is None:
            return False
        try:
            if not marked:
                # It was among those who were looked at when somebody died.
                self.lease.note(claim, crash_mark(self.config.queue, False, self.clock.now_ns()))
            fate = await self._fate_alone(claim)
        except (
            Exception
        ) as error:  # it has killed nobody; what is wrong is said when it is shown with the others
            event(self.log, "failed alone", id=ref.id, reason=f"{type(error).__name__}: {error}")
            fate = _END
        except BaseException:
            await self._put_back(claim)
            raise
        if fate is _END:
            await self._put_back(claim)
            return True
        await self._commit_claims([claim], fate)
        return False

    async def _fate_alone(self, claim: Claim) -> object:
        """What the handlers or the runner decide about one entry alone; ``_END``: nothing."""
        changed = await handled(self.handlers, claim.entry)
        if not isinstance(changed, Entry):
            return changed
        assert isinstance(self.runner, BatchRunner)
        async for pair in _pairs(self.runner.dispose_batch([changed])):
            return _named(pair, {changed.id: changed})[1]
        return _END

    async def _show_together(self, known: dict[str, tuple[Ref, Entry]]) -> None:
        shown: dict[str, Ref] = {}
        entries: list[Entry] = []
        for ref, entry in known.values():
            changed = await handled(self.handlers, entry)
            if isinstance(changed, Entry):
                shown[ref.id] = ref
                entries.append(changed)
            else:
                await self._commit_pair([ref], changed)
        if not entries:
            return
        assert isinstance(self.runner, BatchRunner)
        async for pair in _pairs(self.runner.dispose_batch(entries)):
            await self._take_pair(pair, shown)
            if self._stopping.is_set():
                return
            if self._is_suspended() or self._idleness.cpus():
                # What was not named yet is looked at once we go on.
                self._rung = True
                return

    async def _take_pair(self, pair: Any, shown: dict[str, Ref]) -> None:
        refs, fate = _named(pair, shown)
        done = await self._commit_pair(refs, fate)
        if done:
            for ref in refs:
                del shown[ref.id]
        else:
            self._ring()

    async def _commit_pair(self, refs: Sequence[Ref], fate: object) -> bool:
        """Claims all and commits; False: one has gone, and the others are as they were."""
        claims: list[Claim] = []
        wanted = list(dict.fromkeys(refs))
        try:
            while len(claims) < len(wanted) and (claim := self.lease.claim(wanted[len(claims)])) is not None:
                claims.append(claim)
        finally:
            # Of a pair that can't be had whole, because of another's move or of the disk, nothing stays in hand.
            if len(claims) < len(wanted):
                for other in claims:
                    await self._put_back(other)
        if len(claims) < len(wanted):
            return False
        await self._commit_claims(claims, fate)
        return True

    async def _commit_claims(self, claims: Sequence[Claim], fate: object) -> None:
        """Past here they are committed even if the grace ends."""
        verdict = self.judge.judge(claims, fate)
        await asyncio.shield(asyncio.ensure_future(self._commit_or_shunt(claims, verdict)))


def _named(pair: Any, shown: Mapping[str, T]) -> tuple[list[T], object]:
    """What a pair names of that which was shown, and its fate."""
    try:
        entries, fate = pair
        found = [shown[entry.id] for entry in entries]
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        reason = f"dispose_batch must yield (entries, fate) of entries it was given: {error!r}"
        raise TypeError(reason) from error
    if not found:
        raise TypeError("dispose_batch yielded a fate for no entries")
    return found, fate


async def _pairs(source: Any) -> AsyncIterator[Any]:
    """The pairs of a plain generator, each made in a thread, or of an asynchronous one."""
    if hasattr(source, "__aiter__"):
        async for pair in source:
            yield pair
        return
    pairs = iter(source)
    while True:
        pair = await in_thread(next, pairs, _END)
        if pair is _END:
            return
        yield pair
