"""The verbs that change entries, and the rules that all of them keep."""

from __future__ import annotations

import io
import logging
import os
import pty
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from qrunner.format import ready_name
from qrunner.slices import WHOLE
from qrunner.switchboard import Claim, Hop, Lease, Move

from .conftest import ENTRY_POINT, Place

A1 = "abcdef" + "1" * 34
Fill = Callable[[int], list[str]]


@contextmanager
def leased(place: Place, queue: str = "in") -> Iterator[Lease]:
    lease = place.site.spool.lease(queue, WHOLE, "test", 0)
    lease.refresh()
    yield lease
    lease.release()


def claim(place: Place, lease: Lease, id: str) -> Claim:
    refs = [ref for ref in lease.due(place.site.clock.now_ns(), 100) if ref.id == id]
    claimed = lease.claim(refs[0])
    assert claimed is not None
    return claimed


def history(place: Place, queue: str, area: str = "queue") -> list[str]:
    (ref,) = place.site.spool.peek(queue, area)  # type: ignore[arg-type]
    return [line["what"] for line in place.site.spool.read(ref).history]


# What each verb does


def test_hold_and_release_go_there_and_back(place: Place) -> None:
    one, two = place.enqueue("in"), place.enqueue("out")
    assert place.call("hold", one, two, "--reason", "odd").stdout.split() == [one, two]
    assert (place.ids("in", "hold"), place.ids("out", "hold")) == ([one], [two])
    (ref,) = place.site.spool.peek("in", "hold")
    assert place.site.spool.read(ref).history[-1]["reason"] == "odd"
    assert place.call("release", one, two).exit_code == 0
    assert (place.ids("in"), place.ids("out")) == ([one], [two])
    assert history(place, "in") == ["hold", "release"]


def test_release_of_a_queue_is_about_what_is_held_from_it(place: Place) -> None:
    one, two, three = place.enqueue("in"), place.enqueue("out"), place.enqueue("in")
    assert place.call("hold", one, two).exit_code == 0
    assert place.call("release", "in", "--yes").stdout.split() == [one]
    assert place.ids("in") == [one, three]
    assert place.ids("out", "hold") == [two]


def test_unshunt_goes_back_to_the_queue_that_each_came_from(place: Place) -> None:
    one, two = place.enqueue("in"), place.enqueue("out")
    place.aside("shunt", one)
    place.aside("shunt", two, "out")
    assert place.call("unshunt", "ALL", "--yes").exit_code == 0
    assert (place.ids("in"), place.ids("out")) == ([one], [two])
    assert history(place, "in") == ["shunt", "release"]


def test_requeue_takes_from_every_area_to_a_queue(place: Place) -> None:
    ids = [place.enqueue("in") for _ in range(4)]
    for area, id in zip(("hold", "shunt", "bad"), ids, strict=False):
        place.aside(area, id)  # type: ignore[arg-type]
    result = place.call("requeue", "--to", "out", *ids)
    assert result.exit_code == 0, result.stderr
    assert place.ids("out") == ids
    assert place.ids("in") == []


def test_requeue_without_a_queue_goes_back_to_each_ones_own(place: Place) -> None:
    one, two = place.enqueue("in"), place.enqueue("out")
    place.aside("hold", one)
    assert place.call("requeue", one, two).exit_code == 0
    assert (place.ids("in"), place.ids("out")) == ([one], [two])


def test_requeue_now_makes_it_due_and_otherwise_its_time_stays(place: Place) -> None:
    id = place.enqueue(delay=3600)
    due = place.list()[0]["due"]
    assert place.call("requeue", id, "--to", "out").exit_code == 0
    assert (place.list()[0]["due"], place.list()[0]["state"]) == (due, "deferred")
    assert place.call("requeue", id, "--now").exit_code == 0
    assert place.list()[0]["state"] == "ready"


def test_requeue_resolves_a_virtual_queue(place: Place) -> None:
    far, near = place.enqueue(to="a@slow.example"), place.enqueue(to="b@fast.example")
    assert place.call("requeue", far, near, "--to", "main").exit_code == 0
    assert (place.ids("slow"), place.ids("out")) == ([far], [near])


