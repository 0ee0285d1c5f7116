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
import logging
import os
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qrunner.errors import QueueError
from qrunner.log import event, visible
from qrunner.maildir.becoming import Becoming
from qrunner.maildir.box import Letter, Maildir, Unfinished, Unfit
from qrunner.maildir.crossing import Crossing, Taken
from qrunner.maildir.lock import Lock
from qrunner.message import Draft
from qrunner.runner import Desk, Door
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
class _Look:
    """What came of a look: how many were taken, and when to look again at the latest (seconds)."""

    again_s: float
    taken: int = 0
    settles: bool = False

    def want(self, again_s: float) -> None:
        self.again_s = max(0.0, min(self.again_s, again_s))


class MaildirRunner(Door):
    """Reads a maildir.

    ``becoming``: decides what becomes of each message; a subclass may have one of its own.
    """

    becoming: type[Becoming] = Becoming

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        config = desk.config
        self._path = config.settings["path"]
        self._disk = Disk(_is_durable(desk))
        self._becoming = self.becoming(desk)
        self._crossing: Crossing | None = None
        self._under_way = 0
        self._watch: Watch | None = None
        self._lost = False
        self._wake = asyncio.Event()
        self._said: set[str] = set()

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
        if self._crossing is not None:
            self._crossing.maildir.lock.stopping()
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
        lock = crossing.maildir.lock
        lock.forget_all_but(set(names))
        # Who was in hand at a death, each by itself: it may happen again.
        for name in [name for name in names if name in lock.marks]:
            await self._hand(crossing, deque([name]), look, stopping)
            names.remove(name)
        hands = [self._hand(crossing, names, look, stopping) for _ in range(_AT_ONCE)]
        for error in await asyncio.gather(*hands, return_exceptions=True):
            if isinstance(error, BaseException):
                raise error
        for until_s in self._becoming.waiting():
            look.want(until_s - self._now_s())
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
            drafts = {letter: self._becoming.draft(letter) for letter in letters}
            batch = await self._decided(crossing.maildir.lock, drafts)
            if not batch:
                continue
            taken = await self._crossed(crossing, batch)
            look.taken += len(taken.ids)
            self.intake.troubled("")
            for letter, ids in taken.ids.items():
                self.intake.took(drafts[letter], batch[letter], ids, file=visible(letter.name))
            for letter, why in taken.stuck.items():
                self._becoming.put_off(letter.name, _STUCK_S)
                self._say_once(letter.name, f"it can't be moved: {why}")

    async def _decided(self, lock: Lock, drafts: Mapping[Letter, Draft]) -> dict[Letter, Sequence[Add]]:
        """Where these go; what is left for later is left out."""
        names = [letter.name for letter in drafts] if self.desk.config.handlers else []
        if names:
            # A death while a site's code has them in hand is laid to them.
            lock.hold(names)
        crashes, found = self.desk.config.max_crashes, dict[Letter, Sequence[Add]]()
        for letter, draft in drafts.items():
            marks = lock.marks.get(letter.name)
            is_poison = marks is not None and marks.is_poison(crashes)
            adds = await self._becoming.adds(letter, draft, is_poison=is_poison)
            if adds is not None:
                found[letter] = adds
        if names:
            lock.let(names)
        return found

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
            if self._becoming.is_for_later(name, now_s):
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
        self._becoming.forget_all_but(there)


def _is_durable(desk: Desk) -> bool:
    """Whether the site wants its syncs."""
    return desk.site.config.site.durability == "full"


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)
