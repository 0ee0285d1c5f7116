"""The door `lmtp`, from a client's first byte to the queue."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gzip
import logging
import random
import socket
import struct
from collections import Counter
from pathlib import Path

import pytest

from qrunner.errors import PermanentFailure, QueueError, TemporaryFailure
from qrunner.fate import Done, Fate
from qrunner.message import Entry, Recipient
from tests.documents import ROOT
from tests.driving import until
from tests.runners.doors import DOOR, SITE, Client, OpenDoor, kinds, open_door, stuffed, without_trace

MESSAGE = b"Subject: hello\r\n\r\nworld\r\n"
# Odd real mail, where there is some beside the checkout.
REAL = sorted((ROOT.parent / "shared" / "mail").rglob("*.gz"))
CORPUS = sorted((ROOT / "tests" / "corpus").glob("*.eml"))


def refuse(entry: Entry) -> Entry:
    raise PermanentFailure("we do not\r\nwant it", status="5.7.1")


def wait(entry: Entry) -> Entry:
    raise TemporaryFailure("not now", status="5.0.0")


def bug(entry: Entry) -> Entry:
    raise KeyError("/a/secret/path")


def drop(entry: Entry) -> Fate:
    return Done("nobody needs it")


def full(entry: Entry) -> Entry:
    raise QueueError("queue in: no space") from OSError(errno.ENOSPC, "no space")


async def test_a_message_comes_in(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        (reply,) = await door.deliver(stuffed(MESSAGE), "bob@lists.example.org")
        (entry,) = door.entries()
    assert reply == f"250 2.0.0 taken as {entry.id}"
    assert (entry.sender, entry.recipients) == ("ann@a.example", ("bob@lists.example.org",))
    assert without_trace(entry.message) == MESSAGE
    assert entry.meta == {"source": "door"}


async def test_the_envelope_has_all_that_was_said(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        client = await door.client()
        await client.say("LHLO client.example")
        await client.say("MAIL FROM:<> BODY=8BITMIME RET=HDRS ENVID=QQ SIZE=100")
        await client.say('RCPT TO:<"bob smith"@x> NOTIFY=NEVER ORCPT=rfc822;bob+40x')
        await client.say("DATA")
        await client.send(stuffed(MESSAGE))
        assert kinds(await client.replies(1)) == ["250 2.0.0"]
        (entry,) = door.entries()
    envelope = entry.envelope
    assert envelope.recipients == (Recipient('"bob smith"@x', "NEVER", "rfc822;bob+40x"),)
    assert (envelope.sender, envelope.body, envelope.ret, envelope.envid) == ("", "8BITMIME", "HDRS", "QQ")


async def test_a_route_splits_a_message_and_all_recipients_hear_the_same(tmp_path: Path) -> None:
    async with open_door(tmp_path, door=DOOR.replace('"in"', '"split"')) as door:
        said = await door.deliver(stuffed(MESSAGE), "a@lists.example.org", "b@other.example")
        assert len(set(said)) == 1
        assert said[0].endswith(" and 1 more")
        assert [entry.recipients for entry in door.entries()] == [("a@lists.example.org",)]
        assert [entry.recipients for entry in door.entries("other")] == [("b@other.example",)]


@pytest.mark.parametrize(
    ("handler", "reply", "count"),
    [
        ("refuse", r"554 5.7.1 we do not\r\nwant it", 0),
        ("wait", "451 4.0.0 not now", 0),
        ("bug", "451 4.3.0 not taken, for now: try again later", 0),
        ("full", "452 4.3.1 there is no room: try again later", 0),
        ("drop", "250 2.0.0 taken", 0),
    ],
)
async def test_what_a_handler_decides_is_said_to_every_recipient(
    tmp_path: Path, handler: str, reply: str, count: int
) -> None:
    async with open_door(tmp_path, f'handlers = ["{__name__}:{handler}"]') as door:
        assert await door.deliver(stuffed(MESSAGE), "a@x", "b@x", "c@x") == [reply] * 3
        assert len(door.entries()) == count


async def test_smtp_answers_once_for_all(tmp_path: Path) -> None:
    async with open_door(tmp_path, 'protocol = "smtp"') as door:
        client = await door.client()
        await client.begin("a@x", "b@x", hello="EHLO")
        await client.send(stuffed(MESSAGE))
        assert (await client.reply()).startswith("250 2.0.0 taken")
        assert kinds([await client.say("QUIT")]) == ["221 2.0.0"]
        assert await client.rest() == ""
        assert [entry.recipients for entry in door.entries()] == [("a@x", "b@x")]


# Whom it is for


async def said_to(door_keys: str, folder: Path, *recipients: str) -> list[str]:
    async with open_door(folder, door_keys) as door:
        client = await door.client()
        await client.say("LHLO me")
        await client.say("MAIL FROM:<>")
        return kinds([await client.say(f"RCPT TO:<{recipient}>") for recipient in recipients])


async def test_whom_accept_does_not_name_is_refused(tmp_path: Path) -> None:
    keys = r'accept = ["*@lists.example.org", "/^bounce-\\d+@/", "postmaster"]'
    told = await said_to(
        keys,
        tmp_path,
        "any@LISTS.example.org",
        "bounce-7@x",
        "Postmaster",
        "any@example.org",
        "any@lists.example.org.evil.example",
        "bounce-x@x",
        "root",
    )
    assert told == ["250 2.1.5"] * 3 + ["550 5.1.1"] * 4


async def test_a_way_on_to_somebody_else_is_not_meant(tmp_path: Path) -> None:
    """An MTA behind us that trusts us might go it."""
    ways = ["x%evil.example@here.example", "evil.example!x@here.example", '"x@evil.example"@here.example']
    assert await said_to('accept = "*@here.example"', tmp_path, *ways) == ["550 5.1.1"] * 3
    meant = 'accept = ["*%*@here.example", "*!*@here.example", "*@*@here.example"]'
    assert await said_to(meant, tmp_path, *ways) == ["250 2.1.5"] * 3
    assert await said_to('accept = "*"', tmp_path, *ways) == ["250 2.1.5"] * 3


async def test_a_source_route_is_not_a_way_around_accept(tmp_path: Path) -> None:
    said = await said_to('accept = "*@here.example"', tmp_path, "@here.example:x@evil.example")
    assert said == ["550 5.1.1"]


# Byte for byte


async def test_odd_messages_come_in_byte_for_byte(tmp_path: Path) -> None:
    """As they stand, so also with line ends that are none; a last line is always ended."""
    taken: Counter[bytes] = Counter()
    async with open_door(tmp_path) as door:
        for path in CORPUS:
            message = path.read_bytes()
            wire = message if message.endswith(b"\r\n") or not message else message + b"\r\n"
            assert kinds(await door.deliver(stuffed(wire), "bob@x")) == ["250 2.0.0"], path.name
            assert Counter(door.messages()) - taken == Counter([wire]), path.name
            taken[wire] += 1
        assert Counter(door.messages()) == taken


async def test_real_mail_comes_in_byte_for_byte(tmp_path: Path) -> None:
    messages = [_on_the_wire(gzip.decompress(path.read_bytes())) for path in REAL]
    async with open_door(tmp_path) as door:
        for message in messages:
            assert kinds(await door.deliver(stuffed(message), "bob@x")) == ["250 2.0.0"]
        assert sorted(door.messages()) == sorted(messages)


def _on_the_wire(message: bytes) -> bytes:
    wire = message.replace(b"\n", b"\r\n")
    return wire if wire.endswith(b"\r\n") else wire + b"\r\n"


async def test_large_messages_come_in_byte_for_byte(tmp_path: Path) -> None:
    message = b"".join(b"." * (number % 5) + b"%d\r\n" % number for number in range(400_000))
    async with open_door(tmp_path) as door:
        assert kinds(await door.deliver(stuffed(message), "bob@x")) == ["250 2.0.0"]
        assert door.messages() == [message]


# What goes wrong


async def test_a_message_that_was_not_ended_is_not_taken(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        for end in (b"", b"\r\n", b"\r\n.", b"\r\n.\r"):
            client = await door.client()
            await client.begin("bob@x")
            await client.send(MESSAGE + b"x" + end)
            client.writer.write_eof()
            assert await client.rest() == ""
        assert door.entries() == []


async def test_who_has_said_everything_and_only_listens_is_answered(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        client = await door.client()
        lines = b"LHLO me\r\nMAIL FROM:<a@x>\r\nRCPT TO:<b@x>\r\nRCPT TO:<c@x>\r\nDATA\r\n"
        await client.send(lines + stuffed(MESSAGE))
        client.writer.write_eof()
        replies = (await client.rest()).splitlines()
        assert [reply[:9] for reply in replies[-3:]] == ["354 end i", "250 2.0.0", "250 2.0.0"]
        assert len(door.entries()) == 1


async def test_what_is_too_large_is_refused_for_every_recipient_and_the_talk_goes_on(tmp_path: Path) -> None:
    async with open_door(tmp_path, 'max_size = "100K"') as door:
        client = await door.client()
        await client.begin("a@x", "b@x")
        await client.send((b"x" * 70 + b"\r\n") * 100_000 + b".\r\n")
        assert kinds(await client.replies(2)) == ["552 5.3.4"] * 2
        assert kinds([await client.say("NOOP")]) == ["250 2.0.0"]
        assert door.entries() == []


async def test_what_all_sessions_hold_is_bounded(tmp_path: Path) -> None:
    """One that comes alone may be as large as it likes."""
    async with open_door(tmp_path, 'max_memory = "1M"') as door:
        first, second = await door.client(), await door.client()
        large = b"".join([b"x" * 70 + b"\r\n"] * 14_000)
        await first.begin("a@x")
        await first.send(large)
        await until(lambda: door.runner.room.held > 900_000)
        await second.begin("b@x", "c@x")
        await second.send(large + b".\r\n")
        assert kinds(await second.replies(2)) == ["452 4.3.1"] * 2
        await first.send(large + b".\r\n")
        assert kinds(await first.replies(1)) == ["250 2.0.0"]
        assert door.messages() == [large * 2]
        assert door.runner.room.held == 0


async def test_more_connections_than_there_may_be_are_turned_away(tmp_path: Path) -> None:
    async with open_door(tmp_path, "max_connections = 2") as door:
        first, _ = await door.client(), await door.client()
        third = await door.connected()
        assert (await third.rest()).startswith("421 4.7.0 ")
        await first.say("QUIT")
        await first.rest()
        await until(lambda: not door.runner.room.is_full)
        assert kinds([await (await door.client()).say("NOOP")]) == ["250 2.0.0"]


async def test_who_says_nothing_is_sent_away(tmp_path: Path) -> None:
    async with open_door(tmp_path, 'idle_timeout = "100ms"') as door:
        client = await door.client()
        assert (await client.rest()).startswith("421 4.4.2 ")


@pytest.mark.parametrize("begin", [[], ["b@x"]], ids=["command", "message"])
async def test_who_says_a_byte_now_and_then_is_sent_away(tmp_path: Path, begin: list[str]) -> None:
    async with open_door(tmp_path, 'idle_timeout = "500ms"') as door:
        client = await door.client()
        if begin:
            await client.begin(*begin)

        async def drip() -> None:
            with contextlib.suppress(OSError):
                while True:
                    await client.send(b"x")
                    await asyncio.sleep(0.01)

        dripping = asyncio.create_task(drip())
        assert (await client.rest()).startswith("421 4.4.2 ")
        dripping.cancel()
        await until(lambda: not door.runner.room.guests)
        assert door.entries() == []


async def test_who_does_not_listen_is_not_listened_to(tmp_path: Path) -> None:
    """And in the end he is let go, though nothing that is said to him gets through."""
    place = DOOR.replace("127.0.0.1:0", "unix:../var/door")
    async with open_door(tmp_path, 'idle_timeout = "300ms"\nmax_recipients = 100000000', door=place) as door:
        client = await door.client()
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await client.send(b"LHLO me\r\nMAIL FROM:<>\r\n")

        async def chatter() -> None:
            with contextlib.suppress(OSError):
                while True:
                    await client.send(b"RCPT TO:<a@x>\r\n" * 1000)

        talking = asyncio.create_task(chatter())
        await until(lambda: not door.runner.room.guests)
        talking.cancel()


async def test_a_client_that_leaves_while_its_message_is_taken_leaves_it_with_us(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_door(tmp_path) as door:
        take, may_go_on = door.engine._enqueued, asyncio.Event()

        async def slow(adds: object) -> tuple[str, ...]:
            await may_go_on.wait()
            return await take(adds)  # type: ignore[arg-type]

        monkeypatch.setattr(door.engine, "_enqueued", slow)
        client = await door.client()
        await client.begin("bob@x")
        await client.send(stuffed(MESSAGE))
        await until(lambda: door.engine.in_hand == 1)
        plug = client.writer.get_extra_info("socket")
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.writer.transport.abort()
        await until(lambda: not door.runner.room.guests)
        with caplog.at_level(logging.INFO):
            may_go_on.set()
            await until(lambda: len(door.entries()) == 1)
            await until(lambda: "accepted" in caplog.text)


async def test_a_disk_that_cannot_be_written_puts_mail_off_and_status_says_why(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        (tmp_path / "qfiles" / "in").rename(tmp_path / "qfiles" / "away")
        assert kinds(await door.deliver(stuffed(MESSAGE), "a@x", "b@x")) == ["451 4.3.0"] * 2
        assert door.engine.state == "waiting"
        (tmp_path / "qfiles" / "away").rename(tmp_path / "qfiles" / "in")
        assert kinds(await door.deliver(stuffed(MESSAGE), "a@x")) == ["250 2.0.0"]
        assert door.engine.state == "running"


async def test_without_min_free_nothing_is_taken(tmp_path: Path) -> None:
    site = SITE.replace('min_free = "0"', 'min_free = "100000G"')
    async with open_door(tmp_path, site=site) as door:
        (reply,) = await door.deliver(stuffed(MESSAGE), "a@x")
        assert reply.startswith("45")
        assert str(tmp_path) not in reply


async def test_a_suspended_door_takes_no_senders_and_goes_on_when_resumed(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        client = await door.client()
        await client.begin("bob@x")
        door.site.suspensions.suspend(("runner", "door"), reason="secret")
        await client.send(stuffed(MESSAGE))
        assert kinds(await client.replies(1)) == ["250 2.0.0"]
        reply = await client.say("MAIL FROM:<>")
        assert kinds([reply]) == ["451 4.3.2"]
        assert "secret" not in reply
        door.site.suspensions.resume(("runner", "door"))
        assert kinds([await client.say("MAIL FROM:<>")]) == ["250 2.1.0"]


async def test_what_was_not_taken_stands_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        async with open_door(tmp_path, f'accept = "*@x"\nhandlers = ["{__name__}:refuse"]') as door:
            await said(await door.client(), "bob@x", "eve@y")
    told = [record.fields for record in caplog.records if record.getMessage() == "refused"]  # type: ignore[attr-defined]
    assert [(one["to"], one["sender"], one["peer"]) for one in told] == [
        (["eve@y"], "ann@a.example", "127.0.0.1"),
        (["bob@x"], "ann@a.example", "127.0.0.1"),
    ]


async def said(client: Client, *recipients: str) -> None:
    await client.begin(*recipients)
    await client.send(stuffed(MESSAGE))
    await client.reply()
    client.close()


def rubbish(dice: random.Random) -> bytes:
    """What a client might say that is broken, hostile, or a cat."""
    lines = [
        b"LHLO me\r\n",
        b"MAIL FROM:<a@x>\r\n",
        b"RCPT TO:<b@x>\r\n",
        b"DATA\r\n",
        b"RSET\r\n",
        b"\r\n",
        b"\n.\n",
    ]
    parts = [
        dice.choice(lines) if dice.random() < 0.8 else dice.randbytes(dice.randrange(40)) for _ in range(30)
    ]
    return b"".join(parts).replace(b"\r\n.\r\n", b"")


async def test_rubbish_harms_nobody_and_nothing_comes_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Half of them leave without a word, the others listen to the end."""

    async def rave(door: OpenDoor, dice: random.Random) -> None:
        client = await door.client()
        with contextlib.suppress(OSError):
            await client.send(rubbish(dice))
            if dice.random() < 0.5:
                client.writer.transport.abort()
                return
            client.writer.write_eof()
            async with asyncio.timeout(20):
                replies = (await client.reader.read()).decode("ascii")
            assert all(line[:3].isdigit() for line in replies.split("\r\n")[:-1])
        client.close()

    async with open_door(tmp_path) as door:
        for turn in range(10):
            await asyncio.gather(*(rave(door, random.Random(f"{turn} {number}")) for number in range(50)))
        await until(lambda: not door.runner.room.guests)
        assert (door.runner.room.held, door.entries()) == (0, [])
        assert kinds(await door.deliver(stuffed(MESSAGE), "a@x")) == ["250 2.0.0"]
    assert "failed" not in caplog.text
    assert "exception" not in caplog.text.lower()


# The end


async def test_a_stop_lets_a_message_come_to_its_end(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        idle, busy = await door.client(), await door.client()
        await busy.begin("bob@x")
        await busy.send(MESSAGE)
        door.engine.stop()
        assert (await idle.rest()).startswith("421 4.3.2 ")
        with pytest.raises(ConnectionRefusedError):
            await door.connected()
        await busy.send(b".\r\n")
        assert kinds(await busy.replies(2)) == ["250 2.0.0", "421 4.3.2"]
        assert await busy.rest() == ""
        assert len(door.entries()) == 1
        await until(lambda: door.engine.state == "stopped")


async def test_a_message_that_does_not_come_to_its_end_within_grace_is_not_taken(tmp_path: Path) -> None:
    async with open_door(tmp_path, 'grace = "200ms"') as door:
        client = await door.client()
        await client.begin("bob@x")
        await client.send(MESSAGE)
        door.engine.stop()
        with contextlib.suppress(ConnectionResetError):
            assert await client.rest() == ""
        await until(lambda: door.engine.state == "stopped")
        assert door.entries() == []


async def test_once_ends_at_once(tmp_path: Path) -> None:
    async with open_door(tmp_path) as door:
        await asyncio.wait_for(door.runner.catch_up(), 5)
