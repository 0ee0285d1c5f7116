"""A clock that stands still until it is advanced."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from qrunner.clock import Clock
from qrunner.testing import FakeClock


@pytest.mark.parametrize(
    ("by", "seconds"), [("4h", 14400), ("1h30m", 5400), (2, 2), (0.5, 0.5), (timedelta(minutes=1), 60)]
)
def test_it_is_advanced_by_a_duration(by: str | float | timedelta, seconds: float) -> None:
    clock = FakeClock(datetime(2026, 1, 1, tzinfo=UTC))
    clock.advance(by)
    assert clock.now == datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    assert clock.monotonic_ns() == seconds * 1e9


@pytest.mark.parametrize(("by", "why"), [("soon", "duration"), (-1, "backwards"), ("-4h", "duration")])
def test_it_is_not_advanced_by_anything_else(by: str | float, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        FakeClock().advance(by)


def test_a_clock_that_is_set_back_measures_on() -> None:
    clock = FakeClock()
    before = clock.now
    clock.set_back("1h")
    assert (clock.now, clock.monotonic_ns()) == (before - timedelta(hours=1), 0)


async def outcome(clock: Clock, event: asyncio.Event, timeout_s: float | None, act: object) -> bool:
    assert callable(act)
    waiting = asyncio.ensure_future(clock.wait(event, timeout_s))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not waiting.done()
    await asyncio.to_thread(act)
    return await asyncio.wait_for(waiting, 10)


def test_who_waits_wakes_when_the_time_has_passed() -> None:
    async def test() -> bool:
        clock, event = FakeClock(), asyncio.Event()
        return await outcome(clock, event, 60, lambda: (clock.advance(59), clock.advance(1)))

    assert asyncio.run(test()) is False


@pytest.mark.parametrize("timeout_s", [None, 60])
def test_who_waits_wakes_when_the_event_comes(timeout_s: float | None) -> None:
    async def test() -> bool:
        clock, event, loop = FakeClock(), asyncio.Event(), asyncio.get_running_loop()
        return await outcome(clock, event, timeout_s, lambda: loop.call_soon_threadsafe(event.set))

    assert asyncio.run(test()) is True


def test_no_time_is_over_at_once() -> None:
    assert asyncio.run(FakeClock().wait(asyncio.Event(), 0)) is False
