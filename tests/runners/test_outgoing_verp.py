"""Senders that name their recipients, and messages that go in circles, on sinks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from qrunner.testing import FakeSite

SITE = """
[site]
hostname = "lists.example.org"
report_queue = "reports"
[smtp.mta1]
host = "mta1.example.org"
[runner.out]
class = "outgoing"
smtp = "mta1"
on_down = []
verp = true
max_hops = 3
"""
BOUNCES = "list-bounces@lists.example.org"
TO = ("ann@example.net", '"bob lee"@example.net', "cat@example.com")


@pytest.fixture
def site() -> Iterator[FakeSite]:
    with FakeSite(SITE) as one:
        yield one


def senders(site: FakeSite) -> list[tuple[str, tuple[str, ...]]]:
    return [(one.sender, one.recipients) for one in site.sink["mta1"].messages]


def test_each_recipient_has_a_transaction_and_a_sender_of_its_own(site: FakeSite) -> None:
    site.enqueue("out", sender=BOUNCES, recipients=TO)
    site.run_until_idle()
    assert senders(site) == [
        ("list-bounces+ann=example.net@lists.example.org", ("ann@example.net",)),
        ('"list-bounces+bob lee=example.net"@lists.example.org', ('"bob lee"@example.net',)),
        ("list-bounces+cat=example.com@lists.example.org", ("cat@example.com",)),
    ]
    assert site.sink["mta1"].connections == 1
    assert not site.entries("out")


def test_the_null_sender_stays_null_and_in_one_transaction(site: FakeSite) -> None:
    site.enqueue("out", sender="", recipients=TO)
    site.run_until_idle()
    assert senders(site) == [("", TO)]


@pytest.mark.parametrize(
    ("said", "sender"), [(False, BOUNCES), ("-=", "list-bounces-ann=example.net@lists.example.org")]
)
def test_an_entry_may_want_it_otherwise(site: FakeSite, said: object, sender: str) -> None:
    site.enqueue("out", sender=BOUNCES, recipients=TO[:1], meta={"verp": said})
    site.run_until_idle()
    assert senders(site) == [(sender, TO[:1])]


def test_an_entry_that_wants_nonsense_is_shunted_before_anybody_gets_it(site: FakeSite) -> None:
    site.enqueue("out", sender=BOUNCES, recipients=TO, meta={"verp": "##"})
    site.run_until_idle()
    (entry,) = site.entries("shunt")
    assert "expected true, false, or two of" in entry.history[-1]["reason"]
    assert senders(site) == []


def test_a_sender_refused_concerns_the_recipient_whose_it_was(site: FakeSite) -> None:
    site.sink["mta1"].reply("MAIL FROM:<list-bounces+ann=", "550 5.1.7 no such sender", times=None)
    site.sink["mta1"].reply("MAIL FROM:<list-bounces+cat=", "450 4.7.1 later")
    site.enqueue("out", sender=BOUNCES, recipients=TO)
    site.run_until_idle()
    assert [to for _, to in senders(site)] == [TO[1:2]]
    assert [one.recipients for one in site.entries("out")] == [TO[2:]]
    (report,) = site.entries("reports")
    assert report.recipients == (BOUNCES,)
    assert b"Final-Recipient: rfc822; ann@example.net" in report.message
    site.clock.advance("1h")
    site.run_until_idle()
    assert [to for _, to in senders(site)] == [TO[1:2], TO[2:]]


def test_who_got_it_is_written_down_one_by_one(site: FakeSite) -> None:
    site.sink["mta1"].hang_up(after="RCPT TO:<cat@")
    site.enqueue("out", sender=BOUNCES, recipients=TO)
    site.run_until_idle()
    (entry,) = site.entries("out")
    assert entry.recipients == TO[2:]
    assert [line["to"] for line in entry.history if line["what"] == "delivered"] == [[TO[0]], [TO[1]]]


def test_a_message_that_has_passed_too_many_hosts_is_given_up(site: FakeSite) -> None:
    trace = b"Received: from a\n\tby b\nReceived: from b by a\nreceived : x\n"
    site.enqueue("out", message=trace + b"Subject: x\n\nReceived: in the text\n", sender="a@example.org")
    site.run_until_idle()
    assert len(site.sink["mta1"].messages) == 1
    site.enqueue("out", message=b"RECEIVED: from c\n" + trace + b"\n", sender="a@example.org")
    site.run_until_idle()
    assert len(site.sink["mta1"].messages) == 1
    (report,) = site.entries("reports")
    assert b"Status: 5.4.6" in report.message
    assert b"mail loop" in report.message
