"""What one recipient domain may take of a host of ours, while that host takes its time for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from tests.runners.live import LIMIT_S, RUNNER, Live, host, live
from tests.runners.test_outgoing_hosts import Host, Reader, Writer
from tests.smtp.hosts import scripted


class Stuck(Host):
    """A host that says nothing to a RCPT of one domain, and goes on with the others."""

    stuck = 0

    async def _answers(self, writer: Writer, line: bytes, usual: bytes) -> bool:
        if line.startswith(b"RCPT") and b"@hangs" in line:
            self.stuck += 1
            await asyncio.Event().wait()
        return await super()._answers(writer, line, usual)


def at(one: Host, test: Callable[[Live], Awaitable[None]], more: str = "") -> None:
    async def serve(reader: Reader, writer: Writer) -> None:
        await one.serve(reader, writer)

    async def whole() -> None:
        async with scripted(serve) as port, live(host(port) + RUNNER + more) as site:
            await test(site)

    asyncio.run(whole())


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not true():
            await asyncio.sleep(0.01)


async def end(site: Live, work: asyncio.Future[None]) -> None:
    site.engines["out"].stop()
    site.engines["out"].cut_short()
    await work


def test_a_domain_that_hangs_behind_a_host_leaves_half_of_the_places_to_the_others() -> None:
    one = Stuck()

    async def test(site: Live) -> None:
        for number in range(30):
            site.send(f"r{number}@hangs")
        for number in range(40):
            site.send(f"r{number}@x{number % 4}")
        work = asyncio.ensure_future(site.settle())
        await until(lambda: len(one.got) == 40)
        assert one.stuck == 5
        assert sum(entry.attempts for entry in site.entries()) == 0
        await end(site, work)

    at(one, test, "concurrency = 10\n")


def test_a_domain_for_which_all_goes_well_may_have_every_place() -> None:
    held = asyncio.Event()

    class Held(Host):
        waits = 0

        async def _answers(self, writer: Writer, line: bytes, usual: bytes) -> bool:
            if line.startswith(b"RCPT TO:<last"):
                self.waits += 1
                await held.wait()
            return await super()._answers(writer, line, usual)

    one = Held()

    async def test(site: Live) -> None:
        for number in range(60):
            site.send(f"r{number}@x")
        await site.until_empty()
        for number in range(10):
            site.send(f"last{number}@x")
        work = asyncio.ensure_future(site.settle())
        await until(lambda: one.waits == 10)
        held.set()
        await work
        await site.until_empty()
        assert len(one.got) == 70

    at(one, test, "concurrency = 10\n")


def test_where_one_delivery_is_made_at_a_time_nothing_is_put_off() -> None:
    one = Host()

    async def test(site: Live) -> None:
        for number in range(20):
            site.send(f"r{number}@x", f"r{number}@y")
        await site.settle()
        assert len(one.got) == 20

    at(one, test, "concurrency = 1\n")
