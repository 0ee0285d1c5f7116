"""``maildir``: a door that takes what a mailer delivers into a maildir, once, for all who want to read it.

*Configuration*: ``path``; ``recipients`` and ``sender``, for messages whose delivery has not written an envelope on top
of them; ``handlers`` and ``next``.

Guarantees: a message is entered once and then lies in the maildir's ``cur``, whatever dies at whatever moment. One
runner at a time reads a maildir, whatever site it is of. A file that is still written is left alone. The bytes that
came are the bytes that go on.

Failures: a message without recipients, or one over which a handler stumbles, is shunted, with the reason. One that can't
be read is left alone and said once in the log. A full disk, a maildir that is not there, or somebody else's: the
runner is ``waiting``.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qrunner.delivered import envelope_of
from qrunner.engine.reports import Reports
from qrunner.errors import HandlerFailed, PermanentFailure, QueueError, TemporaryFailure
from qrunner.fate import Failure
from qrunner.log import event, visible
from qrunner.maildir import Crossing, Letter, Maildir, Taken, Unfinished, Unfit
from qrunner.message import Draft, Entry, Envelope
from qrunner.runner import Desk, Door
from qrunner.schedule import delay_s
from qrunner.switchboard import Add
from qrunner.switchboard.disk import Disk
from qrunner.threads import in_thread
from qrunner.wakeup import Watch

# So many files are one commit, if they are not larger than that together; and so many commits are under way.
_FILES, _BYTES, _AT_ONCE = 32, 32 << 20, 4
_LOOK_S = 1.0
_TROUBLE_S, _STUCK_S = 2.0, 300.0
_MEMORY = 10_000
_LONGEST_REASON = 1000


@dataclass(slots=True)
class _Waiting:
    """A message that a handler wants to see again later."""

    attempts: int
    until_s: float


@dataclass(slots=True)
class _Look:
    """What came of a look: how many were taken, and when to look again at the latest (seconds)."""

    again_s: float
    taken: int = 0
    settles: bool = False

    def want(self, again_s: float) -> None:
        self.again_s = max(0.0, min(self.again_s, again_s))


class MaildirRunner(Door):
    """Reads a maildir."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        config = desk.config
        self._path = config.settings["path"]
        self._sender, self._recipients = config.settings["sender"], config.settings["recipients"]
        self._disk = Disk(config_is_durable(desk))
        self._reports = Reports(self.site, config, self.log)
        self._crossing: Crossing | None = None
        self._under_way = 0
        self._watch: Watch | None = None
        self._lost = False
        self._wake = asyncio.Event()
        self._said: set[str] = set()
        self._later: dict[str, _Waiting] = {}

    async def serve(self, stopping: asyncio.Event) -> None:
        """Takes what is there, and what comes, until it is stopped."""
        waker = asyncio.get_running_loop().create_task(self._wake_at(stopping))
        try:
            while not stopping.is_set():
                self._wake.clear()
                await self.clock.wait(self._wake, await self._turn(stopping))
        finally:
            waker.cancel()
            self._let_go()

    async def _wake_at(self, stopping: asyncio.Event) -> None:
        await stopping.wait()
        self._wake.set()

    async def _turn(self, stopping: asyncio.Event) -> float:
        """One look, if there is to be one; in how many seconds to look again."""
        if self.suspension is not None:
            return _LOOK_S
        try:
            look = await self._look(stopping)
        except (OSError, QueueError) as error:
            self.intake.troubled(_words(error))
            self._give_up_if_gone()
            return min(_TROUBLE_S, self.desk.config.poll_interval_s)
        self.intake.troubled("")
        # An operator may want it to be suspended meanwhile.
        return look.again_s

    async def catch_up(self) -> None:
        """Takes what is there, what is still being written excepted."""
        try:
            look = _Look(0, taken=1)
            while look.taken or look.settles:
                look = await self._look(asyncio.Event())
                if look.settles and not look.taken:
                    await self.clock.wait(asyncio.Event(), look.again_s)
        finally:
            self._let_go()

    # The maildir

    async def _look(self, stopping: asyncio.Event) -> _Look:
        """Takes all that is there and complete.

        :raises LeaseHeld: somebody else reads it. OSError, QueueError: nothing can be taken now.
        """
        crossing = self._crossing or await self._opened()
        await in_thread(crossing.maildir.check)
        if self._lost:
            self._hang_bell(crossing)
        if not crossing.is_settled:
            published = await in_thread(crossing.settle)
            if published:
                event(self.log, "published what was taken before", count=published)
        names = deque(await in_thread(crossing.maildir.names))
        self._forget_all_but(names)
        look = _Look(self.desk.config.poll_interval_s)
        hands = [self._hand(crossing, names, look, stopping) for _ in range(_AT_ONCE)]
        for error in await asyncio.gather(*hands, return_exceptions=True):
            if isinstance(error, BaseException):
                raise error
        for waits in self._later.values():
            look.want(waits.until_s - self._now_s())
        return look

    async def _opened(self) -> Crossing:
        maildir = await in_thread(Maildir, self._path, self._who())
        try:
            staging = await in_thread(self.site.spool.staging, maildir.door, self.name)
        except BaseException:
            maildir.close()
            raise
        self._crossing = Crossing(maildir, staging, self._disk)
        self._hang_bell(self._crossing)
        return self._crossing

    def _who(self) -> str:
        site = self.site.config
        return f"runner {self.name} of {site.path}, process {os.getpid()} on {site.site.node}"

    def _hang_bell(self, crossing: Crossing) -> None:
        """Without one, the poll tells."""
        self._take_bell_down()
        self._lost = False
        try:
            self._watch = watch = Watch()
            watch.add(crossing.maildir.new, written=True)
        except OSError as error:
            self._take_bell_down()
            event(self.log, "no bell", reason=str(error))
            return
        asyncio.get_running_loop().add_reader(watch.fileno(), self._on_events, watch, crossing)

    def _on_events(self, watch: Watch, crossing: Crossing) -> None:
        for one in watch.read():
            if one.whole:
                crossing.maildir.is_whole(os.fsdecode(one.name))
            self._lost = self._lost or one.lost
        self._wake.set()

    def _take_bell_down(self) -> None:
        if self._watch is not None:
            with contextlib.suppress(RuntimeError):
                asyncio.get_running_loop().remove_reader(self._watch.fileno())
            self._watch.close()
            self._watch = None

    def _give_up_if_gone(self) -> None:
        """A maildir that is not where it was, or another one: it is opened anew."""
        if self._crossing is not None:
            try:
                self._crossing.maildir.check()
            except OSError:
                self._let_go()

    def _let_go(self) -> None:
        self._take_bell_down()
        if self._crossing is not None and not self._under_way:
            # What a stop did not wait for keeps the locks until the process has ended.
            self._crossing.close()
        self._crossing = None

    # One hand of several

    async def _hand(
        self, crossing: Crossing, names: deque[str], look: _Look, stopping: asyncio.Event
    ) -> None:
        while names and not stopping.is_set() and self.suspension is None and crossing.is_settled:
            some = [names.popleft() for _ in range(min(_FILES, len(names)))]
            letters = await in_thread(self._read_some, crossing.maildir, some, look)
            names.extendleft(reversed(some))
            drafts = {letter: self._draft(letter) for letter in letters}
            batch = {
                letter: adds
                for letter, draft in drafts.items()
                if (adds := await self._adds(letter, draft)) is not None
            }
            if not batch:
                continue
            taken = await self._crossed(crossing, batch)
            look.taken += len(taken.ids)
            self.intake.troubled("")
            for letter, ids in taken.ids.items():
                self._later.pop(letter.name, None)
                self.intake.took(drafts[letter], batch[letter], ids, file=visible(letter.name))
            for letter, why in taken.stuck.items():
                self._later[letter.name] = _Waiting(1, self._now_s() + _STUCK_S)
                self._say_once(letter.name, f"it can't be moved: {why}")

    async def _crossed(self, crossing: Crossing, batch: Mapping[Letter, Sequence[Add]]) -> Taken:
        """Once begun it comes to its end; what nobody waits for any more is settled by who comes next."""
        self._under_way += 1
        task = asyncio.ensure_future(in_thread(crossing.take, batch))
        task.add_done_callback(self._over)
        return await asyncio.shield(task)

    def _over(self, task: asyncio.Future[Taken]) -> None:
        self._under_way -= 1
        if not task.cancelled():
            task.exception()

    def _read_some(self, maildir: Maildir, names: list[str], look: _Look) -> list[Letter]:
        """Those of them that can be read, as many as are a commit; ``names`` keeps the rest."""
        letters: list[Letter] = []
        size, now_s = 0, self._now_s()
        while names and size < _BYTES:
            name = names.pop(0)
            if (waits := self._later.get(name)) is not None and waits.until_s > now_s:
                continue
            try:
                letters.append(maildir.read(name, now_s))
                size += len(letters[-1].message)
            except FileNotFoundError:
                continue
            except Unfinished as error:
                if error.again_s is not None:
                    look.settles = True
                look.want(_LOOK_S if error.again_s is None else error.again_s)
            except Unfit as error:
                self._say_once(name, str(error))
        return letters

    def _now_s(self) -> float:
        return self.clock.monotonic_ns() / 1e9

    def _say_once(self, name: str, why: str) -> None:
        if name not in self._said and len(self._said) < _MEMORY:
            self._said.add(name)
            event(self.log, "left alone", level=logging.WARNING, file=visible(name), reason=why)

    def _forget_all_but(self, names: Sequence[str] | deque[str]) -> None:
        there = set(names)
        self._said &= there
        self._later = {name: waits for name, waits in self._later.items() if name in there}

    # What a message becomes

    def _draft(self, letter: Letter) -> Draft:
        found = envelope_of(letter.message)
        sender = (self._sender or "") if found.sender is None else found.sender
        return Draft(letter.message, Envelope.of(sender, found.recipients or self._recipients))

    async def _adds(self, letter: Letter, draft: Draft) -> Sequence[Add] | None:
        """Where it goes; None: it is left for later."""
        if not draft.envelope.recipients:
            return self._shunted(
                draft, "no recipients: no Delivered-To or X-Original-To on top, and no key `recipients`"
            )
        try:
            adds = await self.intake.adds(draft)
        except PermanentFailure as error:
            return self._refused(letter, draft, error)
        except HandlerFailed as error:
            return self._shunted(draft, error.text, error.traceback)
        except (TemporaryFailure, QueueError) as error:
            self._put_off(letter, error)
            return None
        known = set(self.site.config.queues())
        unknown = [add.queue for add in adds if add.queue not in known]
        if unknown and not set(unknown) <= set(self.site.spool.queues()):
            return self._shunted(draft, f"a handler named queues that are not there: {', '.join(unknown)}")
        return adds

    def _put_off(self, letter: Letter, error: Exception) -> None:
        before = self._later.get(letter.name)
        attempts = before.attempts + 1 if before else 1
        wait_s = getattr(error, "delay_s", None)
        if wait_s is None:
            wait_s = delay_s(self.desk.config.retry, attempts, random.random())
        self._later[letter.name] = _Waiting(attempts, self._now_s() + wait_s)
        event(self.log, "put off", file=visible(letter.name), reason=str(error), delay_s=round(wait_s, 1))

    def _shunted(self, draft: Draft, reason: str, traceback: str = "") -> Sequence[Add]:
        """Set aside from the queue it would have gone to, for a person to look at."""
        now_ns = self.clock.now_ns()
        draft = replace(draft, meta={**draft.meta, "source": self.name}, arrival_ns=now_ns)
        name = next(iter(self.desk.config.next), self.site.config.site.report_queue)
        queue = next(queue for queue, _ in self.site.parts(name, draft, now_ns))
        record: dict[str, Any] = {"what": "shunt", "queue": queue, "reason": reason[:_LONGEST_REASON]}
        if traceback:
            record["traceback"] = traceback
        event(self.log, "shunted", level=logging.ERROR, queue=queue, reason=reason)
        return [Add(draft, queue, now_ns, "shunt", (record,))]

    def _refused(self, letter: Letter, draft: Draft, error: PermanentFailure) -> Sequence[Add]:
        """A report, as ``report`` says, in the place of the message."""
        now_ns = self.clock.now_ns()
        name = hashlib.sha1(f"{letter.inode} {letter.name}".encode("utf-8", "replace"), usedforsecurity=False)
        entry = Entry(
            id=name.hexdigest(),
            queue=self.name,
            envelope=draft.envelope,
            message=draft.message,
            recipients=draft.envelope.addresses,
            meta={"source": self.name},
            arrival_ns=now_ns,
            due_ns=now_ns,
        )
        failures = [Failure(address, error.status, error.text) for address in entry.recipients]
        event(
            self.log,
            "refused by a handler",
            level=logging.WARNING,
            reason=error.text,
            to=list(entry.recipients),
        )
        return self._reports.of_failures(entry, failures)


def config_is_durable(desk: Desk) -> bool:
    """Whether the site wants its syncs."""
    return desk.site.config.site.durability == "full"


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)
