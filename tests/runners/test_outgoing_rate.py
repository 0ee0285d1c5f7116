"""Hosts that are sent no more than so many messages in a time: who waits, what it costs, and what is told of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from qrunner.runners.outgoing import OutgoingRunner
from qrunner.smtp.sink import Sink
from qrunner.smtp.sinkserver import SinkServer
from tests.runners.live import LIMIT_S, RUNNER, Live, host, lines, live

TWO = """
[runner.out]
class = "outgoing"
smtp = ["mta", "other"]
"""


def at(
    rate: str, test: Callable[[Live, Sink], Awaitable[None]], more: str = "", runner: str = RUNNER
) -> None:
    """A test at a site whose host ``mta`` has this rate; ``other`` is the same host without one."""

    async def whole() -> None:
        async with SinkServer(Sink()) as server:
            hosts = host(server.port, f'rate = "{rate}"') + host(server.port, name="other")
            async with live(hosts + runner + more) as site:
                await test(site, server.sink)

    asyncio.run(whole())


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not true():
            await asyncio.sleep(0.01)


def test_what_comes_too_soon_waits_and_that_is_no_attempt() -> None:
    async def test(site: Live, sink: Sink) -> None:
        for _ in range(3):
            site.send("a@x")
        await site.settle()
        assert len(sink.messages) == 1
        for entry in site.entries():
            assert entry.attempts == 0
            assert entry.due_ns > site.clock.now_ns()
            assert [line["reason"] for line in lines(entry, "waits")] == [
                "mta is sent as much as its rate allows"
            ]

    at("2/h", test)


def test_those_that_wait_are_not_due_together() -> None:
    async def test(site: Live, sink: Sink) -> None:
        for _ in range(20):
            site.send("a@x")
        await site.settle()
        waits_s = sorted((entry.due_ns - site.clock.now_ns()) / 1e9 for entry in site.entries())
        assert len(waits_s) == 19
        # One in six minutes would be the rate's; nobody is sent away for longer than a quarter of an hour.
        assert len({round(wait_s) for wait_s in waits_s}) > 10
        assert waits_s[-1] <= 900

    at("10/h", test)


def test_a_long_wait_grows_the_history_by_one_line() -> None:
    async def test(site: Live, sink: Sink) -> None:
        site.send("a@x")
        site.send("b@x")
        for _ in range(50):
            await site.pass_by("1h")
        (entry,) = site.entries()
        assert [line["what"] for line in entry.history] == ["waits"]
        assert entry.attempts == 0

    at("1/d", test)


def test_everybody_is_sent_it_in_the_end() -> None:
    async def test(site: Live, sink: Sink) -> None:
        for number in range(40):
            site.send(f"r{number}@x")
        await site.until_empty()
        assert sorted(one.recipients for one in sink.messages) == sorted((f"r{n}@x",) for n in range(40))
        assert not site.reports

    at("50/s", test)


def test_who_waits_for_a_turn_holds_no_connection() -> None:
    async def test(site: Live, sink: Sink) -> None:
        for _ in range(12):
            site.send("a@x")
        await site.settle()
        assert len(sink.messages) == 12
        # Twenty may be had, and are not needed for one message in a tenth of a second.
        assert sink.connections < 12

    at("10/s", test)


def test_another_host_that_has_no_rate_takes_what_this_one_may_not() -> None:
    async def test(site: Live, sink: Sink) -> None:
        for _ in range(5):
            site.send("a@x")
        await site.settle()
        assert len(sink.messages) == 5
        assert not site.entries()

    at("1/h", test, runner=TWO)


def test_a_host_that_is_down_uses_up_no_turns() -> None:
    async def test(site: Live, sink: Sink) -> None:
        sink.reply("CONNECT", "554 no", times=5)
        site.send("a@x")
        for _ in range(5):
            await site.pass_by("5m")
        assert len(sink.messages) == 1

    at("1/d", test)


def test_each_transaction_of_an_entry_has_a_turn_of_its_own() -> None:
    async def test(site: Live, sink: Sink) -> None:
        site.send("a@x", "b@x", "c@x", sender="list@example.org")
        await site.settle()
        assert len(sink.messages) == 1
        (entry,) = site.entries()
        assert entry.recipients == ("b@x", "c@x")
        assert [line["what"] for line in entry.history] == ["sending", "delivered", "waits"]
        assert entry.attempts == 0
        assert not site.reports

    at("1/h", test, more="verp = true\n")


def test_who_was_put_off_by_the_rate_has_had_no_attempt_when_another_ones_lifetime_ends() -> None:
    async def test(site: Live, sink: Sink) -> None:
        sink.reply("RCPT TO:<a@x>", "451 later", times=None)
        site.send("a@x", "b@x", sender="list@example.org")
        site.clock.advance("3d")
        await site.settle()
        (report,) = site.reports
        assert b"a@x" in report.message
        assert b"Final-Recipient: rfc822; b@x" not in report.message
        (entry,) = site.entries()
        assert entry.recipients == ("b@x",)

    at("1/h", test, more="verp = true\n")


def test_a_stop_gives_back_what_waits_for_its_turn() -> None:
    async def test(site: Live, sink: Sink) -> None:
        runner = site.engines["out"].runner
        assert isinstance(runner, OutgoingRunner)
        site.send("a@x")
        await site.settle()
        waiting = [asyncio.ensure_future(runner.pool.another("mta")) for _ in range(3)]
        await until(lambda: runner.pool.room("mta") == 0)
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        site.send("b@x")
        await site.settle()
        assert len(sink.messages) == 2

    at("30/m", test)
