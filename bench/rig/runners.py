"""Runners of a site, each in a process of its own as under a master, and what each has cost.

The site's name server, for hosts found by MX, may be one on loopback.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from qrunner.config import parse
from qrunner.engine.loop import Engine
from qrunner.loading import load_class
from qrunner.site import Site
from qrunner.smtp.client import SmtpDialer
from qrunner.smtp.mx import Finder
from qrunner.smtp.resolver import Resolver

HOSTNAME = "bench.example.org"
HEAD = f"""
[site]
hostname = "{HOSTNAME}"
queue_dir = "q"
state_dir = "var"
postmaster = "postmaster@{HOSTNAME}"
durability = "none"
min_free = "0"
"""


@dataclass(frozen=True)
class Plan:
    """What a process has to know: the site's folder and configuration, and the port of a name server, or 0."""

    folder: Path
    toml: str
    name_server: int = 0

    def site(self) -> Site:
        """The site, with its queues laid out."""
        self.folder.joinpath("q").mkdir(mode=0o700, exist_ok=True)
        config = parse(HEAD + self.toml, self.folder / "qrunner.toml")
        dialer = None
        if self.name_server:
            dialer = SmtpDialer(HOSTNAME, Finder(HOSTNAME, Resolver(["127.0.0.1"], port=self.name_server)))
        site = Site(config, dialer=dialer)
        site.spool.prepare(config.queues())
        return site


@dataclass(frozen=True)
class Cost:
    """Of a runner so far: seconds of processor time, and how many entries it has decided about."""

    cpu_s: float
    looks: int

    def __sub__(self, before: Cost) -> Cost:
        return Cost(self.cpu_s - before.cpu_s, self.looks - before.looks)


@dataclass(frozen=True)
class Running:
    """A runner's process."""

    _pipe: Connection

    def cost(self) -> Cost:
        """What it has cost so far."""
        self._pipe.send(None)
        found: Cost = self._pipe.recv()
        return found


@contextmanager
def running(plan: Plan, runner: str) -> Iterator[Running]:
    """The process, until the block has ended."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_run, args=(plan, runner, theirs), daemon=True
    )
    process.start()
    try:
        yield Running(ours)
    finally:
        process.kill()
        process.join()


def _run(plan: Plan, name: str, pipe: Connection) -> None:
    logging.getLogger("qrunner").setLevel(logging.CRITICAL)
    asyncio.run(_engine(plan.site(), name, pipe))


async def _engine(site: Site, name: str, pipe: Connection) -> None:
    runner = site.config.runners[name]
    log = logging.getLogger(f"qrunner.{name}")
    engine = Engine(site, runner, 0, load_class(runner.class_name), log=log)

    def asked() -> None:
        pipe.recv()
        pipe.send(Cost(time.process_time(), engine.processed))

    asyncio.get_running_loop().add_reader(pipe.fileno(), asked)
    await engine.run()
