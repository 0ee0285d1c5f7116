"""The runner that delivers, with its engine, on sinks: who gets what, once, and where the rest waits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from qrunner.clock import SystemClock
from qrunner.config import parse
from qrunner.engine.loop import Engine
from qrunner.loading import load_class
from qrunner.message import Draft, Entry, Envelope
from qrunner.runners.outgoing import OutgoingRunner
from qrunner.site import Site
from qrunner.smtp.notes import in_doubt
from qrunner.smtp.sink import Sink, SinkDialer
from qrunner.switchboard.memory import MemoryLease, MemorySpool
from qrunner.testing.clock import FakeClock
from tests.smtp.hosts import scripted

MESSAGE = b"Subject: hello\n\nworld\n"
BASE = """
[site]
hostname = "lists.example.org"
queue_dir = "q"
state_dir = "v"
postmaster = "pm@lists.example.org"
report_queue = "reports"
retry = { first = "5m", lifetime = "2d", jitter = 0 }
[smtp.mta1]
host = "mta1.example.org"
probe_after = "1m"
[smtp.mta2]
host = "mta2.example.org"
"""
ALONE = (
    BASE
    + """
[runner.out]
class = "outgoing"
smtp = "mta1"
on_down = []
"""
)
WITH_BACKOFF = (
    BASE
    + """
