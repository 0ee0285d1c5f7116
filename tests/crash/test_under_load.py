"""Processes killed at random while messages stream in: what was accepted arrives, once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from qrunner.master.watch import living_master
from tests.crash.running import CountedSite, counted_site, expected, message, parts
from tests.injecting import START

SIGKILL = -signal.SIGKILL


class Injectors:
    """MTAs that run the pipe, some of which kill it before it has answered."""

    def __init__(self, site: CountedSite, dice: random.Random) -> None:
        self.site, self.dice = site, dice
        self.accepted: list[int] = []
        self.unanswered: list[int] = []
        self.running: dict[int, subprocess.Popen[bytes]] = {}
        self.next = 0

    def inject(self) -> None:
        """One more message, four at a time."""
        options = ["-Q", str(self.site.folder / "qfiles"), "-f", "a@example.org", "b@example.org"]
        process = subprocess.Popen([*START, *options], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        assert process.stdin is not None
        process.stdin.write(message(self.next))
        process.stdin.close()
        self.running[self.next] = process
        if self.dice.random() < 0.2:
            with suppress(subprocess.TimeoutExpired):
                process.wait(self.dice.uniform(0, 0.03))
            process.kill()
        self.next += 1
        while len(self.running) > 3:
            self.collect(next(iter(self.running)))

    def collect(self, number: int) -> None:
        code = self.running.pop(number).wait(60)
        assert code in (0, SIGKILL)
        (self.unanswered if code else self.accepted).append(number)

    def finish(self) -> None:
        while self.running:
            self.collect(next(iter(self.running)))


def kill_one(site: CountedSite, dice: random.Random) -> None:
    """A runner, or one time in five the master; which is started anew."""
    master = living_master(site.run)
    assert master is not None
    pids = [one.pid for one in master.processes if one.pid is not None]
    victim = master.pid if not pids or dice.random() < 0.2 else dice.choice(pids)
    with suppress(ProcessLookupError):
        os.kill(victim, signal.SIGKILL)
    if victim == master.pid:
        site.begin()


def stream_and_kill(folder: Path, *, messages: int, kills: int, seed: int, durability: str) -> None:
    dice = random.Random(seed)
    with counted_site(folder) as site:
        site.change('durability = "none"', f'durability = "{durability}"')
        site.begin()
        injectors = Injectors(site, dice)
        deaths = set(dice.sample(range(messages), kills))
        for number in range(messages):
            injectors.inject()
            # More than the runners keep up with, so that whoever is killed has something in hand.
            site.put(*range(messages + 4 * number, messages + 4 * number + 4))
            if number in deaths:
                kill_one(site, dice)
        injectors.finish()
        site.drain(120)
        site.ctl("stop")
        injectors.accepted += range(messages, 5 * messages)
        judge(site, injectors)


def judge(site: CountedSite, injectors: Injectors) -> None:
    arrived = site.arrived()
    twice = {part: count for part, count in arrived.items() if count > 1}
    lost = expected(injectors.accepted) - arrived
    assert (twice, lost, site.aside()) == ({}, Counter(), [])
    half = [n for n in injectors.unanswered if 0 < len(set(parts(n)) & arrived.keys()) < len(parts(n))]
    assert half == []
    assert arrived.keys() <= expected([*injectors.accepted, *injectors.unanswered]).keys()
    assert injectors.accepted
    assert injectors.unanswered
    # A process that dies says nothing; what is said is a bug.
    assert "a bug in qrunner" not in site.log()


def test_what_was_accepted_arrives_once_whoever_is_killed(tmp_path: Path) -> None:
    stream_and_kill(tmp_path, messages=80, kills=12, seed=1, durability="none")


@pytest.mark.stress
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [2, 3])
def test_what_was_accepted_arrives_once_whoever_is_killed_for_minutes(tmp_path: Path, seed: int) -> None:
    stream_and_kill(tmp_path, messages=2_000, kills=150, seed=seed, durability="full")
