"""``archive``: keeps each message in an mbox, a Maildir or a folder, and then lets it go.

*Configuration*: ``path``, in which ``%Y %y %m %d %H %j %G %V`` stand for the time of arrival, UTC: an archive of each
month, or each day; and ``format``:

=============  ======================================================================================
``mbox``       ``path`` is the file. mboxrd, locked as mailers lock it (``qrunner.mailstore``)
``maildir``    ``path`` is the folder that has ``tmp new cur``
``eml``        ``path`` is a folder of files, each the bytes of one message: ``<time>-<id>.eml``
=============  ======================================================================================

With ``next`` the entry then goes on; without, it is finished. Folders are made as they are needed, 0700, files 0600.

Guarantees: an entry is let go once it is on stable storage where it is kept, and it is kept there once, whichever
instruction the process dies at, and however fast somebody takes it away. A part of a message is never seen: in a folder it
has no name yet, in an mbox it is cut off before anything else is appended here.

Not guaranteed: once, across a loss of power, for a Maildir or a folder out of which something was taken in the same
moment. What programs do to an mbox that lock it in neither way.

Failures: whatever keeps it from being written (a full disk, a lock that is held, a folder that can't be made) is no
failure of the message: it waits, at no cost, and its history says for what.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from qrunner.config.compounds import check_dates
from qrunner.errors import ConfigError
from qrunner.fate import Done, Fate, Requeue
from qrunner.mailstore.folder import Drop
from qrunner.mailstore.locking import Locked
from qrunner.mailstore.mbox import Mbox, Spot, framed
from qrunner.message import Entry
from qrunner.runner import Desk, Runner
from qrunner.switchboard.disk import Disk
from qrunner.switchboard.files import boot_id
from qrunner.threads import in_thread

T = TypeVar("T")
_LATER_S, _LOCKED_S = 30.0, 5.0
# How long, and how often, a lock is waited for before the entry waits in its queue.
_PATIENCE_S, _LOOK_S = 10.0, 0.1
# Maildir's readers may sweep what lies longer than this in ``tmp``.
_SWEPT_NS = 36 * 3600 * 10**9
_DIRECTIVE = re.compile("%(.)")


class ArchiveRunner(Runner):
    """Keeps entries. A site's class may say by itself what is kept, and where: ``content``, ``path``."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        settings = desk.config.settings
        if settings.get("path") is None:
            raise ConfigError(f"runner {self.name} is an archive without a path")
        try:
            check_dates(str(settings["path"]))
        except ValueError as error:
            raise ConfigError(f"runner {self.name}: path: {error}") from None
        self.format: str = settings["format"]
        self._pattern, self._boot = str(settings["path"]), boot_id()
        self._disk = Disk(self.site.config.site.durability == "full")
        # One of ours at a time asks for a lock: the others need not look whether it is free.
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def dispose(self, entry: Entry) -> Fate:
        """On, once it is kept."""
        hand = _Hand()
        keep = self._into_mbox if self.format == "mbox" else self._into_folder
        try:
            file = await _to_its_end(keep(entry, hand), hand)
        except Locked as busy:
            return Requeue(_LOCKED_S, str(busy))
        except OSError as error:
            return Requeue(_LATER_S, f"{error.filename or self.path(entry)}: {error.strerror or error}")
        return [entry.forward(queue) for queue in self.desk.config.next] or Done(f"kept in {file}")

    def content(self, entry: Entry) -> bytes:
        """What is kept: the message."""
        return entry.message

    def path(self, entry: Entry) -> str:
        """Where: the mbox, or the folder. Nothing of what a stranger wrote may go into it unchecked."""
        return _DIRECTIVE.sub(
            lambda found: entry.arrival.strftime(found[0]) if found[1] != "%" else "%", self._pattern
        )

    # What was begun before

    def _begun(self, entry: Entry) -> Mapping[str, Any]:
        """The last of our marks in the entry's history: how far a try of before may have come."""
        marks = [line for line in entry.history if line.get("what") == "archive"]
        return next((line for line in reversed(marks) if line.get("queue") == self.queue), {})

    async def _mark(self, entry: Entry, hand: _Hand, *, sync: bool = False, **what: Any) -> None:
        """Says what is done next. Whoever has the entry in hand after us will know, or nothing is done."""
        hand.check()
        await self.desk.progress.note(entry, {"what": "archive", "queue": self.queue, **what}, sync=sync)
        hand.check()

    # An mbox

    async def _into_mbox(self, entry: Entry, hand: _Hand) -> str:
        begun, file = self._begun(entry), self.path(entry)
        if begun.get("file") not in (None, file) and await self._is_in(begun):
            # The configuration has changed since.
            return str(begun["file"])
        before = _spot(begun) if begun.get("file") == file else None
        async with self._locked(file) as box:
            if before is None or not await in_thread(box.holds, before):
                await self._append(entry, hand, box, before)
        return file

    async def _append(self, entry: Entry, hand: _Hand, box: Mbox, before: Spot | None) -> None:
        record = framed(entry.sender, entry.arrival, self.content(entry))
        spot = await in_thread(box.spot_for, record)
        # Tried in vain again and again, its history must not grow.
        if spot != before:
            where = {"file": box.file.path, "at": spot.at, "size": spot.size, "crc": spot.crc}
            await self._mark(entry, hand, sync=True, **where)
        hand.check()
        await in_thread(box.append, record)

    async def _is_in(self, begun: Mapping[str, Any]) -> bool:
        """Whether it is where it was to be at that time."""
        before = _spot(begun)
        if before is None or not await in_thread(os.path.isfile, begun["file"]):
            return False
        async with self._locked(begun["file"]) as box:
            return bool(await in_thread(box.holds, before))

    @asynccontextmanager
    async def _locked(self, file: str) -> AsyncIterator[Mbox]:
        """The mbox, as soon as nobody else has it. :raises Locked: that took too long."""
        async with self._turns[file]:
            box = await self._taken(file)
            try:
                yield box
            finally:
                await in_thread(box.close)

    async def _taken(self, file: str) -> Mbox:
        loop = asyncio.get_running_loop()
        end = loop.time() + _PATIENCE_S
        while True:
            try:
                box: Mbox = await in_thread(Mbox.take, file, self._disk)
                return box
            except Locked:
                if loop.time() > end:
                    raise
            await asyncio.sleep(_LOOK_S)

    # A folder

    async def _into_folder(self, entry: Entry, hand: _Hand) -> str:
        begun = self._begun(entry)
        drop = self._drop(entry)
        if "staged" in begun:
            drop = Drop(begun["staged"], begun["file"], drop.moves)
        if not await in_thread(self._is_kept, drop, begun):
            if not (self._is_of_this_boot(begun) and drop.is_staged()):
                await in_thread(drop.stage, self.content(entry), self._disk)
                await self._mark(entry, hand, file=drop.final, staged=drop.staged, boot=self._boot)
            hand.check()
            await self._publish(entry, hand, drop)
        return drop.final

    def _drop(self, entry: Entry) -> Drop:
        if self.format == "maildir":
            host = self.site.config.site.hostname
            return Drop.into_maildir(self.path(entry), entry.id, entry.arrival, host)
        return Drop.into_folder(self.path(entry), entry.id, entry.arrival)

    def _is_kept(self, drop: Drop, begun: Mapping[str, Any]) -> bool:
        """Whether a try of before has come to its end; then it is on stable storage from here on."""
        if not drop.is_there() and not (begun and self._is_taken(drop, begun)):
            return False
        drop.settle(self._disk)
        return True

    def _is_taken(self, drop: Drop, begun: Mapping[str, Any]) -> bool:
        """Whether a reader has taken it away. While the machine lives, what was staged and is so no more got its name."""
        if drop.was_moved():
            return True
        age_ns = self.clock.now_ns() - int(begun.get("t", 0))
        return self._is_of_this_boot(begun) and not drop.is_staged() and age_ns < _SWEPT_NS

    def _is_of_this_boot(self, begun: Mapping[str, Any]) -> bool:
        return begun.get("boot") == self._boot

    async def _publish(self, entry: Entry, hand: _Hand, drop: Drop) -> None:
        try:
            await in_thread(drop.publish, self._disk)
        except FileNotFoundError:
            if drop.is_there() or drop.was_moved():
                return
            # Somebody has swept away what was staged. That must not be taken for a reader's doing at the next try.
            await self._unmark(entry, hand)
            raise

    async def _unmark(self, entry: Entry, hand: _Hand) -> None:
        while True:
            try:
                return await self._mark(entry, hand, file=None)
            except OSError:
                await asyncio.sleep(_LOOK_S)


def _spot(begun: Mapping[str, Any]) -> Spot | None:
    return Spot(begun["at"], begun["size"], begun["crc"]) if "at" in begun else None


class _LetGo(Exception):
    """We have been cancelled: the entry is in nobody's hand, or in another one's."""


@dataclass(slots=True)
class _Hand:
    """Whether the entry is in our hand still."""

    is_empty: bool = False

    def check(self) -> None:
        if self.is_empty:
            raise _LetGo


async def _to_its_end(work: Coroutine[Any, Any, T], hand: _Hand) -> T:
    """What the coroutine returns. If we are cancelled it goes on without us as far as to the end of its step: a file that
    is being written by a thread must not be closed under its hands, nor a lock be forgotten."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        hand.is_empty = True
        raise
