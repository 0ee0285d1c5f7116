"""Everything that can go wrong on the way out, at once and at random, with real processes: nobody is lost, nobody is
sent a message twice but those whom the log calls in doubt, and who can't be delivered to is reported once."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from qrunner.message import Entry
from qrunner.site import Site
from tests.scenarios.sinkthread import Hosts, sinks
from tests.sites import TinySite, tiny_site, wait_for

HOSTS = ("main", "spare", "third")
QUEUES = ("in", "out", "out-b", "slow")
SITE = """\
[site]
hostname = "lists.example.org"
node = "a"
queue_dir = "../qfiles"
state_dir = "../var"
postmaster = "postmaster@lists.example.org"
report_queue = "reports"
durability = "none"
min_free = "0"
retry = { first = "1s", max = "2s", jitter = 0.2, lifetime = "1h" }
"""
HOST = """
[smtp.NAME]
host = "127.0.0.1"
port = PORT
probe_after = "1s"
failures_to_open = 2
max_recipients = 3
max_connections = 4
on_ambiguous = "POLICY"
"""
# Circles: on_down leads back by the balance, defer_to by itself.
RUNNERS = """
[runner.in]
class = "incoming"
next = "ways"

[route.ways]
rules = [{ domain = "a.example", queue = "out" }, { domain = "b.example", queue = "out-b" }, { queue = "mtas" }]

[balance.mtas]
members = { out = 2, out-b = 1 }

[runner.out]
class = "outgoing"
on_down = ["mtas"]
defer_to = "slow"
slices = [{ weight = WEIGHT, smtp = "main" }, { weight = 10, smtp = "spare" }]

[runner.out-b]
class = "outgoing"
smtp = "third"
on_down = ["out"]

