"""MAIL and RCPT taken apart."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qrunner.message import Envelope, Recipient
from qrunner.smtp.wire import Offer, mail_command, rcpt_command
from qrunner.smtpd.grammar import Mail, Refusal, mail, rcpt

EVERYTHING = Offer(frozenset({"8BITMIME", "DSN", "SIZE", "SMTPUTF8"}))


@pytest.mark.parametrize(
    ("said", "address"),
    [
        ("<ann@a.example>", "ann@a.example"),
        ("<postmaster>", "postmaster"),
        ("<Postmaster>", "Postmaster"),
        ('<"john doe"@a.example>', '"john doe"@a.example'),
        ('<"a>b<c"@a.example>', '"a>b<c"@a.example'),
        (r'<"\"\\"@a.example>', r'"\"\\"@a.example'),
        ('<""@a.example>', '""@a.example'),
        ("<@hop.example,@[192.0.2.1]:ann@a.example>", "ann@a.example"),
        ("<ann@[192.0.2.1]>", "ann@[192.0.2.1]"),
        ("<ann@[IPv6:2001:db8::1]>", "ann@[IPv6:2001:db8::1]"),
        ("<.two..dots.@a.example>", ".two..dots.@a.example"),
        ("<o'brien#&*?{}|~$+x=y/z!%@a.example>", "o'brien#&*?{}|~$+x=y/z!%@a.example"),
        ("<-f@a.example>", "-f@a.example"),
        ("<ann@under_score.example>", "ann@under_score.example"),
        (f"<{'x' * 300}@a.example>", f"{'x' * 300}@a.example"),
    ],
)
def test_an_address_is_kept_as_it_was_said(said: str, address: str) -> None:
    assert rcpt(f"TO:{said}").address == address
    assert mail(f"from: {said}").sender == address


def test_the_null_sender_is_a_sender() -> None:
    assert mail("FROM:<>") == Mail("")


@pytest.mark.parametrize(
    "said",
    [
        "",
        "TO:",
        "TO:<>",
        "TO:ann@a.example",
        "TO:<ann@a.example",
        "TO:<ann@a.example>x",
        "TO:<ann@>",
        "TO:<@a.example>",
        "TO:<@a.example:>",
        "TO:<@a.example:@b.example>",
        "TO:<ann@a@b.example>",
        "TO:<ann@a..example>",
        "TO:<ann@a.example.>",
        "TO:<ann@-a.example>",
        "TO:<ann smith@a.example>",
        'TO:<"ann"smith@a.example>',
        "TO:<ann@[192.0.2.1>",
        "TO:<ann@a b>",
        "TO:<<ann@a.example>>",
        "TO:<ann,bob@a.example>",
        f"TO:<ann@{'a.' * 130}example>",
        "FROM:<ann@a.example>",
        "TO:<ann@a.example>\tNOTIFY=NEVER",
    ],
)
def test_what_is_no_address_is_refused_for_good(said: str) -> None:
    with pytest.raises(Refusal, match=r"^50[0-9] 5"):
        rcpt(said)


def test_a_sender_with_everything() -> None:
    said = mail("FROM:<a@x> SIZE=1000 body=8bitmime RET=hdrs ENVID=QQ+2B314159 SMTPUTF8")
    assert said == Mail("a@x", 1000, "8BITMIME", "HDRS", "QQ+2B314159", True)
    one = Recipient("b@y")
    assert said.envelope((one,)) == Envelope("a@x", (one,), "QQ+2B314159", "HDRS", "8BITMIME", True)


def test_a_recipient_with_everything() -> None:
    said = rcpt("TO:<b@y> NOTIFY=success,Delay ORCPT=rfc822;Bob+2Bx@Y")
    assert said == Recipient("b@y", "SUCCESS,DELAY", "rfc822;Bob+2Bx@Y")
    assert rcpt("TO:<b@y> NOTIFY=never").notify == "NEVER"


@pytest.mark.parametrize(
    ("said", "reply"),
    [
        ("SIZE=", "501 5.5.4"),
        ("SIZE=-1", "501 5.5.4"),
        ("SIZE=1e9", "501 5.5.4"),
        (f"SIZE={'9' * 21}", "501 5.5.4"),
        ("SIZE", "501 5.5.4"),
        ("SIZE=1 SIZE=1", "501 5.5.4"),
        ("BODY=BINARYMIME", "501 5.5.4"),
        ("BODY", "501 5.5.4"),
        ("RET=ALL", "501 5.5.4"),
        ("ENVID=a=b", "501 5.5.4"),
        ("ENVID=a+2b", "501 5.5.4"),
        (f"ENVID={'x' * 101}", "501 5.5.4"),
        ("SMTPUTF8=1", "501 5.5.4"),
        ("AUTH=<>", "555 5.5.4"),
        ("XTEXT", "555 5.5.4"),
        ("=1", "501 5.5.4"),
    ],
)
def test_a_parameter_that_is_wrong_is_refused(said: str, reply: str) -> None:
    with pytest.raises(Refusal, match=f"^{reply}"):
        mail(f"FROM:<a@x> {said}")


@pytest.mark.parametrize(
    "said",
    [
        "NOTIFY",
        "NOTIFY=NEVER,DELAY",
        "NOTIFY=DELAY,DELAY",
        "NOTIFY=DELAY,",
        "NOTIFY=SOON",
        "ORCPT=bob@y",
        "ORCPT=;bob@y",
        "ORCPT=rfc822;",
        "ORCPT=rfc822;b=b",
        "ORCPT=rfc822;é",
        f"ORCPT=rfc822;{'x' * 500}",
        "ORCPT",
    ],
)
def test_delivery_status_parameters_are_looked_at(said: str) -> None:
    with pytest.raises(Refusal, match=r"^501 5\.5\.4"):
        rcpt(f"TO:<b@y> {said}")


def test_without_extensions_there_are_no_parameters() -> None:
    with pytest.raises(Refusal, match=r"^555"):
        mail("FROM:<a@x> SIZE=1", extended=False)
    assert mail("FROM:<a@x> ", extended=False) == Mail("a@x")


def test_utf8_wants_to_be_asked_for() -> None:
    with pytest.raises(Refusal, match=r"5\.6\.7"):
        mail("FROM:<ünal@bücher.example>")
    with pytest.raises(Refusal, match=r"5\.6\.7"):
        rcpt("TO:<ünal@bücher.example>")
    assert mail("FROM:<ünal@bücher.example> SMTPUTF8").sender == "ünal@bücher.example"
    assert rcpt("TO:<用户@例え.テスト> ORCPT=utf-8;用户@例え", utf8=True).orcpt == "utf-8;用户@例え"


@pytest.mark.parametrize("odd", ["\x85", "\u2028", "\u00a0", "\u202e", "\u200b", "\ufeff"])
def test_what_cannot_be_seen_is_no_part_of_an_address(odd: str) -> None:
    with pytest.raises(Refusal):
        rcpt(f"TO:<a{odd}b@x.example>", utf8=True)
    with pytest.raises(Refusal):
        rcpt(f"TO:<ab@x{odd}y.example>", utf8=True)


addresses = st.one_of(st.text(max_size=60), st.text('<>@"\\.,:[] -a é\t', max_size=30))


@given(addresses, st.text("ABCDEIZNOTFYRUS=;,+ 0123xé", max_size=60))
@example('"\\', "")
def test_whatever_is_said_is_refused_or_can_be_sent_on(address: str, rest: str) -> None:
    """What comes out of here is what the other wing can put on the wire, and nothing else comes of it."""
    try:
        one = rcpt(f"TO:<{address}> {rest}", utf8=True)
        said = mail(f"FROM:<{address}> {rest}")
    except Refusal:
        return
    for line in (
        rcpt_command(one, EVERYTHING),
        mail_command(said.envelope((one,)), EVERYTHING, 1, is_8bit=False, utf8=True),
    ):
        assert not any(byte < 32 or byte == 127 for byte in line)
    again = rcpt(rcpt_command(one, EVERYTHING).decode().removeprefix("RCPT "), utf8=True)
    assert again.address == one.address


@pytest.mark.parametrize("part", ["a.", "@a,", '"a', "\\", "a", "-", "<", "[", "é."])
def test_a_long_line_is_answered_at_once(part: str) -> None:
    with pytest.raises(Refusal):
        rcpt("TO:<" + part * (4000 // len(part)) + " ", utf8=True)
