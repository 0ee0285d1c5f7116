"""Postfix's smtp-sink, failing at each command in each way: everybody gets it once, or the outcome says why not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from qrunner.smtp.channel import HostFailure
from qrunner.smtp.client import SmtpDialer
from qrunner.smtp.session import Delivery
from tests.smtp.hosts import config, deliver, kinds, smtp_sink

DIALER = SmtpDialer("client.example")
TO = ("a@x", "b@x", "c@x")

pytestmark = pytest.mark.needs("smtp-sink")


@pytest.fixture
def dump() -> Iterator[Path]:
    """A folder that the sink, which is nobody, can write to."""
    with TemporaryDirectory(prefix="sink-") as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


async def _attempt(*faults: str, dump: Path) -> Delivery:
    async with smtp_sink(*faults, dump=dump) as port:
        channel = await DIALER.dial(config(port))
        try:
            return await deliver(channel, *TO)
        finally:
            await channel.quit()


def _taken(folder: Path) -> list[str]:
    """The recipients of every message in the dumps."""
    texts = [path.read_text("latin-1") for path in folder.iterdir()]
    return [
        line.split("<")[1].split(">")[0]
        for text in texts
        for line in text.splitlines()
        if line.startswith("X-Rcpt-Args")
    ]


def check(delivery: Delivery, folder: Path, kind: str) -> None:
    assert kinds(delivery) == dict.fromkeys(TO, kind)
    assert sorted(_taken(folder)) == (sorted(TO) if kind in ("delivered", "ambiguous") else [])


def test_without_a_fault_everybody_gets_it(dump: Path) -> None:
    check(asyncio.run(_attempt("-c", dump=dump)), dump, "delivered")


@pytest.mark.parametrize("command", ["mail", "rcpt", "data", "."])
@pytest.mark.parametrize(
    ("fault", "kind"), [("-r", "deferred"), ("-f", "failed"), ("-q", "deferred"), ("-Q", "deferred")]
)
def test_a_fault_at_a_command(fault: str, kind: str, command: str, dump: Path) -> None:
    delivery = asyncio.run(_attempt(fault, command, dump=dump))
    if (fault, command) == ("-q", "."):
        kind = "ambiguous"
    assert set(kinds(delivery).values()) == {kind}
    assert delivery.lost is (fault == "-q")
    assert delivery.slower is (fault == "-Q")
    if kind == "ambiguous":
        assert sorted(_taken(dump)) == sorted(TO), "smtp-sink has kept it"


async def _impatient(command: str, dump: Path) -> Delivery:
    # -W makes the sink wait; a second is the least it knows. Only the limit in question is short: the machine may
    # be slow.
    async with smtp_sink("-W", f"{command}:1", dump=dump) as port:
        channel = await DIALER.dial(config(port))
        short = "final_timeout_s" if command == "." else "command_timeout_s"
        channel._host = config(port, **{short: 0.2})
        return await deliver(channel, *TO)


@pytest.mark.parametrize("command", ["mail", "rcpt", "data", "."])
def test_a_stall_past_the_limit(command: str, dump: Path) -> None:
    delivery = asyncio.run(_impatient(command, dump))
    assert set(kinds(delivery).values()) == {"ambiguous" if command == "." else "deferred"}


@pytest.mark.parametrize("fault", ["-q", "-Q", "-r", "-f"])
@pytest.mark.parametrize("command", ["connect", "ehlo"])
def test_a_fault_before_the_session_stands(fault: str, command: str, dump: Path) -> None:
    if command == "ehlo" and fault == "-f":
        # EHLO refused is HELO's turn, and that this sink understands.
        check(asyncio.run(_attempt(fault, command, dump=dump)), dump, "delivered")
        return
    with pytest.raises(HostFailure):
        asyncio.run(_attempt(fault, command, dump=dump))
