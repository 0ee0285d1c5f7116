"""``route --test``: which queue, by which rule, and where that stands."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .conftest import Place

ROUTES = """
[route.lists]
rules = [
  { recipient = ["*@big.example", "/^vip/"], queue = "slow" },
  { header = { "List-Id" = "*announce*" }, queue = "both" },
  { sender = "ann@*", meta = { source = "door" }, queue = "main" },
  { domain = "last.example", queue = "slow" },
]
"""


@pytest.fixture
def routed(place: Place) -> Place:
    place.config.write_text(place.config.read_text() + ROUTES)
    return place


def ask(place: Place, *words: str) -> list[dict[str, Any]]:
    result = place.call("route", *words, "--json")
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


def line_of(place: Place, text: str) -> int:
    (found,) = [n for n, line in enumerate(place.config.read_text().splitlines(), 1) if text in line]
    return found


@pytest.mark.parametrize(
    ("words", "rule", "goes_to"),
    [
        (["--test", "bob@BIG.example"], 1, ["slow"]),
        (["--test", "vip7@x.example"], 1, ["slow"]),
        (["--test", "bob@x.example", "--header", "List-ID: <announce.x>"], 2, ["out", "slow"]),
        (["--test", "bob@x.example", "--sender", "ann@y", "-m", "source=door"], 3, ["out"]),
        (["--test", "b@slow.example", "--sender", "ann@y", "--meta", "source=door"], 3, ["slow"]),
        (["--test", "bob@last.example"], 4, ["slow"]),
    ],
)
def test_the_first_rule_that_fits_is_named_with_its_line(
    routed: Place, words: list[str], rule: int, goes_to: list[str]
) -> None:
    (answer,) = ask(routed, *words, "--queue", "lists")
    step = answer["steps"][0]
    marks = {1: "*@big.example", 2: "*announce*", 3: "ann@*", 4: "last.example"}
    assert (step["rule"], step["fits"], answer["goes_to"]) == (rule, True, goes_to)
    assert (step["file"], step["line"]) == (str(routed.config), line_of(routed, marks[rule]))


def test_where_no_rule_fits_it_says_so(routed: Place) -> None:
    said = routed.call("route", "--test", "bob@x.example", "-q", "lists").stdout
    line = line_of(routed, "last.example")
    because = 'no rule fits, so the last one\'s queue (domain = "last.example") -> slow'
    assert said.splitlines() == [
        "bob@x.example in lists: slow",
        f"  lists: {routed.config}:{line}: rule 4: {because}",
        "  slow: runner slow, hosts mta2",
    ]


def test_every_route_is_asked_if_none_is_named_and_each_address_by_itself(routed: Place) -> None:
    answers = ask(routed, "--test", "a@big.example", "--test", "b@slow.example")
    assert [(one["address"][0], one["queue"], one["goes_to"]) for one in answers] == [
        ("a", "main", ["out"]),
        ("a", "lists", ["slow"]),
        ("b", "main", ["slow"]),
        ("b", "lists", ["slow"]),
    ]


def test_a_choice_by_chance_names_shares_and_the_living(place: Place) -> None:
    place.call("suspend", "host:mta2")
    said = place.call("route", "--test", "a@x", "--queue", "both").stdout.splitlines()
    assert said[0] == "a@x in both: out or slow"
    assert said[1].endswith("random: out 50%, slow 50%; living now: out")
    assert said[2:] == ["  out: runner out, hosts mta1 mta2", "  slow: runner slow, hosts mta2"]


def test_the_answer_is_where_a_message_really_goes(routed: Place) -> None:
    for address in ("a@big.example", "b@slow.example", "c@else.example"):
        for queue in ("main", "lists"):
            (answer,) = ask(routed, "--test", address, "--queue", queue)
            id = routed.call("inject", "-q", queue, "-f", "", address, given="\n").stdout.strip()
            assert id in routed.ids(answer["goes_to"][0])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--test"),
        (
            ["--test", "a@x", "--queue", "nosuch"],
            "there is no queue 'nosuch'; the queues are: main both in out slow",
        ),
        (["--test", "a@x", "--header", "nothing"], "is no header field"),
        (["--test", "a@x", "--meta", "nothing"], "expected KEY=VALUE"),
    ],
)
def test_what_can_not_be_asked_is_a_usage_error(place: Place, words: list[str], said: str) -> None:
    result = place.call("route", *words)
    assert (result.exit_code, said in result.stderr) == (2, True), result.stderr


def test_a_configuration_without_virtual_queues_has_nothing_to_ask(place: Place) -> None:
    place.config.write_text(place.config.read_text().partition("[balance.both]")[0])
    result = place.call("route", "--test", "a@x")
    assert (result.exit_code, "has no [route.NAME]" in result.stderr) == (1, True)
