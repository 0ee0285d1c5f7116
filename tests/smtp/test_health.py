"""What each event makes of a host's health, and the board on which processes share it."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrunner.config import HostConfig
from qrunner.smtp import health as h
from qrunner.smtp.board import Board, FileBoard, MemoryBoard
from qrunner.smtp.health import Health

HOST = HostConfig("mta", host="mta.example", failures_to_open=3, probe_after_s=60, max_connections=8)
NOW_NS = 10**18


def fails(health: Health, times: int = 1, at_once: bool = False) -> Health:
    for _ in range(times):
        health = h.failed(health, HOST, "refused", now_ns=NOW_NS, random=0.0, at_once=at_once)
    return health


def test_a_host_is_down_after_so_many_failures_in_a_row() -> None:
    assert fails(Health("mta"), 2).is_up
    down = fails(Health("mta"), 3)
    assert (down.state, down.failures, down.last_error) == ("down", 3, "refused")
    assert down.probe_in_s(NOW_NS) == 60


@given(st.floats(0.01, 10_000), st.floats(0, 1, exclude_max=True))
def test_no_host_is_probed_sooner_than_its_least_wait(probe_after_s: float, random: float) -> None:
    """Until then nobody looks whether a probe of a host that is up has come due."""
    host = HostConfig("mta", host="mta.example", probe_after_s=probe_after_s)
    down = h.failed(Health("mta"), host, "refused", now_ns=NOW_NS, random=random, at_once=True)
    assert down.probe_in_s(NOW_NS) >= h.least_wait_s(host) - 1e-6


def test_a_success_between_begins_the_count_anew() -> None:
    assert fails(h.succeeded(fails(Health("mta"), 2), HOST), 2).is_up


def test_a_wrong_password_closes_a_host_at_once() -> None:
    assert not fails(Health("mta"), at_once=True).is_up


def test_connections_that_fail_together_do_not_put_the_probe_off() -> None:
    health = fails(Health("mta"), 20)
    assert (health.state, health.failures) == ("down", 20)
    assert health.probe_in_s(NOW_NS) == 60
    assert fails(h.probing(health)).probe_in_s(NOW_NS) == 120


def test_probes_grow_apart_and_never_stop() -> None:
    health, waits = fails(Health("mta"), 3), []
    for _ in range(100):
        health = fails(h.probing(health))
        waits.append(health.probe_in_s(NOW_NS))
    assert waits[:3] == [120, 240, 300]
    assert set(waits[2:]) == {300}


def test_a_probe_that_goes_well_opens_one_connection_and_each_success_another() -> None:
    health = h.reached(h.probing(fails(Health("mta"), 3)), HOST)
    limits = []
    while health.limit is not None:
        limits.append(health.connections(HOST))
        health = h.succeeded(health, HOST)
    assert limits == [1, 2, 3, 4, 5, 6, 7]
    assert health.connections(HOST) == 8


def test_after_a_probe_one_failure_closes_the_host_again() -> None:
    assert not fails(h.reached(h.probing(fails(Health("mta"), 3)), HOST)).is_up


def test_a_host_that_wants_less_gets_half_and_stays_up() -> None:
    health = h.slowed(Health("mta"), "421", in_use=8)
    assert (health.connections(HOST), health.is_up) == (4, True)
    for _ in range(9):
        health = h.slowed(health, "421", in_use=8)
    assert health.connections(HOST) == 1


def loses(health: Health, entry: str) -> Health:
    return h.lost(health, HOST, entry, "lost", now_ns=NOW_NS, random=0.0)


def test_one_entry_may_lose_connections_forever_without_closing_a_host() -> None:
    health = Health("mta")
    for _ in range(50):
        health = loses(health, "poison")
    assert health.is_up


def test_different_entries_that_lose_connections_close_a_host() -> None:
    health = Health("mta")
    for number in range(4):
        health = loses(health, f"entry{number}")
    assert not health.is_up


def test_a_success_between_two_losses_is_a_veto() -> None:
    health = loses(h.succeeded(loses(Health("mta"), "a"), HOST), "b")
    assert (health.failures, health.is_up) == (0, True)


def test_a_clock_that_was_set_back_makes_no_host_wait_longer() -> None:
    assert fails(Health("mta"), 3).probe_in_s(NOW_NS - 10**15) == 0


@given(st.lists(st.sampled_from(["fail", "loss", "success", "slow", "probe"]), max_size=60), st.randoms())
def test_whatever_happens_a_host_can_always_come_back(events: list[str], random: object) -> None:
    health = Health("mta")
    for number, event in enumerate(events):
        if event == "fail":
            health = fails(health)
        elif event == "loss":
            health = loses(health, str(number))
        elif event == "success":
            health = h.succeeded(health, HOST)
        elif event == "slow":
            health = h.slowed(health, "421", in_use=3)
        elif not health.is_up:
            health = h.reached(h.probing(health), HOST)
        assert 1 <= health.connections(HOST) <= 8
        assert 0 <= health.probe_in_s(NOW_NS) <= 300
        assert Health.of_json("mta", json.loads(json.dumps(health.as_json()))) == health
    health = h.reached(h.probing(health), HOST)
    for _ in range(8):
        health = h.succeeded(health, HOST)
    assert health.is_spotless


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 100_000,
        "[]",
        '{"state": 7, "failures": "x", "lost": 3, "limit": -4}',
        '{"retry_at_ns": true}',
        "\0",
    ],
)
def test_a_file_that_makes_no_sense_is_as_if_nothing_had_happened(tmp_path: Path, text: str) -> None:
    board = FileBoard(tmp_path)
    (tmp_path / "mta.json").write_text(text)
    health = board.read("mta")
    assert health.is_up
    assert health.connections(HOST) >= 1
    assert board.change("mta", lambda one: fails(one, 3)).state == "down"


def test_something_that_is_no_file_is_as_if_nothing_had_happened(tmp_path: Path) -> None:
    board = FileBoard(tmp_path)
    (tmp_path / "mta.json").mkdir()
    os.mkfifo(tmp_path / "mtb.json")
    assert board.read("mta").is_up
    assert board.read("mtb").is_up
    assert board.change("mta", lambda one: fails(one, 3)).state == "down"
    assert board.read("mta").state == "down"


@pytest.fixture(params=["files", "memory"])
def board(request: pytest.FixtureRequest, tmp_path: Path) -> Board:
    return FileBoard(tmp_path / "host") if request.param == "files" else MemoryBoard()


def test_a_board_remembers_what_it_was_told(board: Board) -> None:
    assert board.read("mta") == Health("mta")
    down = board.change("mta", lambda one: fails(one, 3))
    assert board.read("mta") == down
    assert board.read("other").is_up


def test_a_file_says_what_status_shows(tmp_path: Path) -> None:
    FileBoard(tmp_path).change("mta", lambda one: fails(one, 3))
    shown = json.loads((tmp_path / "mta.json").read_text())
    assert {
        key: shown[key] for key in ("name", "state", "failures", "retry_at", "last_error", "suspended")
    } == {
        "name": "mta",
        "state": "down",
        "failures": 3,
        "retry_at": "2001-09-09T01:47:40.000Z",
        "last_error": "refused",
        "suspended": False,
    }


def test_no_more_seats_are_given_than_there_are(board: Board) -> None:
    seats = [board.seat("mta", 3) for _ in range(3)]
    assert {seat.number for seat in seats if seat} == {0, 1, 2}
    assert board.seat("mta", 3) is None
    assert board.seat("other", 1) is not None
    seats[1].release()  # type: ignore[union-attr]
    assert board.seat("mta", 3) is not None


def test_one_at_a_time_may_probe(board: Board) -> None:
    right = board.probe("mta")
    assert right is not None
    assert board.probe("mta") is None
    right.release()
    assert board.probe("mta") is not None


def test_two_boards_in_one_folder_are_one(tmp_path: Path) -> None:
    here, there = FileBoard(tmp_path), FileBoard(tmp_path)
    here.change("mta", lambda one: fails(one, 3))
    assert not there.read("mta").is_up
    there.change("mta", lambda one: h.reached(one, HOST))
    assert here.read("mta").is_up
    seat = here.seat("mta", 1)
    assert there.seat("mta", 1) is None
    del seat


def test_a_want_is_heard_by_the_others_only(tmp_path: Path) -> None:
    here, there = FileBoard(tmp_path), FileBoard(tmp_path)
    assert not FileBoard(tmp_path).wanted("mta")
    here.want("mta")
    assert there.wanted("mta")
    assert not here.wanted("mta")
    old = time.time() - 60
    os.utime(tmp_path / "mta.want", (old, old))
    # Who has just looked does not look again at once.
    assert not FileBoard(tmp_path).wanted("mta")


def test_the_files_are_the_owner_s_alone(tmp_path: Path) -> None:
    board = FileBoard(tmp_path / "host")
    board.lay_out()
    board.change("mta", lambda one: fails(one))
    seat = board.seat("mta", 1)
    assert seat is not None
    for path in [tmp_path / "host", *(tmp_path / "host").iterdir()]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def _count(folder: Path, times: int) -> None:
    board = FileBoard(folder)
    for _ in range(times):
        board.change("mta", lambda one: h.failed(one, HOST, "x", now_ns=NOW_NS, random=0.0))


def test_changes_of_several_processes_are_all_counted(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_count, args=(tmp_path, 50)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert FileBoard(tmp_path).read("mta").failures == 100


def test_a_board_that_can_not_be_written_is_kept_in_memory(tmp_path: Path) -> None:
    board = FileBoard(tmp_path)
    (tmp_path / "mta.lock").mkdir()
    assert not board.change("mta", lambda one: fails(one, 3)).is_up
    assert not board.read("mta").is_up
    (tmp_path / "mta.lock").rmdir()
    assert board.change("mta", lambda one: h.reached(one, HOST)).is_up
    assert FileBoard(tmp_path).read("mta").is_up
    assert FileBoard(tmp_path).read("mta").limit == 1
