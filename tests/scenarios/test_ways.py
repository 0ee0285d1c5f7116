"""Which way mail takes, by real processes: around a host that is down and back again, by routes, by balances."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qrunner.site import Site
from qrunner.smtp.board import FileBoard
from tests.scenarios.sinkthread import Hosts, sinks
from tests.sites import TinySite, tiny_site, wait_for

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
retry = { first = "1s", max = "1s", jitter = 0.1, lifetime = "12s" }
"""
FALLBACK = """
[runner.out]
class = "outgoing"
smtp = "main"
on_down = ["fallback"]
[runner.fallback]
class = "outgoing"
smtp = "spare"
on_down = ["out"]
"""
BACKOFF = """
[runner.out]
class = "outgoing"
smtp = "main"
[runner.backoff]
class = "outgoing"
smtp = ["main", "spare"]
"""
ROUTED = """
[runner.in]
class = "incoming"
next = "sorted"
[route.sorted]
rules = [{ recipient = "*@big.example", queue = "out" }, { queue = "out-b" }]
[runner.out]
class = "outgoing"
smtp = "main"
[runner.out-b]
class = "outgoing"
smtp = "spare"
"""
BALANCED = """
[runner.in]
class = "incoming"
next = "mtas"
[balance.mtas]
choose = "CHOOSE"
members = { out = 3, out-b = 1 }
[runner.out]
class = "outgoing"
smtp = "main"
on_down = ["mtas"]
[runner.out-b]
class = "outgoing"
smtp = "spare"
on_down = ["mtas"]
"""


class Ways:
    """A site that runs, with the hosts ``main`` and ``spare``."""

    def __init__(self, site: TinySite, hosts: Hosts) -> None:
        self.site, self.hosts = site, hosts
        self.sent = 0

    def configure(self, runners: str) -> None:
        more = 'probe_after = "1s"\nfailures_to_open = 2\nidle_timeout = "1s"\n'
        known = "".join(
            f'[smtp.{name}]\nhost = "127.0.0.1"\nport = {port}\n{more}'
            for name, port in self.hosts.ports.items()
        )
        self.site.write(SITE + known + runners)

    def start(self) -> None:
        self.site.ctl("start")
        self._site = Site.load(self.site.config)

    def send(self, *to: str, queue: str = "out", sender: str = "ann@example.org") -> None:
        self._site.enqueue(queue, message=b"Subject: hello\n\nworld\n", sender=sender, recipients=to)

    def some(self, count: int, queue: str = "out", domain: str = "example.net") -> Counter[str]:
        """So many messages; to whom."""
        to = [f"r{self.sent + number}@{domain}" for number in range(count)]
        self.sent += count
        for one in to:
            self.send(one, queue=queue)
        return Counter(to)

    def arrive(self, wanted: Counter[str], *hosts: str) -> None:
        """Waits until these have them, each once."""
        names = hosts or ("main", "spare")
        got = lambda: sum((self.hosts.by(name) for name in names), Counter())  # noqa: E731
        self.hosts.wait_for(
            lambda: wanted <= got(), lambda: (wanted - got(), self.site.ctl("status", code=1))
        )
        assert {to: got()[to] for to in wanted} == wanted

    def depth(self, queue: str) -> int:
        return sum(1 for _ in (self.site.folder / "qfiles" / queue).glob("*/[0-9]*"))

    def is_down(self, name: str) -> bool:
        return FileBoard(self.site.run.hosts).read(name).as_json()["state"] != "up"

    def take_down(self, name: str) -> None:
        """Once nobody talks to it, so that no reply is lost."""
        wait_for(lambda: not any(map(self.depth, ("out", "out-b", "fallback", "backoff"))))
        self.hosts.take_down(name)


@contextmanager
def ways(folder: Path, runners: str) -> Iterator[Ways]:
    with sinks("main", "spare") as hosts, tiny_site(folder) as site:
        made = Ways(site, hosts)
        made.configure(runners)
        made.start()
        yield made


def test_a_fallback_is_used_only_while_the_main_host_is_down_and_left_when_it_is_back(tmp_path: Path) -> None:
    with ways(tmp_path, FALLBACK) as one:
        hosts = one.hosts
        # A host that puts mail off, or asks for less, is not down.
        hosts.sink["main"].reply("RCPT", "451 4.7.1 come again", times=10)
        hosts.sink["main"].reply("MAIL", "421 4.3.2 not now", times=3)
        hosts.sink["main"].reply("CONNECT", "421 4.3.2 nor now", times=1)
        hosts.sink["main"].reply("DATA", "452 4.3.1 no room", times=3)
        one.arrive(one.some(30), "main")
        assert not hosts.by("spare")

        one.take_down("main")
        hosts.sink["spare"].reply("RCPT TO:<grey@", "451 4.7.1 come again", times=3)
        away = one.some(30) + Counter(["grey@example.net"])
        one.send("grey@example.net")
        wait_for(lambda: one.depth("fallback") == 1 and len(hosts.by("spare")) == 30)
        hosts.bring_back("main")
        wait_for(lambda: not one.is_down("main"))
        # What the fallback's host has put off waits for that; all that is new goes the usual way.
        one.arrive(one.some(30), "main")
        one.arrive(away, "spare")
        assert sum(hosts.by("spare").values()) == 31
        assert not one.depth("reports")


