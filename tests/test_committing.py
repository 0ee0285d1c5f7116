"""Commits in the loop and beside it."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from qrunner.engine.committing import Committer
from qrunner.switchboard import Hop


class Disk:
    """Takes as long as a test says, and remembers in which threads it was asked."""

    def __init__(self, takes_s: float) -> None:
        self.takes_s, self.done = takes_s, 0
        self.threads: list[str] = []
        self.error: OSError | None = None

    def commit(self, hop: Hop) -> tuple[str, ...]:
        end_s = time.monotonic() + self.takes_s
        while time.monotonic() < end_s:
            pass
        self.threads.append(threading.current_thread().name)
        if self.error is not None:
            raise self.error
        self.done += 1
        return ("new",)


def test_a_quick_commit_stays_in_the_loop() -> None:
    async def story() -> None:
        disk = Disk(0)
        committer = Committer(disk.commit)
        assert await committer.commit(Hop()) == ("new",)
        assert disk.threads == [threading.main_thread().name]
        committer.close()

    asyncio.run(story())


def test_slow_commits_go_to_a_thread_and_come_back_once_they_are_quick() -> None:
    async def story() -> None:
        disk = Disk(0.005)
        committer = Committer(disk.commit)
        for _ in range(3):
            await committer.commit(Hop())
        disk.threads.clear()
        await asyncio.gather(*(committer.commit(Hop()) for _ in range(20)))
        assert set(disk.threads) == {"commits"}
        disk.takes_s = 0
        while disk.threads[-1] == "commits":
            await committer.commit(Hop())
        committer.close()

    asyncio.run(story())


def test_what_a_slow_commit_raises_is_told_to_who_waits_for_it() -> None:
    async def story() -> None:
        disk = Disk(0.02)
        committer = Committer(disk.commit)
        await committer.commit(Hop())
        disk.error = OSError("full")
        with pytest.raises(OSError, match="full"):
            await committer.commit(Hop())
        disk.error = None
        assert await committer.commit(Hop()) == ("new",)
        committer.close()

    asyncio.run(story())


def test_a_slow_commit_comes_to_its_end_though_nobody_waits_any_more() -> None:
    async def story() -> None:
        disk = Disk(0.02)
        committer = Committer(disk.commit)
        await committer.commit(Hop())
        waits = asyncio.create_task(committer.commit(Hop()))
        await asyncio.sleep(0)
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits
        await committer.commit(Hop())
        assert disk.done == 3
        committer.close()

    asyncio.run(story())
