"""Matches: globs, regular expressions, any of a list, all of the keys, case ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrunner.match import Match, Pattern, patterns


def fits(match: Match, **given: Any) -> bool:
    headers: Mapping[str, str] = given.get("headers", {})
    return match.fits(
        sender=given.get("sender", "ann@a.example"),
        recipient=given.get("recipient", "bob@b.example"),
        header=headers.get,
        meta=given.get("meta", {}),
    )


@pytest.mark.parametrize(
    ("pattern", "value", "expected"),
    [
        ("*@big.example", "Bob@BIG.Example", True),
        ("*@big.example", "bob@big.example.org", False),
        ("big.example", "bob@big.example", False),
        ("b?b@*", "bob@x", True),
        ("[ab]ob@*", "aob@x", True),
        ("*", "two\nlines", True),
        ("", "", True),
        ("", "x", False),
        ("/^bob@/", "BOB@x", True),
        ("/ob/", "bob@x", True),
        ("/^ob/", "bob@x", False),
        ("/", "/", True),
        ("//", "anything", True),
    ],
)
def test_a_pattern_is_a_whole_glob_or_a_regular_expression_found_anywhere(
    pattern: str, value: str, expected: bool
) -> None:
    assert Pattern(pattern).fits(value) is expected


def test_what_is_no_regular_expression_is_refused() -> None:
    with pytest.raises(ValueError, match="no regular expression"):
        Pattern("/(/")


@given(st.text())
def test_any_text_is_a_pattern_or_refused(text: str) -> None:
    try:
        Pattern(text).fits(text)
    except ValueError:
        assert text.startswith("/")


def test_patterns_of_the_same_text_are_equal() -> None:
    assert patterns("a*") == patterns(["a*"])


def test_an_empty_match_fits_everything() -> None:
    assert fits(Match(), sender="", recipient="")


def test_a_list_is_any_and_several_keys_are_all() -> None:
    match = Match(sender=patterns(["ann@*", "eve@*"]), domain=patterns("b.example"))
    assert fits(match)
    assert fits(match, sender="EVE@x")
    assert not fits(match, sender="joe@x")
    assert not fits(match, recipient="bob@c.example")


def test_the_domain_is_the_recipients_after_its_last_at_sign() -> None:
    assert fits(Match(domain=patterns("b.example")), recipient='"a@c.example"@B.example')


def test_a_header_that_is_not_there_never_fits() -> None:
    match = Match(header=(("List-Id", patterns("*")),))
    assert fits(match, headers={"List-Id": ""})
    assert not fits(match)


def test_several_headers_must_all_fit() -> None:
    match = Match(header=(("A", patterns("1")), ("B", patterns("2"))))
    assert fits(match, headers={"A": "1", "B": "2"})
    assert not fits(match, headers={"A": "1", "B": "3"})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("x", True),
        (["a", "x"], True),
        ([], False),
        (None, False),
        ({"x": "x"}, False),
        (1, False),
        (True, False),
    ],
)
def test_metadata_is_compared_as_text_and_a_list_by_its_values(value: object, expected: bool) -> None:
    assert fits(Match(meta=(("k", patterns("x")),)), meta={"k": value}) is expected


def test_json_spells_true() -> None:
    assert fits(Match(meta=(("k", patterns("true")),)), meta={"k": True})
    assert fits(Match(meta=(("k", patterns("17")),)), meta={"k": 17})


def test_only_a_question_about_recipients_splits() -> None:
    assert Match(recipient=patterns("a")).splits
    assert Match(domain=patterns("a")).splits
    assert not Match(sender=patterns("a")).splits
