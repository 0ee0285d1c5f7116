"""The bell of a queue of files: each name that appears is learned, however many there are at a time."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path

from qrunner.format import ready_name
from qrunner.slices import WHOLE
from qrunner.switchboard.bell import InotifyBell
from qrunner.switchboard.index import DueIndex
from qrunner.wakeup import Event, Watch
from tests.driving import until


class Heard:
    """A bell on a directory, what it has learned, and how often it has looked."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.index = directory, DueIndex()
        self.rings = self.looks = 0
        self.bell: InotifyBell | None = None
        self.pause: asyncio.TimerHandle | None = None

    def appear(self, number: int) -> None:
        (self.directory / ready_name(number, f"{number:040x}")).touch()

    async def listen(self, story: Callable[[], Awaitable[None]]) -> None:
        loop = asyncio.get_running_loop()
        bell = InotifyBell.hang([str(self.directory)], WHOLE, self.index, self._ring, loop)
        assert bell is not None
        self.bell = bell
        bell._watch.read = self._counted(bell._watch)  # type: ignore[method-assign]
        await story()
        assert not bell.lost_count
        self.pause = bell._pause
        bell.close()

    @property
    def is_paused(self) -> bool:
        return self.bell is not None and self.bell._pause is not None

    def _ring(self) -> None:
        self.rings += 1

    def _counted(self, watch: Watch) -> Callable[[], list[Event]]:
        read = watch.read

        def counted() -> list[Event]:
            self.looks += 1
            return read()

        return counted


def test_what_appears_in_crowds_and_one_by_one_is_learned(tmp_path: Path) -> None:
    heard = Heard(tmp_path)

    async def story() -> None:
        # More than one read of the kernel's events has room for.
        for number in range(3_000):
            heard.appear(number)
        await until(lambda: len(heard.index) == 3_000, "the crowd")
        for number in range(3_000, 3_050):
            heard.appear(number)
            await until(lambda: len(heard.index) == number + 1, "one more")  # noqa: B023 - awaited here

    asyncio.run(heard.listen(story))
    assert len(heard.index.take(1 << 62, 4_000)) == 3_050


def test_what_appears_all_the_time_is_not_looked_at_each_time(tmp_path: Path) -> None:
    heard = Heard(tmp_path)

    async def story() -> None:
        for number in range(400):
            heard.appear(number)
            await asyncio.sleep(0)
        await until(lambda: len(heard.index) == 400, "all of them")

    asyncio.run(heard.listen(story))
    assert heard.looks < 200
    assert heard.rings <= heard.looks


def test_a_pause_ends_with_the_bell(tmp_path: Path) -> None:
    heard = Heard(tmp_path)

    async def story() -> None:
        # However slow the machine is: at some time there are enough at a time.
        for number in itertools.count():
            heard.appear(number)
            await asyncio.sleep(0)
            if heard.is_paused:
                return

    asyncio.run(heard.listen(story))
    assert heard.pause is not None
    assert heard.pause.cancelled()
