"""Senders that name their recipients."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qrunner.verp import delimiters, readings, sender_for, wanted

BOUNCES = "list-bounces@lists.example.org"


@pytest.mark.parametrize(
    ("sender", "recipient", "expected"),
    [
        (BOUNCES, "ann@example.net", "list-bounces+ann=example.net@lists.example.org"),
        (BOUNCES, "a+b=c@example.net", "list-bounces+a+b=c=example.net@lists.example.org"),
        (BOUNCES, '"ann lee"@example.net', '"list-bounces+ann lee=example.net"@lists.example.org'),
        (BOUNCES, r'"a\"b"@example.net', r'"list-bounces+a\"b=example.net"@lists.example.org'),
        (BOUNCES, '"ann"@example.net', "list-bounces+ann=example.net@lists.example.org"),
        (BOUNCES, '"a@b"@example.net', '"list-bounces+a@b=example.net"@lists.example.org'),
        ('"the list"@example.org', "ann@example.net", '"the list+ann=example.net"@example.org'),
        (BOUNCES, "ann@[192.0.2.1]", '"list-bounces+ann=[192.0.2.1]"@lists.example.org'),
        (BOUNCES, "jürgen@bücher.example", "list-bounces+jürgen=bücher.example@lists.example.org"),
        (BOUNCES, "postmaster", "list-bounces+postmaster@lists.example.org"),
        ("bounces", "ann@example.net", "bounces+ann=example.net"),
        ("", "ann@example.net", ""),
    ],
)
def test_a_sender_names_its_recipient(sender: str, recipient: str, expected: str) -> None:
    assert sender_for(sender, recipient, "+=") == expected


def test_the_delimiters_are_as_configured_and_none_leave_the_sender_as_it_is() -> None:
    assert sender_for(BOUNCES, "a@example.net", "-=") == "list-bounces-a=example.net@lists.example.org"
    assert sender_for(BOUNCES, "a@example.net", "") == BOUNCES


@pytest.mark.parametrize(
    ("value", "pair"),
    [(True, "+="), ("true", "+="), (False, ""), ("false", ""), ("", ""), ("+=", "+="), ("-+", "-+")],
)
def test_the_metadata_says_more_than_the_runner(value: object, pair: str) -> None:
    assert wanted("==", {"verp": value}) == pair
    assert wanted("==", {}) == "=="


@pytest.mark.parametrize("value", [None, 1, "+", "yes", "+=+", [], "@="])
def test_metadata_that_means_nothing_is_no_verp_by_mistake(value: object) -> None:
    with pytest.raises(ValueError, match="verp"):
        delimiters(value)


LOCALS = st.from_regex(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(\.[A-Za-z0-9-]+)*", fullmatch=True) | st.from_regex(
    r'"(?:[^"\\\x00-\x1f\x7f]|\\[^\x00-\x1f\x7f])*"', fullmatch=True
)


@given(sender=LOCALS, recipient=LOCALS)
@example(sender="0", recipient='"\x85"')
def test_an_address_makes_an_address(sender: str, recipient: str) -> None:
    made = sender_for(f"{sender}@example.org", f"{recipient}@example.net", "+=")
    local, _, domain = made.rpartition("@")
    assert domain == "example.org"
    assert re.fullmatch(r'"(?:[^"\\\x00-\x1f\x7f]|\\[^\x00-\x1f\x7f])*"|[^"<>()\[\]:;@\\,\s]+', local)


@pytest.mark.parametrize(
    ("address", "pair", "sender", "recipient"),
    [
        ("list-bounces+ann=example.net@lists.example.org", "+=", BOUNCES, "ann@example.net"),
        ("list-bounces+a+b=c=example.net@lists.example.org", "+=", BOUNCES, "a+b=c@example.net"),
        ('"list-bounces+ann lee=example.net"@lists.example.org', "+=", BOUNCES, '"ann lee"@example.net'),
        ('"list-bounces+ann=[192.0.2.1]"@lists.example.org', "+=", BOUNCES, "ann@[192.0.2.1]"),
        ("list-bounces-ann=example.net@lists.example.org", "-=", BOUNCES, "ann@example.net"),
        ("list-bounces+jürgen=bücher.example@lists.example.org", "+=", BOUNCES, "jürgen@bücher.example"),
        ("b=ann=example.net@lists.example.org", "==", "b@lists.example.org", "ann@example.net"),
    ],
)
def test_what_a_sender_names_is_read_back(address: str, pair: str, sender: str, recipient: str) -> None:
    assert readings(address, pair)[0] == (sender, recipient)


@pytest.mark.parametrize(
    "address",
    [
        "list-bounces@lists.example.org",
        "list+ann@lists.example.org",
        "list+ann=example@lists.example.org",
        "+ann=example.net@lists.example.org",
        "list+=example.net@lists.example.org",
        "list=example.net@lists.example.org",
        "list+ann=example.net",
        "postmaster",
        "",
        "@",
    ],
)
def test_an_address_that_names_nobody(address: str) -> None:
    assert readings(address, "+=") == []


DOMAINS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?(\.[a-z]{2,6}){1,2}", fullmatch=True)
PAIRS = st.sampled_from(["+=", "-=", "=+", "--", "=="])


@given(sender=LOCALS, recipient=LOCALS, domain=DOMAINS, pair=PAIRS)
def test_what_was_written_is_among_the_readings(sender: str, recipient: str, domain: str, pair: str) -> None:
    # Names that need no quotes, but have them, come back without.
    sender, recipient = (sender_for(f"{name}@{domain}", "", "") for name in (sender, recipient))
    made = sender_for(sender, recipient, pair)
    found = {(unquoted(a), unquoted(b)) for a, b in readings(made, pair)}
    # A domain may have a "-" of its own, which no one can tell from a delimiter.
    if pair[1] not in domain and all(len(unquoted(one)) > len(domain) + 1 for one in (sender, recipient)):
        assert (unquoted(sender), unquoted(recipient)) in found


def unquoted(address: str) -> str:
    local, _, domain = address.rpartition("@")
    if len(local) > 1 and local[0] == local[-1] == '"':
        local = re.sub(r"\\(.)", r"\1", local[1:-1])
    return f"{local}@{domain}"
