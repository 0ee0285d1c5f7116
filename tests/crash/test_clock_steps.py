"""The clock is set back, or forward, under a running engine: what waits comes after its delay, and nothing is lost."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from qrunner import Entry, Fate, Runner, TemporaryFailure
from qrunner.config import parse
from qrunner.engine.loop import Engine
from qrunner.site import Site
from qrunner.testing.clock import FakeClock
from tests.driving import SITE, Bench, until

POLL_S = 30.0


class StepClock(FakeClock):
    """A clock that counts who waits for it, and by whose steps the kernel's own times go as well."""

    def __init__(self) -> None:
        super().__init__(datetime.now(UTC))
        self.waits = 0
        self.steps: list[tuple[int, int]] = []

    async def wait(self, event: asyncio.Event, timeout_s: float | None) -> bool:
        self.waits += 1
        return await super().wait(event, timeout_s)

    def step(self, by_s: float) -> None:
        """The wall clock alone goes so far, forward or (negative) back."""
        moment = _kernel_ns()
        self.steps.append((moment, int(by_s * 1e9)))
        self.set_back(-by_s)
        # What is written from here on carries the new time, and a later one than what was written before.
        while _kernel_ns() <= moment:
            continue

    def as_written(self, real_ns: int) -> int:
        """When the kernel would say that something happened which really happened then."""
        return real_ns + sum(by for moment, by in self.steps if real_ns > moment)


def _kernel_ns() -> int:
    """The time that a file would be given now; the kernel's ticks are coarser than its clock."""
    fd = os.memfd_create("now")
    try:
        os.write(fd, b"x")
        return os.fstat(fd).st_mtime_ns
    finally:
        os.close(fd)


@dataclass
class Times:
    """What lstat says, as far as it is asked for."""

    st_ctime_ns: int


@pytest.fixture
def clock() -> Iterator[StepClock]:
    """The clock; the times of files go by it."""
    clock, lstat = StepClock(), os.lstat

    def stepped(path: Any, **more: Any) -> Any:
        found = lstat(path, **more)
        return Times(clock.as_written(found.st_ctime_ns)) if "+" in str(path) else found

    with patch.object(os, "lstat", stepped):
        yield clock


@pytest.fixture
def bench(tmp_path: Path, clock: StepClock) -> Bench:
    for name in ("etc", "qfiles"):
        (tmp_path / name).mkdir()
    keys = f'poll_interval = "{POLL_S:g}s"\n'
    site = Site(parse(SITE.format(keys=keys), tmp_path / "etc" / "qrunner.toml"), clock=clock)
    site.spool.prepare(["in", "out", "other"])
    return Bench(site)


class Pass(Runner):
    async def dispose(self, entry: Entry) -> Fate:
        return entry.forward("out")


class FailOnce(Runner):
    """The first attempt fails; the next is an hour later, more or less."""

    async def dispose(self, entry: Entry) -> Fate:
        if not entry.attempts:
            raise TemporaryFailure("later")
        return entry.forward("out")


Story = Callable[[Engine, StepClock], Coroutine[Any, Any, None]]


def play(bench: Bench, runner: type[Runner], story: Story) -> None:
    """Runs the engine on the clock that stands still, and the story beside it."""
    clock = bench.site.clock
    assert isinstance(clock, StepClock)
    engine = bench.engine(runner)

    async def both() -> None:
        run = asyncio.create_task(engine.run())
        try:
            await until(lambda: engine.state != "starting", "the start")
            await story(engine, clock)
        finally:
            engine.stop()
            await asyncio.wait_for(run, 20)

    asyncio.run(both())


async def pass_time(engine: Engine, clock: StepClock, seconds: float) -> None:
    """So much time passes, a poll at a time, and the engine has each time gone back to sleep."""
    while seconds > 0:
        await asleep(engine, clock)
        clock.advance(min(seconds, POLL_S))
        seconds -= POLL_S
    await asleep(engine, clock)


