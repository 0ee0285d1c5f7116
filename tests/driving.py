"""A runner on a queue of files in this process, driven by its real engine: what the engine's tests start from."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qrunner.config import parse
from qrunner.engine.choice import engine_for
from qrunner.engine.loop import Engine
from qrunner.message import Entry
from qrunner.runner import Runner
from qrunner.site import Site
from qrunner.switchboard import AREAS, Area

LIMIT_S = 20.0
SITE = """
[site]
hostname = "site.example.org"
queue_dir = "../qfiles"
durability = "none"
min_free = "0K"
retry = {{ first = "1h", lifetime = "2d" }}
report_queue = "out"
[runner.in]
class = "m:C"
{keys}
"""


@dataclass
class Bench:
    """A site with the queues ``in``, ``out`` and ``other``; the runner to test owns ``in``."""

    site: Site

    def put(
        self, count: int = 1, *, delay: float = 0, recipients: tuple[str, ...] = ("to@example.org",)
    ) -> list[str]:
        """So many messages, numbered in X-N, from 0."""
        return [
            self.site.enqueue(
                "in",
                message=b"X-N: %d\n\nbody\n" % n,
                sender="from@example.org",
                recipients=recipients,
                delay=delay,
            )
            for n in range(count)
        ]

    def engine(self, runner_class: type[Runner]) -> Engine:
        return engine_for(
            self.site, self.site.config.runners["in"], 0, runner_class, log=logging.getLogger("qrunner.test")
        )

    def drain(self, runner_class: type[Runner]) -> Engine:
        """Runs until nothing is due."""
        engine = self.engine(runner_class)
        asyncio.run(asyncio.wait_for(engine.run(once=True), LIMIT_S))
        return engine

    def drain_with(self, dispose: Callable[..., Any]) -> Engine:
        """As ``drain``, with a runner whose ``dispose`` is this function of an entry."""

        class Made(Runner):
            pass

        Made.dispose = lambda self, entry: dispose(entry)  # type: ignore[method-assign,assignment]
        return self.drain(Made)

    def entries(self, queue: str, area: Area = "queue") -> list[Entry]:
        return [self.site.spool.read(ref) for ref in self.site.spool.peek(queue, area)]

    def where(self) -> dict[str, int]:
        """How many entries lie where, empty places left out."""
        counts = {
            f"{area}/{queue}" if area != "queue" else queue: len(list(self.site.spool.peek(queue, area)))
            for queue in ("in", "out", "other")
            for area in AREAS
        }
        return {place: count for place, count in counts.items() if count}


def make_bench(folder: Path, keys: str = "") -> Bench:
    """A bench whose runner has these lines of configuration."""
    for name in ("etc", "qfiles"):
        (folder / name).mkdir(exist_ok=True)
    site = Site(parse(SITE.format(keys=keys), folder / "etc" / "qrunner.toml"))
    site.spool.prepare(["in", "out", "other"])
    return Bench(site)


async def until(condition: Callable[[], bool], what: str = "the condition") -> None:
    """Waits, letting the loop run, until something holds."""
    loop = asyncio.get_running_loop()
    end = loop.time() + LIMIT_S
    while not condition():
        assert loop.time() < end, f"{what} did not come about within {LIMIT_S:g} s"
        tick = loop.create_future()
        loop.call_later(0.002, tick.set_result, None)
        await tick


def running(engine: Engine, story: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Runs the engine while a test's story goes on beside it, and stops it at the end."""

    async def both() -> None:
        run = asyncio.create_task(engine.run())
        try:
            await until(lambda: engine.state != "starting" or run.done(), "the runner's start")
            await story()
        finally:
            engine.stop()
            await asyncio.wait_for(run, LIMIT_S)

    asyncio.run(both())
