"""The clock."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from qrunner.clock import Clock, SystemClock, rfc3339, to_datetime, to_ns


def test_times_are_rfc_3339_with_zone() -> None:
    assert rfc3339(1_795_246_200_123_456_789) == "2026-11-21T07:30:00.123Z"


@given(st.integers(-(10**30), 10**30))
def test_any_number_that_a_file_may_hold_is_some_time(ns: int) -> None:
    assert datetime.fromisoformat(rfc3339(ns)).tzinfo is not None


@given(st.datetimes(datetime(1970, 1, 1), datetime(9000, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001
def test_a_moment_survives_the_way_to_nanoseconds_and_back(moment: datetime) -> None:
    assert to_datetime(to_ns(moment)) == moment


def test_a_wait_ends_with_the_event_or_with_the_time() -> None:
    async def both(clock: Clock) -> tuple[bool, bool]:
        event = asyncio.Event()
        over = await clock.wait(event, 0.001)
        event.set()
        return over, await clock.wait(event, None)

    assert asyncio.run(both(SystemClock())) == (False, True)
