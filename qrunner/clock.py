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
    return _EPOCH + timedelta(microseconds=_within(ns) // 1000)


def to_ns(moment: datetime) -> int:
    """An aware datetime as nanoseconds since 1970."""
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000


def rfc3339(ns: int) -> str:
    """RFC 3339 with zone, to the millisecond: ``2026-11-21T07:30:00.000Z``."""
    ns = _within(ns)
    return f"{_of_second(ns // 10**9)}.{ns // 10**6 % 1000:03d}Z"


def to_the_second(ns: int) -> str:
    """``rfc3339``, without the fraction."""
    return f"{_of_second(_within(ns) // 10**9)}Z"


def _within(ns: int) -> int:
    return max(0, min(ns, _LAST_NS))


@functools.lru_cache(4096)
def _of_second(seconds: int) -> str:
    # What arrived together is looked at together, and most of the time goes into dates.
    return (_EPOCH + timedelta(seconds=seconds)).replace(tzinfo=None).isoformat()