[runner.out]
class = "outgoing"
smtp = "mta1"
[runner.backoff]
class = "outgoing"
smtp = ["mta1", "mta2"]
"""
)


class Bench:
    """A site in this process; what its runners do happens in ``settle``."""

    def __init__(self, toml: str) -> None:
        self.clock = FakeClock()
        config = parse(toml, Path("/nowhere/qrunner.toml"))
        self.sink = {name: Sink(name) for name in config.smtp}
        self.spool = MemorySpool(self.clock)
        self.spool.prepare(config.queues())
        self.site = Site(config, spool=self.spool, clock=self.clock, dialer=SinkDialer(self.sink))
        self.engines: dict[str, Engine] = {}

    async def open(self) -> None:
        for name, runner in self.site.config.runners.items():
            log = logging.getLogger(f"qrunner.{name}")
            self.engines[name] = Engine(self.site, runner, 0, load_class(runner.class_name), log=log)
            await self.engines[name].open()

    async def settle(self) -> None:
        """All that is due now."""
        while any([await engine.step() for engine in self.engines.values()]):
            pass

    def send(self, *to: str, sender: str = "ann@example.org", queue: str = "out") -> str:
        return self.spool.enqueue(queue, Draft(MESSAGE, Envelope.of(sender, to)))

    def entries(self, queue: str = "out") -> list[Entry]:
        return list(self.site.entries(queue))

    def held(self, queue: str = "out") -> list[Entry]:
        return [self.spool.read(ref) for ref in self.spool.peek(queue, "hold")]

    def got(self, name: str = "mta1") -> list[tuple[str, ...]]:
        return [one.recipients for one in self.sink[name].messages]


@asynccontextmanager
async def bench(toml: str = ALONE) -> AsyncIterator[Bench]:
    one = Bench(toml)
    await one.open()
    try:
        yield one
    finally:
        for engine in one.engines.values():
            await engine.close()


def on(toml: str = ALONE) -> Callable[[Callable[[Bench], Awaitable[None]]], Callable[[], None]]:
    """Runs the test on a site of this configuration."""

    def decorate(test: Callable[[Bench], Awaitable[None]]) -> Callable[[], None]:
        async def whole() -> None:
            async with bench(toml) as one:
                await test(one)

        def run() -> None:
            asyncio.run(whole())

        run.__name__ = test.__name__  # type: ignore[attr-defined]
        return run

    return decorate


def lines(entry: Entry, what: str) -> list[Mapping[str, Any]]:
    return [line for line in entry.history if line["what"] == what]


def waits_s(one: Bench, entry: Entry) -> float:
    return (entry.due_ns - one.clock.now_ns()) / 1e9


@on()
async def test_a_message_is_delivered_and_is_gone(one: Bench) -> None:
    one.send("bob@x", "cat@x")
    await one.settle()
    assert one.got() == [("bob@x", "cat@x")]
    assert one.sink["mta1"].messages[0].message == MESSAGE
    assert not one.entries()


@on()
async def test_many_messages_share_few_sessions(one: Bench) -> None:
    for number in range(100):
        one.send(f"r{number}@x")
    await one.settle()
    assert sorted(one.got()) == sorted((f"r{number}@x",) for number in range(100))
    assert one.sink["mta1"].connections <= 20


@on()
async def test_a_recipient_s_4xx_waits_in_place_and_nobody_gets_it_twice(one: Bench) -> None:
    one.sink["mta1"].reply("RCPT TO:<cat@x>", "451 4.7.1 grey")
    one.send("bob@x", "cat@x")
    await one.settle()
    (entry,) = one.entries()
    assert entry.recipients == ("cat@x",)
    assert entry.attempts == 1
    assert waits_s(one, entry) == pytest.approx(300)
    assert lines(entry, "deferred")[0]["reply"] == "451 4.7.1 grey"
    await one.settle()
    assert one.got() == [("bob@x",)]
    one.clock.advance("5m")
    await one.settle()
    assert one.got() == [("bob@x",), ("cat@x",)]
    assert not one.entries()


@on()
async def test_a_5xx_is_reported_to_the_sender_in_one_report(one: Bench) -> None:
    one.sink["mta1"].reply("RCPT TO:<b", "550 5.1.1 unknown", times=None)
    one.send("b1@x", "good@x", "b2@x")
    await one.settle()
    assert not one.entries()
    (report,) = one.entries("reports")
    assert (report.sender, report.recipients) == ("", ("ann@example.org",))
    assert report.message.count(b"Final-Recipient:") == 2
    assert b"Remote-MTA: dns; mta1.example.org" in report.message
    assert one.got() == [("good@x",)]


@on()
async def test_the_null_sender_is_never_told(one: Bench) -> None:
    one.sink["mta1"].reply("MAIL", "550 no", times=None)
    one.send("bob@x", sender="")
    await one.settle()
    assert not one.entries()
    (report,) = one.entries("reports")
    assert report.recipients == ("pm@lists.example.org",)


@on()
async def test_an_address_that_could_inject_is_reported(one: Bench) -> None:
    one.send("bob@x>\r\nRCPT TO:<eve@x")
    await one.settle()
    assert not one.got()
    assert len(one.entries("reports")) == 1


@on(WITH_BACKOFF)
async def test_while_its_host_is_down_mail_goes_by_another(one: Bench) -> None:
    one.sink["mta1"].down = True
    one.send("bob@x")
    await one.settle()
    assert one.got("mta2") == [("bob@x",)]
    assert not one.entries()
    assert not one.entries("backoff")


@on(WITH_BACKOFF)
async def test_a_4xx_never_goes_to_another_host(one: Bench) -> None:
    one.sink["mta1"].reply("MAIL", "451 later")
    one.send("bob@x")
    await one.settle()
    assert not one.got("mta2")
    assert len(one.entries("out")) == 1


@on(WITH_BACKOFF)
async def test_with_no_living_host_mail_waits_in_the_last_queue_at_no_cost(one: Bench) -> None:
    one.sink["mta1"].down = one.sink["mta2"].down = True
    one.send("bob@x")
    await one.settle()
    (entry,) = one.entries("backoff")
    assert entry.attempts == 0
    assert 0 < waits_s(one, entry) <= 600
    for _ in range(3 * 24):
        one.clock.advance("1h")
        await one.settle()
    (entry,) = one.entries("backoff")
    assert not one.entries("reports"), "mail never expires because our own hosts were away"
    one.sink["mta2"].down = False
    one.clock.advance("1h")
    await one.settle()
    assert one.got("mta2") == [("bob@x",)]


@on(ALONE)
async def test_the_time_in_which_our_hosts_were_away_is_no_part_of_the_lifetime(one: Bench) -> None:
    one.sink["mta1"].down = True
    one.send("bob@x")
    for _ in range(8):
        one.clock.advance("1d")
        await one.settle()
    one.sink["mta1"].down = False
    one.sink["mta1"].reply("RCPT", "451 4.7.1 greylisted")
    one.clock.advance("10m")
    await one.settle()
    (entry,) = one.entries()
    assert [line["what"] for line in entry.history] == ["waits", "deferred", "attempt"]
    one.clock.advance("5m")
    await one.settle()
    assert one.got() == [("bob@x",)]
    assert not one.entries("reports")


@on(ALONE)
async def test_an_entry_that_is_put_off_again_and_again_expires_though_it_waited_for_a_host(
    one: Bench,
) -> None:
    one.sink["mta1"].down = True
    one.send("bob@x")
    await one.settle()
    for _ in range(3):
        one.clock.advance("1d")
        await one.settle()
    one.sink["mta1"].down = False
    one.sink["mta1"].reply("RCPT", "451 later", times=None)
    hours = 0
    while one.entries():
        one.clock.advance("1h")
        await one.settle()
        hours += 1
    assert 48 <= hours <= 48 + 8
    assert len(one.entries("reports")) == 1


@on()
async def test_without_another_queue_mail_waits_in_place_for_the_next_probe(one: Bench) -> None:
    one.sink["mta1"].down = True
    one.send("bob@x")
    await one.settle()
    (entry,) = one.entries()
    assert entry.attempts == 0
    assert 30 < waits_s(one, entry) <= 120
    one.sink["mta1"].down = False
    one.clock.advance("3m")
    await one.settle()
    assert one.got() == [("bob@x",)]


@on()
async def test_one_probe_at_a_time_is_made_and_the_rest_waits(one: Bench) -> None:
    one.sink["mta1"].down = True
    for number in range(30):
        one.send(f"r{number}@x")
    await one.settle()
    assert len(one.entries()) == 30
    one.sink["mta1"].down = False
    for _ in range(40):
        one.clock.advance("1m")
        await one.settle()
    assert len(one.got()) == 30


@on()
async def test_a_host_that_asks_for_less_is_not_down(one: Bench) -> None:
    one.sink["mta1"].reply("CONNECT", "421 4.7.0 too many connections")
    one.send("bob@x")
    await one.settle()
    (entry,) = one.entries()
    assert entry.attempts == 0
    assert waits_s(one, entry) < 60
    one.clock.advance("1m")
    await one.settle()
    assert one.got() == [("bob@x",)]


@on()
async def test_one_poisonous_message_does_not_close_the_host(one: Bench) -> None:
    one.sink["mta1"].hang_up(after="MAIL FROM:<poison@x>", times=None)
    one.send("bob@x", sender="poison@x")
    for number in range(40):
        one.send(f"r{number}@x")
    await one.settle()
    assert len(one.got()) == 40
    for _ in range(80):
        one.clock.advance("1h")
        await one.settle()
        one.send("more@x")
    assert not [entry for entry in one.entries() if entry.sender == "poison@x"]
    (report,) = one.entries("reports")
    assert report.recipients == ("poison@x",)


@on()
async def test_a_lost_final_reply_is_tried_again_on_the_schedule(one: Bench) -> None:
    one.sink["mta1"].hang_up(after=".")
    one.send("bob@x")
    await one.settle()
    (entry,) = one.entries()
    assert lines(entry, "ambiguous")[0]["to"] == ["bob@x"]
    assert waits_s(one, entry) == pytest.approx(300)
    one.clock.advance("5m")
    await one.settle()
    assert len(one.got()) == 2, "the message was kept both times, and the history says so"
    assert not one.entries()


@on(ALONE.replace("[smtp.mta2]", 'on_ambiguous = "hold"\n[smtp.mta2]'))
async def test_a_lost_final_reply_is_held_where_that_is_configured(one: Bench) -> None:
    one.sink["mta1"].reply("RCPT TO:<eve@x>", "550 5.1.1 unknown")
    one.sink["mta1"].hang_up(after=".")
    one.send("bob@x", "eve@x")
    await one.settle()
    assert len(one.entries("reports")) == 1
    one.clock.advance("1s")
    await one.settle()
    (entry,) = one.held()
    assert entry.recipients == ("bob@x",)
    assert one.spool.shift(
        next(iter(one.spool.peek("out", "hold"))), area="queue", due_ns=0, record={"what": "release"}
    )
    await one.settle()
    assert one.got() == [("bob@x",), ("bob@x",)]


@on(ALONE.replace("[smtp.mta2]", 'on_ambiguous = "assume"\n[smtp.mta2]'))
async def test_a_lost_final_reply_is_assumed_where_that_is_configured(one: Bench) -> None:
    one.sink["mta1"].hang_up(after=".")
    one.send("bob@x")
    await one.settle()
    assert not one.entries()
    assert one.got() == [("bob@x",)]


@on(ALONE.replace("on_down = []", 'on_down = []\ndefer_to = "slow"'))
async def test_what_is_deferred_waits_where_defer_to_says(one: Bench) -> None:
    one.sink["mta1"].reply("RCPT", "451 later")
    one.send("bob@x")
    await one.settle()
    (entry,) = one.entries("slow")
    assert waits_s(one, entry) == pytest.approx(300)


VIRTUAL = (
    BASE
    + """
