"""A delivery over one connection: real sockets, a host whose every reply the test decides."""

from __future__ import annotations

import asyncio

import pytest

from qrunner.smtp.client import SmtpDialer
from qrunner.smtp.session import Delivery
from qrunner.smtp.sink import EXTENSIONS, Sink
from qrunner.smtp.sinkserver import SinkServer
from tests.smtp.hosts import MESSAGE, Notes, config, deliver, kinds, saying, scripted

DIALER = SmtpDialer("client.example")


async def over_sink(sink: Sink, *to: str, notes: Notes | None = None, **more: object) -> Delivery:
    async with SinkServer(sink) as server:
        channel = await DIALER.dial(config(server.port))
        try:
            return await deliver(channel, *to, notes=notes, **more)
        finally:
            await channel.quit()


async def over_script(*replies: bytes | None, to: tuple[str, ...] = ("a@x",), **more: object) -> Delivery:
    async with scripted(saying([b"250 hello\r\n", *replies])) as port:
        channel = await DIALER.dial(config(port))
        try:
            return await deliver(channel, *to, **more)
        finally:
            channel.close()


def run(coroutine: object) -> Delivery:
    return asyncio.run(coroutine)  # type: ignore[arg-type]


def test_everybody_gets_it_once_and_it_is_written_down_in_order() -> None:
    sink, notes = Sink(), Notes()
    delivery = run(over_sink(sink, "a@x", "b@x", notes=notes))
    assert kinds(delivery) == {"a@x": "delivered", "b@x": "delivered"}
    assert notes.marked == [["a@x", "b@x"]]
    assert [one.address for one in notes.told] == ["a@x", "b@x"]
    (message,) = sink.messages
    assert message.recipients == ("a@x", "b@x")
    assert message.message == MESSAGE.replace(b"\n", b"\r\n") + b"\r\n"


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        ("250 ok", "delivered"),
        ("251 elsewhere", "delivered"),
        ("299 fine", "delivered"),
        ("451 4.3.0 later", "deferred"),
        ("421 bye", "deferred"),
        ("554 5.7.1 no", "failed"),
        ("354 what", "deferred"),
    ],
)
def test_the_final_reply_decides_by_its_class(reply: str, kind: str) -> None:
    sink = Sink()
    sink.reply(".", reply)
    delivery = run(over_sink(sink, "a@x"))
    assert kinds(delivery) == {"a@x": kind}
    assert delivery.slower is reply.startswith("421")


def test_each_recipient_has_its_own_reply() -> None:
    sink = Sink()
    sink.reply("RCPT TO:<b@x>", "451 4.2.0 grey")
    sink.reply("RCPT TO:<c@x>", "550 5.1.1 unknown")
    delivery = run(over_sink(sink, "a@x", "b@x", "c@x", "d@x"))
    assert kinds(delivery) == {"a@x": "delivered", "b@x": "deferred", "c@x": "failed", "d@x": "delivered"}
    assert delivery.outcomes["c@x"].status == "5.1.1"
    assert delivery.outcomes["c@x"].said


def test_when_all_are_refused_no_message_is_sent_and_the_session_goes_on() -> None:
    async def both() -> tuple[Delivery, Delivery]:
        async with SinkServer(sink) as server:
            channel = await DIALER.dial(config(server.port))
            first, second = await deliver(channel, "a@x"), await deliver(channel, "b@x")
            await channel.quit()
            return first, second

    sink = Sink()
    sink.reply("RCPT", "550 no")
    first, second = asyncio.run(both())
    assert (kinds(first), kinds(second)) == ({"a@x": "failed"}, {"b@x": "delivered"})
    assert [one.recipients for one in sink.messages] == [("b@x",)]
    assert sink.connections == 1


