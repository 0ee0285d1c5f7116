"""The report as its readers see it: the standard library's parser, and a person."""

from __future__ import annotations

from email import message_from_bytes
from email.message import Message
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrunner.fate import Failure
from qrunner.message import Draft, Entry, Envelope, Recipient
from qrunner.report import RETURNED_MAX, About, audience, build, wanted

NOW_NS = 1_795_000_000 * 10**9
ORIGINAL = b"From: a@example.org\r\nSubject: =?utf-8?q?odd?=\r\nX-Odd: \xff\xfe\r\n\r\nthe body\r\n"
GONE = Failure("b@example.net", "5.1.1", "550 5.1.1 no such user", host="mx.example.net")


def entry(message: bytes = ORIGINAL, sender: str = "a@example.org", **envelope: object) -> Entry:
    recipients = envelope.pop("recipients", (Recipient("b@example.net"), Recipient("c@example.net")))
    whole = Envelope(sender, recipients, **envelope)  # type: ignore[arg-type]
    return Entry(
        id="ab" * 20, queue="out", envelope=whole, message=message, recipients=whole.addresses, meta={},
        arrival_ns=NOW_NS - 10**12, due_ns=0,
    )  # fmt: skip


def made(of: Entry, *failures: Failure, to: str = "a@example.org", **more: object) -> Draft:
    return build(of, failures or (GONE,), to, About("lists.example.org", NOW_NS, **more))  # type: ignore[arg-type]


def parsed(draft: Draft) -> tuple[Message, Message, list[Message], Message]:
    whole = message_from_bytes(draft.message)
    text, status, returned = whole.get_payload()
    return whole, text, status.get_payload(), returned


def test_a_report_has_the_three_parts_of_rfc_3464() -> None:
    whole, text, status, returned = parsed(made(entry()))
    assert whole.get_content_type() == "multipart/report"
    assert whole.get_param("report-type") == "delivery-status"
    assert not whole.defects
    assert text.get_content_type() == "text/plain"
    assert "no such user" in text.get_payload()
    assert returned.get_content_type() == "text/rfc822-headers"
    assert "the body" not in str(returned)
    assert len(status) == 2


def test_a_report_comes_from_the_null_sender_and_says_that_no_person_wrote_it() -> None:
    draft = made(entry())
    assert draft.envelope.sender == ""
    assert draft.envelope.addresses == ("a@example.org",)
    assert draft.parents == ("ab" * 20,)
    whole = message_from_bytes(draft.message)
    assert whole["Auto-Submitted"] == "auto-replied"
    assert whole["Message-ID"].endswith("@lists.example.org>")


def test_a_recipient_has_all_its_fields() -> None:
    orcpt = Recipient("b@example.net", orcpt="rfc822;old+2Bone@example.com")
    _, _, (message, recipient), _ = parsed(made(entry(recipients=(orcpt,), envid="abc+2D1")))
    assert message["Reporting-MTA"] == "dns; lists.example.org"
    assert message["Original-Envelope-Id"] == "abc-1"
    assert message["Arrival-Date"]
    assert recipient["Original-Recipient"] == "rfc822; old+one@example.com"
    assert recipient["Final-Recipient"] == "rfc822; b@example.net"
    assert recipient["Action"] == "failed"
    assert recipient["Status"] == "5.1.1"
    assert recipient["Remote-MTA"] == "dns; mx.example.net"
    assert recipient["Diagnostic-Code"] == "smtp; 550 5.1.1 no such user"


def test_one_report_names_every_recipient_of_the_attempt() -> None:
    late = Failure("c@example.net", "4.2.0", "450 4.2.0 later", host="mx.example.net", expired=True)
    _, text, status, _ = parsed(made(entry(), GONE, late))
    assert [part["Final-Recipient"] for part in status[1:]] == [
        "rfc822; b@example.net",
        "rfc822; c@example.net",
    ]
    assert "for as long as" in text.get_payload()


