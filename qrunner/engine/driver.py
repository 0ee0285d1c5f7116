"""What drives one runner, as the process around it sees it: a state with its reason, counters, a run and a stop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from qrunner.clock import Clock
from qrunner.config import RunnerConfig
from qrunner.engine.hooks import Hooks
from qrunner.loading import load_function
from qrunner.log import event
from qrunner.metrics import Counters
from qrunner.runner import Desk, Runner
from qrunner.site import Site

LOOK_S = 1.0
# Of idle times that come and go, the log says something once a minute.
_PATIENCE_TOLD_NS = 60 * 10**9


class Driver:
    """Drives one runner.

    ``state`` is one of ``starting waiting running suspended stopped failed``; ``reason`` says why it is not running.
    ``patient``: it is waiting because it was told to, and not because something is wrong.
    ``has_blamed``: a death of before is laid to entries that were in hand. ``came_up`` is called before the first
    entry, ``changed`` whenever ``state`` has become another.
    """

    def __init__(
        self, site: Site, config: RunnerConfig, slice: int, runner_class: type[Runner], *, log: logging.Logger
    ) -> None:
        self.site, self.config, self.slice, self.log = site, config, slice, log
        self.clock: Clock = site.clock
        self.state, self.reason, self.since_ns = "starting", "", site.clock.now_ns()
        self.has_blamed = self.patient = False
        self._patience_told_ns: int | None = None
        self.came_up: Callable[[], None] = lambda: None
        self.changed: Callable[[], None] = lambda: None
        self.counters = Counters(self.clock.monotonic_ns)
        self.handlers = [load_function(name) for name in config.handlers]
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self.runner = runner_class(self._desk())
        self._hooks = Hooks(self.runner, self.clock, config.periodic_s, self._wake.set, log)

    def _desk(self) -> Desk:
        """What the runner is given."""
        raise TypeError(f"{type(self).__name__} has no desk")

    @property
    def processed(self) -> int:
        """Entries that met a fate here."""
        return self.counters.processed

    @property
    def failed(self) -> int:
        """Those of them whose fate was a failure."""
        return self.counters.failed

    @property
    def rate_1m(self) -> int:
        """Entries of the last minute."""
        return self.counters.as_state()["rate_1m"]

    @property
    def in_hand(self) -> int:
        """Entries that are being worked on now."""
        return 0

    @property
    def nonce(self) -> str:
        """Names this process among the claimants; empty where nothing is claimed."""
        return ""

    async def run(self, *, once: bool = False) -> None:
        """Runs until ``stop``, or, with ``once``, until nothing is due.

        :raises Exception: what the runner's ``start`` raised.
        """
        try:
            if await self.open(once=once):
                await self._live(once)
        except BaseException as error:
            if not isinstance(error, asyncio.CancelledError):
                self._become("failed", f"{type(error).__name__}: {error}")
            raise
        finally:
            await self.close()

    async def open(self, *, once: bool = False) -> bool:
        """Starts the runner; False: stopped before that."""
        raise TypeError(f"{type(self).__name__} does not say how to open")

    async def _live(self, once: bool) -> None:
        raise TypeError(f"{type(self).__name__} does not say how to live")

    async def close(self) -> None:
        """Lets go of everything and ends the runner."""
        raise TypeError(f"{type(self).__name__} does not say how to close")

    def stop(self) -> None:
        """Ends ``run``; from the loop's thread. What is in hand has ``grace`` to finish."""
        self._stopping.set()
        self._wake.set()

    def cut_short(self) -> None:
        """Ends the grace."""
        raise TypeError(f"{type(self).__name__} does not say how to be cut short")

    def _become(self, state: str, reason: str = "") -> None:
        if (state, reason) != (self.state, self.reason) or self.patient:
            level = logging.WARNING if state in ("waiting", "failed") else logging.INFO
            if self.patient and state == "running":
                level = logging.DEBUG
            self.patient = False
            self.state, self.reason, self.since_ns = state, reason, self.clock.now_ns()
            event(self.log, state, level=level, reason=reason or None)
            self.changed()

    def _wait_for_idleness(self, reason: str) -> None:
        """Waiting as it was told to: no trouble, and the reason may have other figures at each look."""
        if begins := not self.patient:
            self.state, self.since_ns, self.patient = "waiting", self.clock.now_ns(), True
            now_ns, told_ns = self.clock.monotonic_ns(), self._patience_told_ns
            if told_ns is None or now_ns - told_ns >= _PATIENCE_TOLD_NS:
                self._patience_told_ns = now_ns
                event(self.log, "waiting until the machine is idle", reason=reason)
        self.reason = f"until the machine is idle: {reason}"
        if begins:
            self.changed()