[runner.out]
class = "outgoing"
smtp = "mta1"
defer_to = "later"
[runner.slow]
class = "outgoing"
smtp = "mta1"
[runner.slower]
class = "outgoing"
smtp = "mta2"
"""
)


@on(VIRTUAL + "[balance.later]\nmembers = { slow = 1, slower = 1 }\n")
async def test_what_is_deferred_to_a_balance_waits_in_one_of_its_queues(one: Bench) -> None:
    one.sink["mta1"].reply("RCPT TO:<b", "451 later")
    one.send("bob@x", "cat@x")
    await one.settle()
    (entry,) = [*one.entries("slow"), *one.entries("slower")]
    assert entry.recipients == ("bob@x",)
    assert [line["queue"] for line in lines(entry, "attempt")] == ["out"]
    assert waits_s(one, entry) == pytest.approx(300)


@on(
    VIRTUAL
    + '[route.later]\nrules = [{ recipient = "b*", queue = "slow" }, { recipient = "c*", queue = "slower" }]\n'
)
async def test_what_is_deferred_to_a_route_waits_where_each_recipient_belongs(one: Bench) -> None:
    one.sink["mta1"].reply("RCPT TO:<dan@x>", "550 5.1.1 nobody")
    one.sink["mta1"].reply("RCPT TO:<eve@x>", "250 fine")
    one.sink["mta1"].reply("RCPT", "451 later", times=3)
    id = one.send("bob@x", "dan@x", "cat@x", "eve@x", "bea@x")
    await one.settle()
    (slow,), (slower,) = one.entries("slow"), one.entries("slower")
    assert (slow.recipients, slower.recipients) == (("bob@x", "bea@x"), ("cat@x",))
    assert {entry.arrival_ns for entry in (slow, slower)} == {one.clock.now_ns()}
    assert waits_s(one, slow) == waits_s(one, slower) == pytest.approx(300)
    assert not one.entries()
    assert one.got() == [("eve@x",)]
    assert len(one.entries("reports")) == 1
    assert id not in (slow.id, slower.id)
    one.clock.advance("5m")
    await one.settle()
    assert sorted(one.got() + one.got("mta2")) == [("bob@x", "bea@x"), ("cat@x",), ("eve@x",)]


@on()
async def test_what_is_deferred_too_long_is_reported(one: Bench) -> None:
    one.sink["mta1"].reply("RCPT", "451 4.2.0 later", times=None)
    one.send("bob@x")
    for _ in range(60):
        one.clock.advance("1h")
        await one.settle()
    assert not one.entries()
    (report,) = one.entries("reports")
    assert b"451 4.2.0 later" in report.message


@on()
async def test_a_death_after_the_end_is_known_for_a_doubt(one: Bench) -> None:
    id = one.send("bob@x")
    engine = one.engines.pop("out")
    lease = engine.lease
    assert isinstance(lease, MemoryLease)
    (ref,) = lease.due(one.clock.now_ns(), 1)
    claim = lease.claim(ref)
    assert claim is not None
    lease.note(claim, {"what": "sending", "to": ["bob@x"], "host": "mta1"})
    lease.abandon()
    await one.open()
    await one.settle()
    (entry,) = one.entries()
    assert entry.id == id
    assert not one.got(), "it waits for its time like any other attempt"
    assert entry.attempts == 1
    one.clock.advance("5m")
    await one.settle()
    assert one.got() == [("bob@x",)]


@on()
async def test_an_entry_that_owes_nobody_is_done(one: Bench) -> None:
    one.send()
    await one.settle()
    assert not one.entries()
    assert not one.sink["mta1"].connections


BALANCED = (
    BASE
    + """