def test_a_reason_of_our_own_is_not_passed_off_as_a_reply() -> None:
    _, _, (_, recipient), _ = parsed(made(entry(), Failure("b@example.net", "5.4.6", "a mail loop")))
    assert recipient["Diagnostic-Code"] == "X-qrunner; a mail loop"
    assert recipient["Remote-MTA"] is None


def test_the_whole_message_comes_back_only_when_asked_for_and_short() -> None:
    _, _, _, returned = parsed(made(entry(ret="FULL")))
    assert returned.get_content_type() == "message/rfc822"
    assert returned.get_payload()[0].get_payload() == "the body\n"
    long = ORIGINAL + b"x" * RETURNED_MAX
    _, _, _, returned = parsed(made(entry(long, ret="FULL")))
    assert returned.get_content_type() == "text/rfc822-headers"


def test_a_message_that_is_all_header_is_cut() -> None:
    draft = made(entry(b"X-Long: yes\n" * 20_000))
    assert len(draft.message) < RETURNED_MAX + 4096
    assert draft.message.count(b"X-Long: yes\n") > 1000


def test_an_address_that_is_not_ascii_is_named_as_rfc_6533_says() -> None:
    draft = made(entry(), Failure("jürgen@example.net", "5.1.1", "550 nein"), to="jürgen@example.org")
    _, _, (_, recipient), _ = parsed(draft)
    assert recipient["Final-Recipient"] == r"utf-8; j\x{FC}rgen@example.net"
    assert draft.envelope.smtputf8
    assert draft.envelope.body == "8BITMIME"


def test_an_original_can_not_end_the_part_it_is_quoted_in() -> None:
    first = message_from_bytes(made(entry()).message).get_boundary()
    assert first is not None
    inside = b"Subject: x\r\n--" + first.encode() + b"--\r\n\r\n"
    whole, _, _, returned = parsed(made(entry(inside)))
    assert returned.get_content_type() == "text/rfc822-headers"
    assert not whole.defects


def test_headers_can_not_be_injected() -> None:
    evil = 'a"\r\nBcc: victim@example.org\r\n\r\n@example.org'
    failure = Failure(evil, "5.1.1\r\nX: y", "550 no\r\n\r\nStatus: 2.0.0", host="mx\r\nAction: delivered")
    whole, _, (_, recipient), _ = parsed(made(entry(sender=evil), failure, to=evil))
    assert whole["Bcc"] is None
    assert recipient["Status"] == "5.0.0"
    assert recipient["Action"] == "failed"


def test_a_long_reply_is_folded() -> None:
    draft = made(entry(), Failure("b@example.net", "5.1.1", "550 " + "word " * 700, host="mx"))
    assert max(map(len, draft.message.splitlines())) < 998 or b"word word" in draft.message
    _, _, (_, recipient), _ = parsed(draft)
    assert recipient["Diagnostic-Code"].count("word") == 700
    status = draft.message.split(b"message/delivery-status")[1].split(b"--report")[0]
    assert max(map(len, status.splitlines())) < 998


def test_a_delay_warning_promises_more() -> None:
    _, text, (_, recipient), _ = parsed(
        made(entry(), Failure("b@example.net", "4.2.0", "450 x"), action="delayed")
    )
    assert recipient["Action"] == "delayed"
    assert "tried again" in text.get_payload()


@pytest.mark.parametrize(
    ("notify", "heard"),
    [("", True), ("NEVER", False), ("SUCCESS", False), ("SUCCESS,FAILURE", True), ("failure", True)],
)
def test_notify_decides_who_is_told(notify: str, heard: bool) -> None:
    asked = entry(recipients=(Recipient("b@example.net", notify=notify),))
    assert bool(wanted(asked, [GONE])) is heard


@pytest.mark.parametrize(
    ("notify", "heard"),
    [("", True), ("NEVER", False), ("SUCCESS,FAILURE", False), ("FAILURE,DELAY", True), ("delay", True)],
)
def test_notify_decides_who_is_told_of_a_delay(notify: str, heard: bool) -> None:
    asked = entry(recipients=(Recipient("b@example.net", notify=notify),))
    assert bool(wanted(asked, [GONE], "delayed")) is heard


