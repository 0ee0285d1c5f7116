"""The door `lmtp` dies, or its disk is full, while mail comes in over fifty sessions."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from qrunner.site import Site
from tests.crash.power_children import in_a_child
from tests.crash.test_full_disk import fill, small_disk
from tests.runners.doors import SITE, Client, OpenDoor, door_process, kinds, open_door, stuffed

SESSIONS = 50
__all__ = ["small_disk"]


@dataclass
class Sender:
    """Fifty sessions that send numbered messages until each was answered.

    ``tries``: how often the end of a message went out; ``answered``: those that the door has said 250 to;
    ``under_way``: those that have no answer yet.
    """

    path: Path
    count: int
    tries: Counter[int] = field(default_factory=Counter)
    answered: Counter[int] = field(default_factory=Counter)
    under_way: set[int] = field(default_factory=set)

    async def run(self) -> None:
        self._left = list(range(self.count))
        await asyncio.gather(*(self._session() for _ in range(SESSIONS)))

    async def _session(self) -> None:
        while self._left:
            try:
                await self._talk(Client(*await asyncio.open_unix_connection(str(self.path))))
            except (OSError, AssertionError, asyncio.IncompleteReadError):
                await asyncio.sleep(0.01)

    async def _talk(self, client: Client) -> None:
        """Some messages over one connection, each to two; the door may die at any time."""
        try:
            await client.reply()
            while self._left:
                await self._send(client, self._left.pop())
        finally:
            client.close()

    async def _send(self, client: Client, number: int) -> None:
        replies: list[str] = []
        try:
            await client.begin("a@x", "b@x")
            self.tries[number] += 1
            self.under_way.add(number)
            await client.send(stuffed(text(number)))
            replies = await client.replies(2)
        finally:
            self.under_way.discard(number)
            if kinds(replies) == ["250 2.0.0"] * 2:
                self.answered[number] += 1
            else:
                self._left.append(number)


def text(number: int) -> bytes:
    """A message that can be known again, whole."""
    return b"X-N: %d\r\n\r\n" % number + (b"%d " % number) * 500 + b"\r\n"


def found(site: Site) -> Counter[int]:
    """Which messages are there; each must be whole."""
    numbers: Counter[int] = Counter()
    for entry in site.entries("in"):
        match = re.search(rb"^X-N: (\d+)\r\n", entry.message, re.MULTILINE)
        assert match
        number = int(match[1])
        assert entry.message.endswith(text(number))
        assert entry.recipients == ("a@x", "b@x")
        numbers[number] += 1
    return numbers


def killed_while_mail_comes_in(folder: Path, *, kills: int, count: int, site: str = SITE) -> None:
    """Kills the door over and over. What was answered is there, and nothing is there that was not sent."""
    door = door_process(folder, site=site)
    sender = Sender(folder / "var" / "door", count)

    async def story() -> None:
        nonlocal door
        sending = asyncio.create_task(sender.run())
        for number in range(1, kills + 1):
            while sender.answered.total() < number * count // (kills + 1) or not sender.under_way:
                assert not sending.done(), "it was too fast"
                await asyncio.sleep(random.random() * 0.01)
            door.kill()
            door.wait()
            door = await asyncio.to_thread(door_process, folder, site=site)
        await asyncio.wait_for(sending, 120)

    try:
        asyncio.run(story())
    finally:
        door.kill()
        door.wait()
    there = found(Site.load(folder / "etc" / "qrunner.toml"))
    assert set(sender.answered) == set(range(count))
    assert not [number for number in range(count) if there[number] < sender.answered[number]]
    assert not [number for number in there if there[number] > sender.tries[number]]


@pytest.mark.parametrize("count", [700, pytest.param(1500, marks=pytest.mark.stress)])
def test_what_was_answered_is_there_whenever_the_door_dies(tmp_path: Path, count: int) -> None:
    killed_while_mail_comes_in(tmp_path, kills=3, count=count)


@pytest.mark.needs("mount", "mke2fs")
def test_a_full_disk_puts_mail_off_and_leaves_nothing(small_disk: Callable[[], Path]) -> None:
    def story() -> None:
        disk = small_disk()

        async def full_and_freed() -> None:
            async with open_door(disk) as door:
                before = leavings(disk)
                ballast = fill(disk)
                # What little is left may hold a small one: each is larger than that.
                large = stuffed(b"x" * 70 + b"\r\n" + (b"y" * 70 + b"\r\n") * 2000)
                replies = [await door.deliver(large, "a@x", "b@x") for _ in range(3)]
                assert [kinds(one) for one in replies] == [["452 4.3.1"] * 2] * 3
                assert door.engine.state == "waiting"
                assert leavings(disk) - {str(ballast)} == before
                ballast.unlink()
                await answered(door, large)

        asyncio.run(full_and_freed())

    in_a_child(story)


async def answered(door: OpenDoor, message: bytes) -> None:
    assert kinds(await door.deliver(message, "a@x")) == ["250 2.0.0"]
    assert len(door.entries()) == 1
    assert door.engine.state == "running"


def leavings(disk: Path) -> set[str]:
    """Every file in the queues."""
    return {str(path) for path in (disk / "qfiles").rglob("*") if path.is_file()}


def test_a_restart_loses_no_message_either(tmp_path: Path) -> None:
    """SIGTERM: those that are under way are answered."""
    door = door_process(tmp_path)
    sender = Sender(tmp_path / "var" / "door", 1000)

    async def story() -> None:
        nonlocal door
        sending = asyncio.create_task(sender.run())
        for number in range(1, 4):
            while sender.answered.total() < number * 250:
                await asyncio.sleep(0.005)
            door.terminate()
            assert await asyncio.to_thread(door.wait, 30) == 0
            door = await asyncio.to_thread(door_process, tmp_path)
        await asyncio.wait_for(sending, 60)

    try:
        asyncio.run(story())
    finally:
        door.kill()
        door.wait()

    there = found(Site.load(tmp_path / "etc" / "qrunner.toml"))
    assert there == sender.answered == Counter(dict.fromkeys(range(1000), 1))
