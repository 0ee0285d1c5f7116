"""A site: its configuration, its spool and its clock in one hand. What a program outside of the runners uses."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from qrunner.clock import Clock, SystemClock
from qrunner.config import Config, find, load
from qrunner.errors import CorruptEntry
from qrunner.message import Entry
from qrunner.switchboard import Spool


class Site:
    """One site.

    :param spool: where its queues are; None: the files under ``queue_dir``.
    """

    def __init__(self, config: Config, *, spool: Spool | None = None, clock: Clock | None = None) -> None:
        self.config = config
        self.clock = clock or SystemClock()
        self.spool = spool or files_spool(config, self.clock)

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
        """Accepts a message; its id. It is durable when this returns.

        :param delay: seconds until it is due.
        :raises QueueError: it is not accepted; you still have it.
        :raises TypeError, ValueError: an argument can't be used.
        """
        draft = _draft(message, sender, recipients, meta)
        for name, part in self.resolve(queue, draft)[:-1]:
            self.spool.enqueue(name, part, delay_s=delay)
        name, part = self.resolve(queue, draft)[-1]
        return self.spool.enqueue(name, part, delay_s=delay)

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

        def call() -> str:
            return self.enqueue(
                queue, message=message, sender=sender, recipients=recipients, meta=meta, delay=delay
            )

        return await asyncio.to_thread(call)

    def entries(self, *queues: str) -> Iterator[Entry]:
        """What waits in these queues (in all, if none is named), oldest due first; what moves meanwhile may be
        missed, and what is no entry is left out."""
        for queue in queues or self.spool.queues():
            for ref in self.spool.peek(queue):
                try:
                    yield self.spool.read(ref)
                except (FileNotFoundError, CorruptEntry):
                    continue
