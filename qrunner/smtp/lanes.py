"""How much one destination may have at once, so that one that hangs does not take everything.

A lane begins with two deliveries at a time, or as many as its user says. Each that goes well while the lane is full
widens it by one, each that does not narrows it by one. Who finds it full may wait for a moment, if not too many do; the
others are told when to come again: late enough that most find room then, which is what keeps a long backlog from being
looked at over and over. Of a lane that has been silent for long, because its host hangs, nobody waits, and the others
come again the later the longer it lasts.

Not guaranteed: order.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from dataclasses import dataclass, field
from time import monotonic

FIRST = 2
PATIENCE_S = 1.0
SILENT_S = 2.0
_LEAST_S, _MOST_S = 1.0, 300.0
_LEARN = 0.2
# A host that always takes its time is not silent before several times as long.
_USUAL = 4
_LANES_KEPT = 5_000


class LaneFull(Exception):
    """Come again in ``delay_s`` seconds."""

    def __init__(self, name: str, delay_s: float) -> None:
        super().__init__(f"{name} has as many deliveries as it may")
        self.delay_s = delay_s


@dataclass(eq=False, slots=True)
class Lane:
    """One destination. ``each_s`` is what a delivery takes; ``line_ends_s`` when those that were sent away will be
    through; ``heard_s`` when the last delivery ended, or the first began. Times are monotonic."""

    name: str
    most: int
    width: int = FIRST
    in_use: int = 0
    each_s: float = 0.5
    line_ends_s: float = 0.0
    heard_s: float = 0.0
    waiters: deque[asyncio.Future[None]] = field(default_factory=deque)

    @property
    def is_unused(self) -> bool:
        """Whether forgetting it would disturb nobody."""
        return not (self.in_use or self.waiters)

    async def enter(self) -> None:
        """Takes a place, waiting for a moment. :raises LaneFull: there is none."""
        if self.in_use < self.width:
            if not self.in_use:
                self.heard_s = monotonic()
            self.in_use += 1
            return
        if len(self.waiters) >= self.width or self._silence_s():
            raise LaneFull(self.name, self._later_s())
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiters.append(waiter)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.shield(waiter)
        except BaseException as error:
            if waiter.done():
                # The place came in the same instant.
                self.leave()
            else:
                self.waiters.remove(waiter)
            if isinstance(error, TimeoutError):
                raise LaneFull(self.name, self._later_s()) from None
            raise

    def leave(self) -> None:
        """Gives the place to the first who waits."""
        self.in_use -= 1
        self.heard_s = monotonic()
        while self.waiters and self.in_use < self.width:
            waiter = self.waiters.popleft()
            if not waiter.done():
                self.in_use += 1
                waiter.set_result(None)

    def learn(self, took_s: float, *, well: bool) -> None:
        """What a delivery was like; to be said before it leaves."""
        if not well:
            self.width = max(1, self.width - 1)
            return
        self.each_s += _LEARN * (took_s - self.each_s)
        if self.in_use >= self.width:
            self.width = min(self.width + 1, self.most)

    def _later_s(self) -> float:
        """When there will be room, if all who were sent away before come first. Half of the time that it seems to take,
        since to be early costs a look, and to be late leaves the lane empty."""
        now_s, silence_s = monotonic(), self._silence_s()
        self.line_ends_s = max(now_s, self.line_ends_s) + self.each_s / self.width / 2
        wait_s = min(max(self.line_ends_s - now_s, silence_s), _MOST_S)
        return _LEAST_S + wait_s + random.random() * max(1.0, min(silence_s, _MOST_S))

    def _silence_s(self) -> float:
        """For how long nobody who is under way has been heard of; 0: that is not worth speaking of."""
        silence_s = monotonic() - self.heard_s
        return silence_s if silence_s > max(SILENT_S, _USUAL * self.each_s) else 0.0


class Lanes:
    """The lanes of this process.

    :param most: how wide one may become. ``first``: how wide it is at first.
    """

    def __init__(self, most: int, first: int = FIRST) -> None:
        self._most = max(1, most)
        self._first = max(1, min(first, self._most))
        self._lanes: dict[str, Lane] = {}

    def lane(self, name: str) -> Lane:
        """The lane of a destination."""
        if name not in self._lanes:
            if len(self._lanes) >= _LANES_KEPT:
                self._lanes = {key: one for key, one in self._lanes.items() if not one.is_unused}
            self._lanes[name] = Lane(name, self._most, self._first)
        return self._lanes[name]
