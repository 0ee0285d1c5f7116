"""Slices that change while mail is on its way: by reload, by restart, over a crash, and from one master to another."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from qrunner.site import Site
from tests.scenarios.sinkthread import Hosts, sinks
from tests.sites import TinySite, tiny_site, wait_for

NAMES = ("mta1", "mta2", "mta3")
# What a change must leave in peace: more messages are always on their way than any runner has in hand.
AHEAD = 150
CHANGES = ((70, 20, 10), (3, 100, 1, 17, 2), (1,), (10, 20, 70))


def configuration(hosts: Hosts, weights: Sequence[int], *, state_dir: str = "var") -> str:
    """A site with so many slices, which take the hosts in turns."""
    parts = [f'{{ weight = {weight}, smtp = "{NAMES[turn % 3]}" }}' for turn, weight in enumerate(weights)]
    known = "".join(
        f'[smtp.{name}]\nhost = "127.0.0.1"\nport = {port}\n' for name, port in hosts.ports.items()
    )
    return f"""\
[site]
hostname = "lists.example.org"
node = "a"
queue_dir = "../qfiles"
state_dir = "../{state_dir}"
postmaster = "postmaster@lists.example.org"
durability = "none"

{known}
[runner.in]
class = "incoming"
next = "out"

[runner.out]
class = "outgoing"
slices = [{", ".join(parts)}]
"""


class Feeder:
    """Enqueues one message after another, always a few more than have arrived."""

    def __init__(self, site: TinySite, hosts: Hosts) -> None:
        self.count, self._enough = 0, threading.Event()
        self._site, self._hosts = Site.load(site.config), hosts
        self._thread = threading.Thread(target=self._feed)

    def _feed(self) -> None:
        while not self._enough.is_set():
            self._hosts.wait_for(lambda: self.count - len(self._hosts.got) < AHEAD or self._enough.is_set())
            message = f"Subject: {self.count}\n\nx\n".encode()
            to = [f"to-{self.count}@example.net"]
            self._site.enqueue("in", message=message, sender="a@example.org", recipients=to)
            self.count += 1

    @contextmanager
    def feeding(self) -> Iterator[None]:
        """While the block lasts."""
        self._thread.start()
        try:
            yield
        finally:
            self._enough.set()
            self._thread.join()


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with sinks(*NAMES) as made:
        yield made


@pytest.fixture
def site(tmp_path: Path, hosts: Hosts) -> Iterator[TinySite]:
    with tiny_site(tmp_path) as made:
        made.write(configuration(hosts, CHANGES[0]))
        yield made


def more_arrive(hosts: Hosts) -> None:
    """Waits until mail flows: more has come than was on its way."""
    before = len(hosts.got)
    hosts.wait_for(lambda: len(hosts.got) > before + AHEAD)


def all_once(site: TinySite, hosts: Hosts, count: int) -> None:
    """Waits for the messages that were enqueued; every one has arrived once, and nothing is left anywhere."""
    hosts.wait_for(lambda: len(hosts.got) >= count, lambda: site.ctl("status"))
    spool = Site.load(site.config).spool
    wait_for(lambda: not any(True for queue in ("in", "out") for _ in spool.peek(queue)))
    arrived = Counter(received.recipients for _, received in hosts.got)
    assert arrived == Counter((f"to-{number}@example.net",) for number in range(count))
    assert [one["depth"] for one in site.status()["queues"] if one["name"] in ("shunt", "bad", "hold")] == [
        0,
        0,
        0,
    ]


@pytest.mark.parametrize(
    ("verb", "changes"),
    [
        ("reload", CHANGES[1:3]),
        pytest.param("reload", CHANGES[1:], marks=pytest.mark.stress),
        pytest.param("restart", CHANGES[1:], marks=pytest.mark.stress),
    ],
    ids=["reload, twice", "reload", "restart"],
)
def test_weights_and_slice_counts_that_change_under_load_strand_nothing(
    site: TinySite, hosts: Hosts, verb: str, changes: Sequence[Sequence[int]]
) -> None:
    site.ctl("start")
    feeder = Feeder(site, hosts)
    with feeder.feeding():
        for weights in changes:
            more_arrive(hosts)
            site.write(configuration(hosts, weights))
            site.ctl(verb)
            assert [one["weight"] for one in site.status()["runners"][1:]] == list(weights)
    all_once(site, hosts, feeder.count)
    assert " error " not in site.log()


def test_what_was_in_hand_at_a_crash_is_found_by_whatever_slices_there_are_next(
    site: TinySite, hosts: Hosts
) -> None:
    # A runner that has entries in hand, and never lets go of them.
    good = site.config.read_text()
    site.write(
        good.partition("[runner.in]")[0].replace("durability", 'python_path = ["../code"]\ndurability')
    )
    busy = '[runner.out]\nclass = "tiny:Busy"\nconcurrency = 5\nslices = [{ weight = 1 }, { weight = 1 }, { weight = 3 }]\n'
    site.write(site.config.read_text() + busy)
    site.ctl("start")
    # So many that each of the smaller slices has more than it takes in hand.
    count = 120
    for number in range(count):
        Site.load(site.config).enqueue(
            "out", message=b"Subject: x\n\nx\n", sender="", recipients=[f"to-{number}@example.net"]
        )
    wait_for(lambda: [one["active"] for one in site.told()["queues"] if one["name"] == "out"] == [15])
    for pid in (site.master.pid, *site.pids().values()):
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not site.run.is_locked())
    site.write(configuration(hosts, (4, 1)))
    site.ctl("start")
    all_once(site, hosts, count)


def test_a_second_master_waits_for_the_ranges_of_the_first_and_goes_on_where_it_stops(
    site: TinySite, hosts: Hosts, tmp_path: Path
) -> None:
    site.ctl("start")
    feeder = Feeder(site, hosts)
    with tiny_site(tmp_path, state_dir="other") as other:
        own = '[runner.free]\nclass = "incoming"\nnext = "out"\n'
        other.write(configuration(hosts, (1, 5), state_dir="other") + own)
        with feeder.feeding():
            other.ctl("start", "--wait", "0", code=1)
            wait_for(other.run.is_locked)
            other.pid("free/0")
            wait_for(lambda: [one["state"] for one in other.told()["runners"][:3]] == ["waiting"] * 3)
            problems = {one["where"]: one["what"] for one in other.status(1)["problems"]}
            assert f"process {site.pids()['in/0']} on a" in problems["runner in[0]"]
            assert f"process {site.pids()['out/0']} on a" in problems["runner out[0]"]
            more_arrive(hosts)
            site.ctl("stop")
            more_arrive(hosts)
            assert {one["state"] for one in other.status(0)["runners"]} == {"running"}
            assert {one["restarts"] for one in other.status(0)["runners"]} == {0}
        all_once(other, hosts, feeder.count)
