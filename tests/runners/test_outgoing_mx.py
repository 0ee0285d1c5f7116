"""The runner that delivers to each recipient's own hosts: real name server, real hosts, all on loopback."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dns.name
import dns.rdataclass
import dns.rdatatype
import pytest

from qrunner.config import parse
from qrunner.engine.loop import Engine
from qrunner.loading import load_class
from qrunner.message import Draft, Entry, Envelope
from qrunner.runners.outgoing import OutgoingRunner
from qrunner.site import Site
from qrunner.smtp.client import SmtpDialer
from qrunner.smtp.health import Health
from qrunner.smtp.mx import Finder
from qrunner.smtp.resolver import Resolver
from qrunner.smtp.sink import Sink, SinkDialer
from qrunner.smtp.sinkserver import SinkServer
from qrunner.switchboard.memory import MemorySpool
from qrunner.testing.clock import FakeClock
from tests.dnsserver import SERVFAIL, SILENT, DnsServer

MESSAGE = b"Subject: hello\n\nworld\n"
TOML = """
[site]
hostname = "lists.example.org"
queue_dir = "q"
state_dir = "v"
postmaster = "pm@lists.example.org"
report_queue = "reports"
retry = {{ first = "5m", lifetime = "2d", jitter = 0 }}
[smtp.direct]
mode = "mx"
port = {port}
allow_private = true
{more}
[smtp.relay]
host = "127.0.0.20"
port = {port}
[runner.out]
class = "outgoing"
smtp = "direct"
{out}
[runner.relayed]
class = "outgoing"
smtp = "relay"
"""


class Bench:
    """A site, a name server, and hosts at ``127.0.0.2``, ``127.0.0.3`` … that are called ``mx2``, ``mx3`` …"""

    def __init__(self, folder: Path, more: str, out: str) -> None:
        self.folder, self._more, self._out = folder, more, out
        self.clock, self.dns = FakeClock(), DnsServer()
        self.sinks: dict[int, Sink] = {}
        self.servers: dict[int, SinkServer] = {}

    async def open(self, stack: AsyncExitStack) -> None:
        self.stack = stack
        await stack.enter_async_context(self.dns)
        self.port = (await self.host(2)).port
        plain = "" if "tls =" in self._more else 'tls = "none"'
        text = TOML.format(port=self.port, more=f"{plain}\n{self._more}", out=self._out)
        config = parse(text, self.folder / "qrunner.toml")
        self.spool = MemorySpool(self.clock)
        self.spool.prepare(config.queues())
        resolver = Resolver([self.dns.host], port=self.dns.port, timeout_s=0.2, trouble_s=0)
        dialer = SmtpDialer(config.site.hostname, Finder(config.site.hostname, resolver))
        self.site = Site(config, spool=self.spool, clock=self.clock, dialer=dialer)
        self.engines: dict[str, Engine] = {}
        for name, runner in config.runners.items():
            log = logging.getLogger(f"qrunner.{name}")
            self.engines[name] = Engine(self.site, runner, 0, load_class(runner.class_name), log=log)
            await self.engines[name].open()
            stack.push_async_callback(self.engines[name].close)

    async def host(self, number: int) -> SinkServer:
        """A host at ``127.0.0.NUMBER``, and its name in the DNS."""
        port = self.servers[2].port if 2 in self.servers else 0
        self.sinks[number] = Sink(f"mx{number}")
        self.servers[number] = SinkServer(self.sinks[number], f"127.0.0.{number}", port)
        await self.stack.enter_async_context(self.servers[number])
        self.dns.add(f"mx{number}.example. A 127.0.0.{number}")
        return self.servers[number]

    def domain(self, name: str, *hosts: int) -> None:
        """A domain with these hosts, the one that it wants most first; all exist in the DNS."""
        for preference, number in enumerate(hosts):
            self.dns.add(f"{name}. MX {preference * 10} mx{number}.example.")
            self.dns.add(f"mx{number}.example. A 127.0.0.{number}")

    def send(self, *to: str, sender: str = "ann@example.org", message: bytes = MESSAGE) -> str:
        return self.spool.enqueue("out", Draft(message, Envelope.of(sender, to)))

    async def settle(self) -> None:
        """All that is due now."""
        async with asyncio.timeout(30):
            while any([await engine.step() for engine in self.engines.values()]):
                pass

    async def pass_by(self, time: str) -> None:
        self.clock.advance(time)
        await self.settle()

    def entries(self, queue: str = "out") -> list[Entry]:
        return list(self.site.entries(queue))

    def entry(self) -> Entry:
        (entry,) = self.entries()
        return entry

    def got(self, number: int) -> list[tuple[str, ...]]:
        return [one.recipients for one in self.sinks[number].messages]

    def report(self) -> str:
        (report,) = self.entries("reports")
        return report.message.decode()

    def health_files(self) -> list[str]:
        return sorted(path.stem for path in (self.folder / "v" / "host").glob("*.json"))

    def health(self, name: str) -> Health:
        runner = self.engines["out"].runner
        assert isinstance(runner, OutgoingRunner)
        return runner._direct["direct"].pool.health(name)


@asynccontextmanager
async def bench(more: str = "", out: str = "") -> AsyncIterator[Bench]:
    with TemporaryDirectory() as folder:
        one = Bench(Path(folder), more, out)
        async with AsyncExitStack() as stack:
            await one.open(stack)
            yield one


def on(more: str = "", out: str = "") -> Callable[[Callable[[Bench], Awaitable[None]]], Callable[[], None]]:
    """Runs the test on such a site."""

    def decorate(test: Callable[[Bench], Awaitable[None]]) -> Callable[[], None]:
        async def whole() -> None:
            async with bench(more, out) as one:
                await test(one)

        def run() -> None:
            asyncio.run(whole())

        run.__name__ = test.__name__  # type: ignore[attr-defined]
        return run

    return decorate


def lines(entry: Entry, what: str) -> list[Mapping[str, Any]]:
    return [line for line in entry.history if line["what"] == what]


@on()
async def test_each_domain_gets_its_own_part_from_its_own_host(one: Bench) -> None:
    await one.host(3)
    one.domain("a.example", 2)
    one.domain("b.example", 3)
    one.send("x@a.example", "y@b.example", "z@A.example")
    await one.settle()
    assert one.got(2) == [("x@a.example", "z@A.example")]
    assert one.got(3) == [("y@b.example",)]
    assert not one.entries()


@on()
async def test_what_is_passed_on_has_one_trace_line_and_no_return_path(one: Bench) -> None:
    one.domain("a.example", 2)
    head = b"Return-Path: <x@\r\n\ty>\r\n"
    rest = b"Received: from elsewhere\r\nReturn-Path: <kept>\r\nSubject: x\r\n\r\nbody\r\n"
    entry_id = one.send("x@a.example", message=head + rest)
    await one.settle()
    (got,) = one.sinks[2].messages
    assert got.message.endswith(rest)
    trace = got.message.removesuffix(rest).decode()
    assert trace == (
        f"Received: by lists.example.org (qrunner) id {entry_id};\r\n\tThu, 01 Jan 2026 00:00:00 +0000\r\n"
    )


@on()
async def test_domains_with_the_same_host_share_a_session_but_no_transaction(one: Bench) -> None:
    for name in ("a.example", "b.example", "c.example"):
        one.domain(name, 2)
    for name in ("a.example", "b.example", "c.example"):
        one.send(f"x@{name}")
        await one.settle()
    assert one.got(2) == [("x@a.example",), ("x@b.example",), ("x@c.example",)]
    assert one.sinks[2].connections == 1


@on(out="verp = true")
async def test_senders_name_their_recipients_here_too(one: Bench) -> None:
    one.domain("a.example", 2)
    one.send("x@a.example", "y@a.example")
    await one.settle()
    senders = [received.sender for received in one.sinks[2].messages]
    assert senders == ["ann+x=a.example@example.org", "ann+y=a.example@example.org"]
    assert one.sinks[2].connections == 1


@on()
async def test_while_the_best_host_refuses_connections_the_next_one_is_taken(one: Bench) -> None:
    await one.host(3)
    await one.servers[2].stop()
    one.domain("a.example", 2, 3)
    one.send("x@a.example")
    await one.settle()
    assert one.got(3) == [("x@a.example",)]
    assert not one.entries()


@pytest.mark.parametrize("greeting", ["421 4.3.2 busy", "450 no", "554 5.3.2 no mail here"])
def test_after_a_greeting_that_is_no_welcome_the_next_host_is_taken(greeting: str) -> None:
    @on()
    async def test(one: Bench) -> None:
        await one.host(3)
        one.domain("a.example", 2, 3)
        one.sinks[2].reply("CONNECT", greeting, times=None)
        one.send("x@a.example")
        await one.settle()
        assert one.got(3) == [("x@a.example",)]
        assert not one.entries()

    test()


@pytest.mark.parametrize("command", ["MAIL", "RCPT", "DATA"])
def test_after_a_421_or_a_lost_connection_the_next_host_is_taken(command: str) -> None:
    @on()
    async def test(one: Bench) -> None:
        await one.host(3)
        one.domain("a.example", 2, 3)
        one.sinks[2].reply(command, "421 4.3.2 going down")
        one.sinks[2].hang_up(after=command)
        one.send("x@a.example")
        one.send("y@a.example")
        await one.settle()
        assert sorted(one.got(3)) == [("x@a.example",), ("y@a.example",)]
        assert not one.entries()

    test()


@pytest.mark.parametrize("command", ["MAIL", "RCPT", "DATA", "."])
def test_an_answer_is_final_for_this_attempt_whichever_host_gave_it(command: str) -> None:
    @on()
    async def test(one: Bench) -> None:
        await one.host(3)
        one.domain("a.example", 2, 3)
        one.sinks[2].reply(command, "451 4.7.1 grey")
        one.sinks[2].reply(command, "550 5.7.1 no")
        one.send("x@a.example")
        await one.settle()
        assert one.entry().attempts == 1
        assert lines(one.entry(), "deferred")[0]["host"] == "mx2.example"
        await one.pass_by("5m")
        assert not one.entries()
        assert "Remote-MTA: dns; mx2.example" in one.report()
        assert "550 5.7.1 no" in one.report()
        assert one.sinks[3].connections == 0

    test()


@on()
async def test_a_lost_final_reply_is_never_made_up_for_at_another_host(one: Bench) -> None:
    await one.host(3)
    one.domain("a.example", 2, 3)
    one.sinks[2].hang_up(after=".")
    one.send("x@a.example")
    await one.settle()
    assert one.got(2) == [("x@a.example",)]
    assert one.sinks[3].connections == 0
    assert lines(one.entry(), "ambiguous")[0]["host"] == "mx2.example"


@on(more='on_ambiguous = "assume"')
async def test_a_doubt_is_resolved_as_configured_for_hosts_that_were_found(one: Bench) -> None:
    one.domain("a.example", 2)
    one.sinks[2].hang_up(after=".")
    one.send("x@a.example")
    await one.settle()
    assert not one.entries()
    assert not one.entries("reports")


@on(more='on_ambiguous = "hold"')
async def test_a_doubt_is_held_as_configured_for_hosts_that_were_found(one: Bench) -> None:
    one.domain("a.example", 2)
    one.sinks[2].hang_up(after=".")
    one.send("x@a.example")
    await one.settle()
    assert len(list(one.spool.peek("out", "hold"))) == 1


@on()
async def test_a_greylisting_host_is_asked_again_among_its_equals(one: Bench) -> None:
    await one.host(3)
    for number in (2, 3):
        one.dns.add(f"a.example. MX 10 mx{number}.example.")
        one.sinks[number].reply("RCPT", "451 4.7.1 grey")
    for number in range(8):
        one.send(f"x{number}@a.example")
        await one.settle()
    first = {entry.recipients: lines(entry, "deferred")[0]["host"] for entry in one.entries()}
    assert len(first) == 2
    await one.pass_by("5m")
    assert not one.entries()
    for recipients, host in first.items():
        assert recipients in one.got(int(str(host)[2]))


@on()
async def test_equal_hosts_share_the_mail(one: Bench) -> None:
    await one.host(3)
    for number in (2, 3):
        one.dns.add(f"a.example. MX 10 mx{number}.example.")
    for number in range(60):
        one.send(f"x{number}@a.example")
    for _ in range(30):
        await one.pass_by("5s")
    shares = Counter({number: len(one.got(number)) for number in (2, 3)})
    assert sum(shares.values()) == 60
    assert min(shares.values()) > 10


@pytest.mark.parametrize(
    ("record", "status"),
    [
        ("other.example. A 127.0.0.2", "5.1.2"),
        ("a.example. MX 0 .", "5.1.10"),
        ("a.example. MX 0 lists.example.org.", "5.4.6"),
        ("a.example. MX 0 gone.example.", "5.4.4"),
        ("a.example. TXT hello", "5.1.2"),
    ],
)
def test_what_the_dns_rules_out_is_reported_at_once(record: str, status: str) -> None:
    @on()
    async def test(one: Bench) -> None:
        one.dns.add(record)
        one.domain("good.example", 2)
        one.send("x@a.example", "y@good.example")
        await one.settle()
        assert not one.entries()
        assert one.got(2) == [("y@good.example",)]
        assert f"Status: {status}\n" in one.report()
        assert "x@a.example" in one.report()
        assert "Remote-MTA" not in one.report()

    test()


@on()
async def test_a_host_on_loopback_is_refused_unless_that_is_configured(one: Bench) -> None:
    # The same site with the permission taken away.
    runner = one.engines["out"].runner
    assert isinstance(runner, OutgoingRunner)
    direct = runner._direct["direct"]
    direct.config = dataclasses.replace(direct.config, allow_private=False)
    one.domain("a.example", 2)
    one.send("x@a.example", "y@[127.0.0.2]")
    await one.settle()
    assert not one.entries()
    assert one.sinks[2].connections == 0
    assert one.report().count("Status: 5.4.4\n") == 2


@pytest.mark.parametrize("family", ["any", "ipv6"])
def test_a_host_is_reached_over_ipv6(family: str) -> None:
    @on(more=f'family = "{family}"')
    async def test(one: Bench) -> None:
        async with SinkServer(Sink("six"), "::1", one.port) as six:
            one.dns.add("a.example. MX 10 mx6.example.", "mx6.example. AAAA ::1", "mx6.example. A 127.0.0.9")
            one.send("x@a.example", "y@[IPv6:::1]")
            await one.settle()
            assert {got.recipients for got in six.sink.messages} == {("x@a.example",), ("y@[IPv6:::1]",)}

    test()


@on(more='family = "ipv4"')
async def test_a_host_without_an_address_of_the_family_is_passed_over(one: Bench) -> None:
    one.dns.add("a.example. MX 10 mx6.example.", "mx6.example. AAAA ::1", "a.example. MX 20 mx2.example.")
    one.send("x@a.example")
    await one.settle()
    assert one.got(2) == [("x@a.example",)]


@on()
async def test_an_address_literal_is_delivered_to(one: Bench) -> None:
    one.send("x@[127.0.0.2]")
    await one.settle()
    assert one.got(2) == [("x@[127.0.0.2]",)]


@on()
async def test_a_domain_without_mx_is_delivered_to_its_address(one: Bench) -> None:
    one.dns.add("a.example. A 127.0.0.2")
    one.send("x@a.example")
    await one.settle()
    assert one.got(2) == [("x@a.example",)]


@on()
async def test_an_address_without_a_domain_is_reported(one: Bench) -> None:
    one.send("root")
    await one.settle()
    assert "Status: 5.1.2\n" in one.report()


@on()
async def test_every_address_of_a_host_is_tried(one: Bench) -> None:
    one.dns.add("a.example. MX 10 many.example.")
    for last in (31, 32, 33, 2):
        one.dns.add(f"many.example. A 127.0.0.{last}")
    for number in range(5):
        one.send(f"x{number}@a.example")
        await one.settle()
    assert len(one.got(2)) == 5


@on()
async def test_a_domain_whose_name_servers_fail_is_tried_until_its_time_is_over(one: Bench) -> None:
    one.dns.broken["a.example."] = SERVFAIL
    one.send("x@a.example")
    await one.settle()
    assert one.entry().attempts == 1
    assert lines(one.entry(), "attempt")[0]["status"] == "4.4.3"
    for _ in range(30):
        await one.pass_by("4h")
    assert not one.entries()
    assert "SERVFAIL" in one.report()
    assert "x@a.example" in one.report()


@on(more='rate = "1/h"')
async def test_each_host_that_is_found_has_the_rate_for_itself(one: Bench) -> None:
    await one.host(3)
    one.domain("a.example", 2)
    one.domain("b.example", 3)
    for _ in range(2):
        one.send("x@a.example", "y@b.example")
    await one.settle()
    assert [len(one.sinks[number].messages) for number in (2, 3)] == [1, 1]
    for entry in one.entries():
        assert entry.attempts == 0
        assert "as much as its rate allows" in str(entry.history[-1]["reason"])


@pytest.mark.parametrize("how", [SERVFAIL, SILENT])
def test_mail_never_expires_because_our_own_name_servers_were_away(how: Any) -> None:
    @on()
    async def test(one: Bench) -> None:
        one.domain("a.example", 2)
        one.dns.broken["."] = how
        one.send("x@a.example")
        for _ in range(4):
            await one.pass_by("1d")
        assert one.entry().attempts == 0
        assert [line["what"] for line in one.entry().history] == ["waits"]
        assert not one.entries("reports")
        one.dns.broken.clear()
        await one.pass_by("1d")
        assert one.got(2) == [("x@a.example",)]

    test()


@on()
async def test_who_is_not_spoken_of_does_not_expire_with_the_others(one: Bench) -> None:
    one.domain("a.example", 2)
    one.domain("b.example", 2)
    one.sinks[2].reply("RCPT TO:<x@a", "451 4.2.0 not today", times=None)
    one.send("x@a.example", "y@b.example")
    one.sinks[2].reply("RCPT TO:<y@b", "451 4.2.0 not yet")
    await one.settle()
    # Of the two domains, one is known still, and our name servers go away.
    one.dns.broken["."] = SERVFAIL
    one.dns.broken["b.example."] = SERVFAIL
    runner = one.engines["out"].runner
    assert isinstance(runner, OutgoingRunner)
    resolver = runner._direct["direct"]._finder._resolver
    resolver._cache.flush((dns.name.from_text("b.example"), dns.rdatatype.MX, dns.rdataclass.IN))
    await one.pass_by("3d")
    assert one.entry().recipients == ("y@b.example",)
    report = one.report()
    assert "451 4.2.0 not today" in report
    assert "y@b.example" not in report
    one.dns.broken.clear()
    await one.pass_by("1d")
    assert not one.entries()
    assert one.got(2) == [("y@b.example",)]


@on()
async def test_a_domain_whose_hosts_are_all_away_is_tried_until_its_time_is_over(one: Bench) -> None:
    one.domain("a.example", 30, 31)
    one.send("x@a.example")
    await one.settle()
    assert one.entry().attempts == 1
    assert lines(one.entry(), "attempt")[0]["status"] == "4.4.1"
    assert "127.0.0.31" in lines(one.entry(), "attempt")[0]["text"]
    for _ in range(30):
        await one.pass_by("4h")
    assert not one.entries()
    assert "Remote-MTA: dns; mx31.example" in one.report()


@on(more="max_connections = 2")
async def test_only_a_host_that_is_not_well_has_a_file(one: Bench) -> None:
    one.domain("a.example", 2)
    one.domain("b.example", 30)
    one.send("x@a.example", "y@b.example")
    await one.settle()
    assert one.health_files() == ["mx30.example"]
    for _ in range(6):
        one.send("y@b.example")
        await one.settle()
    assert not one.health("mx30.example").is_up
    assert one.health("mx2.example").is_up
    await one.host(30)
    for _ in range(60):
        await one.pass_by("10m")
    assert len(one.got(30)) == 7
    assert not one.entries()
    assert one.health_files() == []


@on()
async def test_a_host_that_is_down_is_not_tried_before_its_probe(one: Bench) -> None:
    one.domain("a.example", 2)
    one.sinks[2].reply("CONNECT", "554 5.3.2 no mail here", times=None)
    for _ in range(9):
        one.send("x@a.example")
        await one.settle()
    assert one.sinks[2].connections == 5
    assert all(entry.attempts == 1 for entry in one.entries())


@on(out='on_down = ["relayed"]')
async def test_while_every_host_of_a_domain_is_down_its_mail_goes_where_on_down_says(one: Bench) -> None:
    await one.host(20)
    one.domain("a.example", 30)
    one.domain("b.example", 2)
    for _ in range(5):
        one.send("x@a.example")
        await one.settle()
    one.send("y@a.example", "z@b.example")
    await one.settle()
    await one.pass_by("1s")
    assert ("y@a.example",) in one.got(20)
    assert one.got(2) == [("z@b.example",)]


@on()
async def test_a_host_suspended_by_hand_costs_no_attempt_and_no_lifetime(one: Bench) -> None:
    one.domain("a.example", 2)
    runner = one.engines["out"].runner
    assert isinstance(runner, OutgoingRunner)
    board = runner._direct["direct"].pool._board
    board.change("mx2.example", lambda health: dataclasses.replace(health, suspended=True))
    one.send("x@a.example")
    for _ in range(4):
        await one.pass_by("1d")
    assert one.entry().attempts == 0
    board.change("mx2.example", lambda health: dataclasses.replace(health, suspended=False))
    await one.pass_by("1d")
    assert one.got(2) == [("x@a.example",)]


@on()
async def test_a_thousand_recipients_of_one_domain_are_looked_up_once(one: Bench) -> None:
    one.domain("a.example", 2)
    one.send(*(f"x{number}@a.example" for number in range(1_000)))
    await one.settle()
    assert sum(map(len, one.got(2))) == 1_000
    assert max(map(len, one.got(2))) == 50
    assert one.dns.asked("a.example.", "MX") == 1
    assert one.sinks[2].connections == 1


@on()
async def test_a_domain_that_hangs_leaves_the_others_their_places(one: Bench) -> None:
    async with _hanging("127.0.0.40", one.port) as reached:
        one.domain("hang.example", 40)
        one.domain("good.example", 2)
        for number in range(30):
            one.send(f"x{number}@hang.example")
        for number in range(100):
            one.send(f"y{number}@good.example")
        engines = asyncio.create_task(one.settle())
        async with asyncio.timeout(20):
            while len(one.got(2)) < 100:
                one.clock.advance("1s")
                await asyncio.sleep(0.01)
        assert len(reached) == 2
        engines.cancel()
        await asyncio.gather(engines, return_exceptions=True)


@on(out="concurrency = 2")
async def test_domains_that_hang_in_every_place_there_is_leave_as_many_to_the_others(one: Bench) -> None:
    async with _hanging("127.0.0.40", one.port) as first, _hanging("127.0.0.41", one.port) as second:
        one.domain("hang1.example", 40)
        one.domain("hang2.example", 41)
        one.domain("good.example", 2)
        for number in range(5):
            one.send(f"x{number}@hang1.example")
            one.send(f"x{number}@hang2.example")
        for number in range(20):
            one.send(f"y{number}@good.example")
        engines = asyncio.create_task(one.settle())
        async with asyncio.timeout(20):
            while len(one.got(2)) < 20:
                one.clock.advance("1s")
                await asyncio.sleep(0.01)
        assert (len(first), len(second)) == (1, 1)
        engines.cancel()
        await asyncio.gather(engines, return_exceptions=True)


@asynccontextmanager
async def _hanging(host: str, port: int) -> AsyncIterator[list[asyncio.StreamWriter]]:
    """A host that takes connections and says nothing."""
    reached: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.append(writer)
        await reader.read()

    server = await asyncio.start_server(serve, host, port)
    try:
        yield reached
    finally:
        for writer in reached:
            writer.close()
        server.close()


def test_a_site_without_mx_does_not_load_what_asks_the_dns() -> None:
    program = "import sys, qrunner.runners.outgoing; assert not [one for one in sys.modules if one == 'dns']"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_sink_that_plays_the_host_takes_the_mail_of_every_domain() -> None:
    async def test() -> None:
        text = TOML.format(port=25, more="", out="")
        config = parse(text, Path("/nowhere/qrunner.toml"))
        clock, sink = FakeClock(), Sink("direct")
        spool = MemorySpool(clock)
        spool.prepare(config.queues())
        site = Site(config, spool=spool, clock=clock, dialer=SinkDialer({"direct": sink}))
        engine = Engine(site, config.runners["out"], 0, OutgoingRunner, log=logging.getLogger("qrunner.out"))
        await engine.open()
        spool.enqueue("out", Draft(MESSAGE, Envelope.of("a@x", ["b@y", "c@z"])))
        while await engine.step():
            pass
        await engine.close()
        assert [one.recipients for one in sink.messages] == [("b@y", "c@z")]

    asyncio.run(test())
