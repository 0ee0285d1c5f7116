"""A site: its configuration, its spool and its clock in one hand. What a program outside of the runners uses."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from qrunner.clock import Clock, SystemClock
from qrunner.config import Config, find, load
from qrunner.errors import CorruptEntry, QueueError
from qrunner.message import Draft, Entry, Envelope, checked_addresses, checked_meta
from qrunner.pressure import Gauge, Load
from qrunner.routing import Routing
from qrunner.rundir import RunDir
from qrunner.schedule import due_after
from qrunner.scores import FileScores, Scores
from qrunner.smtp.board import FileBoard
from qrunner.smtp.living import is_living
from qrunner.suspension import Suspensions
from qrunner.switchboard import Add, Spool
from qrunner.switchboard.files import FilesSpool
from qrunner.tally import FileTally, Tally


class Site:
    """One site.

    :param spool: where its queues are; None: the files under ``queue_dir``.
    :param dialer: how hosts are reached; None: by SMTP.
    :param tally: who was told of what; None: the files under ``state_dir``.
    :param scores: which addresses have bounced; None: the files under ``state_dir``.
    :param pressure: how much of the machine others use; None: what the kernel says.
    """

    def __init__(
        self,
        config: Config,
        *,
        spool: Spool | None = None,
        clock: Clock | None = None,
        dialer: Any = None,
        tally: Tally | None = None,
        scores: Scores | None = None,
        pressure: Callable[[], Load | None] | None = None,
    ) -> None:
        self.config = config
        self.clock = clock or SystemClock()
        self.spool = spool or files_spool(config, self.clock)
        self.dialer = dialer
        self.tally: Tally = tally or FileTally(RunDir(config.site.state_dir).reports)
        self.scores: Scores = scores or FileScores(
            RunDir(config.site.state_dir).scores, durable=config.site.durability == "full"
        )
        self.pressure = pressure or Gauge()
        self.routing = Routing.of(config)
        place = config.site
        self.suspensions = Suspensions(place.queue_dir, place.state_dir, self.clock.now_ns)
        if config.balance:
            folder = config.site.state_dir / "host"
            board = dialer.board(folder) if dialer is not None else FileBoard(folder)
            self.routing.is_living = functools.partial(is_living, config, board)

    @classmethod
    def load(cls, path: str | Path | None = None) -> Site:
        """The site of a configuration file; without a path, the one that ``qrunner-ctl`` would take.

        :raises ConfigErrors: every error with its line.
        """
        return cls(load(find(Path(path) if path is not None else None)))

    def enqueue(
        self,
        queue: str,
        *,
        message: bytes,
        sender: str,
        recipients: Iterable[str],
        meta: Mapping[str, Any] | None = None,
        delay: float = 0,
    ) -> str:
        """Accepts a message; its id, or that of its first part where a route splits it. Durable when it returns.

        :param delay: seconds until it is due.
        :raises QueueError: it is not accepted; you still have it.
        :raises TypeError, ValueError: an argument can't be used.
        """
        if not isinstance(message, bytes):
            raise TypeError(f"message must be bytes, not {type(message).__name__}")
        envelope = Envelope.of(sender, checked_addresses(recipients))
        return self.accept(queue, Draft(message, envelope, checked_meta(meta or {})), delay_s=delay)[0]

    async def enqueue_async(
        self,
        queue: str,
        *,
        message: bytes,
        sender: str,
        recipients: Iterable[str],
        meta: Mapping[str, Any] | None = None,
        delay: float = 0,
    ) -> str:
        """``enqueue`` for a program that runs an event loop; calls at the same time share their syncs."""
        call = functools.partial(
            self.enqueue,
            queue,
            message=message,
            sender=sender,
            recipients=recipients,
            meta=meta,
            delay=delay,
        )
        return await asyncio.to_thread(call)

    def accept(self, queue: str, draft: Draft, *, delay_s: float = 0.0) -> tuple[str, ...]:
        """Accepts a draft with everything its envelope has; the ids of its parts.

        :raises QueueError: none of it is accepted.
        """
        now = self.clock.now_ns()
        due = due_after(now, delay_s)
        return self.spool.enqueue_all([Add(part, name, due) for name, part in self.parts(queue, draft, now)])

    def parts(self, queue: str, draft: Draft, now_ns: int) -> Iterator[tuple[str, Draft]]:
        """The real queues a draft goes to, with the part of it that goes there."""
        looked_at = Entry(
            id="",
            queue=queue,
            envelope=draft.envelope,
            message=draft.message,
            recipients=draft.envelope.addresses,
            meta=draft.meta,
            arrival_ns=now_ns,
            due_ns=now_ns,
        )
        for name, part in self.routing.resolve(queue, looked_at):
            arrival_ns = draft.arrival_ns or now_ns
            yield name, Draft(part.message, part.envelope, part.meta, draft.parents, arrival_ns)

    def entries(self, *queues: str) -> Iterator[Entry]:
        """What waits in these queues (in all, if none is named), oldest due first; what moves meanwhile may be
        missed, and what is no entry is left out."""
        for queue in queues or self.spool.queues():
            for ref in self.spool.peek(queue):
                try:
                    yield self.spool.read(ref)
                except (FileNotFoundError, CorruptEntry):
                    continue


def files_spool(config: Config, clock: Clock) -> FilesSpool:
    """The spool of files that a configuration names.

    :raises QueueError: its directory is not there.
    """
    site = config.site
    if not site.queue_dir.is_dir():
        raise QueueError(f"queue_dir {site.queue_dir} is not there: `qrunner-ctl init` lays out a site")
    return FilesSpool(
        site.queue_dir,
        clock,
        node=site.node,
        durable=site.durability == "full",
        min_free=site.min_free,
        site=str(config.path),
    )
