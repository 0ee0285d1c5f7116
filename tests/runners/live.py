"""A site in this process whose hosts are real ones, on loopback: its queues are in memory, its clock a test's own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from qrunner.config import parse
from qrunner.engine.loop import Engine
from qrunner.loading import load_class
from qrunner.message import Draft, Entry, Envelope
from qrunner.runners.outgoing import OutgoingRunner
from qrunner.site import Site
from qrunner.smtp.client import SmtpDialer
from qrunner.smtp.health import Health
from qrunner.switchboard.memory import MemorySpool
from qrunner.testing.clock import FakeClock

LIMIT_S = 30.0
PROBE_S = 0.25
MESSAGE = b"Subject: hello\n\nworld\n"
SITE = """
[site]
hostname = "lists.example.org"
queue_dir = "q"
state_dir = "v"
postmaster = "pm@lists.example.org"
report_queue = "reports"
retry = { first = "5m", lifetime = "2d", jitter = 0 }
"""
RUNNER = """
[runner.out]
class = "outgoing"
smtp = "mta"
"""


def host(port: int, more: str = "", name: str = "mta") -> str:
    """The section of a host on loopback."""
    return f'[smtp.{name}]\nhost = "127.0.0.1"\nport = {port}\n{more}\n'


class Live:
    """The site."""

    def __init__(self, toml: str, folder: Path) -> None:
        self.clock = FakeClock()
        config = parse(toml, folder / "qrunner.toml")
        self.spool = MemorySpool(self.clock)
        self.spool.prepare(config.queues())
        dialer = SmtpDialer(config.site.hostname)
        self.site = Site(config, spool=self.spool, clock=self.clock, dialer=dialer)
        self.engines: dict[str, Engine] = {}

    async def open(self) -> None:
        for name, runner in self.site.config.runners.items():
            log = logging.getLogger(f"qrunner.{name}")
            self.engines[name] = Engine(self.site, runner, 0, load_class(runner.class_name), log=log)
            await self.engines[name].open()

    async def close(self) -> None:
        for engine in self.engines.values():
            await engine.close()

    def send(self, *to: str, sender: str = "ann@example.org", message: bytes = MESSAGE) -> str:
        return self.spool.enqueue("out", Draft(message, Envelope.of(sender, to)))

    async def settle(self) -> None:
        """All that is due now."""
        async with asyncio.timeout(LIMIT_S):
            while any([await engine.step() for engine in self.engines.values()]):
                pass
            await self._probes_end()

    async def _probes_end(self) -> None:
        """A probe that is made beside the deliveries takes a moment of real time, in which the clock would pass it by. One
        that is never answered is not waited for."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + PROBE_S
        while loop.time() < until_s and self._is_probing():
            await asyncio.sleep(0.001)

    def _is_probing(self) -> bool:
        pools = [one.runner.pool for one in self.engines.values() if isinstance(one.runner, OutgoingRunner)]
        names = [name for name, host in self.site.config.smtp.items() if host.mode != "mx"]
        return any(pool.health(name).state == "probing" for pool in pools for name in names)

    async def pass_by(self, time: str) -> None:
        self.clock.advance(time)
        await self.settle()

    async def until_empty(self, steps: int = 1_000) -> None:
        """Lets time pass, from one due time to the next, until no runner has anything left."""
        for _ in range(steps):
            due_ns = [entry.due_ns for queue in self.engines for entry in self.entries(queue)]
            if not due_ns:
                return
            self.clock.advance(max(0.1, (min(due_ns) - self.clock.now_ns()) / 1e9))
            await self.settle()
        raise AssertionError([entry.history for queue in self.engines for entry in self.entries(queue)])

    def entries(self, queue: str = "out") -> list[Entry]:
        return list(self.site.entries(queue))

    @property
    def reports(self) -> list[Entry]:
        return self.entries("reports")

    def health(self, name: str = "mta") -> Health:
        runner = self.engines["out"].runner
        assert isinstance(runner, OutgoingRunner)
        return runner.pool.health(name)


@asynccontextmanager
async def live(toml: str, site: str = SITE) -> AsyncIterator[Live]:
    """Opened, and closed at the end."""
    with TemporaryDirectory() as folder:
        one = Live(site + toml, Path(folder))
        await one.open()
        try:
            yield one
        finally:
            await one.close()


def lines(entry: Entry, what: str) -> list[Mapping[str, Any]]:
    """Those of its history that say so."""
    return [line for line in entry.history if line["what"] == what]
