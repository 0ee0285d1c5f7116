"""Much mail at once, and hosts that are not there for it: one message that breaks them, hosts that come and go, hosts
that are all away. What it costs is counted, not timed."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack

import pytest

from qrunner.smtp.sink import Sink
from qrunner.smtp.sinkserver import SinkServer
from qrunner.testing import FakeSite
from tests.runners.live import SITE, Live, host, live
from tests.smtp.hosts import free_port

TWO = """
[site]
report_queue = "reports"
retry = { first = "5m", lifetime = "2d" }
[smtp.mta1]
host = "mta1.example.org"
[smtp.mta2]
host = "mta2.example.org"
"""
EITHER = """
[runner.out]
class = "outgoing"
smtp = ["mta1", "mta2"]
"""
EACH_OTHER = """
[runner.out]
class = "outgoing"
smtp = "mta1"
on_down = ["out-b"]
[runner.out-b]
class = "outgoing"
smtp = "mta2"
on_down = ["out"]
"""
crowd = pytest.mark.parametrize("many", [300, pytest.param(2_000, marks=pytest.mark.stress)])
HOURS = 3


def arrived(*sinks: Sink) -> Counter[str]:
    return Counter(address for sink in sinks for one in sink.messages for address in one.recipients)


def expected(many: int) -> Counter[str]:
    return Counter(f"r{number}@x" for number in range(many))


def fill(site: FakeSite, many: int) -> None:
    for number in range(many):
        site.enqueue("out", recipients=[f"r{number}@x"])


def is_up(site: FakeSite, name: str) -> bool:
    runner = site.engines[0].runner
    return bool(runner.pool.health(name).is_up)  # type: ignore[attr-defined]


@pytest.fixture
def site(request: pytest.FixtureRequest) -> Iterator[FakeSite]:
    with FakeSite(TWO + request.param) as one:
        yield one


# One message that breaks every host


@crowd
@pytest.mark.parametrize("site", [EITHER], indirect=True)
@pytest.mark.parametrize("at", ["MAIL FROM:<poison", "RCPT TO:<poison", "DATA"])
def test_one_message_that_every_host_hangs_up_on_ends_in_a_report_alone(
    site: FakeSite, at: str, many: int
) -> None:
    if at == "DATA" and many > 300:
        many = 1_000
    for sink in site.sink.values():
        _hang_up_on_poison(sink, at)
    for number in range(many):
        site.enqueue("out", recipients=[f"r{number}@x"])
        if number == many // 2:
            site.enqueue("out", sender="poison@x", recipients=["poison-to@x"])
    site.run_until_idle(60)
    assert arrived(*site.sink.values()) == expected(many)
    for _ in range(60):
        assert is_up(site, "mta1")
        assert is_up(site, "mta2")
        site.clock.advance("1h")
        site.run_until_idle()
    assert not site.entries("out")
    (report,) = site.entries("reports")
    assert report.recipients == ("poison@x",)
    assert arrived(*site.sink.values()) == expected(many)


def _hang_up_on_poison(sink: Sink, at: str) -> None:
    if at != "DATA":
        sink.hang_up(after=at, times=None)
        return
    usual = sink.ruled
    is_poison = False

    def ruled(line: str, default: str) -> str | None:
        # In this process a sink talks to one after the other, from the RCPT to the DATA that follows it at once.
        nonlocal is_poison
        if line.startswith("RCPT"):
            is_poison = "poison" in line
        return None if is_poison and line == "DATA" else usual(line, default)

    sink.ruled = ruled  # type: ignore[method-assign]


class Fragile(SinkServer):
    """A host whose every connection breaks when it sees a certain sender, as when its process dies of it."""

    def __init__(self, name: str) -> None:
        super().__init__(Sink(name))
        self.deaths = 0
        usual = self.sink.ruled

        def ruled(line: str, default: str) -> str | None:
            if not line.startswith("MAIL FROM:<poison"):
                return usual(line, default)
            self.deaths += 1
            for writer in list(self._talks):
                writer.transport.abort()
            return None

        self.sink.ruled = ruled  # type: ignore[method-assign]


class Ambiguous(logging.Handler):
    """Of whom the log says so."""

    def __init__(self) -> None:
        super().__init__()
        self.to: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() == "ambiguous":
            self.to.update(record.fields["to"])  # type: ignore[attr-defined]


@crowd
def test_one_message_that_every_host_dies_of_takes_nobody_with_it(many: int) -> None:
    async def test(site: Live, one: Fragile, two: Fragile) -> None:
        for number in range(many):
            site.send(f"r{number}@x")
            if number == many // 2:
                site.send("poison-to@x", sender="poison@x")
        await site.settle()
        await site.until_empty()
        got = arrived(one.sink, two.sink)
        assert set(got) == set(expected(many))
        assert one.deaths + two.deaths > 5
        # Who was in the hands of the host as it died may have got it: that is known, and no other has it twice.
        assert {address for address, times in got.items() if times > 1} <= set(doubts.to)
        assert [entry.recipients for entry in site.reports] == [("poison@x",)]
        for number in range(many, many + 30):
            site.send(f"r{number}@x")
            await site.pass_by("1m")
        assert set(arrived(one.sink, two.sink)) == set(expected(many + 30))
        assert site.health("mta1").is_up
        assert site.health("mta2").is_up

    doubts = Ambiguous()
    log = logging.getLogger("qrunner.out")
    log.addHandler(doubts)
    before = log.level
    log.setLevel(logging.INFO)
    try:
        asyncio.run(_with_two(test))
    finally:
        log.setLevel(before)
        log.removeHandler(doubts)


async def _with_two(test: Callable[[Live, Fragile, Fragile], Awaitable[None]]) -> None:
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(Fragile("mta1"))
        two = await stack.enter_async_context(Fragile("mta2"))
        # Those who died together must not come back together.
        site = SITE.replace("jitter = 0", "jitter = 0.25")
        toml = host(one.port, name="mta1") + host(two.port, name="mta2") + EITHER
        await test(await stack.enter_async_context(live(toml, site)), one, two)


# Hosts that come and go


class Flapping:
    """Makes a sink go down after so many messages, each time."""

    def __init__(self, sink: Sink, every: int) -> None:
        self.sink, self.every, self.downs = sink, every, 0
        self.left = every
        usual = sink.ruled

        def ruled(line: str, default: str) -> str | None:
            if line == "." and sink.messages and not self._lets():
                return None
            return usual(line, default)

        sink.ruled = ruled  # type: ignore[method-assign]
        sink.down = True

    def _lets(self) -> bool:
        self.left -= 1
        if self.left > 0:
            return True
        self.downs += 1
        self.sink.down = True
        return False

    def comes_back(self) -> None:
        self.left, self.sink.down = self.every, False


@pytest.mark.parametrize("many", [300, pytest.param(10_000, marks=pytest.mark.stress)])
@pytest.mark.parametrize("site", [EITHER.replace('["mta1", "mta2"]', '"mta1"')], indirect=True)
def test_a_host_that_comes_and_goes_under_much_mail_is_asked_no_more_than_it_takes(
    site: FakeSite, many: int
) -> None:
    flapping = Flapping(site.sink["mta1"], many // 5)
    fill(site, many)
    minutes = 0
    while site.entries("out") and minutes < 600:
        if minutes % 10 == 5:
            flapping.comes_back()
        site.run_until_idle(60)
        site.clock.advance("1m")
        minutes += 1
    assert not site.entries("out")
    assert not site.entries("reports")
    assert flapping.downs >= 4
    got = arrived(site.sink["mta1"])
    assert set(got) == set(expected(many))
    # As it went down it had taken a message, or up to twenty, whose reply was lost.
    assert sum(got.values()) - many <= 20 * flapping.downs
    looks = site.engines[0].processed
    assert looks <= many * minutes, "a message is looked at once a minute at most"
    assert site.sink["mta1"].connections <= 40 * (flapping.downs + minutes)


@pytest.mark.parametrize("site", [EACH_OTHER], indirect=True)
def test_two_hosts_that_are_down_do_not_throw_mail_at_each_other(site: FakeSite) -> None:
    many = 100
    for sink in site.sink.values():
        sink.down = True
    fill(site, many)
    for _ in range(HOURS * 60):
        site.run_until_idle()
        site.clock.advance("1m")
    moves = sum(engine.processed for engine in site.engines)
    assert moves <= many * HOURS * 30, "twice between two probes is already much"
    waiting = [*site.entries("out"), *site.entries("out-b")]
    assert len(waiting) == many
    assert [entry for entry in waiting if entry.attempts or len(entry.history) > 1] == []
    site.sink["mta2"].down = False
    for _ in range(20):
        site.clock.advance("1m")
        site.run_until_idle()
    assert arrived(site.sink["mta2"]) == expected(many)


@pytest.mark.parametrize("site", [EACH_OTHER, EITHER], indirect=True, ids=["each other's", "either"])
def test_mail_does_not_expire_while_all_hosts_are_away(site: FakeSite) -> None:
    many = 50
    for sink in site.sink.values():
        sink.down = True
    fill(site, many)
    # A host that greylists: so that some attempts were answered before.
    site.sink["mta1"].reply("RCPT", "451 4.7.1 later", times=10)
    for _ in range(24 * 7):
        site.run_until_idle()
        site.clock.advance("1h")
    for sink in site.sink.values():
        sink.behave()
    for _ in range(40):
        site.clock.advance("1m")
        site.run_until_idle()
    assert arrived(*site.sink.values()) == expected(many)
    assert not site.entries("reports")


def test_two_hosts_that_are_down_throw_nothing_at_each_other_though_nobody_can_write_it_down() -> None:
    async def test(site: Live) -> None:
        many = 20
        for number in range(many):
            site.send(f"r{number}@x")
        looks = 0
        for _ in range(HOURS * 60):
            await site.settle()
            looks = sum(engine.processed for engine in site.engines.values())
            site.clock.advance("1m")
        assert looks <= many * HOURS * 60 * 4, "a message is looked at a few times a minute at most"
        assert len(site.entries("out") + site.entries("out-b")) == many

    async def whole() -> None:
        # Nobody listens there.
        toml = host(free_port(), name="mta1") + host(free_port(), name="mta2") + EACH_OTHER
        async with live(toml) as site:
            for name in ("mta1", "mta2"):
                # As on a disk that is full: what a process has found out it keeps to itself.
                (site.site.config.site.state_dir / "host" / f"{name}.json").mkdir()
            await test(site)

    asyncio.run(whole())
