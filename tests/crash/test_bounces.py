"""Death while a bounce is read: at each change of a file. It is told to the hook at least once, and counted once."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import traceback
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from qrunner.bounce import Bounce
from qrunner.clock import Clock, SystemClock
from qrunner.config import parse
from qrunner.engine.loop import Engine
from qrunner.runners.bounce import BounceRunner
from qrunner.site import Site
from qrunner.testing.clock import FakeClock
from tests.crash.calls import Calls, Point, before_or_within
from tests.test_dsn import sample

LOG = logging.getLogger("qrunner.bounces")
ADDRESSES = ("bob@example.com", "cat@example.com")
TOML = f"""
[site]
hostname = "lists.example.org"
queue_dir = "qfiles"
state_dir = "var"
min_free = "0"
[runner.bounces]
class = "bounce"
hook = "{__name__}:on_bounce"
"""
heard_by = Path()


def on_bounce(bounce: Bounce) -> None:
    with heard_by.open("a") as file:
        file.write(f"{bounce.address} {bounce.score:g}\n")


def site_in(folder: Path, clock: Clock) -> Site:
    return Site(parse(TOML, folder / "qrunner.toml"), clock=clock)


def run_once(site: Site) -> None:
    engine = Engine(site, site.config.runners["bounces"], 0, BounceRunner, log=LOG)
    asyncio.run(engine.run(once=True))


def die(folder: Path, point: Point) -> bool:
    """Whether a process that reads the bounce was killed before it had."""
    pid = os.fork()
    if not pid:
        try:
            calls = Calls(point)
            with calls.watched():
                calls.armed = True
                run_once(site_in(folder, SystemClock()))
                calls.armed = False
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert status in (0, signal.SIGKILL)
    return status != 0


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        folder = Path(name)
        for made in ("qfiles", "var"):
            (folder / made).mkdir(mode=0o700)
        site_in(folder, SystemClock()).spool.prepare(["bounces"])
        monkeypatch.setattr("tests.crash.test_bounces.heard_by", folder / "heard")
        yield folder


@before_or_within()
def test_a_bounce_is_told_at_least_once_and_counted_once_wherever_its_process_dies(
    folder: Path, torn: bool
) -> None:
    at, died = 0, True
    while died:
        (folder / "heard").unlink(missing_ok=True)
        site = site_in(folder, SystemClock())
        for address in ADDRESSES:
            site.scores.forget("bounces", address)
        site.enqueue(
            "bounces", message=sample("exim"), sender="", recipients=["list-bounces@lists.example.org"]
        )
        died = die(folder, Point(at, torn))
        # The next process comes two days later, and counts for the day on which the bounce came.
        later = FakeClock(datetime.now(UTC) + timedelta(days=2))
        run_once(site_in(folder, later))
        heard = Counter(line.split()[0] for line in (folder / "heard").read_text().splitlines())
        assert heard.keys() == set(ADDRESSES), (at, heard)
        assert heard.total() <= 3, (at, heard)
        assert [list(site.scores.days("bounces", one).values()) for one in ADDRESSES] == [[1.0], [1.0]], at
        assert not list(site.spool.peek("bounces"))
        at += 1
    assert at > 15
