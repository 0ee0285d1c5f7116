"""The board for hosts without number: seats and health without a file for each; and two processes that share it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from qrunner.smtp.health import Health
from qrunner.smtp.mxboard import MxBoard

NAME = "mx.example.com"
DAY_NS = 86_400 * 10**9


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    MxBoard(tmp_path / "host").lay_out()
    return tmp_path / "host"


def failed(health: Health) -> Health:
    return replace(health, state="down", failures=5, last_error="refused")


def well(health: Health) -> Health:
    return Health(health.name)


def test_a_host_has_as_many_seats_as_it_is_given_for_all_processes_together(folder: Path) -> None:
    one, other = MxBoard(folder), MxBoard(folder)
    seats = [one.seat(NAME, 3), other.seat(NAME, 3), one.seat(NAME, 3)]
    assert sorted(seat.number for seat in seats if seat) == [0, 1, 2]
    assert one.seat(NAME, 3) is None
    assert other.seat(NAME, 3) is None
    assert other.seat("mx.other.example", 3) is not None
    assert seats[0] is not None
    seats[0].release()
    seats[0].release()
    assert other.seat(NAME, 3) is not None


def test_one_process_makes_the_probe(folder: Path) -> None:
    one, other = MxBoard(folder), MxBoard(folder)
    right = one.probe(NAME)
    assert right is not None
    assert one.probe(NAME) is None
    assert other.probe(NAME) is None
    right.release()
    assert other.probe(NAME) is not None


def test_a_host_that_is_well_has_no_file_however_much_it_is_used(folder: Path) -> None:
    board = MxBoard(folder)
    seat, right = board.seat(NAME, 3), board.probe(NAME)
    assert seat is not None
    assert right is not None
    board.change(NAME, well)
    assert [path.name for path in folder.iterdir()] == [".mx"]
    assert (folder / ".mx").stat().st_size == 0


def test_what_one_process_learns_the_other_knows_and_forgets_when_it_is_over(folder: Path) -> None:
    one, other = MxBoard(folder), MxBoard(folder)
    one.change(NAME, failed)
    assert other.read(NAME).last_error == "refused"
    other.change(NAME, well)
    assert one.read(NAME) == Health(NAME)
    assert not list(folder.glob("*.json"))


def test_who_waits_for_a_seat_is_seen_by_the_others(folder: Path) -> None:
    async def test() -> None:
        one, other = MxBoard(folder), MxBoard(folder)
        one.want(NAME)
        one.want(NAME)
        assert other.wanted(NAME)
        assert not one.wanted(NAME)
        assert not other.wanted("mx.other.example")

    asyncio.run(test())


def test_seats_end_with_the_process_that_had_them(folder: Path) -> None:
    program = (
        "import sys, pathlib; from qrunner.smtp.mxboard import MxBoard;"
        f"board = MxBoard(pathlib.Path(sys.argv[1])); assert board.seat({NAME!r}, 1);"
        "print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(folder)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.getcwd()}
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        board = MxBoard(folder)
        assert board.seat(NAME, 1) is None
        process.kill()
        process.wait()
    assert board.seat(NAME, 1) is not None


def test_a_host_that_nobody_has_tried_for_a_day_is_forgotten_unless_a_person_suspended_it(
    folder: Path,
) -> None:
    board = MxBoard(folder)
    board.change(NAME, failed)
    board.change("mx.fresh.example", failed)
    board.change("mx.stopped.example", lambda health: replace(health, suspended=True))
    board.change("mta1", failed)
    now_ns = (folder / "mta1.json").stat().st_mtime_ns + 2 * DAY_NS
    os.utime(folder / "mx.fresh.example.json", ns=(now_ns, now_ns))
    board.sweep(now_ns)
    left = sorted(path.stem for path in folder.glob("*.json"))
    assert left == ["mta1", "mx.fresh.example", "mx.stopped.example"]


def test_health_is_kept_in_memory_where_it_can_t_be_written(tmp_path: Path) -> None:
    board = MxBoard(tmp_path / "nowhere")
    assert board.change(NAME, failed).state == "down"
    assert board.read(NAME).state == "down"


def test_a_name_too_long_for_a_file_is_no_trouble(folder: Path) -> None:
    board = MxBoard(folder)
    name = ".".join(["a" * 50] * 5)
    assert board.change(name, failed).state == "down"
    assert board.read(name).state == "down"
    assert board.seat(name, 1) is not None
