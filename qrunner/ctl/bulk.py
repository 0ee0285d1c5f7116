"""A whole mbox or Maildir into a queue: many messages in flight, and each once, whatever interrupts it.

Messages go in batches. A batch is *staged*, durable and in no queue; a line in the *journal* commits it; then it is
*published*, and its ids are printed. Who runs the same command again (the same place, queue, envelope and options)
finds the journal, publishes what was committed, withdraws what was not, and goes on behind it. What was finished is
not injected again either, unless somebody says so; what has come since is.

Guarantees: across kill -9 at any moment each message goes in once; an id is printed when its message is durable and in
its queue. A message that can't be taken is named and left out, and the others go in.

Not guaranteed: that an id is printed of what was published, or recovered, around an interruption; the log may lack it
too. A second command that differs in anything is another one, and injects everything.

Failures: ``QueueError`` where the queue takes nothing; ``Changed`` where an mbox was written anew after an
interruption, so that nobody can say how far it had come.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import click

from qrunner.clock import to_datetime
from qrunner.ctl.context import say
from qrunner.ctl.journal import KEPT_S, Journal, key_of, tidy
from qrunner.ctl.letters import Box, Changed, Letter
from qrunner.ctl.orders import Order
from qrunner.errors import LeaseHeld, PermanentFailure, QueueError
from qrunner.log import event, visible
from qrunner.rundir import RunDir
from qrunner.site import Site
from qrunner.switchboard import Add, Staging
from qrunner.switchboard.disk import Disk

# Of files, each with a descriptor while it is staged; of bytes, which are held in memory; of time.
_BATCH = 512
_BATCH_BYTES = 32 << 20
_BATCH_S = 1.0
_LONGEST_BATCH = 4096
_DOOR = "ctl-inject"
_PAUSE_S = 0.2
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_CLEARED = "\r\033[K"


@dataclass(slots=True)
class Stop:
    """Whether somebody asked us to stop; while inside, the first signal only asks. The second is as ever."""

    asked: bool = False
    _before: dict[int, Any] = field(default_factory=dict)

    def __enter__(self) -> Stop:
        # What was ignored from the start, as under nohup, stays so.
        heard = [number for number in _STOPS if signal.getsignal(number) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._ask) for number in heard}
        return self

    def _ask(self, number: int, frame: object) -> None:
        self.asked = True
        self.__exit__()

    def __exit__(self, *raised: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


@dataclass(slots=True)
class Talk:
    """What is said while a bar is drawn on the terminal, beside it."""

    bar: Any
    shown: bool

    def data(self, text: str) -> None:
        """A line of data."""
        self._clear()
        click.echo(text)

    def say(self, text: str) -> None:
        """A line of talk."""
        self._clear()
        say(text)

    def _clear(self) -> None:
        if self.shown:
            click.echo(_CLEARED, nl=False, err=True)


@contextlib.contextmanager
def talking(box: Box) -> Iterator[Talk]:
    """A bar for as long as the box is worked on, where standard error is a terminal."""
    shown = sys.stderr.isatty()
    label = visible(os.path.basename(os.path.normpath(box.place)))[-30:]
    with click.progressbar(length=box.length, label=label, file=sys.stderr, hidden=not shown) as bar:
        bar.update(box.done)
        yield Talk(bar, shown)


@contextlib.contextmanager
def door(site: Site, user: str, stop: Stop) -> Iterator[Staging]:
    """The door through which boxes come in, one process at a time; waits for who has it.

    :raises QueueError: it can't be had. click.Abort: somebody asked us to stop.
    """
    staging, said = None, False
    while staging is None:
        if stop.asked:
            raise click.Abort
        try:
            staging = site.spool.staging(_DOOR, f"inject by {user}")
        except LeaseHeld as error:
            if not said:
                say(f"waiting for another injection to end: {error}")
            said = True
            time.sleep(_PAUSE_S)
        except OSError as error:
            raise QueueError(str(error)) from error
    try:
        yield staging
    finally:
        staging.release()


@contextlib.contextmanager
def taken_in() -> Iterator[None]:
    """What the disk of the queue refuses is the queue's, and not the box's. :raises QueueError: instead of OSError."""
    try:
        yield
    except OSError as error:
        raise QueueError(f"the queue: {error.strerror or error}") from error


Parts = Sequence[tuple[Letter, Sequence[Add]]]


@dataclass(slots=True)
class Bulk:
    """Injects boxes, one after another.

    :param again: also what was injected before.
    """

    site: Site
    order: Order
    user: str
    log: logging.Logger
    staging: Staging
    stop: Stop
    again: bool = False
    _last_due_ns: int = 0

    def inject(self, box: Box) -> bool:
        """All that is in it, and was not injected before; False: something was left out, which was said.

        :raises QueueError: the queue takes nothing. Changed: the box is not the one that was begun with.
        """
        place = self.site.config.site
        folder = RunDir(place.state_dir).injections
        # Another machine's, or another site's on the same mail, has a journal of its own.
        whose = {"node": place.node, "state_dir": os.path.realpath(place.state_dir)}
        what = {"kind": box.kind, "place": os.path.realpath(box.place)}
        key = key_of({**whose, **what, **self.order.command})
        journal = Journal.opened(folder, key, Disk(place.durability == "full"))
        self._settle(key, journal)
        self._go_on(box, journal)
        with talking(box) as talk:
            try:
                whole = all(self._take(box, key, journal, batch, talk) for batch in self._batches(box, talk))
            except BaseException:
                if journal.batches:
                    talk.say(self._so_far(box, journal))
                raise
        if self.stop.asked or not whole:
            say(f"interrupted. {self._so_far(box, journal)}")
            return False
        journal.finish(to_datetime(self.site.clock.now_ns()).isoformat(timespec="seconds"))
        tidy(folder, self.site.clock.now_ns() / 1e9 - KEPT_S)
        say(f"{box.place}: {_counted(journal)}")
        return not journal.refused

    def _settle(self, key: str, journal: Journal) -> None:
        """What a run that was interrupted has left: what it committed goes on, what it did not goes."""
        left = {parcel for parcel in self.staging.staged() if parcel.startswith(f"{key}/")}
        with taken_in():
            self.staging.publish(left & journal.parcels)
            self.staging.drop(left - journal.parcels)

    def _go_on(self, box: Box, journal: Journal) -> None:
        """Brings box and journal to where the last run was. :raises Changed: that can't be told."""
        if not journal.batches:
            return
        # What --again had begun and was interrupted goes on: the same command never begins twice.
        if (self.again and journal.finished) or not box.skip(journal.batches):
            if not self.again and not journal.finished:
                raise Changed(
                    f"it was written anew since it was interrupted after {_counted(journal)}; "
                    "--again injects all of it, those too"
                )
            journal.clear()
        elif box.done < box.length:
            say(f"{box.place}: going on; {_counted(journal)} before")
        else:
            say(
                f"{box.place}: all of it was injected before, and nothing has come since; --again injects it again"
            )

    def _so_far(self, box: Box, journal: Journal) -> str:
        how = "the same command, without --again," if self.again else "the same command"
        return f"{box.place}: {_counted(journal)} so far; {how} goes on from there"

    def _batches(self, box: Box, talk: Talk) -> Iterator[Parts]:
        """The messages with what each becomes: nothing, if it was refused."""
        batch: list[tuple[Letter, Sequence[Add]]] = []
        files, size, begun = 0, 0, time.monotonic()
        for letter in box.letters():
            if self.stop.asked:
                return
            batch.append((letter, self._adds(letter, talk)))
            files += len(batch[-1][1])
            size += len(letter.message or b"")
            is_full = files >= _BATCH or size >= _BATCH_BYTES or len(batch) >= _LONGEST_BATCH
            if is_full or time.monotonic() - begun > _BATCH_S:
                yield batch
                batch, files, size, begun = [], 0, 0, time.monotonic()
        if batch:
            yield batch

    def _adds(self, letter: Letter, talk: Talk) -> Sequence[Add]:
        """What it becomes; nothing, and a word about it, where it can't be taken."""
        now = self.site.clock.now_ns()
        # Each after the one before it, which is the order in which they are served.
        due = self._last_due_ns = max(now, self._last_due_ns + 1)
        try:
            draft = self.order.draft(letter)
            return [Add(part, name, due) for name, part in self.site.parts(self.order.queue, draft, now)]
        except PermanentFailure as error:
            talk.say(f"{letter.where}: {error}")
            return ()

    def _take(self, box: Box, key: str, journal: Journal, batch: Parts, talk: Talk) -> bool:
        """Commits a batch; False: somebody asked us to stop."""
        parts = [part for part in batch if part[1]]
        parcel = f"{key}/{len(journal.batches)}-{os.urandom(4).hex()}"
        # In one go: syncs that are on their way together share what the disk does for each.
        ids = self.staging.stage({parcel: [add for _, adds in parts for add in adds]})[parcel]
        counts = {"taken": len(parts), "refused": len(batch) - len(parts)}
        # The commit. If it fails, only the journal can tell, and the next run asks it: nothing is dropped here.
        journal.note({"parcel": parcel, **counts, **box.note([letter for letter, _ in batch])})
        with taken_in():
            self.staging.publish([parcel])
        for letter, id in _first_ids(parts, ids):
            talk.data(id)
            event(self.log, "inject", id=id, queue=self.order.queue, user=self.user, where=letter.where)
        talk.bar.update(box.done - talk.bar.pos)
        return not self.stop.asked


def _first_ids(parts: Parts, ids: Sequence[str]) -> Iterator[tuple[Letter, str]]:
    """Each message with its id, or with that of its first part where a route has split it."""
    at = 0
    for letter, adds in parts:
        yield letter, ids[at]
        at += len(adds)


def _counted(journal: Journal) -> str:
    taken = f"{journal.taken} message{'' if journal.taken == 1 else 's'} injected"
    return f"{taken}, {journal.refused} refused" if journal.refused else taken
