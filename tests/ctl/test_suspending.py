"""``suspend`` and ``resume``: what they accept, what ``status`` says of it, and that a running site heeds them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.sites import TinySite, tiny_site, wait_for

from .conftest import Place


def status(place: Place) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(place.call("status", "--json").stdout)
    return found


def named(state: dict[str, Any], table: str, name: str) -> dict[str, Any]:
    (found,) = [one for one in state[table] if one["name"] == name and not one.get("slice")]
    return found


def test_status_shows_what_is_suspended_and_how_to_resume_it(place: Place) -> None:
    targets = ["runner:in", "queue:out", "host:mta1", "domain:Example.NET"]
    result = place.call("suspend", *targets, "--reason", "the move", "--for", "2h")
    assert result.exit_code == 0, result.output
    assert result.stdout.split() == [*targets[:3], "domain:example.net"]
    state = status(place)
    tables = [("runners", "in"), ("queues", "out"), ("hosts", "mta1")]
    assert [named(state, *one)["suspended"] for one in tables] == [True, True, True]
    assert [named(state, *one)["suspended"] for one in [("runners", "out"), ("queues", "in")]] == [
        False,
        False,
    ]
    assert named(state, "hosts", "mta1")["state"] == "suspended"
    assert named(state, "hosts", "mta2")["state"] == "up"
    problems = [one for one in state["problems"] if "suspended" in one["what"]]
    assert [one["where"] for one in problems] == ["runner in", "queue out", "host mta1", "domain example.net"]
    assert all("until" in one["what"] and one["what"].endswith(": the move") for one in problems)
    assert problems[3]["hint"] == "qrunner-ctl resume domain:example.net"
    assert not state["healthy"]
    assert place.call("resume", *targets).stdout.split() == [*targets[:3], "domain:example.net"]
    assert "suspended by" not in place.call("status").stdout
    assert named(status(place), "hosts", "mta1") == {**named(state, "hosts", "mta2"), "name": "mta1"}


def test_resuming_what_is_not_suspended_says_so(place: Place) -> None:
    result = place.call("resume", "queue:out")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "queue:out is not suspended" in result.stderr


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("runner:ot", "there is no runner 'ot'; did you mean out?"),
        ("queue:slwo", "there is no queue 'slwo'; did you mean slow?"),
        ("queue:hold", "there is no queue 'hold'; the queues are: in out slow"),
        ("queue:both", "both is a choice among queues, and nothing waits in it: name one of out slow"),
        ("queue:main", "name one of slow out"),
        ("host:mta3", "there is no host 'mta3'; did you mean mta"),
        ("host:mx.example.org", "there is no host 'mx.example.org'"),
        ("domain:bob@example.org", "is no domain"),
        ("domain:*.example.org", "is no domain"),
        ("runer:in", "did you mean runner:in?"),
        ("in", "expected runner:NAME, queue:NAME, host:NAME or domain:NAME"),
        ("queue:", "expected runner:NAME"),
    ],
)
@pytest.mark.parametrize("verb", ["suspend", "resume"])
def test_a_name_that_means_nothing_is_refused_with_the_nearest_and_nothing_is_done(
    place: Place, verb: str, word: str, said: str
) -> None:
    result = place.call(verb, "queue:out", word)
    assert result.exit_code == 2
    assert said in result.stderr
    assert not (place.folder / "qfiles/.suspended.json").exists()


def test_what_the_configuration_no_longer_knows_can_be_resumed(place: Place) -> None:
    assert place.call("suspend", "runner:slow", "host:mta1").exit_code == 0
    text = place.config.read_text().replace("[runner.slow]", "[runner.fast]\nqueue = 'slow'")
    place.config.write_text(text)
    assert place.call("suspend", "runner:slow").exit_code == 2
    assert place.call("resume", "runner:slow").stdout.split() == ["runner:slow"]


def test_a_host_that_is_found_in_the_dns_need_not_be_known(place: Place) -> None:
    place.config.write_text(place.config.read_text() + '\n[smtp.direct]\nmode = "mx"\n')
    assert place.call("suspend", "host:mx1.example.net").exit_code == 0
    assert named(status(place), "hosts", "mx1.example.net")["state"] == "suspended"
    refused = place.call("suspend", "host:direct")
    assert (refused.exit_code, "each recipient's own host" in refused.stderr) == (2, True)
    assert place.call("suspend", "host:mta").exit_code == 2


def test_each_is_written_down_with_its_user(place: Place) -> None:
    place.call("suspend", "queue:out", "--reason", "x y")
    place.call("resume", "queue:out")
    lines = [line for line in place.log().splitlines() if "target=queue:out" in line]
    assert [" suspend " in lines[0], " resume " in lines[1]] == [True, True]
    assert all("user=" in line for line in lines)
    assert 'reason="x y"' in lines[0]


@pytest.fixture
def site(tmp_path: Path):  # type: ignore[no-untyped-def]
    with tiny_site(tmp_path) as made:
        yield made


def test_a_running_site_heeds_it_and_a_restart_does_not_end_it(site: TinySite) -> None:
    site.ctl("start")
    site.ctl("suspend", "runner:in", "queue:out", "--reason", "lunch")
    wait_for(lambda: {one["state"] for one in site.told()["runners"]} == {"suspended"})
    assert {one["state"] for one in site.status(1)["runners"]} == {"suspended"}
    site.enqueue()
    site.ctl("restart")
    state = site.status(1)
    assert {one["state"] for one in state["runners"]} == {"suspended"}
    assert [one["ready"] for one in state["queues"][:2]] == [1, 0]
    site.ctl("resume", "runner:in")
    wait_for(lambda: [one["ready"] for one in site.told()["queues"][:2]] == [0, 1])
    assert [one["ready"] for one in site.status(1)["queues"][:2]] == [0, 1]
    site.ctl("suspend", "queue:out", "--for", "1s")
    wait_for(lambda: [one["deferred"] for one in site.told()["queues"][:2]] == [0, 1])
    wait_for(lambda: {one["state"] for one in site.told()["runners"]} == {"running"})
    assert site.status(0)["problems"] == []
