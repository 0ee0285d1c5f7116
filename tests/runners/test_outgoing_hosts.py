"""Hosts that no SMTP server would be: each byte that they say is the test's; from the queue to the end of it all."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.runners.live import RUNNER, Live, host, lines, live
from tests.smtp.hosts import scripted

EHLO = b"250-hi\r\n250-8BITMIME\r\n250-DSN\r\n250 SIZE 0\r\n"
USUAL = {b"EHLO": EHLO, b"DATA": b"354 go on\r\n", b"QUIT": b"221 bye\r\n"}
SHORT = (
    'greeting_timeout = "500ms"\ncommand_timeout = "500ms"\ndata_timeout = "500ms"\nfinal_timeout = "500ms"'
)

TOGETHER = EHLO.replace(b"250-DSN", b"250-DSN\r\n250-PIPELINING")


@pytest.fixture(autouse=True, params=[EHLO, TOGETHER], ids=["one by one", "together"])
def offer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """What hosts offer that say nothing else: each test is one for either."""
    monkeypatch.setitem(USUAL, b"EHLO", request.param)
    return bytes(request.param)


Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter
Say = Callable[[Writer, bytes], Awaitable[None]]


async def at_once(writer: Writer, reply: bytes) -> None:
    writer.write(reply)


async def byte_by_byte(writer: Writer, reply: bytes) -> None:
    """Each in a segment of its own."""
    for byte in reply:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.001)


@dataclass
class Host:
    """A host that behaves, but for what it is told to say.

    :param says: by what a line begins with, the replies to the first such lines; None hangs up. ``CONNECT`` is the
        greeting, ``.`` the end of a message.
    :param most: recipients of one message; those beyond hear 452.
    """

    says: Mapping[bytes, Sequence[bytes | None]] = field(default_factory=dict)
    say: Say = at_once
    context: ssl.SSLContext | None = None
    most: int = 1_000
    connections: int = 0
    heard: list[bytes] = field(default_factory=list)
    taken: list[tuple[tuple[bytes, ...], bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._left = {line: list(replies) for line, replies in self.says.items()}

    async def serve(self, reader: Reader, writer: Writer) -> None:
        self.connections += 1
        to: list[bytes] = []
        if not await self._answers(writer, b"CONNECT", b"220 hi\r\n"):
            return
        while line := await reader.readline():
            self.heard.append(line)
            verb = line.split()[0].upper()
            usual = USUAL.get(verb, b"250 ok\r\n")
            if verb == b"RCPT" and len(to) >= self.most:
                usual = b"452 4.5.3 too many\r\n"
            if verb == b"DATA" and not to:
                usual = b"503 5.5.1 nobody\r\n"
            if not await self._answers(writer, line, usual) or verb == b"QUIT":
                return
            if verb == b"STARTTLS" and self.context is not None:
                await writer.drain()
                await writer.start_tls(self.context)
            if verb == b"RCPT" and self.last.startswith(b"2"):
                to.append(line.partition(b"<")[2].partition(b">")[0])
            elif verb == b"DATA" and self.last.startswith(b"3"):
                message = await _message(reader)
                reply = self._reply(b".", b"250 taken\r\n")
                if (reply or b"").startswith(b"2"):
                    self.taken.append((tuple(to), message))
                to = []
                if not await self._says(writer, reply):
                    return

    async def _answers(self, writer: Writer, line: bytes, usual: bytes) -> bool:
        return await self._says(writer, self._reply(line, usual))

    def _reply(self, line: bytes, usual: bytes) -> bytes | None:
        replies = next((left for start, left in self._left.items() if left and line.startswith(start)), [])
        return replies.pop(0) if replies else usual

    async def _says(self, writer: Writer, reply: bytes | None) -> bool:
        self.last = reply or b""
        if reply is not None:
            await self.say(writer, reply)
        return reply is not None

    @property
    def got(self) -> list[tuple[bytes, ...]]:
        return [to for to, _ in self.taken]


async def _message(reader: Reader) -> bytes:
    """Up to the dot, which is not included; its lines may be of any length."""
    text = b"\r\n"
    while not text.endswith(b"\r\n.\r\n"):
        part = await reader.read(1 << 20)
        if not part:
            raise asyncio.IncompleteReadError(text, None)
        text += part
    return text[2:-3]


def run(
    test: Callable[[Live], Awaitable[None]],
    one: Host | Callable[[Reader, Writer], Awaitable[None]],
    more: str = "",
) -> None:
    """A test at a site whose only host is this one."""

    async def whole() -> None:
        async with (
            scripted(one.serve if isinstance(one, Host) else one) as port,
            live(host(port, more) + RUNNER) as site,
        ):
            await test(site)

    asyncio.run(whole())


def reported(site: Live) -> list[bytes]:
    found = [line for report in site.reports for line in report.message.splitlines()]
    return [line.split(b";")[1].strip() for line in found if line.startswith(b"Final-Recipient:")]


# Replies


def test_each_of_four_has_the_reply_that_was_its_own() -> None:
    one = Host({b"RCPT TO:<b": [b"451 4.7.1 grey\r\n"], b"RCPT TO:<c": [b"550 5.1.1 unknown\r\n"]})

    async def test(site: Live) -> None:
        site.send("a@x", "b@x", "c@x", "d@x")
        await site.settle()
        assert one.got == [(b"a@x", b"d@x")]
        assert [entry.recipients for entry in site.entries()] == [("b@x",)]
        assert reported(site) == [b"c@x"]
        await site.until_empty()
        assert one.got == [(b"a@x", b"d@x"), (b"b@x",)]
        assert reported(site) == [b"c@x"]

    run(test, one)


def test_replies_that_are_unusual_are_taken_by_their_class() -> None:
    one = Host(
        {
            b"MAIL": [b"259 ok\r\n"],
            b"RCPT": [b"252 will try\r\n"],
            b"DATA": [b"351 go\r\n"],
            b".": [b"251 ok\r\n"],
        }
    )

    async def test(site: Live) -> None:
        site.send("a@x")
        await site.settle()
        assert one.got == [(b"a@x",)]
        assert not site.entries()

    run(test, one)


def test_a_whole_session_may_come_byte_by_byte() -> None:
    one = Host({b"RCPT TO:<b": [b"550-5.1.1 no\r\n550-5.1.1 such\r\n550 5.1.1 user\r\n"]}, byte_by_byte)

    async def test(site: Live) -> None:
        site.send("a@x", "b@x")
        site.send("c@x")
        await site.settle()
        assert sorted(one.got) == [(b"a@x",), (b"c@x",)]
        assert reported(site) == [b"b@x"]
        assert not site.entries()

    run(test, one, "max_connections = 1")


@pytest.mark.parametrize("at", [b"CONNECT", b"EHLO", b"MAIL", b"RCPT TO:<a", b"RCPT TO:<b", b"DATA", b"."])
@pytest.mark.parametrize("extra", [b"250 ok\r\n", b"550 no\r\n", b"354 go\r\n", b"250", b"\r\n"])
def test_a_second_reply_in_the_same_segment_moves_no_reply_to_another(at: bytes, extra: bytes) -> None:
    usual = {b"CONNECT": b"220 hi\r\n", **USUAL}.get(at, b"250 ok\r\n")
    # Who is refused is refused in every session, whatever was said before.
    one = Host(
        {at: [usual + extra], b"RCPT TO:<b": [b"550 5.1.1 unknown\r\n"] * 3}
        if at != b"RCPT TO:<b"
        else {at: [b"550 5.1.1 unknown\r\n" + extra, b"550 5.1.1 unknown\r\n"]}
    )

    async def test(site: Live) -> None:
        site.send("a@x", "b@x", "c@x")
        await site.until_empty()
        assert sorted(reported(site)) == [b"b@x"]
        assert one.got == [(b"a@x", b"c@x")]

    run(test, one)


def test_where_three_fit_into_a_transaction_seven_go_in_three() -> None:
    one = Host(most=3)

    async def test(site: Live) -> None:
        site.send(*(f"{name}@x" for name in "abcdefg"))
        await site.settle()
        assert [len(to) for to in one.got] == [3, 3, 1]
        assert not site.entries()
        assert one.connections == 1

    run(test, one)


# Several commands at once


async def in_pieces(writer: Writer, reply: bytes) -> None:
    """What comes after the first line end in a segment of its own, later than all that is under way."""
    first, ending, more = reply.partition(b"\r\n")
    writer.write(first + ending)
    if more:
        await asyncio.sleep(0.01)
        writer.write(more)


@pytest.mark.parametrize("at", [b"EHLO", b"MAIL", b"RCPT TO:<a", b"RCPT TO:<b", b"RCPT TO:<c"])
@pytest.mark.parametrize("extra", [b"250 ok\r\n", b"550 no\r\n", b"452 4.5.3 no\r\n", b"503 no\r\n"])
@pytest.mark.parametrize("say", [at_once, in_pieces])
@pytest.mark.parametrize("all_refused", [False, True], ids=["", "all refused"])
def test_a_reply_too_many_has_nobody_called_refused_who_was_not(
    at: bytes, extra: bytes, say: Say, all_refused: bool, offer: bytes
) -> None:
    if all_refused and offer is not TOGETHER and say is in_pieces:
        # Asked one thing at a time a host may answer RSET as it likes, so that nothing shows what it meant.
        return
    says = {b"RCPT TO:<b": [b"550 5.1.1 unknown\r\n"] * 9}
    if all_refused:
        says |= {b"RCPT TO:<c": [b"451 4.7.1 grey\r\n"] * 2, b"RCPT TO:<a": [b"451 4.7.1 grey\r\n"] * 2}
    usual = {b"EHLO": USUAL[b"EHLO"]}.get(at, says.get(at, [b"250 ok\r\n"])[0])
    says[at] = [usual + extra, *says.get(at, [])[1:]]
    one = Host(says, say)

    async def test(site: Live) -> None:
        site.send("a@x", "b@x", "c@x")
        await site.until_empty()
        assert reported(site) == [b"b@x"]
        assert sorted(to for tos in one.got for to in tos) == [b"a@x", b"c@x"]

    run(test, one)


@dataclass
class Collector:
    """A host that reads on until it hears DATA, and then answers everything in one segment; later it behaves."""

    replies: Sequence[bytes]
    then: Host = field(default_factory=Host)
    heard: list[bytes] = field(default_factory=list)

    async def serve(self, reader: Reader, writer: Writer) -> None:
        if self.heard:
            await self.then.serve(reader, writer)
            return
        writer.write(b"220 hi\r\n")
        await reader.readline()
        writer.write(TOGETHER)
        while not self.heard or not self.heard[-1].startswith(b"DATA"):
            self.heard.append(await reader.readline())
        writer.write(b"".join(self.replies))
        await writer.drain()
        self.heard += [line async for line in reader]


def test_what_a_host_answers_in_one_segment_is_taken_apart() -> None:
    one = Collector([b"250 ok\r\n", b"451 4.7.1 grey\r\n", b"550 5.1.1 no\r\n", b"250 ok\r\n", b"354 go\r\n"])

    async def test(site: Live) -> None:
        site.send("a@x", "b@x", "c@x")
        task = asyncio.ensure_future(site.settle())
        while not one.heard or one.heard[-1] != b".\r\n":
            await asyncio.sleep(0.001)
        site.engines["out"].cut_short()
        await task
        (entry,) = site.entries()
        assert [line["to"] for line in lines(entry, "sending")] == [["c@x"]]

    run(test, one.serve, SHORT)


def test_a_host_that_wants_a_message_for_nobody_gets_none() -> None:
    no = b"550 5.1.1 no\r\n"
    one = Host({b"RCPT TO:<a": [no], b"RCPT TO:<b": [no], b"DATA": [b"354 go\r\n"]})

    async def test(site: Live) -> None:
        site.send("a@x", "b@x")
        site.send("c@x")
        await site.settle()
        assert sorted(reported(site)) == [b"a@x", b"b@x"]
        assert [to for to, message in one.taken if message] == [(b"c@x",)]
        assert {message for to, message in one.taken if not to} <= {b""}
        assert not site.entries()
        assert one.connections == 1

    run(test, one, "max_connections = 1")


@pytest.mark.parametrize("start", [b"354 go\r\n", b"503 5.5.1 no\r\n", b"421 4.3.2 bye\r\n"])
def test_a_refused_sender_is_reported_and_no_message_goes_out(start: bytes) -> None:
    one = Host({b"MAIL": [b"550 5.7.1 not you\r\n"], b"DATA": [start]})

    async def test(site: Live) -> None:
        site.send("a@x", "b@x")
        await site.settle()
        assert sorted(reported(site)) == [b"a@x", b"b@x"]
        assert not one.taken
        assert not site.entries()

    run(test, one)


def test_who_was_refused_before_the_host_went_away_is_reported_and_the_others_wait() -> None:
    for end in (b"421 4.3.2 bye\r\n", b""):
        one = Collector([b"250 ok\r\n", b"550 5.1.1 no\r\n", b"250 ok\r\n", end])

        async def serve(reader: Reader, writer: Writer, one: Collector = one) -> None:
            task = asyncio.ensure_future(one.serve(reader, writer))
            while not task.done() and not (one.heard and one.heard[-1].startswith(b"DATA")):
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.01)
            if not one.then.heard:
                writer.close()
            await task

        async def test(site: Live, one: Collector = one) -> None:
            site.send("a@x", "b@x", "c@x")
            await site.settle()
            assert reported(site) == [b"a@x"]
            assert [entry.recipients for entry in site.entries()] == [("b@x", "c@x")]
            await site.until_empty()
            assert one.then.got == [(b"b@x", b"c@x")]

        run(test, serve)


@pytest.mark.parametrize(
    "replies",
    [
        [b"503 need MAIL\r\n", b"503 need MAIL\r\n", b"503 need RCPT\r\n", b"250 ok\r\n"],
        [b"250 ok\r\n", b"503 what\r\n", b"550 no\r\n", b"354 go\r\n"],
        [b"250 ok\r\n", b"354 go\r\n", b"550 no\r\n", b"250 ok\r\n"],
        [b"250 ok\r\n", b"550 no\r\n", b"250 ok\r\n", b"250 ok\r\n"],
        [b"250 ok\r\n", b"250 ok\r\n", b"550 no\r\n", b"354 go\r\n", b"354 go\r\n"],
        [b"250 ok\r\n", b"250550 no\r\n", b"250 ok\r\n", b"354 go\r\n"],
        [b"250 ok\r\n", b"what\r\n", b"550 no\r\n", b"354 go\r\n"],
    ],
)
def test_a_host_that_mixes_up_its_replies_is_not_believed_and_asked_one_thing_at_a_time(
    replies: list[bytes],
) -> None:
    one = Collector(replies)

    async def test(site: Live) -> None:
        site.send("a@x", "b@x")
        await site.settle()
        assert not site.reports
        assert [entry.recipients for entry in site.entries()] == [("a@x", "b@x")]
        assert site.health().is_spotless
        slow = one.then
        slow.say = awaits_silence(slow)
        await site.until_empty()
        assert slow.got == [(b"a@x", b"b@x")]

    run(test, one.serve)


def awaits_silence(host: Host) -> Say:
    """Answers only when nothing more has come meanwhile."""

    async def say(writer: Writer, reply: bytes) -> None:
        heard = len(host.heard)
        await asyncio.sleep(0.01)
        assert len(host.heard) == heard
        writer.write(reply)

    return say


@pytest.mark.parametrize("farewell", [b"421 4.4.2 idle\r\n", b"", b"421 4.4.2 idle\r\n250 ok\r\n"])
@pytest.mark.parametrize("closes", [True, False], ids=["and closes", "and stays"])
def test_what_a_host_says_between_messages_harms_none(farewell: bytes, closes: bool) -> None:
    one = Host()
    said = asyncio.Event()

    async def serve(reader: Reader, writer: Writer) -> None:
        # Asked before the talk begins, which counts.
        is_first = one.connections == 0
        talk = asyncio.ensure_future(one.serve(reader, writer))
        while not one.taken and not talk.done():
            await asyncio.sleep(0.001)
        if is_first:
            await asyncio.sleep(0.01)
            writer.write(farewell)
            await writer.drain()
            if closes:
                writer.close()
            said.set()
        await talk

    async def test(site: Live) -> None:
        site.send("a@x")
        await site.settle()
        await said.wait()
        site.send("b@x")
        await site.settle()
        assert one.got == [(b"a@x",), (b"b@x",)]
        assert not site.entries()
        assert site.health().is_spotless

    run(test, serve)


@pytest.mark.parametrize("how", [b"421 4.4.2 idle\r\n", None])
def test_a_host_that_has_enough_when_the_next_message_comes_harms_none(how: bytes | None) -> None:
    one = Host({b"MAIL FROM:<second": [how]})

    async def test(site: Live) -> None:
        site.send("a@x")
        await site.settle()
        site.send("b@x", sender="second@x")
        await site.settle()
        assert one.got == [(b"a@x",), (b"b@x",)]
        assert one.connections == 2
        assert not site.entries()

    run(test, one)


def test_a_reply_of_odd_bytes_comes_to_its_report() -> None:
    odd = b"550-\xff\xfe\x00\x1b[31m \xc3\xa4\r\n550-\r\n550 " + b"y" * 4_000 + b"\r\n"
    one = Host({b"RCPT": [odd]})

    async def test(site: Live) -> None:
        site.send("a@x")
        await site.settle()
        assert reported(site) == [b"a@x"]
        (report,) = site.reports
        assert max(map(len, report.message.splitlines())) <= 998
        assert b"\x00" not in report.message

    run(test, one)


# Too long, and too slow


@pytest.mark.parametrize(
    "ends", [b"", b"\r\n", b"\r\n250 ok\r\n"], ids=["no end", "its end", "another reply"]
)
@pytest.mark.parametrize(
    ("at", "kind"), [(b"CONNECT", "host"), (b"EHLO", "host"), (b"RCPT", "waits"), (b".", "doubt")]
)
def test_a_line_of_ten_million_bytes_is_no_reply(at: bytes, kind: str, ends: bytes) -> None:
    one = Host({at: [b"250 " + b"x" * 10_000_000 + ends]})

    async def test(site: Live) -> None:
        site.send("a@x")
        await site.settle()
        if kind == "host":
            assert not site.entries()
            assert one.connections == 2
            assert site.health().is_spotless
        else:
            (entry,) = site.entries()
            assert entry.attempts == 1
            assert len(lines(entry, "ambiguous")) == (kind == "doubt")
            assert len(str(entry.history)) < 10_000
        await site.until_empty()
        assert one.got[-1] == (b"a@x",)
        assert len(one.got) == (2 if kind == "doubt" else 1)

    run(test, one)


def test_a_reply_without_end_is_no_reply() -> None:
    one = Host({b"EHLO": [b"250-and another\r\n" * 600_000]})

    async def test(site: Live) -> None:
        site.send("a@x")
        await site.settle()
        assert one.got == [(b"a@x",)]
        assert one.connections == 2

    run(test, one)


def test_a_message_of_one_line_of_ten_million_bytes_arrives_as_it_was() -> None:
    one = Host()
    message = b"Subject: long\r\n\r\n." + b"x" * 10_000_000 + b"\r\n"

    async def test(site: Live) -> None:
        site.send("a@x", message=message)
        await site.settle()
        assert one.taken == [((b"a@x",), message.replace(b"\r\n.", b"\r\n.."))]

    run(test, one)


async def slowly(writer: Writer, reply: bytes) -> None:
    """Always in time for the next byte, never for the last."""
    for byte in reply:
        writer.write(bytes([byte]))
        await asyncio.sleep(0.1)


@pytest.mark.parametrize(
    ("at", "kind"), [(b"CONNECT", "host"), (b"EHLO", "host"), (b"DATA", "waits"), (b".", "doubt")]
)
def test_a_host_that_says_a_byte_now_and_then_has_no_more_time_than_others(at: bytes, kind: str) -> None:
    async def say(writer: Writer, reply: bytes) -> None:
        await (slowly if b"slow" in reply else at_once)(writer, reply)

    one = Host({at: [b"250 I am very slow today\r\n"]}, say)

    async def test(site: Live) -> None:
        site.send("a@x")
        await site.settle()
        if kind == "host":
            assert site.health().state == "down"
            assert [entry.attempts for entry in site.entries()] == [0]
        else:
            (entry,) = site.entries()
            assert entry.attempts == 1
            assert len(lines(entry, "ambiguous")) == (kind == "doubt")
        await site.until_empty()
        assert len(one.got) == (2 if kind == "doubt" else 1)

    run(test, one, f"{SHORT}\nfailures_to_open = 1")


def test_a_host_that_reads_a_byte_now_and_then_is_left_before_the_end() -> None:
    heard = b""

    async def serve(reader: Reader, writer: Writer) -> None:
        nonlocal heard
        writer.write(b"220 hi\r\n")
        for reply in (EHLO, b"250 ok\r\n", b"250 ok\r\n", b"354 go\r\n"):
            await reader.readline()
            writer.write(reply)
        while byte := await reader.read(1):
            heard += byte
            await asyncio.sleep(0.1)

    async def test(site: Live) -> None:
        site.send("a@x", message=b"Subject: x\n\n" + b"x" * 70 * 300_000)
        await site.settle()
        (entry,) = site.entries()
        assert entry.attempts == 1
        assert not lines(entry, "sending")
        assert "timed out in the message" in lines(entry, "deferred")[0]["reply"]

    run(test, serve, SHORT)


# What it offers


@pytest.mark.parametrize(
    "offer",
    [
        b"250 hi\r\n",
        b"250\r\n",
        b"250-\r\n250-\r\n250 \r\n",
        b"250-hi\r\n250 SIZE " + b"9" * 5_000 + b"\r\n",
        b"250-hi\r\n250 SIZE -1\r\n",
        b"250-hi\r\n250 SIZE \xb2\r\n",
        b"250-hi\r\n250-AUTH\r\n250-AUTH=\r\n250 STARTTLS now\r\n",
        b"250-hi\r\n" + b"250-X\xff\x00\r\n" * 500 + b"250 ok\r\n",
        b"550-hi\r\n250 SIZE\r\n",
    ],
)
def test_an_offer_that_makes_no_sense_offers_nothing(offer: bytes) -> None:
    one = Host({b"EHLO": [offer]})

    async def test(site: Live) -> None:
        site.send("a@x")
        await site.settle()
        assert one.got == [(b"a@x",)]
        assert b"MAIL FROM:<ann@example.org>" in one.heard[1]

    run(test, one)


def test_a_host_that_refuses_what_it_offered_is_believed_in_its_refusal() -> None:
    one = Host({b"MAIL": [b"555 5.5.4 I do not know SIZE\r\n"]})

    async def test(site: Live) -> None:
        site.send("a@x")
        await site.settle()
        assert reported(site) == [b"a@x"]
        assert site.health().is_spotless

    run(test, one)


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificate and key of 127.0.0.1 in one file."""
    folder = tmp_path_factory.mktemp("tls")
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    files = ["-keyout", folder / "key", "-out", folder / "cert", "-days", "2"]
    name = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*new, *files, *name], check=True, capture_output=True)
    both = folder / "both.pem"
    both.write_bytes((folder / "cert").read_bytes() + (folder / "key").read_bytes())
    return both