async def asleep(engine: Engine, clock: StepClock) -> None:
    def sleeps() -> bool:
        ends = [sleeper.until_ns for sleeper in clock._sleepers]
        return bool(ends) and min(ends) > clock.monotonic_ns() and not engine.in_hand

    await until(sleeps, "the engine's sleep")


@pytest.mark.parametrize("back_s", [3600.0, 86_400.0])
def test_after_the_clock_was_set_back_what_waits_comes_after_its_delay(bench: Bench, back_s: float) -> None:
    bench.put(3, delay=600)

    async def story(engine: Engine, clock: StepClock) -> None:
        await pass_time(engine, clock, 60)
        clock.step(-back_s)
        await pass_time(engine, clock, 400)
        assert engine.processed == 0
        # The delay counts from when the step was seen: at most once more what had passed of it.
        await pass_time(engine, clock, 300)
        assert engine.processed == 3

    play(bench, Pass, story)
    assert bench.where() == {"out": 3}


@pytest.mark.parametrize("back_s", [3600.0, 86_400.0])
def test_after_the_clock_was_set_back_what_is_fresh_comes_at_the_next_look(
    bench: Bench, back_s: float
) -> None:
    bench.put(3)

    async def story(engine: Engine, clock: StepClock) -> None:
        await pass_time(engine, clock, 2 * POLL_S)
        assert engine.processed == 3
        bench.put(2)
        await until(lambda: engine.processed == 5)

    bench.site.clock.step(-back_s)  # type: ignore[attr-defined]
    play(bench, Pass, story)
    assert bench.where() == {"out": 5}


@pytest.mark.parametrize("back_s", [3600.0, 86_400.0])
def test_a_deferral_made_before_the_clock_was_set_back_keeps_its_delay(bench: Bench, back_s: float) -> None:
    bench.put(1)

    async def story(engine: Engine, clock: StepClock) -> None:
        await until(lambda: engine.processed == 1)
        clock.step(-back_s)
        await pass_time(engine, clock, 1800)
        assert engine.processed == 1
        await pass_time(engine, clock, 3600)
        assert engine.processed == 2

    play(bench, FailOnce, story)
    assert bench.where() == {"out": 1}


def test_after_the_clock_was_set_forward_what_waited_is_due_and_nothing_is_lost(bench: Bench) -> None:
    bench.put(2, delay=600)
    bench.put(1, delay=7 * 86_400)

    async def story(engine: Engine, clock: StepClock) -> None:
        clock.step(86_400)
        await pass_time(engine, clock, 2 * POLL_S)
        assert engine.processed == 2
        bench.put(1)
        await until(lambda: engine.processed == 3)

    play(bench, Pass, story)
    assert bench.where() == {"in": 1, "out": 3}


def test_to_and_fro_the_engine_neither_spins_nor_sleeps_for_good(bench: Bench) -> None:
    bench.put(4, delay=100)

    async def story(engine: Engine, clock: StepClock) -> None:
        await asleep(engine, clock)
        before = clock.waits
        for step in (-86_400, 2 * 86_400, -3600, -86_400):
            clock.step(step)
            await pass_time(engine, clock, 3 * POLL_S)
        await pass_time(engine, clock, 200)
        assert engine.processed == 4
        # Each turn of the clock wakes it for a poll, an arrival or a due time: a few turns each.
        assert clock.waits - before < 120
        assert clock._sleepers

    play(bench, Pass, story)
    assert bench.where() == {"out": 4}


def test_a_trouble_does_not_last_longer_because_the_clock_was_set_back(bench: Bench) -> None:
    bench.put(1)

    async def story(engine: Engine, clock: StepClock) -> None:
        await until(lambda: engine.state == "waiting", "the trouble")
        clock.step(-86_400)
        rename.stop()
        await pass_time(engine, clock, 60)
        assert (engine.processed, engine.state) == (1, "running")

    rename = patch.object(os, "rename", side_effect=OSError(errno.ENOSPC, "No space left on device"))
    rename.start()
    try:
        play(bench, Pass, story)
    finally:
        rename.stop()
    assert bench.where() == {"out": 1}
