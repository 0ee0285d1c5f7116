"""The retry schedule."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrunner.format import Name, parse_name, ready_name
from qrunner.schedule import Retry, delay_s, due_after, expired

RETRIES = st.builds(
    Retry,
    first_s=st.floats(0.001, 1e5),
    factor=st.floats(1, 1000),
    max_s=st.floats(1e5, 1e9),
    jitter=st.floats(0, 0.9),
    lifetime_s=st.floats(0, 1e9),
)
RANDOM = st.floats(0, 1, exclude_max=True)
ATTEMPTS = st.integers(1, 10) | st.integers(1, 10**9)


def test_the_usual_schedule_doubles_from_five_minutes_to_four_hours() -> None:
    delays = [delay_s(Retry(), attempt, 0.5) / 60 for attempt in range(1, 9)]
    assert delays == [5, 10, 20, 40, 80, 160, 240, 240]


def test_jitter_goes_both_ways() -> None:
    assert delay_s(Retry(first_s=100, jitter=0.25), 1, 0.0) == 75
    assert 124.9 < delay_s(Retry(first_s=100, jitter=0.25), 1, 0.9999) < 125


@given(RETRIES, ATTEMPTS, RANDOM)
def test_a_delay_is_between_the_first_and_the_cap_but_for_its_jitter(
    retry: Retry, attempt: int, random: float
) -> None:
    delay = delay_s(retry, attempt, random)
    assert retry.first_s * (1 - retry.jitter) * 0.999 <= delay <= retry.max_s * (1 + retry.jitter) * 1.001


@given(RETRIES, ATTEMPTS, RANDOM)
def test_a_later_attempt_never_waits_less(retry: Retry, attempt: int, random: float) -> None:
    assert delay_s(retry, attempt + 1, random) >= delay_s(retry, attempt, random)


@given(RETRIES, ATTEMPTS, RANDOM, RANDOM)
def test_the_dice_alone_decide_within_the_jitter(
    retry: Retry, attempt: int, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    assert delay_s(retry, attempt, low) <= delay_s(retry, attempt, high)


def test_an_attempt_that_was_not_counted_waits_like_the_first() -> None:
    assert delay_s(Retry(), 0, 0.5) == delay_s(Retry(), 1, 0.5)


@given(st.integers(0, 2**62), st.integers(-(2**62), 2**62))
def test_an_entry_expires_when_its_lifetime_is_over_and_never_by_a_clock_set_back(
    arrival: int, age: int
) -> None:
    assert expired(Retry(lifetime_s=60), arrival, arrival + age) == (age >= 60 * 10**9)


@given(st.integers(0, 2**62), st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers()))
def test_whatever_the_delay_it_ends_at_a_time_that_a_name_can_hold(now: int, delay: float) -> None:
    due = due_after(now, delay)
    assert now <= due
    assert parse_name(ready_name(due, "a" * 40)) == Name(due, "a" * 40)


@pytest.mark.parametrize("delay", [float("nan"), float("inf"), "5", None])
def test_a_delay_that_is_no_finite_number_is_refused(delay: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        due_after(0, delay)
