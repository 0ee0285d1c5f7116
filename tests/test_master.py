"""The master, as real processes on a small site: what it keeps alive, and what it leaves behind."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from qrunner.master.slot import backoff_s
from qrunner.master.watch import lone_processes
from qrunner.message import Entry
from qrunner.rundir import is_alive
from qrunner.site import Site
from tests.sites import TinySite, tiny_site, wait_for


@pytest.fixture
def site(tmp_path: Path) -> Iterator[TinySite]:
    with tiny_site(tmp_path) as made:
        yield made


def test_a_killed_runner_comes_back_and_the_others_are_not_touched(site: TinySite) -> None:
    site.ctl("start")
    before = site.pids()
    victim = site.pid("out/1")
    os.kill(victim, signal.SIGKILL)
    after = wait_for(lambda: site.pids() if site.pids()["out/1"] not in (None, victim) else None)
    assert {name: pid for name, pid in after.items() if name != "out/1"} == {
        name: pid for name, pid in before.items() if name != "out/1"
    }
    site.pid("out/1")
    assert [one["restarts"] for one in site.status(0)["runners"]] == [0, 0, 1]


def test_runners_end_with_a_killed_master_and_nothing_has_to_be_tidied(site: TinySite) -> None:
    site.ctl("start")
    master, pids = site.master.pid, list(site.pids().values())
    os.kill(master, signal.SIGKILL)
    wait_for(lambda: not any(is_alive(pid) for pid in [master, *pids] if pid))
    assert site.status(3)["master"] == {"state": "stopped", "pid": None, "since": None}
    site.ctl("start")
    site.status(0)
    assert "the master has died" in site.log()


def test_who_listens_to_nobody_does_not_outlive_the_master_either(site: TinySite) -> None:
    site.change("tiny:Pass", "tiny:Stuck")
    site.change('next = "out"', 'grace = "100ms"')
    site.ctl("start")
    id = site.enqueue()
    wait_for((site.code / "busy").exists)
    stuck = site.pid("in/0")
    os.kill(site.master.pid, signal.SIGKILL)
    wait_for(lambda: not is_alive(stuck))
    site.change("tiny:Stuck", "tiny:Keep")
    site.ctl("run", "in", "--once")
    (entry,) = Site.load(site.config).entries("in")
    assert (entry.id, _crashes(entry)) == (id, [])


def test_what_site_code_prints_is_logged_and_shunts_nothing_when_the_master_has_died(site: TinySite) -> None:
    site.change("tiny:Pass", "tiny:Chatty")
    site.ctl("start")
    site.enqueue()
    wait_for(lambda: 'runner said runner=in/0 text="there is' in site.log())
    os.kill(site.master.pid, signal.SIGKILL)
    wait_for(lambda: not lone_processes(site.run))
    spool = Site.load(site.config).spool
    assert list(spool.peek("in", "shunt")) == []
    assert len([*spool.peek("in"), *spool.peek("out")]) == 1


def test_files_of_dead_processes_are_not_believed(site: TinySite) -> None:
    site.run.make()
    site.run.lock_file.touch()
    site.run.master_file.write_text(f'{{"pid": {os.getpid()}, "state": "running", "slots": []}}')
    site.run.runner_file("out", 0).write_text('{"pid": 1, "state": "running"')
    site.run.runner_file("out", 1).write_text(
        f'{{"pid": {os.getpid()}, "state": "running", "boot": "an earlier"}}'
    )
    assert {one["state"] for one in site.status(3)["runners"]} == {"stopped"}
    site.ctl("start")
    assert {one["state"] for one in site.status(0)["runners"]} == {"running"}


def test_a_runner_that_dies_while_the_configuration_is_edited_comes_back_on_the_old_one(
    site: TinySite,
) -> None:
    site.ctl("start")
    site.change('class = "tiny:Keep"', "class =")
    victim = site.pid("in/0")
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: site.pids()["in/0"] not in (None, victim))
    assert site.pid("in/0") != victim
    assert [one["name"] for one in site.status(0)["runners"]] == ["in", "out", "out"]


def test_hup_with_an_error_in_the_configuration_changes_nothing_and_is_remembered(site: TinySite) -> None:
    site.ctl("start")
    before = site.pids()
    site.change("tiny:Pass", "tiny:Nothing")
    os.kill(site.master.pid, signal.SIGHUP)
    wait_for(lambda: "tiny has no 'Nothing'" in site.master.reload_error)
    site.change("tiny:Nothing", "tiny:Pass")
    site.change("weight = 70", 'weight = "much"')
    os.kill(site.master.pid, signal.SIGHUP)
    wait_for(lambda: "weight" in site.master.reload_error)
    assert site.pids() == before
    (problem,) = site.status(1)["problems"]
    assert "reload was refused" in problem["what"]
    assert "weight" in problem["what"]
    site.change('weight = "much"', "weight = 70")
    os.kill(site.master.pid, signal.SIGHUP)
    wait_for(lambda: not site.master.reload_error)
    assert site.pids() == before
    assert site.status(0)["problems"] == []


def test_a_runner_whose_start_fails_is_failed_and_comes_up_once_that_is_mended(site: TinySite) -> None:
    unready = site.add_file("unready")
    site.change("tiny:Pass", "tiny:Unready")
    said = site.ctl("start", code=1)
    # Whether its process was still there to be asked decides who says it.
    assert said.replace("exit code 1: ", "").strip() == (
        "runner in[0] is not up: failed: ValueError: the table is missing"
    )
    state = site.status(1)
    assert [one["state"] for one in state["runners"]] == ["failed", "running", "running"]
    assert "the table is missing" in state["problems"][0]["what"]
    unready.unlink()
    site.pid("in/0")
    assert site.status()["runners"][0]["state"] == "running"


def test_a_runner_that_dies_again_and_again_is_failed_and_is_tried_again_all_the_same(site: TinySite) -> None:
    site.ctl("start")
    mortal = site.add_file("mortal")
    site.change("tiny:Pass", "tiny:Mortal")
    os.kill(site.master.pid, signal.SIGHUP)
    failed = wait_for(lambda: [one for one in site.master.processes if one.state == "failed"])
    assert [(one.name, one.streak >= 5, one.reason) for one in failed] == [
        ("in", True, "exit code 9: this is the end")
    ]
    mortal.unlink()
    site.pid("in/0")
    assert "has died" in site.status(1)["problems"][0]["what"]


def test_the_pause_before_a_restart_grows_up_to_a_minute() -> None:
    assert 0.08 <= backoff_s(1) <= 0.12
    assert 1.28 <= backoff_s(5) <= 1.92
    assert all(48 <= backoff_s(streak) <= 72 for streak in (11, 100, 10**6))


def test_a_range_that_another_master_owns_is_waited_for_without_a_restart(
    site: TinySite, tmp_path: Path
) -> None:
    site.ctl("start")
    with tiny_site(tmp_path, state_dir="other") as other:
        other.change("weight = 70", "weight = 10")
        other.ctl("start", "--wait", "0", code=1)
        wait_for(
            lambda: other.run.is_locked() and {one.state for one in other.master.processes} == {"waiting"}
        )
        waiting = other.status(1)
        assert {one["state"] for one in waiting["runners"]} == {"waiting"}
        assert [one["where"] for one in waiting["problems"]] == [
            "runner in[0]",
            "runner out[0]",
            "runner out[1]",
        ]
        assert f"process {site.pids()['in/0']} on a" in waiting["problems"][0]["what"]
        site.ctl("stop")
        wait_for(lambda: all(one.is_up for one in other.master.processes))
        assert {one["restarts"] for one in other.status(0)["runners"]} == {0}


def test_a_stop_leaves_what_is_in_hand_in_its_queue_unblamed(site: TinySite) -> None:
    site.change("tiny:Pass", "tiny:Busy")
    site.change('next = "out"', 'grace = "100ms"')
    site.ctl("start")
    id = site.enqueue()
    wait_for((site.code / "busy").exists)
    site.ctl("stop")
    (entry,) = Site.load(site.config).entries("in")
    assert (entry.id, entry.attempts, list(entry.history)) == (id, 0, [])


def test_a_stop_waits_for_what_is_in_hand(site: TinySite) -> None:
    site.change("tiny:Pass", "tiny:Busy")
    site.ctl("start")
    site.enqueue()
    wait_for((site.code / "busy").exists)
    stop = site.start_ctl("stop")
    wait_for(lambda: "master stopping" in site.log())
    assert stop.poll() is None
    site.add_file("enough")
    assert stop.wait(20) == 0
    stop.communicate()
    assert not site.run.is_locked()
    (entry,) = Site.load(site.config).entries("in")
    assert entry.due_ns > entry.arrival_ns


def test_who_listens_to_nobody_is_killed_and_what_it_had_in_hand_is_not_blamed(site: TinySite) -> None:
    site.change("tiny:Pass", "tiny:Stuck")
    site.ctl("start")
    id = site.enqueue()
    wait_for((site.code / "busy").exists)
    site.ctl("stop", "--now")
    assert "runner killed" in site.log()
    site.change("tiny:Stuck", "tiny:Keep")
    site.ctl("run", "in", "--once")
    (entry,) = Site.load(site.config).entries("in")
    assert (entry.id, _crashes(entry)) == (id, [])


def test_slices_of_another_machine_and_disabled_ones_are_not_started(site: TinySite) -> None:
    site.change("{ weight = 30 }", '{ weight = 30, node = "b" }, { weight = 5, enabled = false }')
    site.ctl("start")
    assert list(site.pids()) == ["in/0", "out/0"]
    found = [(one["node"], one["state"]) for one in site.status(0)["runners"]]
    assert found == [("a", "running"), ("a", "running"), ("b", "stopped"), ("a", "stopped")]


def test_usr1_has_everybody_open_the_log_anew(site: TinySite) -> None:
    site.ctl("start")
    rotated = site.run.log_file.with_name("qrunner.log.1")
    site.run.log_file.rename(rotated)
    site.ctl("reopen")
    wait_for(site.run.log_file.exists)
    site.ctl("stop")
    wait_for(
        lambda: all(f"runner:{name} " in site.log().replace("[", " ") for name in ("in/0", "out/0", "out/1"))
    )
    assert "master stopped" in site.log()


def test_in_the_foreground_it_logs_to_standard_error_and_an_interrupt_stops_it(site: TinySite) -> None:
    process = site.start_ctl("start", "--foreground")
    wait_for(lambda: site.run.is_locked() and all(one.is_up for one in site.master.processes))
    assert site.master.pid == process.pid
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "master stopped" in said
    assert "runner:out/1" in said
    assert lone_processes(site.run) == ()


def test_systemd_is_told_when_all_are_up(
    site: TinySite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        process = site.start_ctl("start", "--foreground")
        assert channel.recv(100) == b"READY=1"
        assert all(one.is_up for one in site.master.processes)
        process.terminate()
        assert channel.recv(100) == b"STOPPING=1"
        process.communicate(timeout=20)
        assert process.returncode == 0


def test_restarts_and_reloads_under_load_lose_nothing_and_double_nothing(site: TinySite) -> None:
    site.change("tiny:Keep", "tiny:Drift")
    site.change("[runner.in]", '[runner.last]\nclass = "tiny:Keep"\nenabled = false\n\n[runner.in]')
    site.ctl("start")
    spool = Site.load(site.config).spool
    weights = iter([(70, 10), (10, 25), (25, 60), (60, 33)])
    ids = set()
    for _ in range(2):
        for change in ("restart", "reload"):
            ids |= {site.enqueue() for _ in range(60)}
            old, new = next(weights)
            site.change(f"weight = {old}", f"weight = {new}")
            site.ctl(change)
    last = wait_for(lambda: (found := list(spool.peek("last"))) and len(found) >= len(ids) and found)
    assert sorted(ref.id for ref in last) == sorted(ids)
    assert all(not list(spool.peek(queue, "shunt")) for queue in ("in", "out", "last"))
    assert [one for one in Site.load(site.config).entries("last") if one.attempts or _crashes(one)] == []
    assert " error " not in site.log()


def _crashes(entry: Entry) -> list[object]:
    return [one for one in entry.history if one["what"] == "crash"]
