"""A clock that stands still until a test advances it."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from qrunner.clock import to_datetime, to_ns
from qrunner.config.values import duration_s

START_NS = 1_767_225_600 * 10**9  # 2026-01-01T00:00:00Z


@dataclass(eq=False, slots=True)
class _Sleeper:
    """One ``wait``: its end on the clock's own monotonic time, and what wakes it."""

    until_ns: int
    loop: asyncio.AbstractEventLoop
    woken: asyncio.Event = field(default_factory=asyncio.Event)


class FakeClock:
    """A clock for tests: nothing passes but by ``advance``, and whoever waits wakes as soon as it has.

    :param now: where it starts, aware; None: the first moment of 2026, UTC.
    """

    def __init__(self, now: datetime | None = None) -> None:
        self._now_ns = START_NS if now is None else to_ns(now)
        self._monotonic_ns = 0
        self._lock = threading.Lock()
        self._sleepers: list[_Sleeper] = []

    def now_ns(self) -> int:
        """Wall clock, nanoseconds since 1970 UTC."""
        return self._now_ns

    def monotonic_ns(self) -> int:
        """Nanoseconds by which it was advanced since it was made."""
        return self._monotonic_ns

    @property
    def now(self) -> datetime:
        """Wall clock as an aware datetime, UTC."""
        return to_datetime(self._now_ns)

    def advance(self, by: float | str | timedelta) -> None:
        """Lets time pass.

        :param by: seconds, a timedelta, or a duration as the configuration spells it: ``"4h"``.
        :raises ValueError: that is no duration, or it goes back; ``set_back`` does.
        """
        step = _ns(by)
        if step < 0:
            raise ValueError(f"time does not pass backwards: {by!r}")
        with self._lock:
            self._now_ns += step
            self._monotonic_ns += step
            woken = [sleeper for sleeper in self._sleepers if sleeper.until_ns <= self._monotonic_ns]
        for sleeper in woken:
            if not sleeper.loop.is_closed():
                sleeper.loop.call_soon_threadsafe(sleeper.woken.set)

    def set_back(self, by: float | str | timedelta) -> None:
        """The wall clock alone goes back, as when somebody corrects it."""
        with self._lock:
            self._now_ns -= _ns(by)

    async def wait(self, event: asyncio.Event, timeout_s: float | None) -> bool:
        """Until the event is set (True) or the clock was advanced by so many seconds (False)."""
        if event.is_set() or timeout_s is None:
            return await event.wait()
        if timeout_s <= 0:
            await asyncio.sleep(0)
            return event.is_set()
        with self._lock:
            sleeper = _Sleeper(self._monotonic_ns + round(timeout_s * 1e9), asyncio.get_running_loop())
            self._sleepers.append(sleeper)
        try:
            await _first_of(event, sleeper.woken)
        finally:
            with self._lock:
                self._sleepers.remove(sleeper)
        return event.is_set()


async def _first_of(*events: asyncio.Event) -> None:
    tasks = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def _ns(by: float | str | timedelta) -> int:
    if isinstance(by, str):
        return round(duration_s(by) * 1e9)
    seconds = by / timedelta(seconds=1) if isinstance(by, timedelta) else by
    return round(seconds * 1e9)