[runner.in]
class = "incoming"
next = "mtas"
[runner.out-a]
class = "outgoing"
smtp = "mta1"
on_down = ["mtas"]
[runner.out-b]
class = "outgoing"
smtp = "mta2"
[balance.mtas]
members = { out-a = 99, out-b = 1 }
"""
)


@on(BALANCED)
async def test_a_balance_chooses_among_queues_whose_hosts_live(one: Bench) -> None:
    one.sink["mta1"].down = True
    for number in range(20):
        one.send(f"r{number}@x", queue="in")
    await one.settle()
    assert len(one.got("mta2")) == 20


def _at_a_host_that_stalls(line: bytes) -> Entry:
    """The entry after a stop that came while a host kept it waiting for the reply to this line."""

    async def test() -> Entry:
        reached = asyncio.Event()

        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 hi\r\n")
            in_message = False
            while heard := await reader.readline():
                if heard == line:
                    reached.set()
                    await reader.read()
                if not in_message:
                    in_message = heard == b"DATA\r\n"
                    writer.write(b"354 go\r\n" if in_message else b"250 ok\r\n")

        async with scripted(script) as port:
            toml = ALONE.replace('"mta1.example.org"', f'"127.0.0.1"\nport = {port}') + 'grace = "50ms"\n'
            config, clock = parse(toml, tmp / "qrunner.toml"), SystemClock()
            spool = MemorySpool(clock)
            spool.prepare(config.queues())
            site = Site(config, spool=spool, clock=clock)
            site.enqueue("out", message=MESSAGE, sender="a@x.example", recipients=["b@x.example"])
            engine = Engine(
                site, config.runners["out"], 0, OutgoingRunner, log=logging.getLogger("qrunner.out")
            )
            running = asyncio.ensure_future(engine.run())
            await reached.wait()
            engine.stop()
            await running
            (entry,) = site.entries("out")
            return entry

    with TemporaryDirectory() as folder:
        tmp = Path(folder)
        return asyncio.run(asyncio.wait_for(test(), 20))


def test_a_stop_before_the_end_of_a_message_leaves_the_entry_as_it_was() -> None:
    entry = _at_a_host_that_stalls(b"DATA\r\n")
    assert not entry.history
    assert entry.recipients == ("b@x.example",)


def test_a_stop_after_it_leaves_a_doubt_and_no_attempt() -> None:
    entry = _at_a_host_that_stalls(b".\r\n")
    assert [line["what"] for line in entry.history] == ["sending", "ambiguous"]
    assert entry.attempts == 0
    assert in_doubt(entry) == ("mta1", ("b@x.example",))


def test_a_doubt_is_dealt_with_by_what_follows_it() -> None:
    def entry(*history: Mapping[str, Any]) -> Entry:
        envelope = Envelope.of("a@x", ["b@x", "c@x"])
        return Entry("ab" * 20, "out", envelope, b"", envelope.addresses, {}, 0, 0, history)

    sending = {"what": "sending", "to": ["b@x"], "host": "m"}
    assert in_doubt(entry()) is None
    assert in_doubt(entry(sending)) == ("m", ("b@x",))
    assert in_doubt(entry(sending, {"what": "crash"})) == ("m", ("b@x",))
    for settles in ("attempt", "hold"):
        assert in_doubt(entry(sending, {"what": settles})) is None
    assert in_doubt(entry(sending, {"what": "deferred", "to": ["b@x"]})) is None
    assert in_doubt(entry(sending, {"what": "delivered", "to": ["c@x"]})) == ("m", ("b@x",))


def test_the_class_is_the_one_that_the_name_stands_for() -> None:
    assert load_class("outgoing") is OutgoingRunner
