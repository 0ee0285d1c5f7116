"""A runner that hands mail to programs is killed, at any moment: no program outlives it into its entry's next run, and
what is committed is committed once. A Ctrl-C blames nobody.

The programs hold a lock on a file, which their children inherit: whoever finds it taken has met a survivor.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from qrunner.clock import SystemClock
from qrunner.config import parse
from qrunner.engine.loop import Engine
from qrunner.programs.warden import stat_of
from qrunner.runners.command import CommandRunner
from qrunner.site import Site
from tests.crash.calls import Calls, Point, before_or_within, some_or_all
from tests.sites import TinySite, tiny_site, wait_for

LOG = logging.getLogger("qrunner.check")

PROGRAM = """\
import fcntl, os, signal, sys, time
from pathlib import Path

HERE = Path(__file__).parent
signal.signal(signal.SIGINT, lambda *_: (HERE / "interrupted").touch())
lock = open(HERE / "lock", "w")
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    (HERE / "overlap").touch()
with open(HERE / "runs", "a") as runs:
    runs.write("run\\n")
if not os.fork():
    # Nobody's child, and in no session of the program's: only its keeper finds it, or its environment.
    os.setsid()
    if not os.fork():
        time.sleep(1000)
    os._exit(0)
while (HERE / "hang").exists():
    time.sleep(0.01)
print("To: dev@example.org\\nSubject: report\\n\\nok", flush=True)
"""

SECTIONS = """
[runner.check]
class = "command"
command = ["{python}", "{folder}/program.py"]
output = "reports"
next = "out"
{more}
"""


def runs(folder: Path) -> int:
    path = folder / "runs"
    return len(path.read_text().splitlines()) if path.exists() else 0


def sections(folder: Path, more: str = "") -> str:
    (folder / "program.py").write_text(PROGRAM)
    return SECTIONS.format(python=sys.executable, folder=folder, more=more)


# Under a real master


@pytest.fixture
def site(tmp_path: Path) -> Iterator[TinySite]:
    with tiny_site(tmp_path) as made:
        text = made.config.read_text().partition("[runner.in]")[0]
        made.write(text.replace("[site]", '[site]\nmin_free = "0"') + sections(made.code, 'grace = "5s"'))
        yield made


def places(site: TinySite) -> dict[str, int]:
    """How many entries lie where."""
    found = Site.load(site.config)
    counts = {
        f"{area}/{queue}": len(list(found.spool.peek(queue, area)))  # type: ignore[arg-type]
        for queue in ("check", "out", "reports")
        for area in ("queue", "shunt", "hold", "bad")
    }
    return {place: count for place, count in counts.items() if count}


def hanging(site: TinySite) -> None:
    (site.code / "hang").touch()
    site.enqueue("check")
    wait_for(lambda: runs(site.code) == 1)


def helpers(pid: int) -> list[int]:
    """A runner's warden and its keepers."""
    parents = {int(path.name): stat_of(int(path.name)) for path in Path("/proc").glob("[0-9]*")}
    wardens = [one for one, stat in parents.items() if stat and int(stat[1]) == pid]
    return [*wardens, *(one for one, stat in parents.items() if stat and int(stat[1]) in wardens)]


@pytest.mark.parametrize("with_helpers", [False, True], ids=["the runner", "all who watch over it"])
def test_nothing_of_a_program_outlives_its_killed_runner_into_the_next_run(
    site: TinySite, with_helpers: bool
) -> None:
    site.ctl("start")
    hanging(site)
    pid = site.pid("check/0")
    victims = [pid, *helpers(pid)] if with_helpers else [pid]
    assert len(victims) == (3 if with_helpers else 1)
    for one in victims:
        # So that none of them can do anything for what is killed after it.
        os.kill(one, signal.SIGSTOP)
    for one in victims:
        os.kill(one, signal.SIGKILL)
    (site.code / "hang").unlink()
    wait_for(lambda: places(site) == {"queue/out": 1, "queue/reports": 1}, 30)
    assert runs(site.code) == 2
    assert not (site.code / "overlap").exists()
    site.ctl("stop")
    assert os.listdir(site.run.work) == []


def test_a_ctrl_c_lets_programs_end_within_the_grace_and_reaches_none(site: TinySite) -> None:
    process = site.start_ctl("start", "--foreground", process_group=0)
    wait_for(lambda: site.run.is_locked())
    hanging(site)
    os.killpg(process.pid, signal.SIGINT)
    wait_for(lambda: "master stopping" in site.log())
    (site.code / "hang").unlink()
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert places(site) == {"queue/out": 1, "queue/reports": 1}
    assert not (site.code / "interrupted").exists()


