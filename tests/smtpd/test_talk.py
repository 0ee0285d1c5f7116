"""What is said over a connection, without one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qrunner.message import Draft
from qrunner.smtpd.talk import Talk
from qrunner.smtpd.terms import Terms

NOW = datetime(2026, 11, 21, 7, 30, tzinfo=UTC)
TERMS = Terms("lists.example.org", max_size=1000, max_recipients=3, max_line=998)


@dataclass
class Keeper:
    """Takes everybody but those who are named no."""

    why: str = ""
    refusals: list[str] = field(default_factory=list)

    def now(self) -> datetime:
        return NOW

    def closed(self) -> str:
        return self.why

    def accepts(self, address: str) -> bool:
        return not address.startswith("no")

    async def take(self, draft: Draft, *, peer: str) -> tuple[str, ...]:
        raise AssertionError("a talk takes nothing")

    def refused(self, reply: str, *, to: Sequence[str], sender: str, peer: str) -> None:
        self.refusals.append(f"{sender} {' '.join(to)}: {reply}")


class Story:
    """A talk whose every message is taken, or is answered as a test says."""

    def __init__(self, terms: Terms = TERMS, reply: str = "250 2.0.0 taken") -> None:
        self.keeper, self.reply, self.drafts = Keeper(), reply, list[Draft]()
        self.talk = Talk(terms, self.keeper, "192.0.2.1", lambda size: True)
        assert self.heard() == [f"220 lists.example.org {'LMTP' if terms.is_lmtp else 'ESMTP'} qrunner"]

    def heard(self) -> list[str]:
        found = self.talk.out.decode("ascii")
        self.talk.out.clear()
        assert not found or found.endswith("\r\n")
        return found.split("\r\n")[:-1]

    def say(self, *lines: str | bytes) -> list[str]:
        """Says them in one piece; all that is replied."""
        return self.send(
            b"".join((line.encode() if isinstance(line, str) else line) + b"\r\n" for line in lines)
        )

    def send(self, data: bytes) -> list[str]:
        draft = self.talk.hear(data)
        while draft is not None:
            self.drafts.append(draft)
            self.talk.answer(self.reply)
            draft = self.talk.hear(b"")
        return self.heard()

    def codes(self, *lines: str | bytes) -> list[str]:
        return [" ".join(reply.split(" ")[:2]) for reply in self.say(*lines)]


SMTP = replace(TERMS, protocol="smtp")


def begun(terms: Terms = TERMS, *recipients: str) -> Story:
    story = Story(terms)
    story.say("LHLO me" if terms.is_lmtp else "EHLO me", "MAIL FROM:<a@x>")
    for recipient in recipients:
        story.say(f"RCPT TO:<{recipient}>")
    return story


def test_the_extensions_are_offered() -> None:
    offered = [
        "250-lists.example.org",
        "250-PIPELINING",
        "250-8BITMIME",
        "250-SMTPUTF8",
        "250-DSN",
        "250-ENHANCEDSTATUSCODES",
        "250 SIZE 1000",
    ]
    assert Story().say("LHLO me") == offered
    assert Story(SMTP).say("EHLO me") == offered
    assert Story(SMTP).say("HELO me") == ["250 lists.example.org"]


@pytest.mark.parametrize(
    ("terms", "wrong"), [(TERMS, "HELO"), (TERMS, "EHLO"), (SMTP, "LHLO")], ids=lambda value: str(value)[:4]
)
def test_each_protocol_has_its_own_hello(terms: Terms, wrong: str) -> None:
    assert Story(terms).codes(f"{wrong} me") == ["500 5.5.1"]


# RFC 2033


def test_each_recipient_is_answered_after_the_message() -> None:
    story = begun(TERMS, "b@y", "c@z")
    assert story.codes("DATA", "hello", ".", "NOOP") == ["354 end", "250 2.0.0", "250 2.0.0", "250 2.0.0"]
    (draft,) = story.drafts
    assert draft.envelope.addresses == ("b@y", "c@z")


def test_who_was_refused_is_not_answered_again() -> None:
    story = Story()
    asked = ["LHLO me", "MAIL FROM:<a@x>", "RCPT TO:<b@y>", "RCPT TO:<no@y>", "RCPT TO:<c@y>"]
    assert story.codes(*asked)[-3:] == ["250 2.1.5", "550 5.1.1", "250 2.1.5"]
    assert story.codes("DATA", ".", "NOOP") == ["354 end", "250 2.0.0", "250 2.0.0", "250 2.0.0"]
    assert story.keeper.refusals == ["a@x no@y: 550 5.1.1 nobody of this name here"]


def test_who_is_named_twice_is_answered_twice_and_gets_one() -> None:
    story = begun(TERMS, "b@y", "b@y")
    assert story.codes("DATA", ".") == ["354 end", "250 2.0.0", "250 2.0.0"]
    assert story.drafts[0].envelope.addresses == ("b@y",)


def test_with_nobody_to_send_it_to_there_is_no_data() -> None:
    story = begun(TERMS, "no@y")
    assert story.codes("DATA", "NOOP") == ["503 5.5.1", "250 2.0.0"]


@pytest.mark.parametrize(
    ("message", "reply"),
    [
        ("x" * 990 + "\r\n" + "y" * 50, "552 5.3.4"),
        ("x" * 999, "554 5.6.0"),
    ],
)
def test_errors_too_are_answered_for_each_recipient(message: str, reply: str) -> None:
    story = begun(replace(TERMS, max_size=1010), "b@y", "c@z", "no@z")
    assert story.codes("DATA", message, ".", "NOOP") == ["354 end", reply, reply, "250 2.0.0"]
    assert story.drafts == []


def test_without_room_for_it_a_message_is_put_off() -> None:
    story = begun(TERMS, "b@y", "c@z")
    story.talk._hold = lambda size: size < 200
    assert story.codes("DATA", "x" * 300, ".", "NOOP") == ["354 end", "452 4.3.1", "452 4.3.1", "250 2.0.0"]


def test_smtp_answers_once() -> None:
    story = begun(SMTP, "b@y", "c@z")
    assert story.codes("DATA", "hello", ".", "NOOP") == ["354 end", "250 2.0.0", "250 2.0.0"]
    assert story.drafts[0].envelope.addresses == ("b@y", "c@z")


# The order of things


def test_nothing_goes_before_its_time() -> None:
    story = Story()
    assert story.codes("MAIL FROM:<a@x>", "RCPT TO:<b@y>", "DATA") == ["503 5.5.1"] * 3
    story.say("LHLO me", "MAIL FROM:<a@x>")
    assert story.codes("MAIL FROM:<a@x>", "DATA", "DATA now") == ["503 5.5.1", "503 5.5.1", "501 5.5.4"]


def test_old_clients_of_smtp_do_without_a_hello() -> None:
    story = Story(SMTP)
    assert story.codes("MAIL FROM:<a@x> SIZE=1", "MAIL FROM:<a@x>") == ["555 5.5.4", "250 2.1.0"]
    story.say("RCPT TO:<b@y>", "DATA", ".")
    assert trace(story).startswith(
        "Received: from unknown ([192.0.2.1]) by lists.example.org (qrunner) with SMTP "
    )


@pytest.mark.parametrize("again", ["RSET", "LHLO me"])
def test_a_transaction_can_be_given_up(again: str) -> None:
    story = begun(TERMS, "b@y")
    story.say(again)
    assert story.codes("RCPT TO:<b@y>", "DATA") == ["503 5.5.1", "503 5.5.1"]


def test_each_message_has_recipients_of_its_own() -> None:
    story = begun(TERMS, "b@y")
    story.say("DATA", "one", ".", "MAIL FROM:<a@x>", "RCPT TO:<c@z>", "DATA", "two", ".")
    assert [draft.envelope.addresses for draft in story.drafts] == [("b@y",), ("c@z",)]


def test_small_talk() -> None:
    story = Story()
    assert story.codes("noop", "VRFY ann", "HELP", "RSET") == [
        "250 2.0.0",
        "252 2.0.0",
        "214 2.0.0",
        "250 2.0.0",
    ]
    asked = ["BDAT 3 LAST", "EXPN x", "STARTTLS", "AUTH PLAIN", "XCLIENT ADDR=1", "", " NOOP"]
    assert story.codes(*asked) == ["500 5.5.1"] * len(asked)
    assert story.say("QUIT", "NOOP") == ["221 2.0.0 bye"]
    assert story.talk.is_over


def test_a_suspended_door_puts_senders_off() -> None:
    story = Story()
    story.say("LHLO me")
    story.keeper.why = "it is being moved"
    assert story.say("MAIL FROM:<a@x>") == ["451 4.3.2 it is being moved"]
    story.keeper.why = ""
    assert story.codes("MAIL FROM:<a@x>") == ["250 2.1.0"]


# Limits


def test_a_message_that_is_said_to_be_too_large_is_not_waited_for() -> None:
    assert Story().codes("LHLO me", "MAIL FROM:<a@x> SIZE=1001")[-1] == "552 5.3.4"


def test_more_recipients_are_for_another_message() -> None:
    story = begun(TERMS, "1@y", "2@y", "3@y")
    assert story.codes("RCPT TO:<4@y>", "DATA", ".") == ["452 4.5.3", "354 end", *["250 2.0.0"] * 3]


def test_a_long_command_is_refused_and_the_next_one_heard() -> None:
    story = Story()
    assert story.codes("NOOP " + "x" * 100_000, "NOOP") == ["500 5.5.2", "250 2.0.0"]
    assert story.talk.hear(b"x" * 100_000) is None
    assert story.talk.backlog == 0
    assert story.codes("y", "NOOP") == ["500 5.5.2", "250 2.0.0"]


def test_who_only_talks_is_sent_away() -> None:
    story = Story()
    replies = story.codes(*["NOOP"] * 1000)
    assert len(replies) == 101
    assert replies[-1] == "421 4.7.0"


def test_who_has_something_to_say_is_not() -> None:
    story = Story()
    story.say("LHLO me")
    for _ in range(300):
        assert story.codes("MAIL FROM:<a@x>", "RCPT TO:<b@y>", "DATA", ".")[-1] == "250 2.0.0"


def test_a_thousand_refused_recipients_are_no_offence() -> None:
    story = begun()
    assert set(story.codes(*["RCPT TO:<no@y>"] * 1000)) == {"550 5.1.1"}


@pytest.mark.parametrize(
    "line",
    ["GET / HTTP/1.1", "POST / HTTP/1.1", "Host: 127.0.0.1:8024", "Content-Type: text/plain", "CONNECT x:25"],
)
def test_a_browser_is_sent_away(line: str) -> None:
    story = Story()
    assert story.codes(line, "LHLO me", "MAIL FROM:<a@x>") == ["554 5.5.1"]
    assert story.talk.is_over


# Bytes


@pytest.mark.parametrize(
    "line",
    [
        b"NOOP\n",
        b"NOOP\r\r\n",
        b"NOOP\x00\r\n",
        b"NO\tOP\r\n",
        b"RCPT TO:<a@b>\rRSET\r\n",
        b"NOOP\x1b[2J\r\n",
    ],
)
def test_a_command_is_plain_text_that_ends_with_crlf(line: bytes) -> None:
    story = Story()
    assert [reply[:9] for reply in story.send(line)] == ["500 5.5.2"]


def test_what_is_not_utf8_is_refused() -> None:
    assert Story().codes("LHLO me", b"MAIL FROM:<\xff@x> SMTPUTF8")[-1] == "500 5.5.2"


def test_a_command_may_come_byte_by_byte() -> None:
    story, replies = begun(TERMS, "b@y"), list[str]()
    for byte in b"DATA\r\n..x\r\n.\r\nQUIT\r\n":
        replies += story.send(bytes([byte]))
    assert [reply[:3] for reply in replies] == ["354", "250", "221"]
    assert story.drafts[0].message.endswith(b"\r\n.x\r\n")


def test_what_follows_a_message_in_the_same_segment_is_not_lost() -> None:
    story = begun(TERMS, "b@y")
    lines = ["DATA", "one", ".", "MAIL FROM:<a@x>", "RCPT TO:<b@y>", "DATA", "two", ".", "QUIT"]
    assert [reply[:3] for reply in story.say(*lines)] == ["354", "250", "250", "250", "354", "250", "221"]
    assert [draft.message.rsplit(b"\r\n", 2)[1] for draft in story.drafts] == [b"one", b"two"]


def test_what_a_handler_says_is_one_line_of_ascii() -> None:
    story = begun(TERMS, "b@y")
    story.reply = "554 5.0.0 no\r\n250 2.0.0 yes\x00 é \x1b[2J" + "x" * 2000
    (_, reply) = story.say("DATA", ".")
    assert reply.startswith(r"554 5.0.0 no\r\n250 2.0.0 yes\x00 \xe9 \x1b[2Jxxx")
    assert len(reply) <= 510


# Stops


def test_a_stop_ends_who_waits() -> None:
    story = begun(TERMS, "b@y")
    story.talk.stop()
    assert story.heard() == ["421 4.3.2 the service stops: try again later"]
    assert story.talk.is_over


def test_a_stop_waits_for_a_message() -> None:
    story = begun(TERMS, "b@y")
    story.say("DATA", "one")
    story.talk.stop()
    assert not story.talk.is_over
    assert [reply[:3] for reply in story.say(".", "MAIL FROM:<a@x>")] == ["250", "421"]
    assert len(story.drafts) == 1


def test_a_stop_waits_for_a_message_that_is_being_taken() -> None:
    story = begun(TERMS, "b@y")
    assert story.talk.hear(b"DATA\r\nx\r\n.\r\n") is not None
    story.talk.stop()
    assert not story.talk.is_over
    story.talk.answer("250 2.0.0 taken")
    story.talk.hear(b"")
    assert [reply[:3] for reply in story.heard()] == ["354", "250", "421"]


# The trace


def trace(story: Story) -> str:
    text = story.drafts[0].message.decode()
    return re.sub(r"\r\n\t", " ", text).partition("\r\n")[0]


def test_a_line_says_how_it_came() -> None:
    story = begun(TERMS, "b@y")
    story.say("DATA", "Subject: x", ".")
    assert trace(story) == (
        "Received: from me ([192.0.2.1]) by lists.example.org (qrunner) with LMTP for <b@y>; "
        "Sat, 21 Nov 2026 07:30:00 +0000"
    )


@pytest.mark.parametrize(
    ("terms", "hello", "more", "with_"),
    [
        (TERMS, "LHLO", "", "LMTP"),
        (TERMS, "LHLO", " SMTPUTF8", "UTF8LMTP"),
        (SMTP, "HELO", "", "SMTP"),
        (SMTP, "EHLO", "", "ESMTP"),
        (SMTP, "EHLO", " SMTPUTF8", "UTF8SMTP"),
    ],
)
def test_it_says_by_which_protocol(terms: Terms, hello: str, more: str, with_: str) -> None:
    story = Story(terms)
    story.say(f"{hello} me", f"MAIL FROM:<a@x>{more}", "RCPT TO:<b@y>", "DATA", ".")
    assert f" with {with_} for" in trace(story)


def test_several_recipients_do_not_learn_of_each_other() -> None:
    story = begun(TERMS, "b@y", "c@z")
    story.say("DATA", ".")
    assert "for" not in trace(story)


@pytest.mark.parametrize("name", ["x) by evil", "x;y", "(((", "é" * 50, "[192.0.2.7]", "x" * 4000, '"'])
def test_a_client_cannot_write_what_it_likes_into_it(name: str) -> None:
    story = Story()
    story.say(f"LHLO {name}", "MAIL FROM:<a@x>", "RCPT TO:<b@y>", "DATA", ".")
    match = re.fullmatch(
        r"Received: from ([-?\w.:\[\]]{1,255}) \(\[192\.0\.2\.1\]\) by .*; .*", trace(story), re.ASCII
    )
    assert match
    if "[" in name:
        assert match[1] == name


# Anything


COMMANDS = [
    b"LHLO me\r\n",
    b"MAIL FROM:<a@x>\r\n",
    b"RCPT TO:<b@y>\r\n",
    b"RCPT TO:<no@y>\r\n",
    b"DATA\r\n",
    b"RSET\r\n",
    b"NOOP\r\n",
    b"\r\n.\r\n",
    b".\r\n",
    b"..\r\n",
    b"\n.\n",
    b"\r.\r",
    b"\n.\r\n",
    b"text\r\n",
    b"\n",
    b"\r",
    b"\x00",
    b"QUIT\r\n",
]
said = st.lists(st.one_of(st.sampled_from(COMMANDS), st.binary(max_size=8)), max_size=30)


def model(data: bytes) -> list[tuple[str, ...]]:
    """Which messages a client has sent, by the plainest reading of RFC 2033: whom each is for, and its lines."""
    found: list[tuple[str, ...]] = []
    hello, mail, to = False, False, list[str]()
    while b"\n" in data:
        line, _, data = data.partition(b"\n")
        text = line[:-1].decode("latin-1") if line.endswith(b"\r") else "?"
        verb, _, rest = text.partition(" ")
        verb = verb.upper()
        if text == "?" or re.search("[\x00-\x1f\x7f]", text) and verb not in ("DATA", "QUIT"):
            continue
        if (
            verb == "QUIT"
            or verb.endswith(":")
            or verb in ("GET", "POST", "PUT", "HEAD", "OPTIONS", "CONNECT")
        ):
            break
        if verb == "LHLO" and rest.strip(" "):
            hello, mail, to = True, False, []
        elif verb == "RSET":
            mail, to = False, []
        elif text == "MAIL FROM:<a@x>" and hello:
            mail = True
        elif text == "RCPT TO:<b@y>" and mail and len(to) < 3:
            to.append("b@y")
        elif verb == "DATA" and not rest.strip() and to:
            message, end, after = (b"\r\n" + data).partition(b"\r\n.\r\n")
            if not end:
                break
            found.append((*to, message.decode("latin-1")))
            data, mail, to = after, False, []
    return found


@given(said, st.lists(st.integers(1, 20), max_size=5))
@example(
    [
        b"LHLO me\r\n",
        b"MAIL FROM:<a@x>\r\n",
        b"RCPT TO:<b@y>\r\n",
        b"DATA\r\n",
        b"\n.\n",
        b".\r\n",
        b"\r\n.\r\n",
    ],
    [],
)
def test_whatever_is_said_no_message_comes_of_it_that_was_not_sent(
    parts: list[bytes], sizes: list[int]
) -> None:
    story, data, at, turn, replies = Story(replace(TERMS, max_size=1 << 20)), b"".join(parts), 0, 0, 0
    while at < len(data) and not story.talk.is_over:
        size = sizes[turn % len(sizes)] if sizes else len(data)
        replies += len(story.send(data[at : at + size]))
        at, turn = at + size, turn + 1
    sent = model(data)
    assert len(story.drafts) == len(sent)
    for draft, (*_, text) in zip(story.drafts, sent, strict=True):
        body = text.encode("latin-1").replace(b"\r\n.", b"\r\n") + b"\r\n"
        assert draft.message.endswith(body.removeprefix(b"\r\n") if body != b"\r\n" else b"")
        assert draft.envelope.addresses == ("b@y",)
