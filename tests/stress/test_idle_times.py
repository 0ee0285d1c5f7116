"""Bounces at idle times: nothing is read while programs burn every CPU. Alone on the machine."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qrunner.pressure import Gauge
from qrunner.site import Site
from tests.sites import TinySite, tiny_site, wait_for
from tests.test_dsn import sample

pytestmark = pytest.mark.alone

MAIL = 50
BURN = "while True: pass"
# What else there is on the machine that runs this may take its time to end.
PATIENCE_S = 120.0


@contextlib.contextmanager
def burners(count: int) -> Iterator[None]:
    those = [subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(count)]
    try:
        yield
    finally:
        for one in those:
            one.kill()
            one.wait()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[TinySite]:
    with tiny_site(tmp_path) as made:
        made.change(
            'class = "tiny:Pass"\nnext = "out"',
            'class = "bounce"\nhook = "heard:on_bounce"\nonly_when_idle = true',
        )
        made.add_file("heard.py", HOOK)
        yield made


def bounce(site: TinySite) -> None:
    own = f"list-bounces+{os.urandom(4).hex()}=example.net@lists.example.org"
    Site.load(site.config).enqueue("in", message=sample("postfix"), sender="", recipients=[own])


def heard(site: TinySite) -> int:
    path = site.code / "heard.txt"
    return len(path.read_text().splitlines()) if path.exists() else 0


def seconds_pass(count: int) -> None:
    """So many seconds, as the gauge measures them."""
    gauge = Gauge()
    for _ in range(count):
        last = gauge()
        wait_for(lambda last=last: gauge() is not last)  # type: ignore[misc]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("by_cpu", [1, 2])
def test_under_burners_nothing_is_done_and_all_of_it_within_seconds_after_them(
    site: TinySite, by_cpu: int
) -> None:
    with burners(by_cpu * (os.cpu_count() or 1)):
        seconds_pass(2)
        site.ctl("start")
        for _ in range(MAIL):
            bounce(site)
        wait_for(lambda: any(one.is_patient for one in site.master.processes))
        seconds_pass(5)
        state = site.status(0)
        (runner,) = (one for one in state["runners"] if one["name"] == "in")
        assert (runner["state"], runner["processed"]) == ("waiting", 0)
        assert "until the machine is idle: " in runner["reason"]
        assert "runner in[0] waits until the machine is idle: " in site.ctl("status")
        assert heard(site) == 0
    wait_for(lambda: heard(site) == MAIL, PATIENCE_S)


@pytest.mark.timeout(300)
def test_its_own_burden_does_not_keep_it_waiting_for_ever(site: TinySite) -> None:
    site.add_file("burning.py", BURNING)
    site.change('class = "bounce"\nhook = "heard:on_bounce"', 'class = "burning:Burns"\nconcurrency = 4')
    site.ctl("start")
    for _ in range(8):
        site.enqueue()
    wait_for(lambda: next(Site.load(site.config).entries("in"), None) is None, PATIENCE_S)


HOOK = '''\
"""Writes down whom it hears of."""

from pathlib import Path


def on_bounce(bounce):
    with Path(__file__).with_suffix(".txt").open("a") as file:
        file.write(f"{bounce.address} {bounce.kind}\\n")
'''
BURNING = '''\
"""A runner that gives every CPU something to do for two seconds, with each entry."""

import os
import subprocess
import sys

from qrunner import Runner

BURN = "import time; end = time.monotonic() + 2\\nwhile time.monotonic() < end: pass"


class Burns(Runner):
    def dispose(self, entry):
        for one in [subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(os.cpu_count() or 1)]:
            one.wait()
        return entry.forward("out")
'''
