"""The sink that plays a host, in this process and behind a port."""

from __future__ import annotations

import asyncio
import json
import smtplib
import subprocess
import sys
from unittest.mock import patch

import pytest

from qrunner.config import HostConfig
from qrunner.smtp.channel import HostFailure
from qrunner.smtp.client import SmtpDialer
from qrunner.smtp.session import Delivery
from qrunner.smtp.sink import Sink, SinkChannel, SinkDialer
from qrunner.smtp.sinkserver import SinkServer
from tests.smtp.hosts import MESSAGE, config, deliver, free_port, kinds

HOST = HostConfig("h", host="h")


async def _send(sink: Sink, *to: str, port: int | None = None) -> Delivery:
    dialer = SinkDialer({"h": sink}) if port is None else SmtpDialer("c.example")
    channel = await dialer.dial(HOST if port is None else config(port))
    try:
        return await deliver(channel, *to)
    finally:
        await channel.quit()


async def over_port(sink: Sink, *to: str) -> Delivery:
    async with SinkServer(sink) as server:
        return await _send(sink, *to, port=server.port)


async def in_process(sink: Sink, *to: str) -> Delivery:
    return await _send(sink, *to)


BOTH = pytest.mark.parametrize("way", [over_port, in_process])


def test_a_sink_in_this_process_keeps_the_message_as_it_was() -> None:
    sink = Sink()
    asyncio.run(in_process(sink, "a@x"))
    (kept,) = sink.messages
    assert (kept.sender, kept.recipients, kept.message) == ("s@example.org", ("a@x",), MESSAGE)


@BOTH
def test_a_reply_is_given_as_often_as_it_was_asked_for(way: object) -> None:
    sink = Sink()
    sink.reply("RCPT", "451 4.7.1 later", times=1)
    sink.reply("RCPT TO:<b", "550 no", times=None)
    assert kinds(asyncio.run(way(sink, "a@x", "c@x", "b1@x", "b2@x"))) == {  # type: ignore[operator]
        "a@x": "deferred",
        "c@x": "delivered",
        "b1@x": "failed",
        "b2@x": "failed",
    }


@BOTH
@pytest.mark.parametrize(
    ("after", "kind", "kept"), [("MAIL", "deferred", 0), ("DATA", "deferred", 0), (".", "ambiguous", 1)]
)
def test_a_hang_up_takes_the_place_of_a_reply(way: object, after: str, kind: str, kept: int) -> None:
    sink = Sink()
    sink.hang_up(after=after)
    assert kinds(asyncio.run(way(sink, "a@x"))) == {"a@x": kind}  # type: ignore[operator]
    assert len(sink.messages) == kept
    assert kinds(asyncio.run(way(sink, "a@x"))) == {"a@x": "delivered"}  # type: ignore[operator]


@BOTH
def test_a_sink_that_is_down_takes_nothing(way: object) -> None:
    sink = Sink()
    sink.down = True
    with pytest.raises(HostFailure):
        asyncio.run(way(sink, "a@x"))  # type: ignore[operator]
    sink.behave()
    asyncio.run(way(sink, "a@x"))  # type: ignore[operator]


def test_a_sink_that_goes_down_breaks_what_is_open() -> None:
    sink = Sink()
    channel = SinkChannel(sink)
    channel.greet()
    sink.down = True
    assert not channel.is_clean
    assert kinds(asyncio.run(deliver(channel, "a@x"))) == {"a@x": "deferred"}


def test_a_reply_that_is_none_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="later"):
        Sink().reply("RCPT", "later")


def test_the_program_tells_of_each_message_in_a_line() -> None:
    port = free_port()
    command = [sys.executable, "-m", "qrunner.smtp.sinkserver", f"127.0.0.1:{port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            client = _client(port)
            client.sendmail("s@x", ["a@x", '"b c"@x'], b"Subject: x\r\n\r\n.\xff\r\n")
            client.quit()
            assert process.stdout is not None
            told = json.loads(process.stdout.readline())
        finally:
            process.terminate()
    assert told["sink"] == f"127.0.0.1:{port}"
    assert (told["sender"], told["recipients"]) == ("s@x", ["a@x", '"b c"@x'])
    assert told["message"].encode("latin-1") == b"Subject: x\r\n\r\n.\xff\r\n"


def _client(port: int) -> smtplib.SMTP:
    for _ in range(2000):
        try:
            return smtplib.SMTP("127.0.0.1", port, timeout=10)
        except ConnectionRefusedError:
            asyncio.run(asyncio.sleep(0.01))
    raise AssertionError("the program does not listen")


def test_without_a_place_the_program_says_what_it_wants() -> None:
    command = [sys.executable, "-m", "qrunner.smtp.sinkserver"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage" in done.stderr


def test_a_server_that_is_broken_off_has_not_taken_what_it_had_only_read() -> None:
    sink, feed = Sink(), asyncio.StreamReader.feed_data

    async def test() -> None:
        async with SinkServer(sink) as server:

            def breaks_off(reader: asyncio.StreamReader, data: bytes) -> None:
                feed(reader, data)
                if data.endswith(b"\r\n.\r\n"):
                    for writer in server._talks:
                        writer.transport.abort()

            with patch.object(asyncio.StreamReader, "feed_data", breaks_off):
                delivery = await _send(sink, "a@x", port=server.port)
        assert kinds(delivery) == {"a@x": "ambiguous"}

    asyncio.run(test())
    assert sink.messages == []