[runner.slow]
class = "outgoing"
smtp = ["main", "third"]
on_down = ["out-b"]
defer_to = "out"
"""
DOMAINS = ("a.example", "b.example", "c.example")


class Fire:
    """A site that runs, and all that befalls it."""

    def __init__(self, site: TinySite, hosts: Hosts, seed: int) -> None:
        self.site, self.hosts, self.dice = site, hosts, random.Random(seed)
        self.good: set[str] = set()
        self.bad: set[str] = set()
        self.down: set[str] = set()
        self._configure()
        site.ctl("start")
        self._spool = Site.load(site.config)

    def _configure(self) -> None:
        policies = {"main": "retry", "spare": "hold", "third": "retry"}
        known = [
            HOST.replace("NAME", name).replace("PORT", str(port)).replace("POLICY", policies[name])
            for name, port in self.hosts.ports.items()
        ]
        runners = RUNNERS.replace("WEIGHT", str(self.dice.choice((5, 10, 30))))
        self.site.write(SITE + "".join(known) + runners)

    def send(self) -> None:
        """A message to several people, some of whom no host knows."""
        number = len(self.good) + len(self.bad)
        to = [f"r{number + one}@{self.dice.choice(DOMAINS)}" for one in range(self.dice.randint(1, 7))]
        if self.dice.random() < 0.2:
            to[0] = f"nobody-{to[0]}"
        self.bad.update(one for one in to if one.startswith("nobody"))
        self.good.update(one for one in to if not one.startswith("nobody"))
        self._spool.enqueue(
            "in", message=b"Subject: x\n\nx\n", sender=f"s{number}@lists.example.org", recipients=to
        )

    # What may happen

    def host_falls(self) -> None:
        name = self.dice.choice(HOSTS)
        if name not in self.down:
            self.down.add(name)
            self.hosts.take_down(name)

    def host_rises(self) -> None:
        for name in sorted(self.down)[:1]:
            self.down.discard(name)
            self.hosts.bring_back(name)

    def host_is_difficult(self) -> None:
        sink = self.hosts.sink[self.dice.choice(HOSTS)]
        sink.reply("RCPT", "451 4.7.1 later", times=self.dice.randint(1, 5))
        sink.reply("MAIL", "421 4.3.2 not now", times=1)
        sink.reply("RCPT TO:<r1", "452 4.5.3 too many", times=2)
        sink.hang_up(after=self.dice.choice(("MAIL", "RCPT", "DATA", ".")), times=self.dice.randint(1, 3))

    def runner_dies(self) -> None:
        master = self.site.master
        pids = [one.pid for one in master.processes if one.pid is not None]
        if pids:
            with suppress(ProcessLookupError):
                os.kill(self.dice.choice(pids), signal.SIGKILL)

    def host_is_suspended(self) -> None:
        self.site.ctl("suspend", f"host:{self.dice.choice(HOSTS)}", "--for", "2s")

    def state_is_lost(self) -> None:
        folder = self.site.folder / "var" / "host"
        if self.dice.random() < 0.3:
            shutil.rmtree(folder, ignore_errors=True)
            return
        for path in folder.glob("*.json"):
            with suppress(OSError):
                path.write_bytes(self.dice.randbytes(20))

    def configuration_changes(self) -> None:
        self._configure()
        self.site.ctl("reload")

    def all_is_restarted(self) -> None:
        self.site.ctl("restart", *self.dice.choice(([], ["--now"])))

    def held_are_released(self) -> None:
        self.site.ctl("release", "-y", "ALL")

    # The end

    def peace(self) -> None:
        """All is well again."""
        for name in HOSTS:
            self.hosts.sink[name].behave()
            self._refuse_nobodies(name)
        while self.down:
            self.host_rises()
        wait_for(lambda: self._nothing_waits(), 120)

    def _refuse_nobodies(self, name: str) -> None:
        self.hosts.sink[name].reply("RCPT TO:<nobody", "550 5.1.1 nobody", times=None)

    def begin(self) -> None:
        for name in HOSTS:
            self._refuse_nobodies(name)

    def _nothing_waits(self) -> bool:
        folder = self.site.folder / "qfiles"
        for verb, area in (("release", "hold"), ("unshunt", "shunt")):
            if any(folder.glob(f"{area}/*/**/[0-9]*")):
                self.site.ctl(verb, "-y", "ALL")
        return not any(True for queue in QUEUES for _ in (folder / queue).glob("*/[0-9]*"))

    def reports(self) -> list[Entry]:
        return list(Site.load(self.site.config).entries("reports"))

    def in_doubt(self) -> set[str]:
        """Whose reply was lost, as the log says it: by name, or by the id of a message in the hands of the dead."""
        to: dict[str, set[str]] = {}
        doubtful, lost = set[str](), set[str]()
        for line in self.site.log().splitlines():
            id, those = re.search(r"\bid=([0-9a-f]{40})", line), re.search(r"\bto=(\S+)", line)
            addresses = set(those[1].split(",")) if those else set()
            if id:
                to.setdefault(id[1], set()).update(addresses)
            if " ambiguous " in line:
                doubtful |= addresses
            if id and ("final reply of" in line or "its reply was lost" in line):
                lost.add(id[1])
        return doubtful.union(*(to[id] for id in lost))

    def judge(self) -> None:
        got = sum((self.hosts.by(name) for name in HOSTS), Counter[str]())
        assert self.good - got.keys() == set(), "lost"
        assert self.bad & got.keys() == set()
        twice = {to for to, times in got.items() if times > 1}
        assert twice <= self.in_doubt(), {to: got[to] for to in twice - self.in_doubt()}
        named = Counter(
            to.decode()
            for report in self.reports()
            for to in re.findall(rb"^Final-Recipient: rfc822; ?(\S+)", report.message, re.M)
        )
        assert named == Counter(self.bad)
        assert "a bug in qrunner" not in self.site.log()


@contextmanager
def fire(folder: Path, seed: int) -> Iterator[Fire]:
    with sinks(*HOSTS) as hosts, tiny_site(folder) as site:
        yield Fire(site, hosts, seed)


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("seed", "count"),
    [
        (1, 120),
        pytest.param(2, 1_200, marks=pytest.mark.stress),
        pytest.param(3, 1_200, marks=pytest.mark.stress),
    ],
)
def test_nobody_is_lost_and_nobody_gets_it_twice_without_a_doubt(
    tmp_path: Path, seed: int, count: int
) -> None:
    with fire(tmp_path, seed) as one:
        one.begin()
        hosts = one.hosts
        often: list[Callable[[], None]] = [
            one.host_falls,
            one.host_rises,
            one.host_is_difficult,
            one.runner_dies,
        ]
        seldom: list[Callable[[], None]] = [
            one.host_is_suspended,
            one.state_is_lost,
            one.configuration_changes,
            one.all_is_restarted,
            one.held_are_released,
        ]
        for number in range(count):
            one.send()
            if number % 8 == 0:
                one.dice.choice(often)()
                # So that it falls on mail that is under way.
                hosts.more_come(4, 0.3)
            if number % 40 == 20:
                one.dice.choice(seldom)()
        one.peace()
        one.judge()