def test_a_delay_warning_says_until_when_it_will_be_tried() -> None:
    _, _, (_, recipient), _ = parsed(made(entry(), action="delayed", retry_until_ns=NOW_NS))
    assert recipient["Will-Retry-Until"] == formatdate(NOW_NS // 10**9)


def test_what_was_left_out_before_is_said_to_people_and_programs() -> None:
    _, text, (_, recipient), _ = parsed(made(entry(), left_out={"b@example.net": 7}))
    assert "7 more like it were left out" in text.get_payload()
    assert recipient["X-qrunner-Left-Out"] == "7"


def test_the_null_sender_is_never_told() -> None:
    assert wanted(entry(sender=""), [GONE]) == ()
    to, told = audience(
        entry(sender=""), [GONE], report="sender", postmaster="pm@example.org", action="delayed"
    )
    assert (to, told) == ("", ())


@pytest.mark.parametrize("report", ["sender", "postmaster"])
def test_what_the_null_sender_has_sent_is_reported_to_the_postmaster_if_it_fails(report: str) -> None:
    draft = _on(entry(sender=""), report)
    assert draft is not None
    assert (draft.envelope.sender, draft.envelope.addresses) == ("", ("pm@example.org",))
    whole, text, _, _ = parsed(draft)
    assert whole["Subject"] == "For the postmaster: undelivered mail"
    assert "A message from <>" in text.get_payload()
    assert _on(entry(sender=""), "none") is None


def test_a_report_to_the_postmaster_that_fails_is_told_nobody() -> None:
    to_him = Failure("PM@example.org", "5.1.1", "550 5.1.1 no such postmaster")
    of = entry(sender="", recipients=(Recipient("PM@example.org"),))
    assert _on(of, "sender", to_him) is None
    draft = _on(entry(sender=""), "sender")
    assert draft is not None
    # An alias has given it other recipients, and it comes in by another way.
    elsewhere = entry(
        b"Received: by x\n" + draft.message, sender="", recipients=(Recipient("ann@example.com"),)
    )
    assert _on(elsewhere, "sender", Failure("ann@example.com", "5.1.1", "550 no")) is None


def test_of_several_recipients_of_a_report_the_postmaster_does_not_hear_of_himself() -> None:
    of = entry(sender="", recipients=(Recipient("b@example.net"), Recipient("pm@example.org")))
    draft = _on(of, "sender", GONE, Failure("pm@example.org", "5.2.2", "552 full"))
    assert draft is not None
    assert b"pm@example.org" not in parsed(draft)[1].as_bytes()


@pytest.mark.parametrize(("report", "told"), [("sender", "a@example.org"), ("postmaster", "pm@example.org")])
def test_report_says_who_is_told(report: str, told: str) -> None:
    draft = _on(entry(), report)
    assert draft is not None
    assert draft.envelope.addresses == (told,)


def test_nobody_is_told_where_none_is_configured() -> None:
    assert _on(entry(), "none") is None


def _on(of: Entry, report: str, *failures: Failure) -> Draft | None:
    to, told = audience(of, failures or [GONE], report=report, postmaster="pm@example.org")
    return build(of, told, to, About("h.example", NOW_NS)) if told else None


@given(
    message=st.binary(max_size=400),
    sender=st.text(min_size=1, max_size=40),
    address=st.text(max_size=40),
    text=st.text(max_size=80),
    odd=st.text(max_size=20),
    full=st.booleans(),
)
def test_nothing_in_a_message_makes_a_report_fail(
    message: bytes, sender: str, address: str, text: str, odd: str, full: bool
) -> None:
    of = entry(
        message, sender, recipients=(Recipient(address, odd, odd),), envid=odd, ret="FULL" if full else "HDRS"
    )
    draft = made(of, Failure(address, odd, text, host=odd), to=sender)
    whole = message_from_bytes(draft.message)
    assert [part.get_content_type() for part in whole.get_payload()][:2] == [
        "text/plain",
        "message/delivery-status",
    ]  # type: ignore[union-attr]
    assert len(whole.get_payload()) == 3
    assert not whole.defects