def test_a_program_that_outlasts_the_grace_of_a_ctrl_c_is_killed_and_nobody_is_blamed(site: TinySite) -> None:
    site.change('grace = "5s"', 'grace = "100ms"')
    process = site.start_ctl("start", "--foreground", process_group=0)
    wait_for(lambda: site.run.is_locked())
    hanging(site)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=30)
    assert places(site) == {"queue/check": 1}
    (entry,) = Site.load(site.config).entries("check")
    assert (entry.attempts, [line["what"] for line in entry.history]) == (0, ["started", "ended"])
    (site.code / "hang").unlink()
    site.ctl("run", "check", "--once")
    assert places(site) == {"queue/out": 1, "queue/reports": 1}
    assert not (site.code / "overlap").exists()


def test_stop_now_kills_it_at_once_and_nobody_is_blamed(site: TinySite) -> None:
    site.ctl("start")
    hanging(site)
    site.ctl("stop", "--now")
    site.ctl("start")
    (site.code / "hang").unlink()
    wait_for(lambda: places(site) == {"queue/out": 1, "queue/reports": 1}, 30)
    (entry,) = Site.load(site.config).entries("out")
    assert not any(line["what"] in ("crash", "attempt") for line in entry.history)
    assert not (site.code / "overlap").exists()


# At each change of a file

TOML = """
[site]
hostname = "lists.example.org"
queue_dir = "qfiles"
state_dir = "var"
postmaster = "pm@lists.example.org"
report_queue = "dsn"
min_free = "0"
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        for made in ("qfiles", "var"):
            (Path(name) / made).mkdir(mode=0o700)
        yield Path(name)


def engine_in(folder: Path) -> Engine:
    config = parse(TOML + sections(folder), folder / "qrunner.toml")
    return Engine(Site(config, clock=SystemClock()), config.runners["check"], 0, CommandRunner, log=LOG)


def run_once(folder: Path) -> None:
    asyncio.run(engine_in(folder).run(once=True))


def die(folder: Path, point: Point) -> bool:
    """Whether a process that runs what is there was killed at this change."""
    pid = os.fork()
    if not pid:
        try:
            calls = Calls(point)
            with calls.watched():
                calls.armed = True
                run_once(folder)
                calls.armed = False
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert status in (0, signal.SIGKILL)
    return status != 0


@some_or_all(3)
@before_or_within()
def test_death_at_each_change_of_a_file(folder: Path, torn: bool, every: int) -> None:
    site = engine_in(folder).site
    site.spool.prepare(site.config.queues())
    at, died = 0, True
    while died:
        id = site.enqueue(
            "check", message=b"X: y\n\nz\n", sender="a@example.org", recipients=["b@example.org"]
        )
        died = die(folder, Point(at, torn))
        run_once(folder)
        assert not (folder / "overlap").exists(), at
        assert runs(folder) <= 2, at
        for queue in ("out", "reports"):
            (ref,) = site.spool.peek(queue)
            assert site.spool.read(ref).parents == (id,), at
            site.spool.remove(ref)
        assert list(site.spool.peek("check")) + list(site.spool.peek("check", "shunt")) == [], at
        (folder / "runs").unlink()
        at += every
    assert at > 20
    assert os.listdir(folder / "var" / "work") == []


# Under load

BUSY = """\
import fcntl, os, time
from pathlib import Path

HERE, ID = Path(__file__).parent, os.environ["QRUNNER_ID"]
lock = open(HERE / f"lock-{ID}", "w")
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    (HERE / "overlap").touch()
if not os.fork():
    os.setsid()
    time.sleep(1000)
time.sleep(0.02)
print(f"To: dev@example.org\\nX-Of: {ID}\\n\\nok", flush=True)
"""


def kill_again_and_again(site: TinySite, count: int, deaths: int, limit_s: float) -> None:
    site.change('grace = "5s"', "concurrency = 4\nmax_crashes = 1000")
    (site.code / "program.py").write_text(BUSY)
    site.ctl("start")
    ids = [site.enqueue("check") for _ in range(count)]
    spool = Site.load(site.config).spool
    for done in range(deaths):
        wait_for(lambda: len(list(spool.peek("reports"))) >= count * done // (deaths + 1), limit_s)  # noqa: B023
        site.kill("check/0")
        wait_for(lambda: site.pids()["check/0"], limit_s)
    wait_for(lambda: not list(spool.peek("check")), limit_s)
    reports = [spool.read(ref) for ref in spool.peek("reports")]
    assert sorted(str(report.header("X-Of")) for report in reports) == sorted(ids)
    assert all(report.parents == (report.header("X-Of"),) for report in reports)
    assert len(list(spool.peek("out"))) == count
    assert not (site.code / "overlap").exists()


def test_every_message_has_one_report_although_the_runner_is_killed(site: TinySite) -> None:
    kill_again_and_again(site, 20, 2, 60)


@pytest.mark.stress
@pytest.mark.timeout(600)
def test_every_one_of_many_has_one_report_although_the_runner_is_killed_often(site: TinySite) -> None:
    kill_again_and_again(site, 1_000, 12, 200)
