"""What bounces say, of the formats that systems write, and of those that nobody should."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrunner.dsn import (
    LOOKED_AT,
    Notice,
    is_from_a_daemon,
    notices,
    parsed,
    status_in,
    text_of,
    without_returned,
    words_near,
)

BOUNCES = Path(__file__).parent / "bounces"
CORPUS = Path(__file__).parent / "corpus"


def sample(name: str) -> bytes:
    return (BOUNCES / f"{name}.eml").read_bytes()


def report(*lines: str, kind: str = "message/delivery-status", encoding: str = "7bit") -> bytes:
    head = f"Content-Type: {kind}\nContent-Transfer-Encoding: {encoding}\n\n"
    return (
        "From: a\nContent-Type: multipart/report; boundary=B\n\n--B\n\nwords\n--B\n"
        + head
        + "\n".join(lines)
        + "\n--B--\n"
    ).encode()


def one(*lines: str, **more: str) -> Notice:
    (found,) = notices(parsed(report("Reporting-MTA: dns; h", "", *lines, **more)))
    return found


@pytest.mark.parametrize("ends", [b"\n", b"\r\n"])
def test_the_address_that_it_was_sent_to_goes_before_the_one_that_it_became(ends: bytes) -> None:
    (found,) = notices(parsed(sample("postfix").replace(b"\n", ends)))
    assert (found.address, found.action, found.status) == ("Ann@example.com", "failed", "5.1.1")
    assert found.text == (
        "550 5.1.1 <ann@example.com>: Recipient address rejected: User unknown in local recipient table"
    )


@pytest.mark.parametrize(
    ("name", "action", "status"),
    [
        ("blocked", "failed", "5.7.1"),
        ("full", "failed", "4.2.2"),
        ("delayed", "delayed", "4.4.1"),
        ("delivered", "delivered", "2.0.0"),
    ],
)
def test_what_became_of_it(name: str, action: str, status: str) -> None:
    (found,) = notices(parsed(sample(name)))
    assert (found.action, found.status) == (action, status)


def test_addresses_beyond_ascii() -> None:
    first, second = notices(parsed(sample("utf8")))
    assert (first.address, second.address) == ("jürgen@bücher.example", "kaiä@example.com")
    assert (second.status, second.action) == ("5.2.1", "failed")


@pytest.mark.parametrize(
    ("field", "address"),
    [
        ("rfc822; ann@example.net", "ann@example.net"),
        ("RFC822;<ann@example.net>", "ann@example.net"),
        ("<ann@example.net>", "ann@example.net"),
        ("ann@example.net", "ann@example.net"),
        ("rfc822; ann@example.net (Ann)", "ann@example.net"),
        ('rfc822; "ann lee"@example.net', '"ann lee"@example.net'),
        ("LOCAL; ann@example.net", "ann@example.net"),
        ("x400; /G=Ann/S=Lee/", ""),
        ("rfc822; ann", ""),
        ("rfc822; @", ""),
        ("rfc822;", ""),
        ("", ""),
        ("utf-8; a\\x{110000}\\x{D800}b@example.net", "ab@example.net"),
    ],
)
def test_an_address_as_it_is_written(field: str, address: str) -> None:
    assert one(f"Final-Recipient: {field}", "Action: failed").address == address


@pytest.mark.parametrize(
    ("lines", "action", "status"),
    [
        (["Action: Failed", "Status: 5.1.1 (unknown)"], "failed", "5.1.1"),
        (["Action: error", "Status: 5.0.0", "Diagnostic-Code: smtp; 550 5.2.1 no"], "failed", "5.2.1"),
        (["Action: failed", "Diagnostic-Code: smtp; 554 no"], "failed", "5.0.0"),
        (["Action: failed", "Diagnostic-Code: 452 4.2.2 full; come again"], "failed", "4.2.2"),
        (["Status: 5.1.1"], "failed", "5.1.1"),
        (["Status: 4.4.1"], "delayed", "4.4.1"),
        (["Status: 2.0.0"], "", "2.0.0"),
        (["Action: surprised"], "", ""),
    ],
)
def test_what_is_missing_is_told_from_the_rest(lines: list[str], action: str, status: str) -> None:
    found = one("Final-Recipient: rfc822; a@example.net", *lines)
    assert (found.action, found.status) == (action, status)


@pytest.mark.parametrize(
    "kind", ["message/delivery-status", "message/global-delivery-status", "Message/Delivery-Status"]
)
def test_each_recipient_has_its_own(kind: str) -> None:
    found = notices(
        parsed(
            report(
                "Reporting-MTA: dns; h",
                "",
                "Final-Recipient: rfc822; a@example.net",
                "Action: failed",
                "",
                "",
                "Final-Recipient: rfc822; b@example.net",
                "Action: delayed",
                kind=kind,
            )
        )
    )
    assert [(notice.address, notice.action) for notice in found] == [
        ("a@example.net", "failed"),
        ("b@example.net", "delayed"),
    ]


def test_one_in_base64_is_read() -> None:
    import base64

    text = b"Reporting-MTA: dns; h\n\nFinal-Recipient: rfc822; a@example.net\nAction: failed\nStatus: 5.1.1\n"
    found = notices(parsed(report(base64.encodebytes(text).decode(), encoding="base64")))
    assert [notice.address for notice in found] == ["a@example.net"]


def test_what_is_inside_of_a_message_is_that_messages_own() -> None:
    assert notices(parsed(sample("forwarded"))) == ()
    left = without_returned(parsed(sample("forwarded")))
    assert b"Final-Recipient" not in left.as_bytes()
    assert b"Why?" in left.as_bytes()


def test_the_words_near_an_address() -> None:
    text = text_of(parsed(sample("exim")))
    assert words_near(text, "bob@example.com").endswith("550 5.1.1 <bob@example.com>: no such user here")
    assert words_near(text, "CAT@example.com") == "cat@example.com mailbox is full: retry timeout exceeded"
    text = "It failed:\n\n  dan@example.com\n\nno such mailbox\nhere\n\nBye."
    assert words_near(text, "dan@example.com") == "dan@example.com no such mailbox here"
    assert words_near(text, "") == "It failed: dan@example.com no such mailbox here Bye."
    assert words_near("", "") == ""


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("550 5.1.1 no", "5.1.1"),
        ("(#5.1.1)", "5.1.1"),
        ("said: 452 later", "4.0.0"),
        ("2.0.0 fine", ""),
        ("version 5.1.1234", ""),
        ("I waited 550 days", "5.0.0"),
        ("192.0.2.1", ""),
        ("", ""),
    ],
)
def test_the_status_in_words(text: str, status: str) -> None:
    assert status_in(text) == status


def test_who_writes_for_a_mail_system() -> None:
    assert is_from_a_daemon(parsed(sample("strange")))
    assert not is_from_a_daemon(parsed(sample("vacation")))
    assert not is_from_a_daemon(parsed(sample("question")))
    assert not is_from_a_daemon(parsed(b"From: MAILER-DAEMON@x\nAuto-Submitted: auto-replied (vacation)\n\n"))
    assert not is_from_a_daemon(parsed(b"From: =?utf-8?q?" + b"x" * 100_000 + b"?=\xff\n\n"))


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.eml")), ids=lambda path: path.stem)
def test_odd_mail_is_no_notification(path: Path) -> None:
    message = parsed(path.read_bytes())
    assert notices(message) == ()
    assert isinstance(words_near(text_of(message), "a@example.net"), str)


HOSTILE = {
    "empty lines": report("\n" * (2 * LOOKED_AT)),
    "groups": report("a: b\n\n" * LOOKED_AT),
    "recipients": report("Final-Recipient: rfc822;a@example.net\nAction: failed\n\n" * 10_000),
    "at signs": report("Final-Recipient: rfc822;" + "<@" * LOOKED_AT),
    "folds": report("Final-Recipient: rfc822;" + "\n " * LOOKED_AT),
    "parts": b"Content-Type: multipart/mixed; boundary=B\n" + b"\n--B\n\n" * LOOKED_AT,
    "parts in parts": b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (i, i) for i in range(9000)
    ),
    "messages in messages": b"Content-Type: message/rfc822\n\n" * 9000,
    "a type": b"Content-Type: multipart/report" + b"; a*0=b" * LOOKED_AT + b"\n\n",
    "no type": b"Content-Type: \xff/\xfe; boundary=\x00\n\n--\x00\n",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_that_strangers_write_is_too_much(name: str) -> None:
    message = parsed(HOSTILE[name])
    assert len(notices(message)) <= 200
    assert isinstance(words_near(text_of(without_returned(message)), "a@example.net"), str)


FIELDS = st.lists(
    st.sampled_from(
        ["Final-Recipient", "Original-Recipient", "Action", "Status", "Diagnostic-Code", ""]
    ).flatmap(lambda name: st.text(max_size=60).map(lambda value: f"{name}: {value}" if name else value)),
    max_size=12,
)


@given(lines=FIELDS, kind=st.sampled_from(["message/delivery-status", "message/global-delivery-status"]))
def test_no_field_makes_it_fail(lines: list[str], kind: str) -> None:
    data = report(*lines, kind=kind).replace(b"\x00", b"")
    for found in notices(parsed(data)):
        assert found.address == "" or "@" in found.address
        assert found.action in ("failed", "delayed", "delivered", "relayed", "expanded", "")


@given(data=st.binary(max_size=500))
def test_no_bytes_make_it_fail(data: bytes) -> None:
    message = parsed(b"Content-Type: message/delivery-status\n\n" + data)
    notices(message)
    assert isinstance(words_near(text_of(message), "a"), str)
