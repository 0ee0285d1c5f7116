"""Slices: every digest has one owner, and as many as its weight says."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrunner.slices import SPACE, WHOLE, Range, cut, owner, prefixes

WEIGHTS = st.lists(st.integers(1, 10) | st.integers(1, 2**200), min_size=1, max_size=40)
DIGESTS = st.integers(0, SPACE - 1)


@given(WEIGHTS, DIGESTS)
def test_every_digest_has_exactly_one_owner(weights: list[int], digest: int) -> None:
    ranges = cut(weights)
    owners = [index for index, one in enumerate(ranges) if digest in one]
    assert owners == [owner(ranges, f"{digest:040x}")]


@given(WEIGHTS)
def test_the_digests_at_every_bound_have_exactly_one_owner(weights: list[int]) -> None:
    ranges = cut(weights)
    bounds = {bound for one in ranges for bound in (one.lo - 1, one.lo, one.hi - 1, one.hi)}
    for digest in filter(WHOLE.__contains__, bounds):
        assert sum(digest in one for one in ranges) == 1


@given(WEIGHTS)
def test_the_ranges_cover_the_space_without_gap_or_overlap(weights: list[int]) -> None:
    ranges = cut(weights)
    assert ranges[0].lo == 0
    assert ranges[-1].hi == SPACE
    assert all(one.hi == next_one.lo for one, next_one in pairwise(ranges))
    assert not any(one.overlaps(other) for i, one in enumerate(ranges) for other in ranges[:i])


@given(WEIGHTS)
def test_a_share_is_its_weights_to_within_one_digest(weights: list[int]) -> None:
    for weight, one in zip(weights, cut(weights), strict=True):
        assert abs(one.hi - one.lo - Fraction(SPACE * weight, sum(weights))) < 1


def test_seventy_twenty_ten() -> None:
    ranges = cut([70, 20, 10])
    assert [f"{one.lo:040x}"[:4] for one in ranges] == ["0000", "b333", "e666"]
    assert ranges[0].owns("b" + "3" * 38 + "2")
    assert ranges[1].owns("b" + "3" * 39)


@pytest.mark.parametrize("weights", [[], [0], [1, -1]])
def test_weights_that_are_not_positive_are_refused(weights: list[int]) -> None:
    with pytest.raises(ValueError, match="positive"):
        cut(weights)


def test_a_range_outside_of_the_space_is_refused() -> None:
    for lo, hi in ((-1, 5), (5, 4), (0, SPACE + 1)):
        with pytest.raises(ValueError, match="no range"):
            Range(lo, hi)


def test_ranges_that_only_touch_do_not_overlap() -> None:
    assert not Range(0, 5).overlaps(Range(5, 9))
    assert Range(0, 6).overlaps(Range(5, 9))
    assert not Range(3, 3).overlaps(WHOLE)


def test_nobody_owns_what_is_in_a_gap() -> None:
    assert owner([Range(0, 5), Range(9, 10)], f"{7:040x}") is None
    assert owner([Range(5, 6)], "0" * 40) is None


@given(WEIGHTS, DIGESTS)
def test_an_owned_id_is_in_one_of_its_ranges_sub_directories(weights: list[int], digest: int) -> None:
    for one in cut(weights):
        inside = one.lo <= digest < one.hi
        assert not inside or f"{digest:040x}"[:2] in prefixes(one)


def test_a_range_touches_no_more_sub_directories_than_it_must() -> None:
    assert len(prefixes(WHOLE)) == 256
    assert prefixes(cut([1, 1])[1], 1) == tuple("89abcdef")
    assert prefixes(cut([255, 1])[1]) == ("ff",)
    assert prefixes(Range(7, 7)) == ()


def test_a_range_reads_as_its_first_and_last_digest() -> None:
    assert str(cut([1, 1])[0]) == "0" * 40 + "-7" + "f" * 39
    assert str(Range(1, 1)) == "empty"