def context(certificate: Path) -> ssl.SSLContext:
    made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    made.load_cert_chain(certificate)
    return made


STARTTLS = b"250-hi\r\n250 STARTTLS\r\n"
# The beginning of a ServerHello whose record says that it is longer.
HELLO = b"\x16\x03\x03\x00\x7a\x02\x00\x00\x76\x03\x03"


@pytest.mark.parametrize(
    ("instead", "stays"),
    [
        (b"", False),
        (b"", True),
        (HELLO, False),
        (HELLO, True),
        (b"500 what?\r\n", False),
        (b"\x15\x03\x03\x00\x02\x02\x28", True),
    ],
    ids=["hangs up", "stalls", "hangs up halfway", "stalls halfway", "no TLS", "an alert"],
)
@pytest.mark.parametrize("tls", ["may", "require"])
def test_tls_that_breaks_in_the_handshake(tls: str, instead: bytes, stays: bool) -> None:
    plain = Host({b"EHLO": [STARTTLS] * 9})

    async def serve(reader: Reader, writer: Writer) -> None:
        first = await _until_tls(reader, writer, plain)
        if first:
            await reader.read(1)
            writer.write(instead)
            await writer.drain()
            if stays:
                await reader.read()

    async def test(site: Live) -> None:
        site.send("a@x")
        await site.settle()
        if tls == "may":
            assert plain.got == [(b"a@x",)]
            assert not site.entries()
        else:
            assert not plain.heard or not any(line.startswith(b"MAIL") for line in plain.heard)
            assert [entry.attempts for entry in site.entries()] == [0]
            assert site.health().state == "down"

    run(test, serve, f'tls = "{tls}"\nfailures_to_open = 1\ncommand_timeout = "500ms"')


