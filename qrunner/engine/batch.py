"""The loop of a ``BatchRunner``: looks at all that is due, claims what a pair names, commits pair by pair.

Guarantees: looking is not claiming. A pair is one commit; one of whose entries has gone meanwhile is dropped
whole, and the batch is called again. What is not named stays, at no cost in attempts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

from qrunner.engine.disposal import handled
from qrunner.engine.loop import Engine
from qrunner.errors import TemporaryFailure
from qrunner.log import event
from qrunner.message import Entry
from qrunner.runner import BatchRunner
from qrunner.switchboard import Claim, Ref
from qrunner.threads import in_thread

_PAUSE_S = (1.0, 60.0)
_END = object()


class BatchEngine(Engine):
    """Drives a ``BatchRunner``."""

    _rung = True
    _looked_ns = -1
    _pause_s = _PAUSE_S[0]

    def _ring(self) -> None:
        self._rung = True
        super()._ring()

    async def _refresh(self) -> None:
        await super()._refresh()
        self._rung = True

    def _next_due_ns(self) -> int | None:
        return self.lease.next_due_ns(self._looked_ns)

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
        shown: dict[str, Ref] = {}
        entries: list[Entry] = []
        for ref in refs:
            entry = self.lease.read(ref)
            if entry is None or ref.id in shown:
                continue
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
            if self._is_suspended():
                # What was not named yet is looked at once we go on.
                self._rung = True
                return

    async def _take_pair(self, pair: Any, shown: dict[str, Ref]) -> None:
        try:
            entries, fate = pair
            refs = [shown[entry.id] for entry in entries]
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            reason = f"dispose_batch must yield (entries, fate) of entries it was given: {error!r}"
            raise TypeError(reason) from error
        if not refs:
            raise TypeError("dispose_batch yielded a fate for no entries")
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
        # Past here the pair is committed even if the grace ends.
        verdict = self.judge.judge(claims, fate)
        await asyncio.shield(asyncio.ensure_future(self._commit_or_shunt(claims, verdict)))
        return True


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
