"""Stopped, restarted and reloaded again and again under load: no stop is an error (G6)."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from qrunner.watch import living_master

from tests.crash.running import CountedSite, counted_site, expected
from tests.sites import tiny_site, wait_for

WEIGHTS = ["weight = 70", "weight = 71"]


def reload(site: CountedSite) -> None:
    """Takes up other slices, so that ranges change hands while they are full."""
    old, new = WEIGHTS if WEIGHTS[0] in site.config.read_text() else WEIGHTS[::-1]
    site.change(old, new)
    site.ctl("reload")


def reload_of_nonsense(site: CountedSite) -> None:
    """Which changes nothing; and a runner that ends meanwhile comes back on what was."""
    text = site.config.read_text()
    site.write(text.replace("flow:Pass", "flow:Nothing"))
    terminate_a_runner(site)
    site.ctl("reload", code=78)
    site.write(text)


def terminate_a_runner(site: CountedSite) -> None:
    for pid in filter(None, site.pids().values()):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        return


def terminate_the_master(site: CountedSite) -> None:
    master = site.master
    os.kill(master.pid, signal.SIGTERM)
    wait_for(lambda: (now := living_master(site.run)) is None or now.state == "stopping")
    site.ctl("start")
    assert site.master.pid != master.pid


def stop_now(site: CountedSite) -> None:
    site.ctl("stop", "--now")
    site.ctl("start")


WAYS: list[Callable[[CountedSite], object]] = [
    lambda site: site.ctl("restart"),
    reload,
    reload_of_nonsense,
    terminate_a_runner,
    terminate_the_master,
    stop_now,
]


def stop_again_and_again(folder: Path, *, rounds: int, each: int, seed: int) -> None:
    dice = random.Random(seed)
    with counted_site(folder) as site:
        site.ctl("start")
        accepted = 0
        for _ in range(rounds):
            for way in dice.sample(WAYS, len(WAYS)):
                site.put(*range(accepted, accepted + each))
                accepted += each
                way(site)
        site.drain(120)
        site.ctl("stop")
        assert site.aside() == []
        assert site.arrived() == expected(range(accepted))
        blamed = [entry for entry in site.entries("done") if "crash" in str(entry.history)]
        assert blamed == []
        # Each is deferred once, if at all, by its runner: a stop is no attempt.
        attempts = [sum(line["what"] == "attempt" for line in e.history) for e in site.entries("done")]
        assert max(attempts) <= 1
        assert "a bug in qrunner" not in site.log()


def test_nothing_is_shunted_doubled_or_blamed_by_stops(tmp_path: Path) -> None:
    stop_again_and_again(tmp_path, rounds=1, each=40, seed=3)


def test_a_start_while_the_master_stops_starts_anew(tmp_path: Path) -> None:
    """It said that one was running already, and a moment later none was."""
    with tiny_site(tmp_path) as site:
        site.change("tiny:Pass", "tiny:Busy")
        site.ctl("start")
        site.enqueue()
        wait_for((site.code / "busy").exists)
        before = site.master
        os.kill(before.pid, signal.SIGTERM)
        wait_for(lambda: site.master.state == "stopping")
        start = site.start_ctl("start")
        wait_for(lambda: start.stderr is not None and "waiting for process" in start.stderr.readline())
        (site.code / "enough").touch()
        assert start.wait(60) == 0
        assert site.master.pid != before.pid


@pytest.mark.stress
@pytest.mark.timeout(900)
def test_nothing_is_shunted_doubled_or_blamed_by_many_stops(tmp_path: Path) -> None:
    stop_again_and_again(tmp_path, rounds=20, each=400, seed=4)
