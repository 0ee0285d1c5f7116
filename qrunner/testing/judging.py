"""What a runner or a handler decides about an entry, without a queue.

Nothing happens to the entry: a fate is a value. What the code raises, ``TemporaryFailure`` and ``PermanentFailure``
among it, is raised to the test.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from qrunner.clock import Clock
from qrunner.config import Config, RunnerConfig, SiteConfig, SliceConfig
from qrunner.engine.disposal import called
from qrunner.message import Entry
from qrunner.runner import BatchRunner, Desk, Runner
from qrunner.scores import MemoryScores
from qrunner.site import Site
from qrunner.switchboard.memory import MemorySpool
from qrunner.tally import MemoryTally
from qrunner.testing.clock import FakeClock
from qrunner.testing.entries import make_entry

T = TypeVar("T")
NOWHERE = Path("/nowhere")  # nothing is read from there, and nothing written


def judge(
    what: type[Runner] | Callable[..., Any],
    *entries: Entry,
    options: Mapping[str, Any] | None = None,
    clock: Clock | None = None,
) -> Any:
    """What a runner class or a handler returns for an entry.

    :param what: a ``Runner``, whose ``start`` and ``cleanup`` are called too; a ``BatchRunner``; or a handler. Each
        may be plain or asynchronous.
    :param entries: none: one of ``make_entry``.
    :return: the fate, or what stands in its place; of several entries a list of them; of a ``BatchRunner`` always the
        list of ``(entries, fate)`` pairs.
    :raises Exception: what the code raised.
    """
    given = entries or (make_entry(),)
    if isinstance(what, type) and issubclass(what, Runner):
        return run(_judge_runner(what, given, options or {}, clock or FakeClock()))
    fates = [run(called(what, entry)) for entry in given]
    return fates[0] if len(fates) == 1 else fates


def run(work: Coroutine[Any, Any, T]) -> T:
    """The value of a coroutine, in a loop of its own; also from within a running one."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


async def _judge_runner(
    runner_class: type[Runner], entries: Sequence[Entry], options: Mapping[str, Any], clock: Clock
) -> Any:
    queue = entries[0].queue
    config = RunnerConfig(
        name=queue,
        class_name=runner_class.__name__,
        queue=queue,
        slices=(SliceConfig(options=options),),
        options=options,
    )
    log = logging.getLogger(f"qrunner.{queue}")
    runner = runner_class(Desk(config, 0, bare_site(clock, queue), _Pad(), log))
    await runner.start()
    try:
        if isinstance(runner, BatchRunner):
            return await _collected(runner.dispose_batch(entries))
        fates = [await called(runner.dispose, entry) for entry in entries]
        return fates[0] if len(fates) == 1 else fates
    finally:
        await runner.cleanup()


def bare_site(clock: Clock, *queues: str) -> Site:
    """A site in memory that has queues and nothing else."""
    about = SiteConfig(
        hostname="test.example",
        node="test",
        queue_dir=NOWHERE / "qfiles",
        state_dir=NOWHERE / "var",
        postmaster="postmaster@test.example",
    )
    spool = MemorySpool(clock)
    spool.prepare(queues)
    config = Config(NOWHERE / "etc" / "qrunner.toml", about, {}, {}, {}, {})
    return Site(config, spool=spool, clock=clock, tally=MemoryTally(), scores=MemoryScores())


class _Pad:
    """Where a runner's notes go: nobody asks for them."""

    def waits(self, entry: Entry) -> None:
        """Nothing else is claimed here."""

    async def note(self, entry: Entry, record: Mapping[str, Any], *, sync: bool = False) -> None:
        """Takes the note."""

    def jot(self, entry: Entry, record: Mapping[str, Any]) -> None:
        """Takes the note."""

    def conclude(self, entry: Entry, record: Mapping[str, Any]) -> None:
        """Takes the note."""


async def _collected(pairs: AsyncIterable[Any] | Iterable[Any]) -> list[Any]:
    if isinstance(pairs, AsyncIterable):
        return [pair async for pair in pairs]
    return list(pairs)
