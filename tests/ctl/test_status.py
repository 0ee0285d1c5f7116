"""``status``: the fields that programs read, and the table that people do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from qrunner.site import Site
from qrunner.smtp.mxboard import MxBoard
from qrunner.smtp.pace import Paces
from qrunner.tally import FileTally
from tests.sites import TinySite, tiny_site, wait_for

RUNNER = (
    "name slice slices weight range queue node state pid restarts heartbeat_age_s processed failed rate_1m"
)
RUNNER += " suspended reason"
QUEUE = "name depth ready deferred active oldest_age_s next_due_s suspended"
HOST = "name state failures retry_at last_error suspended"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[TinySite]:
    with tiny_site(tmp_path) as made:
        yield made


def test_reports_that_were_left_out_are_counted(site: TinySite) -> None:
    assert site.status(3)["reports"] == {"left_out": 0, "addresses": 0}
    site.run.make()
    tally = FileTally(site.run.reports)
    for id in ("one", "two", "three"):
        tally.ask(["failed <a@example.org> <b@example.net>", "failed <> <b@example.net>"], id, time.time_ns())
    assert site.status(3)["reports"] == {"left_out": 4, "addresses": 2}
    assert "4 reports left out, on 2 addresses" in site.ctl("status", code=3)


def test_a_host_with_a_rate_says_how_long_mail_would_wait_for_it(site: TinySite) -> None:
    site.change("[runner.in]", '[smtp.mta1]\nhost = "127.0.0.1"\nrate = "1/h"\n\n[runner.in]')
    assert [one["rate_wait_s"] for one in site.status(3)["hosts"]] == [0]
    site.run.hosts.mkdir(parents=True)
    Paces(site.run.hosts / ".pace").turn("mta1", (1, 3600.0), 0)
    assert 3000 < site.status(3)["hosts"][0]["rate_wait_s"] <= 3600
    assert "rate wait" in site.ctl("status", code=3)


def test_the_json_has_the_fields_of_the_contract(site: TinySite) -> None:
    site.change("[runner.in]", '[smtp.mta1]\nhost = "127.0.0.1"\nport = 2525\n\n[runner.in]')
    site.ctl("start")
    site.enqueue()
    site.enqueue("out")
    wait_for(lambda: sum(one.beat.get("processed", 0) for one in site.master.processes) >= 3)
    state = site.status(0)
    assert list(state) == ["site", "healthy", "problems", "master", "runners", "queues", "hosts", "reports"]
    assert (state["site"], state["healthy"], state["problems"]) == ("lists.example.org", True, [])
    assert datetime.fromisoformat(state["master"]["since"]).tzinfo is not None
    assert {" ".join(one) for one in state["runners"]} == {RUNNER}
    assert {" ".join(one) for one in state["queues"]} == {QUEUE}
    assert {" ".join(one) for one in state["hosts"]} == {HOST}
    assert state["runners"][0]["range"] == f"{'0' * 40}-{'f' * 40}"
    assert [one["name"] for one in state["queues"]] == ["in", "out", "hold", "shunt", "bad"]
    out = state["queues"][1]
    assert (out["depth"], out["ready"], out["deferred"], out["active"]) == (2, 0, 2, 0)
    assert out["oldest_age_s"] < 3000 < out["next_due_s"] <= 3600


def test_what_waits_for_a_person_is_a_problem_and_what_is_held_is_none(site: TinySite) -> None:
    site.ctl("start")
    site.ctl("stop")
    spool = Site.load(site.config).spool
    site.enqueue("out")
    (ref,) = spool.peek("out")
    spool.shift(ref, area="hold")
    site.change("tiny:Keep", "tiny:Pass")
    site.ctl("start")
    assert site.status(0)["queues"][2]["depth"] == 1
    (ref,) = spool.peek("out", "hold")
    spool.shift(ref, area="shunt")
    (problem,) = site.status(1)["problems"]
    assert list(problem) == ["what", "where", "since", "hint"]
    assert (problem["where"], problem["what"]) == ("shunt/out", "1 set aside, for a person to look at")


def test_a_host_found_by_mx_that_is_down_is_shown_and_is_no_problem(site: TinySite) -> None:
    site.change("[runner.in]", '[smtp.direct]\nmode = "mx"\n\n[runner.in]')
    site.ctl("start")
    board = MxBoard(Site.load(site.config).config.site.state_dir / "host")
    board.lay_out()
    board.change("mx.far.example", lambda health: replace(health, state="down", last_error="refused"))
    state = site.status(0)
    assert [(one["name"], one["state"]) for one in state["hosts"]] == [("mx.far.example", "down")]
    assert state["problems"] == []


def test_people_get_a_table_without_colour_where_there_is_no_terminal(site: TinySite) -> None:
    said = site.ctl("status", code=3)
    assert "\x1b" not in said
    assert "problem: master: no master is running" in said
    assert said.splitlines()[0] == "lists.example.org: master stopped"