@pytest.mark.parametrize(("reply", "kind"), [("450 x", "deferred"), ("550 x", "failed")])
@pytest.mark.parametrize("offer", [EXTENSIONS, (*EXTENSIONS, "PIPELINING")])
def test_data_refused_concerns_those_who_were_accepted(reply: str, kind: str, offer: tuple[str, ...]) -> None:
    sink = Sink(extensions=offer)
    sink.reply("RCPT TO:<b@x>", "550 5.1.1 unknown")
    sink.reply("DATA", reply)
    assert kinds(run(over_sink(sink, "a@x", "b@x"))) == {"a@x": kind, "b@x": "failed"}
    assert not sink.messages


def test_a_host_that_takes_data_for_done_is_believed_in_nothing() -> None:
    sink = Sink()
    sink.reply("RCPT TO:<b@x>", "550 5.1.1 unknown")
    sink.reply("DATA", "250 x")
    assert kinds(run(over_sink(sink, "a@x", "b@x"))) == {"a@x": "deferred", "b@x": "deferred"}
    assert not sink.messages


def test_a_sender_refused_concerns_everybody() -> None:
    sink = Sink()
    sink.reply("MAIL", "553 5.1.8 who?")
    assert kinds(run(over_sink(sink, "a@x", "b@x"))) == {"a@x": "failed", "b@x": "failed"}


@pytest.mark.parametrize("reply", ["452 4.5.3 too many", "552 5.5.3 too many"])
def test_too_many_recipients_means_another_transaction_now(reply: str) -> None:
    sink = Sink()
    sink.reply("RCPT TO:<c@x>", reply)
    sink.reply("RCPT TO:<e@x>", reply)
    delivery = run(over_sink(sink, "a@x", "b@x", "c@x", "d@x", "e@x"))
    assert set(kinds(delivery).values()) == {"delivered"}
    assert [one.recipients for one in sink.messages] == [("a@x", "b@x"), ("c@x", "d@x"), ("e@x",)]
    assert sink.connections == 1


def test_too_many_with_nobody_accepted_is_an_answer() -> None:
    sink = Sink()
    sink.reply("RCPT", "452 4.2.2 full", times=None)
    assert kinds(run(over_sink(sink, "a@x", "b@x"))) == {"a@x": "deferred", "b@x": "deferred"}


def test_a_full_mailbox_is_a_hard_failure() -> None:
    sink = Sink()
    sink.reply("RCPT TO:<b@x>", "552 5.2.2 full")
    assert kinds(run(over_sink(sink, "a@x", "b@x"))) == {"a@x": "delivered", "b@x": "failed"}


def test_a_transaction_has_no_more_recipients_than_configured() -> None:
    sink = Sink()
    run(over_sink(sink, "a@x", "b@x", "c@x", max_recipients=2))
    assert [one.recipients for one in sink.messages] == [("a@x", "b@x"), ("c@x",)]


@pytest.mark.parametrize("stage", ["MAIL", "RCPT", "DATA"])
def test_a_connection_lost_before_the_end_leaves_no_doubt(stage: str) -> None:
    sink, notes = Sink(), Notes()
    sink.hang_up(after=stage)
    delivery = run(over_sink(sink, "a@x", "b@x", notes=notes))
    assert kinds(delivery) == {"a@x": "deferred", "b@x": "deferred"}
    assert delivery.lost
    assert not notes.marked


def test_replies_survive_the_connection() -> None:
    sink = Sink()
    sink.reply("RCPT TO:<a@x>", "550 5.1.1 unknown")
    sink.hang_up(after="RCPT TO:<c@x>")
    delivery = run(over_sink(sink, "a@x", "b@x", "c@x", "d@x"))
    assert kinds(delivery) == {"a@x": "failed", "b@x": "deferred", "c@x": "deferred", "d@x": "deferred"}


def test_a_final_reply_that_is_lost_leaves_a_doubt() -> None:
    sink, notes = Sink(), Notes()
    sink.reply("RCPT TO:<a@x>", "550 5.1.1 unknown")
    sink.hang_up(after=".")
    delivery = run(over_sink(sink, "a@x", "b@x", notes=notes))
    assert kinds(delivery) == {"a@x": "failed", "b@x": "ambiguous"}
    assert [(one.address, one.kind) for one in notes.told] == [("b@x", "ambiguous")]
    assert len(sink.messages) == 1


