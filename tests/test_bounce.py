"""What a refusal speaks of: replies as hosts give them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrunner.bounce import bounces, kind_of
from qrunner.fate import Failure
from qrunner.testing import make_entry

ADDRESS = [
    (
        "5.1.1",
        "550 5.1.1 <ann@example.net>: Recipient address rejected: User unknown in local recipient table",
    ),
    (
        "5.1.1",
        "550-5.1.1 The email account that you tried to reach does not exist. Please try double-checking",
    ),
    ("5.4.1", "550 5.4.1 Recipient address rejected: Access denied. [AM0EUR02FT022.eop-EUR02.prod]"),
    ("5.0.0", "550 No such user here"),
    ("5.0.0", "554 delivery error: dd This user doesn't have a yahoo.com account (ann@yahoo.com) [0]"),
    ("5.7.1", "550 5.7.1 No such recipient"),
    ("5.2.1", "550 5.2.1 The email account that you tried to reach is disabled."),
    ("5.2.2", "552-5.2.2 The recipient's inbox is out of storage space"),
    ("4.2.2", "452 4.2.2 Mailbox full"),
    ("5.0.0", "550 Requested action not taken: mailbox unavailable"),
    ("5.1.2", "the domain example.invalid does not exist"),
    ("5.1.10", "example.net takes no mail (null MX)"),
    ("5.1.1", "550 5.1.1 <spam.blocked@example.net> User unknown"),
    ("5.1.1", "550 5.1.1 unknown user: policy@example.net"),
    ("5.0.0", "550 unrouteable address"),
    ("5.0.0", "550 Invalid recipient <x@example.net>"),
]
POLICY = [
    ("5.7.1", "550 5.7.1 Message rejected"),
    ("5.7.1", "554 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using zen.spamhaus.org"),
    ("5.7.26", "550-5.7.26 This mail has been blocked because the sender is unauthenticated."),
    ("5.1.1", "550 5.1.1 Rejected as spam: unknown user or too many recipients"),
    ("5.0.0", "554 Message contains a virus"),
    ("4.7.1", "450 4.7.1 Greylisted, try again later"),
    ("5.7.1", "550 5.7.1 Unable to relay for ann@example.net"),
    ("5.0.0", "550 relay access denied"),
    ("4.7.28", "421 4.7.28 unusual rate of mail"),
    ("5.0.0", "550 SPF check failed for example.org"),
    ("5.1.8", "553 5.1.8 Sender address rejected: Domain not found"),
]
OTHER = [
    ("5.3.4", "552 5.3.4 Message size exceeds fixed limit"),
    ("5.4.6", "51 Received: lines: the message is in a mail loop"),
    ("5.6.7", "the host does not take addresses that are not ASCII (SMTPUTF8)"),
    ("5.0.0", "554 transaction failed"),
    ("5.5.1", "503 5.5.1 bad sequence of commands"),
    ("4.4.2", "the connection was lost"),
    ("4.4.1", "connection timed out"),
    ("", ""),
    ("5.0.0", "550 go away"),
]


@pytest.mark.parametrize(("status", "text"), ADDRESS)
def test_of_an_address_that_takes_no_mail(status: str, text: str) -> None:
    assert kind_of(status, text) == "address"


@pytest.mark.parametrize(("status", "text"), POLICY)
def test_of_somebody_who_does_not_want_it(status: str, text: str) -> None:
    assert kind_of(status, text) == "policy"


@pytest.mark.parametrize(("status", "text"), OTHER)
def test_of_something_else(status: str, text: str) -> None:
    assert kind_of(status, text) == "other"


@given(status=st.text(max_size=10), text=st.text(max_size=4000))
def test_nothing_that_a_host_says_makes_it_fail(status: str, text: str) -> None:
    assert kind_of(status, text) in ("address", "policy", "other")


def test_who_was_refused_is_told_from_who_was_put_off_for_too_long() -> None:
    of = make_entry(sender="ann@example.org")
    refused = Failure("b@example.net", "5.1.1", "550 5.1.1 unknown user", host="mx")
    late = Failure("c@example.net", "4.2.2", "452 4.2.2 full", host="mx", expired=True)
    first, second = bounces(of, [refused, late, Failure("", "5.0.0", "no")])
    assert (first.address, first.kind, first.permanent) == ("b@example.net", "address", True)
    assert (second.address, second.kind, second.permanent) == ("c@example.net", "address", False)
    assert (first.sender, first.entry, first.status) == ("ann@example.org", of, "5.1.1")
