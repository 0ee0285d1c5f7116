"""The form of the wire: nothing that came from outside can end a command or a message."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrunner.message import Envelope, Recipient
from qrunner.smtp import wire
from qrunner.smtp.wire import Offer, Unsendable

ALL = Offer.of({"size": "1000", "8bitmime": "", "dsn": "", "smtputf8": ""})


@pytest.mark.parametrize(
    ("message", "body"),
    [
        (b"", b""),
        (b"a\nb\n", b"a\r\nb\r\n"),
        (b"a\r\nb\r\n", b"a\r\nb\r\n"),
        (b"a\rb\n", b"a b\r\n"),
        (b"no end", b"no end\r\n"),
        (b".\n..\n.x", b"..\r\n...\r\n..x\r\n"),
        (b"x\r\n.\r\n", b"x\r\n..\r\n"),
        (b"x\n.\r\n", b"x\r\n..\r\n"),
        (b"x\r.\r\n", b"x .\r\n"),
        (b"x\r\r\n.\r\n", b"x \r\n..\r\n"),
    ],
)
def test_a_body_has_the_line_ends_of_smtp(message: bytes, body: bytes) -> None:
    assert wire.body(message) == body


@given(st.lists(st.sampled_from([b"\r", b"\n", b".", b"a", b"\0", b"\xff"]), max_size=60).map(b"".join))
def test_no_message_can_end_itself(message: bytes) -> None:
    body = wire.body(message)
    assert not re.search(rb"(\A|\n)\.(\r|\n)", body)
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n", body)
    assert body == b"" or body.endswith(b"\r\n")
    bare = re.sub(rb"\r(?!\n)", b" ", message).replace(b"\r\n", b"\n")
    assert wire.unstuffed(body).replace(b"\r\n", b"\n") in (bare, bare + b"\n")
    assert wire.size(message) == len(wire.unstuffed(body))


@given(
    st.lists(
        st.sampled_from([b"\r", b"\n", b".", b"a" * 9_000, b"b" * 70_000, b"\r\n", b"\n.", b"\r\n."]),
        max_size=30,
    ).map(b"".join)
)
def test_a_large_message_is_the_same_in_pieces(message: bytes) -> None:
    bare = re.sub(rb"\r(?!\n)", b" ", message).replace(b"\r\n", b"\n")
    whole = re.sub(rb"(?m)^\.", b"..", bare).replace(b"\n", b"\r\n")
    whole += b"\r\n" if whole and not whole.endswith(b"\r\n") else b""
    assert b"".join(wire.pieces(message)) == whole
    assert wire.size(message) == len(wire.unstuffed(whole))
    assert all(piece.endswith(b"\r\n") for piece in wire.pieces(message))


@pytest.mark.parametrize(
    "address",
    [
        "a@b\r\nRCPT TO:<c@d>",
        "a@b> NOTIFY=NEVER",
        "a b@c",
        "a@b\0",
        '"a\r\n"@b',
        "<a@b>",
        '"a',
        "",
        "\udcff@b",
    ],
)
def test_an_address_that_could_inject_never_reaches_the_wire(address: str) -> None:
    with pytest.raises(Unsendable) as caught:
        wire.rcpt_command(Recipient(address), ALL)
    assert caught.value.status == "5.1.3"


@pytest.mark.parametrize(
    "address",
    ['"a b"@c', '"<a>"@c', r'"a\"b"@c', "a+b=c.d@e", "a'#&*?{}|~$@b", "bounces-7=x@[::1]", "postmaster"],
)
def test_an_odd_address_reaches_it_as_it_is(address: str) -> None:
    assert wire.rcpt_command(Recipient(address), Offer()) == f"RCPT TO:<{address}>".encode()


@given(st.text(max_size=30))
def test_whatever_the_address_the_command_is_one_line(address: str) -> None:
    try:
        line = wire.rcpt_command(Recipient(address, notify=address, orcpt=address), ALL)
    except Unsendable:
        return
    assert not re.search(rb"[\x00-\x1f\x7f]", line)


def test_parameters_go_only_to_hosts_that_know_them() -> None:
    envelope = Envelope("a@b", envid="x1", ret="HDRS", body="8BITMIME")
    assert wire.mail_command(envelope, Offer(), 10, is_8bit=True, utf8=False) == b"MAIL FROM:<a@b>"
    assert wire.mail_command(envelope, ALL, 10, is_8bit=False, utf8=True) == (
        b"MAIL FROM:<a@b> SIZE=10 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=x1"
    )
    recipient = Recipient("c@d", "SUCCESS,FAILURE", "rfc822;e@f")
    assert wire.rcpt_command(recipient, Offer()) == b"RCPT TO:<c@d>"
    assert wire.rcpt_command(recipient, ALL) == b"RCPT TO:<c@d> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;e@f"


def test_parameters_that_could_inject_are_left_out() -> None:
    envelope = Envelope("a@b", envid="x y", ret="ALL\r\n")
    assert wire.mail_command(envelope, ALL, 1, is_8bit=False, utf8=False) == b"MAIL FROM:<a@b> SIZE=1"
    assert wire.rcpt_command(Recipient("c@d", "NEVER X=Y", "a b"), ALL) == b"RCPT TO:<c@d>"


def test_the_null_sender_is_said_as_such() -> None:
    assert wire.mail_command(Envelope(""), Offer(), 1, is_8bit=False, utf8=False) == b"MAIL FROM:<>"


def test_a_message_longer_than_the_host_takes_is_not_offered() -> None:
    with pytest.raises(Unsendable) as caught:
        wire.mail_command(Envelope("a@b"), ALL, 1001, is_8bit=False, utf8=False)
    assert caught.value.status == "5.3.4"


@pytest.mark.parametrize("size", ["", "0", "lots", "-5", "٣"])
def test_a_size_that_is_no_limit_limits_nothing(size: str) -> None:
    assert Offer.of({"size": size}).size_max == 0