async def _until_tls(reader: Reader, writer: Writer, plain: Host) -> bool:
    """Whether the client has asked for it; who does not is served in plain."""
    writer.write(b"220 hi\r\n")
    await reader.readline()
    writer.write(STARTTLS)
    line = await reader.readline()
    if line.startswith(b"STARTTLS"):
        writer.write(b"220 go\r\n")
        return True
    plain.heard.append(line)
    writer.write(b"250 ok\r\n")
    to = []
    while line := await reader.readline():
        if line.startswith(b"DATA"):
            writer.write(b"354 go\r\n")
            plain.taken.append((tuple(to), await _message(reader)))
        elif line.startswith(b"RCPT"):
            to.append(line.partition(b"<")[2].partition(b">")[0])
        writer.write(b"250 ok\r\n")
    return False


@pytest.mark.parametrize("refusal", [b"454 4.7.0 not now\r\n", b"502 what?\r\n", None])
@pytest.mark.parametrize("tls", ["may", "require"])
def test_starttls_that_was_offered_and_is_refused(tls: str, refusal: bytes | None) -> None:
    one = Host({b"EHLO": [STARTTLS] * 9, b"STARTTLS": [refusal] * 9})

    async def test(site: Live) -> None:
        site.send("a@x")
        await site.settle()
        assert one.got == ([(b"a@x",)] if tls == "may" else [])
        assert any(line.startswith(b"MAIL") for line in one.heard) is (tls == "may")

    run(test, one, f'tls = "{tls}"\nfailures_to_open = 1')


