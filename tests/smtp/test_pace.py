"""Turns of a rate: never more than it says, nearly as many, and the same ones for all processes."""

from __future__ import annotations

import bisect
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrunner.smtp import pace
from qrunner.smtp.pace import Bucket, Pace, Paces, Turn

SECOND = 10**9
RATES = st.tuples(st.integers(1, 2_000), st.sampled_from([0.5, 1.0, 60.0, 3600.0, 86400.0]))
LATE = 1_000 * SECOND


def taken(rate: tuple[int, float], arrivals: list[int], within_s: float = 60.0) -> list[int]:
    """When those go who come at these times, in order."""
    bucket, gone = Bucket(), []
    for now_ns in arrivals:
        bucket, turn = Pace.of(rate).turn(bucket, now_ns, within_s, 0.5)
        if turn.may:
            gone.append(now_ns + round(turn.wait_s * 1e9))
    return gone


@given(RATES, st.lists(st.integers(0, 3600 * SECOND), max_size=300), st.floats(0, 60))
def test_no_stretch_as_long_as_the_rates_has_more_turns_than_it_says(
    rate: tuple[int, float], arrivals: list[int], within_s: float
) -> None:
    gone = sorted(taken(rate, sorted(arrivals), within_s))
    span_ns = rate[1] * SECOND - 1_000
    for at, start in enumerate(gone):
        assert bisect.bisect_left(gone, start + span_ns) - at <= rate[0]


@given(RATES)
def test_who_always_wants_one_is_given_nineteen_of_twenty(rate: tuple[int, float]) -> None:
    count, span_s = rate
    assert count * Pace.of(rate).every_ns <= span_s * SECOND / 0.95 + count


def test_a_few_may_go_at_once_after_a_rest() -> None:
    gone = taken((600, 60.0), [LATE] * 12)
    assert gone[:10] == [LATE] * 10
    assert gone[10] > LATE


def test_of_few_in_a_long_time_none_go_together() -> None:
    assert taken((3, 3600.0), [LATE] * 5) == [LATE]
    assert taken((3, 3600.0), [LATE, LATE + 1200 * SECOND]) == [LATE, LATE + 1200 * SECOND]


def test_a_turn_that_was_not_used_is_the_next_ones() -> None:
    one = Pace.of((1, 60.0))
    bucket, _ = one.turn(Bucket(), LATE, 0, 0.5)
    assert one.turn(one.given_back(bucket), LATE, 0, 0.5)[1] == Turn(True)


def test_no_two_are_told_to_come_again_at_the_same_moment() -> None:
    one, bucket, told = Pace.of((60, 60.0)), Bucket(), []
    for _ in range(100):
        bucket, turn = one.turn(bucket, LATE, 2.0, 0.5)
        if not turn.may:
            told.append(turn.wait_s)
    assert len(told) > 90
    assert min(after - before for before, after in itertools.pairwise(told)) > 1


def test_nobody_is_sent_away_for_longer_than_a_quarter_of_an_hour() -> None:
    one, bucket = Pace.of((1, 86_400.0)), Bucket()
    for dice in (0.0, 0.3, 0.999):
        bucket, turn = one.turn(bucket, LATE, 2.0, dice)
    assert not turn.may
    assert 0 < turn.wait_s <= pace.LINE_MAX_S


@pytest.mark.parametrize("bucket", [Bucket(10**18, 0), Bucket(0, 10**18), Bucket(10**18, 10**18)])
def test_what_was_known_before_the_machine_was_started_anew_holds_nobody_up(bucket: Bucket) -> None:
    assert Pace.of((10, 1.0)).turn(bucket, SECOND, 2.0, 0.5)[1] == Turn(True)


def test_two_who_look_at_one_table_share_the_turns(tmp_path: Path) -> None:
    rate = (1, 3600.0)
    one, other = Paces(tmp_path / "p"), Paces(tmp_path / "p")
    assert one.turn("a", rate, 0).may
    assert not other.turn("a", rate, 0).may
    assert other.turn("b", rate, 0).may
    assert 0 < one.wait_s("a") <= 2 * 3600
    one.give_back("a", rate)
    assert other.turn("a", rate, 0).may


def test_only_looking_makes_no_file(tmp_path: Path) -> None:
    assert Paces(tmp_path / "p").wait_s("a") == 0
    assert not list(tmp_path.iterdir())


def test_hosts_that_share_a_part_of_the_table_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "_PARTS", 1)
    one, rate = Paces(tmp_path / "p"), (1, 3600.0)
    names = [f"mx{number}.example" for number in range(8)]
    assert all(one.turn(name, rate, 0).may for name in names)
    assert not any(one.turn(name, rate, 0).may for name in names)


def test_what_can_not_be_written_is_counted_by_each_process(tmp_path: Path) -> None:
    one, rate = Paces(tmp_path / "away" / "p"), (2, 3600.0)
    assert [one.turn("a", rate, 0).may for _ in range(2)] == [True, False]
    (tmp_path / "away").mkdir()
    assert not one.turn("a", rate, 0).may
    assert not Paces(tmp_path / "away" / "p").turn("a", rate, 0).may


PROCESS = """
import sys, time
from pathlib import Path
from qrunner.smtp.pace import Paces
paces = Paces(Path(sys.argv[1]))
sys.stdout.write("ready\\n"); sys.stdout.flush(); sys.stdin.readline()
for _ in range(300):
    if paces.turn("mta", (50, 3600.0), 0).may:
        print("went")
"""


def test_processes_together_take_no_more_turns_than_the_rate_says(tmp_path: Path) -> None:
    many = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(tmp_path / "p")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        for _ in range(4)
    ]
    for one in many:
        assert one.stdout is not None
        assert one.stdout.readline() == b"ready\n"
    went = sum(one.communicate(b"\n", timeout=60)[0].count(b"went") for one in many)
    # The first few that the bucket holds; the next turn is more than a minute away.
    assert went == 2
