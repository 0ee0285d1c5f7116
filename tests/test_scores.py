"""How often addresses have bounced: once a day, less with time, and never twice for one entry."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrunner.scores import DAY_NS, FileScores, MemoryScores, Scores, counted, score

NOW_NS = 20_000 * DAY_NS + DAY_NS // 2
WEEK_S = 7 * 86_400.0
ANN = "Ann@example.net"


@pytest.fixture(params=["memory", "files"])
def scores(request: pytest.FixtureRequest, tmp_path: Path) -> Scores:
    return MemoryScores() if request.param == "memory" else FileScores(tmp_path / "bounce", durable=False)


def count(
    scores: Scores, at_ns: int = NOW_NS, weight: float = 1.0, address: str = ANN, book: str = "bounces"
) -> float:
    return score(scores.count(book, address, at_ns, weight, WEEK_S), NOW_NS, WEEK_S)


def test_one_a_day_counts_and_each_half_as_much_a_week_later(scores: Scores) -> None:
    assert count(scores) == 1
    assert count(scores, NOW_NS + DAY_NS // 4) == 1
    assert count(scores, NOW_NS - 7 * DAY_NS) == 1.5
    assert count(scores, NOW_NS - 7 * DAY_NS) == 1.5
    assert score(scores.days("bounces", ANN), NOW_NS + 14 * DAY_NS, WEEK_S) == pytest.approx(0.375)


def test_the_heavier_one_of_a_day_counts(scores: Scores) -> None:
    assert count(scores, weight=0.5) == 0.5
    assert count(scores, weight=1.0) == 1
    assert count(scores, weight=0.5) == 1


def test_each_book_and_address_has_its_own_and_case_makes_no_difference(scores: Scores) -> None:
    count(scores)
    assert scores.days("other", ANN) == {}
    assert scores.days("bounces", "bob@example.net") == {}
    assert score(scores.days("bounces", ANN.lower()), NOW_NS, WEEK_S) == 1


def test_who_is_forgotten_begins_anew(scores: Scores) -> None:
    scores.forget("bounces", ANN)
    count(scores)
    count(scores, address="bob@example.net")
    scores.forget("bounces", ANN.upper())
    assert scores.days("bounces", ANN) == {}
    assert scores.days("bounces", "bob@example.net") != {}


def test_days_that_no_longer_matter_are_left_out(scores: Scores) -> None:
    count(scores, NOW_NS - 100 * DAY_NS)
    count(scores)
    assert list(scores.days("bounces", ANN)) == [NOW_NS // DAY_NS]


def test_a_day_that_has_not_come_yet_was_counted_by_a_wrong_clock(scores: Scores) -> None:
    count(scores, NOW_NS + 10_000 * DAY_NS)
    assert count(scores) == 1


DAYS = st.dictionaries(st.integers(0, 400), st.sampled_from([0.5, 1.0]), max_size=20)
MOMENTS = st.lists(st.tuples(st.integers(0, 400 * DAY_NS), st.sampled_from([0.5, 1.0])), max_size=20)


@given(moments=MOMENTS, half_life_days=st.floats(0.001, 1000), again=st.data())
def test_counting_again_changes_nothing_and_the_order_does_not_matter(
    moments: list[tuple[int, float]], half_life_days: float, again: st.DataObject
) -> None:
    half_life_s = half_life_days * 86_400
    first: dict[int, float] = {}
    for at_ns, weight in moments:
        first = counted(first, at_ns, weight, half_life_s)
    second: dict[int, float] = {}
    for at_ns, weight in again.draw(st.permutations(moments)):
        second = counted(counted(second, at_ns, weight, half_life_s), at_ns, weight, half_life_s)
    now_ns = 400 * DAY_NS
    # What is left out along the way matters less than a thousandth.
    assert score(first, now_ns, half_life_s) == pytest.approx(score(second, now_ns, half_life_s), abs=0.02)


@given(days=DAYS, now=st.integers(0, 800), half_life_s=st.floats(0.001, 1e9))
def test_a_score_is_no_more_than_its_days_and_falls(
    days: dict[int, float], now: int, half_life_s: float
) -> None:
    total = score(days, now * DAY_NS, half_life_s)
    assert 0 <= total <= sum(days.values())
    if all(day <= now for day in days):
        assert score(days, (now + 1) * DAY_NS, half_life_s) <= total


# Files


def _count_many(folder: Path, name: str) -> None:
    scores = FileScores(folder, durable=False)
    for number in range(60):
        scores.count("bounces", f"{number % 20}@example.net", NOW_NS - number * DAY_NS, 1.0, 1e9)
        scores.count("bounces", f"{name}@example.net", NOW_NS - number * DAY_NS, 1.0, 1e9)


def test_processes_count_together(tmp_path: Path) -> None:
    those = [
        multiprocessing.Process(target=_count_many, args=(tmp_path / "bounce", str(n))) for n in range(3)
    ]
    for one in those:
        one.start()
    for one in those:
        one.join(60)
        assert one.exitcode == 0
    scores = FileScores(tmp_path / "bounce")
    assert [len(scores.days("bounces", f"{n}@example.net")) for n in range(3)] == [60] * 3
    assert [len(scores.days("bounces", f"{n}@example.net")) for n in range(3, 20)] == [3] * 17


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "7", '{"ann@example.net": 7}', '{"ann@example.net": {"x": "y"}}', '{"a": {"1": null}}'],
)
def test_a_file_that_is_none_is_begun_anew(tmp_path: Path, text: str) -> None:
    scores = FileScores(tmp_path / "bounce", durable=False)
    count(scores)
    (path,) = (tmp_path / "bounce" / "bounces").glob("??.json")
    path.write_text(text)
    assert scores.days("bounces", ANN) == {}
    assert count(scores) == 1


def test_what_can_not_be_written_is_not_counted_and_what_was_stays(tmp_path: Path) -> None:
    scores = FileScores(tmp_path / "bounce", durable=False)
    count(scores)
    (path,) = (tmp_path / "bounce" / "bounces").glob("??.json")
    (path.parent / f".{path.name}.new").mkdir()
    with pytest.raises(OSError, match="directory"):
        count(scores, NOW_NS - 7 * DAY_NS)
    assert score(scores.days("bounces", ANN), NOW_NS, WEEK_S) == 1


def test_files_are_the_owners_alone(tmp_path: Path) -> None:
    count(FileScores(tmp_path / "bounce"))
    modes = {os.stat(path).st_mode & 0o777 for path in (tmp_path / "bounce").rglob("*.*")}
    assert modes == {0o600}


def test_without_the_folder_above_nothing_is_counted(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        count(FileScores(tmp_path / "away" / "bounce"))
