"""The clock, as an argument: tests bring one that they can advance."""

from __future__ import annotations

import functools
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_NS = 253_402_300_799 * 10**9  # the end of the year 9999, the last that a datetime can hold


class Clock(Protocol):
    """What the engine asks of time."""

    def now_ns(self) -> int:
        """Wall clock, nanoseconds since 1970 UTC. It may be set back and forth."""

    def monotonic_ns(self) -> int:
        """Nanoseconds since some moment; never goes back. For measuring how long something takes."""

    async def wait(self, event: asyncio.Event, timeout_s: float | None) -> bool:
        """Until the event is set (True) or so many seconds are over (False); None waits for the event alone."""


class SystemClock:
    """The machine's own."""

    def now_ns(self) -> int:
        return time.time_ns()

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    async def wait(self, event: asyncio.Event, timeout_s: float | None) -> bool:
        # Here, so that programs which only ask for the time do not pay for the loop.
        import asyncio

        try:
            async with asyncio.timeout(timeout_s):
                return await event.wait()
        except TimeoutError:
            return event.is_set()


def to_datetime(ns: int) -> datetime:
    """Nanoseconds since 1970 as an aware datetime, UTC; what no datetime can hold becomes the nearest one."""
    return _EPOCH + timedelta(microseconds=max(0, min(ns, _LAST_NS)) // 1000)


def to_ns(moment: datetime) -> int:
    """An aware datetime as nanoseconds since 1970."""
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000


def rfc3339(ns: int) -> str:
    """RFC 3339 with zone, to the millisecond: ``2026-11-21T07:30:00.000Z``."""
    seconds, rest = divmod(max(0, min(ns, _LAST_NS)), 10**9)
    return f"{_to_the_second(seconds)}.{rest // 10**6:03d}Z"


@functools.lru_cache(10_000)
def _to_the_second(seconds: int) -> str:
    return to_datetime(seconds * 10**9).replace(tzinfo=None).isoformat(timespec="seconds")