def test_what_waits_for_a_fallback_that_is_down_as_well_goes_to_whichever_is_back_first(
    tmp_path: Path,
) -> None:
    with ways(tmp_path, FALLBACK) as one:
        for name in ("main", "spare"):
            one.hosts.take_down(name)
        stranded = one.some(30)
        wait_for(lambda: one.is_down("main") and one.is_down("spare"))
        one.hosts.bring_back("main")
        one.arrive(stranded, "main")
        assert not one.hosts.by("spare")
        assert not one.depth("reports")


def test_backoff_drains_to_the_main_host_when_it_is_back(tmp_path: Path) -> None:
    with ways(tmp_path, BACKOFF) as one:
        for name in ("main", "spare"):
            one.hosts.take_down(name)
        stranded = one.some(30)
        wait_for(lambda: one.depth("backoff") == 30)
        one.hosts.bring_back("main")
        one.arrive(stranded, "main")
        one.arrive(one.some(10), "main")


def test_mail_does_not_expire_while_all_hosts_are_away_for_longer_than_its_lifetime(tmp_path: Path) -> None:
    with ways(tmp_path, FALLBACK) as one:
        one.site.change('lifetime = "12s"', 'lifetime = "2s"')
        one.site.ctl("reload")
        for name in ("main", "spare"):
            one.hosts.take_down(name)
        stranded = one.some(20)
        wait_for(lambda: oldest_s(one) > 4)
        for name in ("main", "spare"):
            one.hosts.bring_back(name)
        one.arrive(stranded)
        assert not one.depth("reports")


def oldest_s(one: Ways) -> float:
    return max(float(queue["oldest_age_s"] or 0) for queue in one.site.told()["queues"])


@pytest.mark.parametrize("many", [100, pytest.param(2_000, marks=pytest.mark.stress)])
def test_a_message_that_every_host_hangs_up_on_keeps_none_of_the_others(tmp_path: Path, many: int) -> None:
    with ways(tmp_path, BACKOFF.replace('smtp = "main"', 'smtp = ["main", "spare"]')) as one:
        one.site.change('lifetime = "12s"', 'lifetime = "5s"')
        one.site.ctl("reload")
        for sink in one.hosts.sink.values():
            sink.hang_up(after="MAIL FROM:<poison@", times=None)
        before = one.some(many // 2)
        one.send("somebody@example.net", sender="poison@example.org")
        one.arrive(before + one.some(many // 2))
        wait_for(lambda: one.depth("reports") == 1, 60)
        (report,) = Site.load(one.site.config).entries("reports")
        assert report.recipients == ("poison@example.org",)
        assert "is down" not in one.site.log()
        assert not one.is_down("main")
        assert not one.is_down("spare")
        one.arrive(one.some(20))


def test_a_route_that_is_changed_by_reload_holds_for_what_comes_after_it(tmp_path: Path) -> None:
    with ways(tmp_path, ROUTED) as one:
        before = one.some(50, "in", "big.example")
        wait_for(lambda: not one.depth("in"))
        # Under way during the change, by the one rule or by the other.
        during = one.some(200, "in", "big.example")
        one.configure(ROUTED.replace("*@big.example", "*@other.example"))
        one.site.ctl("reload")
        during += one.some(10, "in", "other.example")
        wait_for(lambda: not one.depth("in"))
        after = one.some(50, "in", "big.example")
        other = one.some(50, "in", "other.example")
        one.arrive(before, "main")
        one.arrive(after, "spare")
        one.arrive(other, "main")
        one.arrive(during)
        # One that no rule can be made of changes nothing.
        one.configure(ROUTED.replace('queue = "out-b" }', 'queue = "nowhere else" }'))
        one.site.ctl("reload", code=78)
        one.arrive(one.some(20, "in", "big.example"), "spare")
        assert sum(map(sum, (one.hosts.by(name).values() for name in ("main", "spare")))) == one.sent


@pytest.mark.parametrize("choose", ["random", "sequence"])
def test_a_balance_feeds_its_living_members_by_weight(tmp_path: Path, choose: str) -> None:
    with ways(tmp_path, BALANCED.replace("CHOOSE", choose)) as one:
        one.arrive(one.some(400, "in"))
        share = len(one.hosts.by("main"))
        if choose == "sequence":
            assert share == 300
        else:
            # Six standard deviations.
            assert abs(share - 300) < 52
        one.take_down("main")
        # Until it is known to be down, its queue sends on what it is given.
        one.arrive(one.some(40, "in"), "spare")
        wait_for(lambda: one.is_down("main"))
        one.arrive(one.some(40, "in"), "spare")
        one.hosts.bring_back("main")
        # Nobody sends it anything, and yet it is found out.
        wait_for(lambda: not one.is_down("main"))
        later = one.some(80, "in")
        one.arrive(later)
        assert sum(one.hosts.by("main")[to] for to in later) > 30
