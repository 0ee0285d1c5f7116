"""The runner that hands mail to programs, when it is stopped, and when its disk is in trouble; on queues of files."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qrunner.engine.loop import Engine
from qrunner.runners.command import CommandRunner
from tests.driving import Bench, make_bench, running, until
from tests.programs.living import HANGING, alive, hanging, pids


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Bench]:
    def made(*command: str, more: str = "") -> Bench:
        words = ", ".join(f"'''{word}'''" for word in command)
        (tmp_path / "var").mkdir()
        return make_bench(tmp_path, f"command = [{words}]\n{more}")

    return made


def work(folder: Path) -> list[str]:
    """What lies in the folder of all programs' folders."""
    return sorted(path.name for path in (folder / "var" / "work").rglob("*"))


def engine_of(bench: Bench) -> Engine:
    bench.put()
    return bench.engine(CommandRunner)


def test_a_stop_lets_a_program_end_within_the_grace(make: Callable[..., Bench], tmp_path: Path) -> None:
    script = f"touch {tmp_path}/busy; while [ ! -e {tmp_path}/go ]; do sleep 0.01; done"
    bench = make("sh", "-c", script, more='next = "out"')
    engine = engine_of(bench)

    async def story() -> None:
        await until((tmp_path / "busy").exists)
        engine.stop()
        (tmp_path / "go").touch()

    running(engine, story)
    assert bench.where() == {"out": 1}
    assert work(tmp_path) == []


def test_after_the_grace_all_of_it_is_killed_and_the_entry_is_as_it_was(
    make: Callable[..., Bench], tmp_path: Path
) -> None:
    there = tmp_path / "there"
    there.mkdir()
    bench = make(sys.executable, "-c", hanging(there), more='grace = "100ms"\nconcurrency = 2')
    engine = engine_of(bench)

    async def story() -> None:
        await until(lambda: {*HANGING} <= {path.name for path in there.iterdir()})

    running(engine, story)
    assert alive(pids(there)) == []
    (entry,) = bench.entries("in")
    assert entry.attempts == 0
    assert [line["what"] for line in entry.history] == ["started", "ended"]
    assert work(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_a_signal_to_all_of_a_service_is_no_fault_of_the_message(
    make: Callable[..., Bench], tmp_path: Path, number: signal.Signals
) -> None:
    """The program dies of it at the moment at which the runner is told to stop."""
    # Nothing but the shell itself and what it becomes: while it waits for another program it leaves signals to that.
    bench = make("sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 100")
    engine = engine_of(bench)
    pid = tmp_path / "pid"

    async def story() -> None:
        await until(lambda: pid.exists() and pid.read_text().endswith("\n"))
        os.killpg(int(pid.read_text()), number)
        await until(lambda: "ended" in str(bench.entries("in")[0].history), "the program's end")
        engine.stop()

    running(engine, story)
    (entry,) = bench.entries("in")
    assert entry.attempts == 0
    assert bench.where() == {"in": 1}


def test_without_a_place_to_work_in_nothing_is_run_and_nothing_is_lost(
    make: Callable[..., Bench], tmp_path: Path
) -> None:
    bench = make("sh", "-c", "exit 0")
    engine = bench.engine(CommandRunner)

    async def story() -> None:
        shutil.rmtree(tmp_path / "var" / "work")
        (tmp_path / "var" / "work").touch()
        bench.put(2)
        await until(lambda: engine.state == "waiting", "the trouble")
        assert "no program can be started: Not a directory" in engine.reason

    running(engine, story)
    assert bench.where() == {"in": 2}
    assert [entry.attempts for entry in bench.entries("in")] == [0, 0]


def test_folders_that_somebody_has_tidied_away_are_made_again(
    make: Callable[..., Bench], tmp_path: Path
) -> None:
    bench = make("sh", "-c", "exit 0")
    engine = bench.engine(CommandRunner)

    async def story() -> None:
        shutil.rmtree(tmp_path / "var" / "work")
        bench.put(2)
        await until(lambda: not bench.where(), "both")

    running(engine, story)
    assert work(tmp_path) == []


def test_a_start_that_cannot_be_written_down_is_none(
    make: Callable[..., Bench], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make("sh", "-c", f"touch {tmp_path}/ran")
    engine = engine_of(bench)

    async def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine, "note", full)

    async def story() -> None:
        await until(lambda: engine.state == "waiting", "the trouble")
        assert "No space left on device" in engine.reason

    running(engine, story)
    assert bench.where() == {"in": 1}
    assert not (tmp_path / "ran").exists()


def test_a_start_takes_away_the_folders_of_the_dead_and_leaves_those_of_the_living(
    make: Callable[..., Bench], tmp_path: Path
) -> None:
    bench = make("sh", "-c", "exit 0")
    place = tmp_path / "var" / "work"
    for name in ("in.0.dead/run", "in.0.alive/run", "in.1.other", "unknown"):
        (place / name).mkdir(parents=True)
    (place / "in.0.dead" / "run" / "file").touch()
    (place / "in.0.dead" / "run").chmod(0)
    with open_locked(place / "in.0.alive"):
        bench.put()
        bench.drain(CommandRunner)
        assert work(tmp_path) == ["in.0.alive", "in.1.other", "run", "unknown"]
    bench.drain(CommandRunner)
    assert work(tmp_path) == ["in.1.other", "unknown"]


@contextmanager
def open_locked(folder: Path) -> Iterator[None]:
    """As a process has it that lives, or its warden."""
    fd = os.open(folder, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    yield
    os.close(fd)
