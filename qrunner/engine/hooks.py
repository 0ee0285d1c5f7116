"""The hooks of a runner: called, and whatever they raise is logged and stops nothing.

Guarantees: ``periodic`` never runs twice at once, and has ended, or been cancelled, before ``cleanup``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from qrunner.clock import Clock
from qrunner.log import event
from qrunner.runner import Runner


class Hooks:
    """Calls the hooks of one runner.

    :param periodic_s: seconds between the end of one ``periodic`` and the next; None: never.
    :param wake: tells the loop that a ``periodic`` has ended.
    """

    def __init__(
        self,
        runner: Runner,
        clock: Clock,
        periodic_s: float | None,
        wake: Callable[[], None],
        log: logging.Logger,
    ) -> None:
        self._runner, self._clock, self._wake, self._log = runner, clock, wake, log
        self._periodic_s = periodic_s
        self._task: asyncio.Task[None] | None = None
        self.next_ns: int | None = None

    def begin(self) -> None:
        """The runner has come up: the first ``periodic`` is due an interval from now."""
        if self._periodic_s is not None:
            self.next_ns = self._clock.monotonic_ns() + int(self._periodic_s * 1e9)

    def run_periodic(self) -> None:
        """Begins ``periodic`` if it is due; it goes on beside the entries."""
        if self.next_ns is None or self._clock.monotonic_ns() < self.next_ns:
            return
        self.next_ns = None
        self._task = asyncio.get_running_loop().create_task(self._periodic())

    async def _periodic(self) -> None:
        await self.call(self._runner.periodic)
        self.begin()
        self._wake()

    async def idle(self) -> None:
        """Nothing is due any more."""
        await self.call(self._runner.idle)

    async def cleanup(self, grace_s: float) -> None:
        """After the last entry. ``periodic`` is ended first: ``cleanup`` takes away what it may be using."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=grace_s)
        await self.call(self._runner.cleanup)

    async def call(self, hook: Callable[[], Any]) -> None:
        """Awaits a hook; what it raises is logged."""
        task = asyncio.current_task()
        try:
            await hook()
        except BaseException as error:  # SystemExit too, but for our own cancellation
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            name = getattr(hook, "__name__", "hook")
            event(self._log, f"{name} failed", level=logging.ERROR, exc=error)