def test_a_final_reply_that_does_not_come_in_time_leaves_a_doubt() -> None:
    async def stalled() -> Delivery:
        replies = [b"250 hello\r\n", b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n", b""]
        async with scripted(saying(replies)) as port:
            channel = await DIALER.dial(config(port, final_timeout_s=0.05))
            return await deliver(channel, "a@x")

    delivery = asyncio.run(stalled())
    assert kinds(delivery) == {"a@x": "ambiguous"}
    assert "timed out" in delivery.outcomes["a@x"].text


def test_a_second_reply_is_never_taken_for_the_next_commands() -> None:
    # The 550 that belongs to the RCPT comes behind a reply too many to MAIL.
    delivery = run(over_script(b"250 ok\r\n250 once more\r\n", b"550 no\r\n", b"354 go\r\n", b"250 ok\r\n"))
    assert kinds(delivery) == {"a@x": "deferred"}
    assert delivery.lost


def test_a_second_final_reply_ends_the_session_and_not_the_delivery() -> None:
    async def talk() -> tuple[Delivery, bool]:
        replies = [b"250 hello\r\n", b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n", b"250 ok\r\n250 ok\r\n"]
        async with scripted(saying(replies)) as port:
            channel = await DIALER.dial(config(port))
            return await deliver(channel, "a@x"), channel.is_clean

    delivery, clean = asyncio.run(talk())
    assert kinds(delivery) == {"a@x": "delivered"}
    assert not clean


def test_a_reply_may_come_byte_by_byte() -> None:
    async def dribble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for reply in (
            b"220 hi\r\n",
            b"250-hello\r\n250 SIZE 9\r\n",
            b"250 ok\r\n",
            b"550-5.1.1 no\r\n550 5.1.1 one\r\n",
        ):
            for byte in reply:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0)
            await reader.readline()

    async def talk() -> Delivery:
        async with scripted(dribble) as port:
            return await deliver(await DIALER.dial(config(port)), "a@x", message=b"x")

    delivery = asyncio.run(talk())
    assert kinds(delivery) == {"a@x": "failed"}
    assert delivery.outcomes["a@x"].text == "550 5.1.1 no 5.1.1 one"


@pytest.mark.parametrize(
    "nonsense", [b"hello\r\n", b"99 x\r\n", b"\xff\xff\xff\r\n", b"777 x\r\n", b"250" + b"x" * 99_999]
)
def test_nonsense_instead_of_a_reply_is_a_lost_connection(nonsense: bytes) -> None:
    delivery = run(over_script(nonsense))
    assert kinds(delivery) == {"a@x": "deferred"}
    assert delivery.lost


def test_any_3xx_invites_the_message() -> None:
    sink = Sink()
    sink.reply("DATA", "351 go on")
    assert kinds(run(over_sink(sink, "a@x"))) == {"a@x": "delivered"}


def test_421_in_the_middle_defers_and_asks_for_less() -> None:
    sink = Sink()
    sink.reply("RCPT TO:<b@x>", "421 4.7.0 too fast")
    delivery = run(over_sink(sink, "a@x", "b@x", "c@x"))
    assert set(kinds(delivery).values()) == {"deferred"}
    assert delivery.slower
    assert not delivery.lost


def test_a_session_that_the_host_ended_while_it_waited_is_no_attempt() -> None:
    sink = Sink()
    sink.hang_up(after="MAIL")
    delivery = run(over_sink(sink, "a@x", reused=True))
    assert delivery.stale
    assert not delivery.outcomes
    sink.reply("MAIL", "421 4.4.2 timeout")
    delivery = run(over_sink(sink, "a@x", reused=True))
    assert delivery.stale


def test_addresses_that_could_inject_fail_alone() -> None:
    sink = Sink()
    delivery = run(over_sink(sink, "a@x", "b@x>\r\nRCPT TO:<victim@x"))
    assert list(kinds(delivery).values()) == ["failed", "delivered"]
    assert sink.messages[0].recipients == ("a@x",)


def test_a_host_without_smtputf8_gets_those_who_are_ascii() -> None:
    sink = Sink(extensions=("SIZE",))
    delivery = run(over_sink(sink, "a@x", "jürgen@x"))
    assert kinds(delivery) == {"jürgen@x": "failed", "a@x": "delivered"}
    assert delivery.outcomes["jürgen@x"].status == "5.6.7"
    assert kinds(run(over_sink(sink, "a@x", sender="ü@x"))) == {"a@x": "failed"}


def test_smtputf8_is_asked_for_when_an_address_needs_it() -> None:
    sink = Sink()
    run(over_sink(sink, "jürgen@x"))
    assert "SMTPUTF8" in sink.messages[0].lines[0]
    assert sink.messages[0].recipients == ("jürgen@x",)
    run(over_sink(sink, "a@x"))
    assert "SMTPUTF8" not in sink.messages[1].lines[0]


def test_a_host_without_8bitmime_gets_the_bytes_as_they_are() -> None:
    sink = Sink(extensions=())
    message = b"Subject: \xe4\r\n\r\n\xff\x00\r\n"
    run(over_sink(sink, "a@x", message=message))
    assert sink.messages[0].message == message
    assert sink.messages[0].lines[0] == "MAIL FROM:<s@example.org>"


def test_a_message_too_long_for_the_host_fails_without_being_sent() -> None:
    sink = Sink(extensions=("SIZE 10",))
    delivery = run(over_sink(sink, "a@x"))
    assert delivery.outcomes["a@x"].status == "5.3.4"
    assert not delivery.outcomes["a@x"].said
    assert not sink.messages


def test_a_host_that_knows_no_ehlo_is_asked_with_helo() -> None:
    sink = Sink()
    sink.reply("EHLO", "502 what", times=None)
    assert kinds(run(over_sink(sink, "a@x"))) == {"a@x": "delivered"}


def test_a_long_message_arrives_whole() -> None:
    sink = Sink()
    message = b"Subject: long\r\n\r\n" + b".dots and words\r\n" * 200_000
    run(over_sink(sink, "a@x", message=message))
    assert sink.messages[0].message == message


def test_a_mark_that_can_not_be_written_stops_the_end_of_the_message() -> None:
    sink, notes = Sink(), Notes()
    notes.refuses = OSError(28, "No space left on device")
    with pytest.raises(OSError, match="No space"):
        run(over_sink(sink, "a@x", notes=notes))
    assert not sink.messages
    assert not notes.told


async def _cancelled(at: str) -> tuple[Notes, list[bytes]]:
    """Cancels a delivery while the host keeps it waiting for the reply to a command."""
    reached = asyncio.Event()
    heard: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hi\r\n")
        for reply in (b"250 hello\r\n", b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"):
            heard.append(await reader.readline())
            if heard[-1].startswith(at.encode()):
                reached.set()
                await reader.read()
                return
            writer.write(reply)
        heard.append(await reader.readuntil(b"\r\n.\r\n"))
        reached.set()
        await reader.read()

    notes = Notes()
    async with scripted(script) as port:
        channel = await DIALER.dial(config(port))
        task = asyncio.ensure_future(deliver(channel, "a@x", notes=notes))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not channel.is_clean
    return notes, heard


def test_a_stop_before_the_end_leaves_no_trace() -> None:
    notes, _ = asyncio.run(_cancelled("DATA"))
    assert not notes.marked
    assert not notes.told


def test_a_stop_after_the_end_is_written_down_as_a_doubt() -> None:
    notes, _ = asyncio.run(_cancelled("never"))
    assert notes.marked == [["a@x"]]
    assert [one.kind for one in notes.told] == ["ambiguous"]
