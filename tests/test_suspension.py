"""Suspensions: what stands in their files, what a reader makes of it, how long they lasted."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from qrunner.errors import QRunnerError
from qrunner.suspension import Suspension, Suspensions
from qrunner.testing.clock import FakeClock

RUNNER, QUEUE, DOMAIN = ("runner", "out"), ("queue", "out"), ("domain", "example.net")
SECOND_NS = 10**9


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def those(tmp_path: Path, clock: FakeClock) -> Suspensions:
    return made(tmp_path, clock)


def made(folder: Path, clock: FakeClock, state: str = "var") -> Suspensions:
    for name in ("qfiles", state):
        (folder / name).mkdir(exist_ok=True)
    return Suspensions(folder / "qfiles", folder / state, clock.now_ns)


def test_what_is_suspended_is_so_for_another_process_and_says_why(
    tmp_path: Path, those: Suspensions, clock: FakeClock
) -> None:
    assert (those.find(*RUNNER), those.now()) == (None, [])
    those.suspend(RUNNER, reason="the disk", by="ann")
    found = made(tmp_path, clock).find(*RUNNER)
    assert found == Suspension(*RUNNER, clock.now_ns(), None, "the disk", "ann")
    assert str(found) == "runner out is suspended by ann: the disk"
    assert those.find(*RUNNER) == found
    assert those.resume(RUNNER)
    assert not those.resume(RUNNER)
    assert those.find(*RUNNER) is None


def test_a_queue_and_a_domain_wait_on_every_machine_and_a_runner_on_this_one(
    tmp_path: Path, those: Suspensions, clock: FakeClock
) -> None:
    for target in (RUNNER, QUEUE, DOMAIN):
        those.suspend(target)
    other = made(tmp_path, clock, "other")
    assert [one.target for one in other.now()] == [QUEUE, DOMAIN]
    assert other.of_address("Bob@Example.NET.") is not None
    assert other.of_address("bob@sub.example.net") is None


def test_one_with_an_end_ends_by_itself(those: Suspensions, clock: FakeClock) -> None:
    those.suspend(QUEUE, for_s=60)
    clock.advance(59)
    assert those.find(*QUEUE) is not None
    clock.advance(1)
    assert those.find(*QUEUE) is None
    assert those.now() == []


def test_to_suspend_again_changes_its_end_and_its_reason_but_not_its_beginning(
    those: Suspensions, clock: FakeClock
) -> None:
    those.suspend(QUEUE, for_s=60, reason="one")
    since = clock.now_ns()
    clock.advance(10)
    those.suspend(QUEUE, reason="two")
    (found,) = those.now()
    assert (found.since_ns, found.until_ns, found.reason) == (since, None, "two")


def test_the_time_that_any_of_them_lasted_is_counted_once(those: Suspensions, clock: FakeClock) -> None:
    start = clock.now_ns()
    clock.advance(100)
    those.suspend(RUNNER)
    clock.advance(10)
    those.suspend(QUEUE, for_s=20)
    clock.advance(15)
    those.resume(RUNNER)
    clock.advance(100)
    assert those.lasted_s({RUNNER, QUEUE}, start) == 30
    assert those.lasted_s({RUNNER}, start) == 25
    assert those.lasted_s({QUEUE}, start + 120 * SECOND_NS) == 10
    assert those.lasted_s({DOMAIN}, start) == 0


def test_what_ended_long_ago_is_forgotten(tmp_path: Path, those: Suspensions, clock: FakeClock) -> None:
    those.suspend(QUEUE, for_s=1)
    clock.advance("91d")
    those.suspend(DOMAIN)
    kept = json.loads((tmp_path / "qfiles/.suspended.json").read_text())["suspended"]
    assert [one["kind"] for one in kept] == ["domain"]


def test_mail_looks_again_after_as_long_as_it_has_lasted_at_most_five_minutes() -> None:
    one = Suspension(*DOMAIN, since_ns=0, until_ns=1000 * SECOND_NS)
    waits = [one.wait_s(at * SECOND_NS) for at in (0, 10, 200, 500, 990)]
    assert waits == [1, 10, 200, 300, 10]


def test_a_file_that_is_none_of_ours_stops_no_reader_and_is_not_written_over(
    tmp_path: Path, those: Suspensions
) -> None:
    those.suspend(QUEUE)
    assert those.find(*QUEUE) is not None
    file = tmp_path / "qfiles/.suspended.json"
    file.write_text("[]")
    assert those.find(*QUEUE) is not None
    with pytest.raises(QRunnerError, match="can't be read, remove it"):
        those.suspend(DOMAIN)
    assert file.read_text() == "[]"


def test_many_at_once_lose_nothing(tmp_path: Path, clock: FakeClock) -> None:
    def suspend(number: int) -> None:
        made(tmp_path, clock).suspend(("domain", f"d{number}.example"))

    threads = [threading.Thread(target=suspend, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made(tmp_path, clock).now()) == 12
    assert (tmp_path / "qfiles/.suspended.json").stat().st_mode & 0o777 == 0o600
