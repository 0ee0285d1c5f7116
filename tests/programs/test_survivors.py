"""What outlived its runner is ended; and nothing else is, whatever the history says."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qrunner.metrics import boot_id
from qrunner.programs.running import Process
from qrunner.programs.survivors import end, kill, open_record, record_of
from qrunner.programs.warden import started
from tests.programs.living import alive
from tests.sites import wait_for

ID = "a" * 40
Sleeper = Callable[..., Process]


@pytest.fixture
def sleeper() -> Iterator[Sleeper]:
    begun: list[subprocess.Popen[bytes]] = []

    def begin(**environment: str) -> Process:
        begun.append(subprocess.Popen(["sleep", "1000"], env=environment))
        pid = begun[-1].pid
        # Until then it is still a copy of us, environment and all.
        wait_for(lambda: b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes())
        return Process(pid, started(pid))

    yield begin
    for one in begun:
        one.kill()
        one.wait()


NOBODY = Process(2**22 + 1, 1)


def test_the_keeper_and_the_program_of_a_start_are_ended(sleeper: Sleeper) -> None:
    keeper, program = sleeper(), sleeper()
    assert end(record_of(keeper, program), ID, "in", 10) == []
    assert alive([keeper.pid, program.pid]) == []


def test_whatever_has_the_marks_of_the_entry_is_ended_and_nothing_else(sleeper: Sleeper) -> None:
    marked = sleeper(QRUNNER_ID=ID, QRUNNER_QUEUE="in", PATH="/bin")
    others = [
        sleeper(QRUNNER_ID=ID, QRUNNER_QUEUE="out"),
        sleeper(QRUNNER_ID="b" * 40, QRUNNER_QUEUE="in"),
        sleeper(X=f"QRUNNER_ID={ID}", QRUNNER_QUEUE="in"),
    ]
    assert end(record_of(NOBODY, NOBODY), ID, "in", 10) == []
    assert alive([marked.pid]) == []
    assert alive(one.pid for one in others) == [one.pid for one in others]


def test_a_number_that_another_process_has_by_now_is_not_touched(sleeper: Sleeper) -> None:
    other = sleeper()
    before = Process(other.pid, other.started - 1)
    kill(before)
    assert end(record_of(before, before), ID, "in", 10) == []
    assert alive([other.pid]) == [other.pid]


def test_a_start_of_another_boot_is_of_nobody_who_lives(sleeper: Sleeper) -> None:
    other = sleeper()
    record = {**record_of(other, other), "boot": boot_id()[::-1]}
    assert end(record, ID, "in", 10) == []
    assert alive([other.pid]) == [other.pid]


@pytest.mark.parametrize("value", [None, [], [1], ["1", 2], [-1, 0], [0, 0], [1, 0], {"a": 1}, [2.5, 1], 7])
def test_a_history_that_says_nonsense_ends_nobody(value: object) -> None:
    record = {"keeper": value, "program": value, "boot": boot_id()}
    assert end(record, ID, "in", 10) == []
    assert alive([os.getpid(), 1]) == [os.getpid(), 1]


def test_only_a_start_without_an_end_in_the_same_queue_counts() -> None:
    start, over = {"what": "started", "queue": "in", "n": 1}, {"what": "ended", "queue": "in"}
    elsewhere = {"what": "started", "queue": "out"}
    assert open_record([], "in") is None
    assert open_record([start], "in") == start
    assert open_record([start, over], "in") is None
    assert open_record([start, over, {**start, "n": 2}], "in") == {**start, "n": 2}
    assert open_record([start, {"what": "crash", "queue": "in"}, elsewhere], "in") == start
    assert open_record([start, {"what": "ended", "queue": "out"}], "in") == start
