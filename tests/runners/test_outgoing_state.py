"""The files that hosts' health lives in, deleted, damaged or unwritable while mail is delivered: mail does not care."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from qrunner.smtp.sink import Sink
from qrunner.smtp.sinkserver import SinkServer
from tests.runners.live import LIMIT_S, RUNNER, Live, host, live

MANY = 60


def deleted(folder: Path) -> None:
    shutil.rmtree(folder)


def of_nonsense(folder: Path) -> None:
    (folder / "mta.json").write_bytes(bytes(range(256)))


def of_lies(folder: Path) -> None:
    (folder / "mta.json").write_text(
        '{"state": "down", "retry_at_ns": 1e300, "failures": 1e300, "probes": -1}'
    )


def of_the_far_future(folder: Path) -> None:
    (folder / "mta.json").write_text(
        '{"state": "down", "retry_at_ns": 99999999999999999999, "probes": 99999}'
    )


def no_file(folder: Path) -> None:
    (folder / "mta.json").unlink(missing_ok=True)
    (folder / "mta.json").mkdir()


async def until_gone(site: Live) -> None:
    """Lets minutes pass, and hosts answer, until nothing waits."""
    async with asyncio.timeout(LIMIT_S):
        while site.entries():
            await site.pass_by("1m")
            await asyncio.sleep(0)


@pytest.mark.parametrize("wound", [deleted, of_nonsense, of_lies, of_the_far_future, no_file])
def test_whatever_becomes_of_a_host_s_file_its_mail_arrives_once(wound: Callable[[Path], None]) -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(SinkServer(Sink("mta")))
            toml = host(server.port, "failures_to_open = 1") + RUNNER
            site = await stack.enter_async_context(live(toml))
            folder = site.site.config.site.state_dir / "host"
            site.send("before@x")
            await site.settle()
            wound(folder)
            site.send("after@x")
            await until_gone(site)
            await server.stop()
            site.send("down@x")
            await site.settle()
            if wound is not no_file:
                wound(folder)
            await site.pass_by("1m")
            await server.__aenter__()
            await until_gone(site)
            got = [to for one in server.sink.messages for to in one.recipients]
            assert got == ["before@x", "after@x", "down@x"]
            assert not site.reports

    asyncio.run(test())


def test_where_nothing_can_be_written_mail_waits_cheaply_and_goes_on_when_it_can() -> None:
    async def test() -> None:
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(SinkServer(Sink("mta")))
            site = await stack.enter_async_context(live(host(server.port) + RUNNER))
            folder = site.site.config.site.state_dir / "host"
            shutil.rmtree(folder)
            folder.write_text("in the way")
            for number in range(MANY):
                site.send(f"r{number}@x")
            for _ in range(60 * 6):
                await site.pass_by("10s")
            assert not server.sink.messages
            assert site.engines["out"].processed <= MANY * 60 * 3, "a few looks a minute"
            assert {entry.attempts for entry in site.entries()} == {0}
            folder.unlink()
            await until_gone(site)
            got = sorted(to for one in server.sink.messages for to in one.recipients)
            assert got == sorted(f"r{number}@x" for number in range(MANY))

    asyncio.run(test())