def test_requeue_to_a_route_that_would_split_it_leaves_it(place: Place) -> None:
    id = place.site.enqueue("in", message=b"\n", sender="", recipients=["a@slow.example", "b@fast.example"])
    result = place.call("requeue", id, "--to", "main")
    assert result.exit_code == 1
    assert "would take it apart, to out and slow" in result.stderr
    assert place.ids("in") == [id]


def test_requeue_to_a_queue_that_is_not_there_is_a_usage_error(place: Place) -> None:
    result = place.call("requeue", place.enqueue(), "--to", "nosuch")
    assert result.exit_code == 2
    assert "there is no queue 'nosuch'" in result.stderr


def test_requeue_leaves_what_is_no_entry_in_bad(place: Place) -> None:
    file = place.file("bad", "in", ready_name(5, A1))
    file.write_bytes(b"garbage")
    assert place.call("requeue", A1).exit_code == 1
    assert file.read_bytes() == b"garbage"


def test_delete_ends_entries_wherever_they_are(place: Place) -> None:
    one, two, three = place.enqueue(), place.enqueue(), place.enqueue()
    place.aside("shunt", two)
    place.aside("bad", three)
    assert place.call("delete", one, two, three).stdout.split() == [one, two, three]
    assert place.list() == []


def test_all_does_not_mean_bad_unless_it_is_named(place: Place) -> None:
    one, two = place.enqueue(), place.enqueue()
    place.aside("bad", one)
    assert place.call("delete", "ALL", "--yes").stdout.split() == [two]
    assert place.call("delete", "bad", "--yes").stdout.split() == [one]


def test_flush_makes_all_deferred_entries_due_in_their_order(place: Place) -> None:
    late, early, ready = place.enqueue(delay=7200), place.enqueue("out", delay=3600), place.enqueue()
    result = place.call("flush")
    assert (result.exit_code, result.stdout.split()) == (0, [early, late])
    assert {line["state"] for line in place.list()} == {"ready"}
    assert [line["id"] for line in place.list()].index(early) < [line["id"] for line in place.list()].index(
        late
    )
    assert ready in place.ids("in")


def test_flush_of_a_queue_leaves_the_others(place: Place) -> None:
    place.enqueue("in", delay=3600)
    out = place.enqueue("out", delay=3600)
    place.aside("hold", place.enqueue("out", delay=3600), "out")
    assert place.call("flush", "out").stdout.split() == [out]
    assert [line["state"] for line in place.list("in", "hold")] == ["deferred", "held"]


def test_an_entry_elsewhere_that_was_named_is_refused_and_the_others_go_ahead(place: Place) -> None:
    held, waiting = place.enqueue(), place.enqueue()
    place.aside("hold", held)
    for verb, id, reason in (
        ("hold", held, "does not wait in a queue"),
        ("release", waiting, "is not held"),
        ("unshunt", waiting, "is not shunted"),
        ("flush", held, "does not wait in a queue"),
    ):
        result = place.call(verb, id)
        assert (result.exit_code, reason in result.stderr) == (1, True)
    assert place.call("hold", held, waiting).stdout.split() == [waiting]


# The terms


def test_dry_run_names_what_would_be_done_and_does_nothing(place: Place, fill: Fill) -> None:
    ids = fill(3)
    result = place.call("delete", "ALL", "--dry-run")
    assert (result.exit_code, result.stdout.split()) == (0, ids)
    assert "3 entries (3 in in) would be deleted" in result.stderr
    assert place.ids("in") == ids
    assert place.call("flush", "--dry-run").exit_code == 0


@pytest.mark.parametrize("words", [["ALL"], ["in"], ["-q", "in"], ["--older", "0s"], ["--sender", "a0@*"]])
def test_without_a_terminal_a_filter_wants_yes(place: Place, fill: Fill, words: list[str]) -> None:
    ids = fill(2)
    result = place.call("delete", *words)
    assert (result.exit_code, "--yes" in result.stderr) == (2, True)
    assert place.ids("in") == ids
    assert place.call("delete", *words, "--yes").exit_code == 0
    assert len(place.ids("in")) < 2


def test_without_a_terminal_named_ids_go_ahead(place: Place, fill: Fill) -> None:
    ids = fill(3)
    assert place.process("delete", ids[0], ids[1]).returncode == 0
    assert place.process("delete", "-", input=ids[2].encode()).returncode == 0
    assert place.ids("in") == []


