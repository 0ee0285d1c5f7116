"""The base of every runner: what a site's subclass may define, and what it is given.

A subclass defines ``dispose`` (or, of ``BatchRunner``, ``dispose_batch``) and returns a fate; everything else may
be left out. The loop that drives it is ``qrunner.engine.loop``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from qrunner.bounce import Bounce
from qrunner.clock import Clock
from qrunner.config import RunnerConfig, SliceConfig
from qrunner.fate import Fate
from qrunner.message import Draft, Entry
from qrunner.suspension import Suspension
from qrunner.switchboard import Add, Area

if TYPE_CHECKING:
    from qrunner.site import Site


class Progress(Protocol):
    """What a runner tells of entries in hand: lines for their history, and that they wait for somebody else."""

    async def note(self, entry: Entry, record: Mapping[str, Any], *, sync: bool = False) -> None:
        """Adds a line to the entry's history; returns when it is written (``sync``: on stable storage).

        ``OSError``: it is not written, which for a mark before an act means that the act must not happen.
        """
        ...

    def jot(self, entry: Entry, record: Mapping[str, Any]) -> None:
        """``note``, for one who must not be held up between two steps: written when it returns. Raises as ``note``."""
        ...

    def conclude(self, entry: Entry, record: Mapping[str, Any]) -> None:
        """``jot`` of what leaves nothing to be done: if the entry is finished before anybody else's turn in the loop, its
        end says the same, and the line is not written. What can't be written then is kept until it can be. Raises as
        ``note`` of a line that was kept before."""
        ...

    def waits(self, entry: Entry) -> None:
        """From now on it only waits for somebody who is silent, and another entry may be claimed in its place; up to as
        many again as ``concurrency``, so that twice as many are in hand at most."""
        ...


class Intake(Protocol):
    """Where a door hands in what came from outside."""

    @property
    def suspension(self) -> Suspension | None:
        """Why nothing is to be taken in now, by an operator's word or by ``only_when_idle``; None: it may."""
        ...

    async def take(self, draft: Draft, **fields: Any) -> tuple[str, ...]:
        """Accepts a message: through the handlers, on to ``next``. Durable when it returns.

        :param fields: what the log is to say of it besides, such as the peer.
        :returns: the ids of its parts, none if a handler finished it.
        :raises QueueError, TemporaryFailure: it is not accepted, for now. PermanentFailure: for good.
        """
        ...

    async def adds(self, draft: Draft) -> Sequence[Add]:
        """What the message becomes, for a door that commits by itself; raises as ``take``."""
        ...

    def aside(self, draft: Draft, area: Area, record: Mapping[str, Any]) -> Sequence[Add]:
        """What the message becomes if it is set aside, from the first queue of ``next``.

        :param record: the line of its history that says why.
        """
        ...

    def took(self, draft: Draft, adds: Sequence[Add], ids: Sequence[str], **fields: Any) -> None:
        """Counts and logs what such a door has committed."""
        ...

    def troubled(self, reason: str) -> None:
        """Says in ``status`` why nothing can be taken in; with an empty reason, that it can again."""
        ...


@dataclass(frozen=True, slots=True)
class Desk:
    """All that a runner is given. Tests make one by hand.

    ``intake``: a door's; None for a runner that owns a queue. ``stopping`` is set once the runner is to stop.
    """

    config: RunnerConfig
    slice: int
    site: Site
    progress: Progress
    log: logging.Logger
    intake: Intake | None = None
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def slice_config(self) -> SliceConfig:
        """The runner's slice."""
        return self.config.slices[self.slice]


class Runner:
    """A runner of one slice of one queue.

    ``name queue slice options log clock site`` are set before ``start`` is called.
    """

    name: str
    queue: str
    slice: int
    options: Mapping[str, Any]
    log: logging.Logger
    clock: Clock
    site: Site

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.name, self.queue, self.slice = desk.config.name, desk.config.queue, desk.slice
        self.options = desk.slice_config.options
        self.log, self.site, self.clock = desk.log, desk.site, desk.site.clock

    def dispose(self, entry: Entry) -> Fate | Awaitable[Fate]:
        """Decides what becomes of one entry; ``async def``, or a plain ``def``, which is run in a thread."""
        raise TypeError(f"{type(self).__name__} does not say how to dispose of an entry: define dispose()")

    async def start(self) -> None:
        """Before the first entry. What it raises keeps the runner from coming up."""

    async def idle(self) -> None:
        """Once each time nothing is due any more."""

    async def periodic(self) -> None:
        """Every ``periodic`` of the configuration, never two at once."""

    async def bounced(self, bounce: Bounce) -> None:
        """For each recipient that was given up, once the report is on its way. What it raises is logged. After a crash
        it may not have been called."""

    async def cleanup(self) -> None:
        """After the last entry."""


Pairs = Iterator[tuple[Sequence[Entry], Fate]] | AsyncIterator[tuple[Sequence[Entry], Fate]]


class BatchRunner(Runner):
    """A runner that sees everything that is due at once, and decides about groups of entries.

    It has one slice. What it does not name stays, at no cost.
    """

    def dispose_batch(self, entries: Sequence[Entry]) -> Pairs:
        """Yields ``(entries, fate)`` pairs, each of which is one commit. A generator, plain or asynchronous.

        :param entries: all that is due, oldest first; they are looked at, not claimed.
        """
        raise TypeError(f"{type(self).__name__} does not say what becomes of a batch: define dispose_batch()")


class Door(Runner):
    """A runner that brings mail in from outside: it owns no queue, and what it takes goes to ``next``.

    ``start`` makes it reachable, or raises; ``meta.source`` of what it takes is its name.
    """

    @property
    def intake(self) -> Intake:
        """Where it hands mail in."""
        assert self.desk.intake is not None
        return self.desk.intake

    @property
    def suspension(self) -> Suspension | None:
        """Why it is to take nothing now; None: it may."""
        return self.intake.suspension

    async def serve(self, stopping: asyncio.Event) -> None:
        """Brings mail in until ``stopping`` is set, finishes what is under way, and returns. It is cancelled at the end
        of ``grace``."""
        raise TypeError(f"{type(self).__name__} does not say how to bring mail in: define serve()")

    async def catch_up(self) -> None:
        """Brings in what waits outside now, for ``run --once``. A door that is waited for has nothing to do."""
