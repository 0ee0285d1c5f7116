"""Waits with a limit, many to a timer."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import patch

import pytest

from qrunner.smtp.attentive import Patience

LONG_S = 600.0


def run(scene: Any) -> None:
    async def play() -> None:
        await scene(asyncio.get_running_loop())

    asyncio.run(asyncio.wait_for(play(), 10))


async def waited(loop: asyncio.AbstractEventLoop, patience: Patience, limit_s: float) -> None:
    loop.call_soon(patience.end)
    await patience.wait(limit_s)


def test_many_waits_that_are_ended_in_time_take_one_timer() -> None:
    async def scene(loop: asyncio.AbstractEventLoop) -> None:
        patience = Patience(loop)
        with patch.object(loop, "call_at", wraps=loop.call_at) as timers:
            for _ in range(100):
                await waited(loop, patience, LONG_S)
        assert timers.call_count == 1
        patience.close()

    run(scene)


@pytest.mark.parametrize("before_s", [LONG_S, 0.001, 0.02])
def test_a_wait_ends_at_its_own_limit_whatever_was_waited_for_before(before_s: float) -> None:
    async def scene(loop: asyncio.AbstractEventLoop) -> None:
        patience = Patience(loop)
        await waited(loop, patience, before_s)
        began_s = loop.time()
        with pytest.raises(TimeoutError):
            await patience.wait(0.01)
        # No more than the loop's own clock allows it to come too soon.
        assert loop.time() - began_s > 0.009
        patience.close()

    run(scene)


def test_a_wait_after_one_that_was_in_vain_has_all_of_its_time() -> None:
    async def scene(loop: asyncio.AbstractEventLoop) -> None:
        patience = Patience(loop)
        with pytest.raises(TimeoutError):
            await patience.wait(0.001)
        await waited(loop, patience, LONG_S)
        patience.close()

    run(scene)


def test_who_is_cancelled_leaves_nothing_that_rings() -> None:
    async def scene(loop: asyncio.AbstractEventLoop) -> None:
        patience = Patience(loop)
        task = loop.create_task(patience.wait(0.005))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await waited(loop, patience, LONG_S)
        patience.end()
        patience.close()

    run(scene)
