"""The counters of one runner process, and the file that tells them."""

from __future__ import annotations

import json
import os
from collections import deque
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrunner.metrics import Counters, Rate, age_s, read_state, write_state

S = 10**9


def test_counters_tell_how_many_how_many_failed_and_how_many_of_late() -> None:
    now = [0]
    counters = Counters(lambda: now[0])
    for _ in range(7):
        counters.count()
    counters.count(failed=True)
    assert counters.as_state() == {"processed": 8, "failed": 1, "rate_1m": 8}
    now[0] = 61 * S
    counters.count()
    assert counters.as_state() == {"processed": 9, "failed": 1, "rate_1m": 1}


@given(st.lists(st.tuples(st.integers(0, 90 * S), st.integers(0, 5)), max_size=60))
def test_the_rate_has_every_event_of_55_seconds_and_none_older_than_60(steps: list[tuple[int, int]]) -> None:
    now = [12_345 * S]
    rate = Rate(lambda: now[0])
    events: deque[int] = deque()
    for pause_ns, count in steps:
        now[0] += pause_ns
        rate.add(count)
        events.extend([now[0]] * count)
        ages = [now[0] - at for at in events]
        assert sum(age <= 55 * S for age in ages) <= rate.last_minute() <= sum(age < 60 * S for age in ages)


def test_a_state_is_read_as_it_was_written_with_pid_and_age(tmp_path: Path) -> None:
    write_state(tmp_path / "out-0.json", {"runner": "out", "state": "running"})
    state = read_state(tmp_path / "out-0.json")
    assert state is not None
    assert (state["runner"], state["state"], state["pid"]) == ("out", "running", os.getpid())
    age = age_s(state)
    assert age is not None
    assert age >= 0
    assert os.listdir(tmp_path) == ["out-0.json"]


def test_a_state_from_before_a_reboot_has_no_age(tmp_path: Path) -> None:
    write_state(tmp_path / "x.json", {})
    state = read_state(tmp_path / "x.json")
    assert state is not None
    assert age_s({**state, "boot": "another"}) is None
    assert age_s({}) is None


@pytest.mark.parametrize("content", [b"", b'{"pid": 1', b"[1]", b"\xff\xfe", b"null"])
def test_a_file_that_is_no_state_is_read_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    assert read_state(tmp_path / "x.json") is None


def test_where_there_is_no_file_there_is_no_state(tmp_path: Path) -> None:
    assert read_state(tmp_path / "x.json") is None
    assert read_state(tmp_path) is None


def test_a_state_that_cannot_be_written_leaves_the_old_one_and_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "x.json").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_state(tmp_path / "x.json", {})
    assert os.listdir(tmp_path) == ["x.json"]


def test_a_reader_never_sees_half_a_state(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_state(path, {"n": 1})
    with path.open() as reader:
        write_state(path, {"n": 2})
        assert json.load(reader)["n"] == 1
    assert (read_state(path) or {})["n"] == 2
