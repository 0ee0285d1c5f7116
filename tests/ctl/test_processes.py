"""The verbs on processes, as an operator types them: what they say, when they return, what they exit with."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from qrunner.master.watch import lone_processes
from qrunner.rundir import is_alive
from qrunner.site import Site
from tests.sites import TinySite, tiny_site, wait_for


@pytest.fixture
def site(tmp_path: Path) -> Iterator[TinySite]:
    with tiny_site(tmp_path) as made:
        yield made


def test_a_site_is_started_asked_restarted_and_stopped(site: TinySite) -> None:
    assert site.ctl("start") == "started: 3 runners up\n"
    first, before = site.master.pid, list(site.pids().values())
    assert site.ctl("start") == f"already running, process {first}\n"
    assert "healthy" in site.ctl("status")
    assert site.ctl("restart") == "started: 3 runners up\n"
    assert site.master.pid != first
    pids = [site.master.pid, *site.pids().values()]
    assert not set(before) & set(pids)
    assert site.ctl("stop") == "stopped\n"
    assert not any(is_alive(pid) for pid in pids if pid)
    assert " error " not in site.log()


@pytest.mark.parametrize("verb", ["stop", "reload", "reopen"])
def test_without_a_master_it_is_said_and_the_exit_code_is_3(site: TinySite, verb: str) -> None:
    assert site.ctl(verb, code=3) == "not running\n"


def test_restart_starts_what_was_not_running(site: TinySite) -> None:
    assert site.ctl("restart") == "was not running\nstarted: 3 runners up\n"


def test_the_configuration_may_be_named_before_or_after_the_verb(site: TinySite) -> None:
    site.ctl("-c", str(site.config), "status", code=3)
    site.ctl("status", f"--config={site.config}", "-c", str(site.config), code=3)
    assert "there is no verb 'stats'; did you mean status?" in site.ctl("stats", code=2)


@pytest.mark.parametrize("verb", ["start", "restart", "reload", "status"])
def test_a_configuration_with_errors_is_told_with_all_of_them(site: TinySite, verb: str) -> None:
    site.change("weight = 70", "wait = 70")
    site.change('next = "out"', "nixt = 3")
    said = site.ctl(verb, code=78)
    assert f"{site.config}:12: " in said
    assert f"{site.config}:16: " in said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tiny:Pas", "tiny:Pas: tiny has no 'Pas'; did you mean 'Pass'?"),
        ("tinny:Pass", "tinny:Pass: there is no module 'tinny' on the python_path"),
        ("tiny:HERE", "tiny:HERE: is a PosixPath, not a class derived from qrunner.Runner"),
    ],
)
def test_a_class_that_cannot_be_had_keeps_everything_from_starting(
    site: TinySite, name: str, said: str
) -> None:
    site.change("tiny:Pass", name)
    assert said in site.ctl("start", code=78)
    assert not site.run.is_locked()


def test_reload_restarts_the_runners_that_changed_and_no_other(site: TinySite) -> None:
    site.ctl("start")
    before = site.pids()
    site.change("weight = 70", "weight = 50")
    assert site.ctl("reload") == "reloaded\n"
    after = site.pids()
    assert after["in/0"] == before["in/0"]
    assert not {after["out/0"], after["out/1"]} & {before["out/0"], before["out/1"]}
    assert [one["weight"] for one in site.status(0)["runners"]] == [1, 50, 30]
    assert list(site.run.run.glob("config-*")) != []


def test_reload_starts_what_is_new_and_stops_what_is_gone(site: TinySite) -> None:
    site.ctl("start")
    kept = site.pids()["in/0"]
    text = site.config.read_text()
    site.write(
        text.partition("[runner.out]")[0]
        + '[runner.away]\nclass = "tiny:Keep"\nqueue = "out"\n\n[runner.x]\nclass = "tiny:Keep"\n'
    )
    site.ctl("reload")
    assert list(site.pids()) == ["in/0", "away/0", "x/0"]
    assert site.pids()["in/0"] == kept
    assert "x" in [one["name"] for one in site.status(0)["queues"]]
    assert {one["restarts"] for one in site.status(0)["runners"]} == {0}


def test_reload_of_an_invalid_configuration_changes_nothing(site: TinySite) -> None:
    site.ctl("start")
    before = site.pids()
    good = site.config.read_text()
    for old, new in [("weight = 70", "weight = 0"), ("tiny:Pass", "tiny:Nothing")]:
        site.write(good.replace(old, new))
        site.ctl("reload", code=78)
        assert site.pids() == before
    site.write(good)
    site.status(0)


def test_reload_refuses_another_place_for_the_mail(site: TinySite) -> None:
    site.ctl("start")
    before = site.pids()
    site.change("../qfiles", "../elsewhere")
    assert "site.queue_dir has changed" in site.ctl("reload", code=78)
    assert site.pids() == before


def test_stop_works_while_the_configuration_is_being_edited(site: TinySite) -> None:
    site.ctl("start")
    site.change('[runner.out]\nclass = "tiny:Keep"', "[runner.out]\nclass =")
    site.ctl("restart", code=78)
    site.ctl("status")
    assert site.ctl("stop") == "stopped\n"


def test_stop_waits_for_what_a_killed_master_has_left(site: TinySite) -> None:
    site.change("tiny:Pass", "tiny:Busy")
    site.ctl("start")
    site.enqueue()
    wait_for((site.code / "busy").exists)
    busy = site.pids()["in/0"]
    os.kill(site.master.pid, signal.SIGKILL)
    wait_for(lambda: not site.run.is_locked())
    stop = site.start_ctl("stop")
    wait_for(lambda: "the master has died" in site.log())
    assert stop.poll() is None
    site.add_file("enough")
    out, err = stop.communicate(timeout=20)
    assert stop.returncode == 3
    assert "not running" in out + err
    assert busy is not None
    assert not is_alive(busy)


def test_run_once_does_what_is_due_and_ends(site: TinySite) -> None:
    site.ctl("start")
    site.ctl("stop")
    id = site.enqueue()
    site.ctl("run", "in", "--once")
    assert [entry.id for entry in Site.load(site.config).entries("out")] == [id]
    assert lone_processes(site.run) == ()


def test_run_asks_which_slice_and_knows_its_runners(site: TinySite) -> None:
    site.ctl("run", "out", "--slice", "1", "--once")
    assert "say which with --slice 0 to 1" in site.ctl("run", "out", code=2)
    assert "has no slice 2" in site.ctl("run", "out", "--slice", "2", code=2)
    assert "there is no runner 'ouch'" in site.ctl("run", "ouch", code=2)


def test_run_stays_in_the_foreground_until_it_is_interrupted(site: TinySite) -> None:
    process = site.start_ctl("run", "in")
    wait_for(lambda: [one for one in lone_processes(site.run) if one.is_up])
    assert [one["state"] for one in site.status(3)["runners"]] == ["running", "stopped", "stopped"]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 0


def test_run_of_a_runner_that_does_not_come_up_ends_with_1(site: TinySite) -> None:
    site.add_file("unready")
    site.change("tiny:Pass", "tiny:Unready")
    assert "ValueError: the table is missing" in site.ctl("run", "in", code=1)


def test_run_once_of_a_range_that_is_taken_says_by_whom_and_to_try_again(site: TinySite) -> None:
    site.ctl("start")
    assert f"process {site.pids()['in/0']} on a" in site.ctl("run", "in", "--once", code=75)
