"""What drives a door: it brings mail in from outside, and owns no queue.

Guarantees: what ``take`` returns from is durable, in every queue it goes to or in none. A stop lets what is being
taken in come to its end within ``grace``.

Failures: a disk that is full, or fails, makes the door ``waiting`` until something could be written again; whoever
brings the mail still has it.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from qrunner.config import RunnerConfig
from qrunner.engine.disposal import handled
from qrunner.engine.driver import LOOK_S, Driver
from qrunner.engine.idleness import Idleness
from qrunner.errors import HandlerFailed, PermanentFailure, QRunnerError, QueueError, TemporaryFailure
from qrunner.fate import Done, Forward, Hold, Requeue
from qrunner.log import event
from qrunner.message import Draft, Entry
from qrunner.runner import Desk, Door, Runner
from qrunner.schedule import checked_delay_s, due_after
from qrunner.site import Site
from qrunner.suspension import Suspension
from qrunner.switchboard import Add, Area

# So many enqueue at the same time at most, and share their syncs.
_HANDS = 64
SOURCE = "source"


class DoorEngine(Driver):
    """Drives a door. It is also the door's ``Intake``."""

    def __init__(
        self, site: Site, config: RunnerConfig, slice: int, runner_class: type[Runner], *, log: logging.Logger
    ) -> None:
        super().__init__(site, config, slice, runner_class, log=log)
        assert isinstance(self.runner, Door)
        self._door: Door = self.runner
        self._serving: asyncio.Task[None] | None = None
        self._in_hand = 0
        self._trouble = self._not_idle = ""
        self._idleness = Idleness(site, config)
        self._threads = ThreadPoolExecutor(_HANDS, thread_name_prefix=f"door {config.name}")

    def _desk(self) -> Desk:
        return Desk(self.config, self.slice, self.site, self, self.log, intake=self)

    @property
    def in_hand(self) -> int:
        return self._in_hand

    # The life of a door

    async def open(self, *, once: bool = False) -> bool:
        await self.runner.start()
        self._hooks.begin()
        await self._look_around()
        self.came_up()
        return True

    async def _live(self, once: bool) -> None:
        if once:
            await self._await_idleness()
            if not self._stopping.is_set():
                await self._door.catch_up()
            return
        self._serving = asyncio.get_running_loop().create_task(self._door.serve(self._stopping))
        self._serving.add_done_callback(lambda task: self._wake.set())
        while not self._stopping.is_set() and not self._serving.done():
            self._wake.clear()
            await self._look_around()
            self._hooks.run_periodic()
            await self.clock.wait(self._wake, LOOK_S)
        if not self._stopping.is_set():
            await self._serving
            raise QRunnerError(f"the door {self.config.name} has closed by itself")

    async def _await_idleness(self) -> None:
        while self._not_idle and not self._stopping.is_set():
            await self.clock.wait(self._stopping, LOOK_S)
            await self._look_around()

    async def _look_around(self) -> None:
        self._not_idle = await self._idleness.why_not()
        self._look()

    @property
    def suspension(self) -> Suspension | None:
        found = self.site.suspensions.find("runner", self.config.name)
        if found is None and self._not_idle:
            return Suspension("runner", self.config.name, self.since_ns, None, f"not idle: {self._not_idle}")
        return found

    def _look(self) -> None:
        """Whether an operator, the disk, or ``only_when_idle`` wants nothing to be taken in."""
        suspension = self.site.suspensions.find("runner", self.config.name)
        if suspension is not None:
            self._become("suspended", str(suspension))
        elif self._trouble:
            self._become("waiting", self._trouble)
        elif self._not_idle:
            self._wait_for_idleness(self._not_idle)
        else:
            self._become("running")

    async def close(self) -> None:
        if self._serving is not None:
            await asyncio.wait([self._serving], timeout=self.config.grace_s)
            self.cut_short()
            await asyncio.wait([self._serving], timeout=self.config.grace_s)
            self._say_how_it_ended(self._serving)
        await self._hooks.cleanup(self.config.grace_s)
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self.state != "failed":
            self._become("stopped")

    def _say_how_it_ended(self, serving: asyncio.Task[None]) -> None:
        if serving.done() and not serving.cancelled() and (error := serving.exception()) is not None:
            event(self.log, "door failed", level=logging.ERROR, exc=error)

    def cut_short(self) -> None:
        if self._serving is not None:
            self._serving.cancel()

    async def note(self, entry: Entry, record: Mapping[str, Any], *, sync: bool = False) -> None:
        """``Progress``: a door has no entry in hand. :raises LookupError: always."""
        self.jot(entry, record)

    def jot(self, entry: Entry, record: Mapping[str, Any]) -> None:
        """As ``note``."""
        raise LookupError(f"the door {self.config.name} has no entry in hand")

    def conclude(self, entry: Entry, record: Mapping[str, Any]) -> None:
        """As ``note``."""
        self.jot(entry, record)

    def waits(self, entry: Entry) -> None:
        """``Progress``: a door has no entry in hand. :raises LookupError: always."""
        raise LookupError(f"the door {self.config.name} has no entry in hand")

    # Intake

    async def take(self, draft: Draft, **fields: Any) -> tuple[str, ...]:
        self._in_hand += 1
        try:
            adds = await self.adds(draft)
            ids = await self._enqueued(adds)
        except PermanentFailure:
            self.counters.count(failed=True)
            raise
        finally:
            self._in_hand -= 1
        self.took(draft, adds, ids, **fields)
        return ids

    async def _enqueued(self, adds: Sequence[Add]) -> tuple[str, ...]:
        if not adds:
            return ()
        loop = asyncio.get_running_loop()
        try:
            # Once begun it comes to its end, so that nobody is told of a failure that was none.
            ids = await asyncio.shield(loop.run_in_executor(self._threads, self.site.spool.enqueue_all, adds))
        except QueueError as error:
            self.troubled(str(error))
            raise
        self.troubled("")
        return ids

    def troubled(self, reason: str) -> None:
        if reason != self._trouble:
            self._trouble = reason
            self._look()

    async def adds(self, draft: Draft) -> Sequence[Add]:
        now_ns = self.clock.now_ns()
        draft = replace(draft, arrival_ns=draft.arrival_ns or now_ns)
        left = await self._handled(self._looked_at(draft, now_ns))
        if isinstance(left, Hold):
            return self.aside(draft, "hold", {"what": "hold", "reason": left.reason})
        return [
            Add(part, queue, due_after(now_ns, checked_delay_s(forward.delay_s)))
            for forward in self._forwards(left)
            for queue, part in self.site.parts(forward.queue, _draft(forward.entry, draft), now_ns)
        ]

    def _looked_at(self, draft: Draft, now_ns: int) -> Entry:
        return Entry(
            id="",
            queue=self.config.name,
            envelope=draft.envelope,
            message=draft.message,
            recipients=draft.envelope.addresses,
            meta={**draft.meta, SOURCE: self.config.name},
            arrival_ns=now_ns,
            due_ns=now_ns,
        )

    def aside(self, draft: Draft, area: Area, record: Mapping[str, Any]) -> Sequence[Add]:
        now_ns = self.clock.now_ns()
        entry = self._looked_at(draft, now_ns)
        name = next(iter(self.config.next), self.site.config.site.report_queue)
        queue = next(queue for queue, _ in self.site.parts(name, draft, now_ns))
        draft = replace(draft, meta=entry.meta, arrival_ns=draft.arrival_ns or now_ns)
        return [Add(draft, queue, now_ns, area, (record,))]

    def _forwards(self, left: object) -> Sequence[Forward]:
        """Where it goes, by the handlers' word or by ``next``."""
        if isinstance(left, Entry):
            return [left.forward(queue) for queue in self.config.next]
        if isinstance(left, Done):
            return []
        if isinstance(left, Forward):
            return [left]
        if isinstance(left, Requeue):
            # It is not ours yet, so that it can only wait where it is.
            raise TemporaryFailure(left.reason or "not now", delay=left.delay)
        if isinstance(left, Sequence) and left and all(isinstance(one, Forward) for one in left):
            return left
        raise HandlerFailed(
            f"a handler of the door {self.config.name} returned {left!r}, expected an entry or forwards"
        )

    async def _handled(self, entry: Entry) -> object:
        if not self.handlers:
            return entry
        try:
            async with asyncio.timeout(self.config.timeout_s):
                return await handled(self.handlers, entry)
        except (TemporaryFailure, PermanentFailure, QueueError):
            raise
        except TimeoutError:
            raise QueueError(f"the handlers of the door {self.config.name} took too long") from None
        except Exception as error:
            lines = "".join(traceback.format_exception(error))
            event(self.log, "handler failed", level=logging.ERROR, reason=str(error), traceback=lines)
            raise HandlerFailed(f"a handler failed: {type(error).__name__}: {error}", lines) from error

    def took(self, draft: Draft, adds: Sequence[Add], ids: Sequence[str], **fields: Any) -> None:
        self.counters.count()
        event(
            self.log,
            "accepted" if ids else "finished by a handler",
            id=ids[0] if ids else None,
            new=list(ids[1:]) or None,
            to_queue=[_place(add) for add in adds] or None,
            sender=draft.envelope.sender,
            to=list(draft.envelope.addresses),
            size=len(draft.message),
            **fields,
        )


def _place(add: Add) -> str:
    return add.queue if add.area == "queue" else f"{add.area}/{add.queue}"


def _draft(entry: Entry, draft: Draft) -> Draft:
    """What is left of the draft after the handlers."""
    envelope = entry.envelope.only(entry.recipients)
    return replace(draft, message=entry.message, envelope=envelope, meta=entry.meta)
