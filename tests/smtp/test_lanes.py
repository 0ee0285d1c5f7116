"""Lanes: how wide they are, who waits, and who is sent away until when."""

from __future__ import annotations

import asyncio

import pytest

from qrunner.smtp.lanes import FIRST, Lane, LaneFull, Lanes


async def full(lane: Lane) -> LaneFull:
    with pytest.raises(LaneFull) as caught:
        await lane.enter()
    return caught.value


async def crowded(lane: Lane) -> list[asyncio.Task[None]]:
    """Takes every place, and every place in the line."""
    for _ in range(lane.width):
        await lane.enter()
    line = [asyncio.create_task(lane.enter()) for _ in range(lane.width)]
    await asyncio.sleep(0)
    return line


async def gone(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_who_finds_no_place_waits_and_gets_the_next_one_in_turn() -> None:
    async def test() -> None:
        lane = Lane("x", 10)
        first, second = await crowded(lane)
        lane.leave()
        await first
        assert not second.done()
        lane.leave()
        await second
        assert lane.in_use == FIRST

    asyncio.run(test())


def test_who_waits_too_long_is_sent_away() -> None:
    async def test() -> None:
        lane = Lane("x", 10)
        for error in await asyncio.gather(*await crowded(lane), return_exceptions=True):
            assert isinstance(error, LaneFull)
        assert lane.in_use == FIRST
        assert not lane.waiters

    asyncio.run(test())


def test_those_who_are_sent_away_come_back_one_after_the_other() -> None:
    async def test() -> None:
        lane = Lane("x", 10, each_s=10.0)
        line = await crowded(lane)
        delays = [(await full(lane)).delay_s for _ in range(40)]
        assert delays[0] >= 1
        assert delays[39] > delays[0] + 39 * 10 / FIRST / 2 - 2
        assert max(delays) <= 302
        await gone(line)

    asyncio.run(test())


def test_of_a_lane_that_is_silent_nobody_waits_and_the_others_come_again_the_later_the_longer_it_lasts() -> (
    None
):
    async def test() -> None:
        lane = Lane("x", 10)
        for _ in range(FIRST):
            await lane.enter()
        lane.heard_s -= 100
        delays = [(await full(lane)).delay_s for _ in range(40)]
        assert not lane.waiters
        assert all(100 < delay < 205 for delay in delays)
        assert max(delays) - min(delays) > 30, "not all at once"
        lane.leave()
        line = asyncio.create_task(lane.enter())
        await line
        assert lane.in_use == FIRST

    asyncio.run(test())


def test_a_lane_that_always_takes_its_time_is_not_called_silent() -> None:
    async def test() -> None:
        lane = Lane("x", 10, each_s=30.0)
        for _ in range(FIRST):
            await lane.enter()
        lane.heard_s -= 100
        line = asyncio.create_task(lane.enter())
        await asyncio.sleep(0)
        assert lane.waiters
        lane.leave()
        await line

    asyncio.run(test())


def test_a_lane_widens_only_while_it_is_full_and_never_beyond_its_most() -> None:
    async def test() -> None:
        lane = Lane("x", 4)
        await lane.enter()
        lane.learn(0.1, well=True)
        assert lane.width == FIRST
        await lane.enter()
        for _ in range(10):
            lane.learn(0.1, well=True)
            while lane.in_use < lane.width:
                await lane.enter()
        assert lane.width == 4

    asyncio.run(test())


def test_a_lane_narrows_by_one_and_never_to_nothing() -> None:
    lane = Lane("x", 4, width=3)
    for width in (2, 1, 1):
        lane.learn(0.1, well=False)
        assert lane.width == width


def test_who_gives_up_waiting_takes_no_place() -> None:
    async def test() -> None:
        lane = Lane("x", 10)
        line = await crowded(lane)
        await gone(line)
        lane.leave()
        lane.leave()
        assert lane.is_unused

    asyncio.run(test())


def test_lanes_that_nobody_uses_are_forgotten() -> None:
    async def test() -> None:
        lanes = Lanes(1)
        kept = lanes.lane("kept")
        assert kept.width == 1
        await kept.enter()
        for number in range(6_000):
            lanes.lane(str(number))
        assert len(lanes._lanes) < 5_100
        assert lanes.lane("kept") is kept

    asyncio.run(test())