def test_a_process_without_a_terminal_ends_with_2_for_all(place: Place, fill: Fill) -> None:
    ids = fill(2)
    result = place.process("delete", "ALL", stdin=-3)
    assert (result.returncode, result.stdout) == (2, b"")
    assert place.ids("in") == ids


def at_a_terminal(place: Place, *words: str, answer: bytes) -> tuple[int, str]:
    """A verb typed at a terminal; ``answer`` is given when it asks. Its exit code, and all that the terminal showed."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(ENTRY_POINT[0], [*ENTRY_POINT, "-c", str(place.config), *words], place.environment())
    shown = b""
    timer = threading.Timer(60, os.kill, (pid, signal.SIGKILL))
    timer.start()
    try:
        while True:
            select.select([terminal], [], [])
            try:
                data = os.read(terminal, 4096)
            except OSError:  # how Linux says that the other end is closed
                break
            shown += data
            if shown.endswith(b"[y/N] "):
                os.write(terminal, answer)
    finally:
        timer.cancel()
        os.close(terminal)
        status = os.waitpid(pid, 0)[1]
    return os.waitstatus_to_exitcode(status), shown.decode()


def test_at_a_terminal_it_asks_before_it_touches_more_than_one(place: Place, fill: Fill) -> None:
    ids = fill(2)
    code, shown = at_a_terminal(place, "hold", *ids, answer=b"n\n")
    assert (code, "hold 2 entries (2 in in)? [y/N]" in shown, "nothing was changed" in shown) == (
        1,
        True,
        True,
    )
    assert place.ids("in") == ids
    assert at_a_terminal(place, "hold", "ALL", answer=b"\n")[0] == 1
    assert at_a_terminal(place, "hold", "ALL", answer=b"\x04")[0] == 1
    assert place.ids("in") == ids
    assert at_a_terminal(place, "hold", "ALL", answer=b"yes\n")[0] == 0
    assert place.ids("in", "hold") == ids


def test_at_a_terminal_it_does_not_ask_about_one_nor_after_yes(place: Place, fill: Fill) -> None:
    ids = fill(3)
    for words in ((ids[0],), ("--sender", "a1@*"), ("ALL", "--yes")):
        code, shown = at_a_terminal(place, "hold", *words, answer=b"")
        assert (code, "[y/N]" in shown) == (0, False)
    assert len(place.ids("in", "hold")) == 3


# Entries in a runner's hands


def test_an_entry_in_hand_is_left_alone_and_named(place: Place, fill: Fill) -> None:
    busy, free = fill(2)
    with leased(place) as lease:
        claimed = claim(place, lease, busy)
        for verb in ("hold", "delete", "requeue"):
            result = place.call(verb, busy)
            assert (result.exit_code, result.stdout) == (1, "")
            assert f"{busy} in in (active): a runner has it in hand" in result.stderr
        assert place.call("hold", "ALL", "--yes").stdout.split() == [free]
        assert place.list(busy)[0]["state"] == "active"
        lease.put_back(claimed)
    assert place.ids("in") == [busy]


def test_a_dry_run_names_what_is_in_hand(place: Place, fill: Fill) -> None:
    (busy,) = fill(1)
    with leased(place) as lease:
        claim(place, lease, busy)
        result = place.call("hold", "in", "--dry-run")
    assert (result.exit_code, result.stdout) == (1, "")
    assert busy in result.stderr


def test_flush_has_nothing_to_do_with_what_is_in_hand(place: Place, fill: Fill) -> None:
    (busy,) = fill(1)
    with leased(place) as lease:
        claim(place, lease, busy)
        assert place.call("flush").exit_code == 0
        assert place.call("flush", busy).exit_code == 1


def test_wait_acts_when_the_runner_puts_it_back(
    place: Place, fill: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    (busy,) = fill(1)
    with leased(place) as lease:
        claimed = claim(place, lease, busy)
        monkeypatch.setattr(time, "sleep", lambda seconds: lease.put_back(claimed))
        result = place.call("hold", busy, "--wait", "30s")
    assert (result.exit_code, result.stdout.split()) == (0, [busy])
    assert place.ids("in", "hold") == [busy]


def test_wait_follows_a_named_entry_to_its_next_queue_but_not_one_of_a_filter(
    place: Place, fill: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    for words, code, held in ((["-q", "in", "--yes"], 0, 0), ([], 0, 1)):
        (id,) = fill(1)
        with leased(place) as lease:
            claimed = claim(place, lease, id)

            def forward(seconds: float, lease: Lease = lease, claimed: Claim = claimed) -> None:
                lease.commit(Hop(moved=(Move(claimed, "out", place.site.clock.now_ns()),)))

            monkeypatch.setattr(time, "sleep", forward)
            result = place.call("hold", *(words or [id]), "--wait", "30s")
        assert result.exit_code == code, result.stderr
        assert len(place.ids("out", "hold")) == held


def test_an_entry_that_ends_while_it_is_waited_for_is_said_if_it_was_named(
    place: Place, fill: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    for words, code in ((["in", "--yes"], 0), ([], 1)):
        (id,) = fill(1)
        with leased(place) as lease:
            claimed = claim(place, lease, id)

            def finish(seconds: float, lease: Lease = lease, claimed: Claim = claimed) -> None:
                lease.commit(Hop(finished=(claimed,)))

            monkeypatch.setattr(time, "sleep", finish)
            result = place.call("delete", *(words or [id]), "--wait", "30s")
        assert result.exit_code == code
        assert ("gone meanwhile" in result.stderr) == (code == 1)


def test_a_verb_races_a_runner_and_every_entry_is_in_one_place(place: Place, fill: Fill) -> None:
    ids = set(fill(40))
    over = threading.Event()

    def run() -> None:
        with leased(place) as lease:
            while not over.wait(0.001):
                lease.refresh()
                for ref in lease.due(place.site.clock.now_ns(), 40):
                    claimed = lease.claim(ref)
                    if claimed is not None:
                        lease.put_back(claimed)

    runner = threading.Thread(target=run)
    runner.start()
    try:
        result = place.call("hold", "in", "--yes", "--wait", "60s")
    finally:
        over.set()
        runner.join()
    assert result.exit_code == 0, result.stderr
    assert sorted(result.stdout.split()) == sorted(ids) == sorted(place.ids("in", "hold"))
    assert place.ids("in") == []


# What is written down


def test_each_change_is_logged_with_user_selectors_and_id(
    place: Place, fill: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUDO_USER", "alice")
    ids = fill(2)
    place.call("hold", "--sender", "a?@example.org", "-q", "in", "--yes")
    place.call("delete", ids[0])
    held, _, deleted = place.log().splitlines()
    assert f" hold id={ids[0]} queue=in user=alice(" in held
    assert "--queue=in '--sender=a?@example.org'" in held
    assert f" delete id={ids[0]} queue=in area=hold user=alice(" in deleted
    assert f"selectors={ids[0]}" in deleted


def test_nothing_is_logged_of_what_was_not_done(place: Place, fill: Fill) -> None:
    fill(2)
    place.call("delete", "ALL", "--dry-run")
    place.call("delete", "ALL")
    assert not (place.folder / "var/log/qrunner.log").exists()


def test_who_calls_a_verb_in_a_process_of_his_own_keeps_his_log(place: Place, fill: Fill) -> None:
    ids = fill(2)
    log, heard = logging.getLogger("qrunner.ctl"), logging.StreamHandler(io.StringIO())
    theirs = logging.Formatter("%(message)s")
    heard.setFormatter(theirs)
    log.addHandler(heard)
    before = log.level, log.propagate
    try:
        place.call("hold", *ids)
        log.error("after it")
        assert heard in log.handlers
    finally:
        log.removeHandler(heard)
    assert (heard.formatter, log.level, log.propagate) == (theirs, *before)
    assert heard.stream.getvalue() == "hold\nhold\nafter it\n"
    assert len(place.log().splitlines()) == 2


def test_a_log_that_cant_be_written_stops_nothing(place: Place, fill: Fill) -> None:
    (id,) = fill(1)
    (place.folder / "var").write_text("in the way")
    result = place.call("delete", id)
    assert (result.exit_code, "not logged" in result.stderr) == (0, True)
    assert place.ids("in") == []