@pytest.mark.parametrize("tls", ["may", "require"])
@pytest.mark.parametrize("injected", [b"250-hi\r\n250 AUTH PLAIN\r\n", b"250 ok\r\n", b"2"])
def test_plaintext_behind_the_reply_to_starttls_is_not_heard_inside(
    injected: bytes, tls: str, certificate: Path
) -> None:
    one = Host(
        {b"EHLO": [STARTTLS] * 9, b"STARTTLS": [b"220 go\r\n" + injected] * 9}, context=context(certificate)
    )

    async def test(site: Live) -> None:
        site.send("a@x")
        await site.settle()
        # Somebody stands between us and the host: nothing is to be had from this connection.
        assert not any(line.startswith((b"MAIL", b"AUTH")) for line in one.heard)
        assert [entry.attempts for entry in site.entries()] == [0]

    run(test, one, f'tls = "{tls}"\nfailures_to_open = 1\nca_file = "{certificate}"')


def test_after_starttls_only_what_is_offered_inside_counts(certificate: Path) -> None:
    one = Host(
        {b"EHLO": [b"250-hi\r\n250-SIZE 1\r\n250 STARTTLS\r\n", b"250 hi\r\n"], b"STARTTLS": [b"220 go\r\n"]}
    )
    one.context = context(certificate)

    async def test(site: Live) -> None:
        site.send("a@x")
        await site.settle()
        assert one.got == [(b"a@x",)]
        assert b"MAIL FROM:<ann@example.org>\r\n" in one.heard

    run(test, one, f'tls = "require"\nca_file = "{certificate}"')
