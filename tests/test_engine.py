"""The engine: each fate and each exception in its place, hooks, limits, and a stop that is no error."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qrunner import Done, Entry, Fate, Hold, PermanentFailure, Requeue, Runner, TemporaryFailure
from qrunner.format import crash_marks
from qrunner.switchboard import Area
from tests.driving import Bench, make_bench, running, until


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return make_bench(tmp_path)


def raiser(error: BaseException) -> Callable[[Entry], Fate]:
    def dispose(entry: Entry) -> Fate:
        raise error

    return dispose


FATES: list[tuple[str, Callable[[Entry], Any], dict[str, int]]] = [
    ("forward", lambda e: e.forward("out"), {"out": 1}),
    ("forward changed", lambda e: e.with_header("X-A", "b").forward("out"), {"out": 1}),
    ("forward to two", lambda e: [e.forward("out"), e.forward("other")], {"out": 1, "other": 1}),
    ("forward twice to one", lambda e: [e.forward("out"), e.forward("out")], {"out": 2}),
    ("forward to itself", lambda e: e.forward("in", delay=60), {"in": 1}),
    ("done", lambda e: Done("spam"), {}),
    ("requeue", lambda e: Requeue(60), {"in": 1}),
    ("hold", lambda e: Hold("why"), {"hold/in": 1}),
    ("none", lambda e: None, {"shunt/in": 1}),
    ("a bool", lambda e: True, {"shunt/in": 1}),
    ("no list", lambda e: [], {"shunt/in": 1}),
    ("a list of others", lambda e: [e.forward("out"), Done()], {"shunt/in": 1}),
    ("an entry", lambda e: e, {"shunt/in": 1}),
    ("no such queue", lambda e: e.forward("nowhere"), {"shunt/in": 1}),
    ("a bug", raiser(ZeroDivisionError("x")), {"shunt/in": 1}),
    ("an exit", raiser(SystemExit(3)), {"shunt/in": 1}),
    ("an interrupt", raiser(KeyboardInterrupt()), {"shunt/in": 1}),
    ("a cancellation", raiser(asyncio.CancelledError()), {"shunt/in": 1}),
    ("a stop of iteration", raiser(StopIteration()), {"shunt/in": 1}),
    ("a time-out of its own", raiser(TimeoutError("mine")), {"shunt/in": 1}),
    ("a delay that is no number", lambda e: Requeue("5"), {"shunt/in": 1}),  # type: ignore[arg-type]
    ("a delay without end", lambda e: Requeue(float("inf")), {"shunt/in": 1}),
    ("a delay of nothing", lambda e: e.forward("out", delay=float("nan")), {"shunt/in": 1}),
    ("a delay past the end of time", lambda e: e.forward("out", delay=1e30), {"out": 1}),
    (
        "a failure for a time that is no number",
        raiser(TemporaryFailure("x", delay=float("inf"))),
        {"shunt/in": 1},
    ),
    ("a failure that says nothing", raiser(PermanentFailure(None)), {"shunt/in": 1}),  # type: ignore[arg-type]
    ("temporary", raiser(TemporaryFailure("later")), {"in": 1}),
    ("permanent", raiser(PermanentFailure("never")), {"out": 1}),
]


@pytest.mark.parametrize("kind", ["plain", "async"])
@pytest.mark.parametrize(("name", "dispose", "expected"), FATES, ids=[name for name, _, _ in FATES])
def test_each_fate_leads_to_its_place(
    bench: Bench, name: str, dispose: Callable[[Entry], Any], expected: dict[str, int], kind: str
) -> None:
    bench.put()

    async def later(entry: Entry) -> Any:
        return dispose(entry)

    engine = bench.drain_with(later if kind == "async" else dispose)
    assert bench.where() == expected
    assert (engine.state, engine.processed) == ("stopped", 1)


def test_one_forward_keeps_its_id_and_several_name_their_parent(bench: Bench) -> None:
    (one,) = bench.put()
    bench.drain_with(lambda e: e.with_header("X-A", "b").forward("out"))
    (moved,) = bench.entries("out")
    assert (moved.id, moved.header("x-a"), moved.parents) == (one, "b", ())
    (two,) = bench.put()
    bench.drain_with(lambda e: [e.forward("other"), e.with_header("X-A", "c").forward("other")])
    children = bench.entries("other")
    assert {child.parents for child in children} == {(two,)}
    assert len({child.id for child in children} | {two}) == 3
    assert sorted(str(child.header("x-a")) for child in children) == ["None", "c"]


def test_a_temporary_failure_is_an_attempt_on_the_schedule(bench: Bench) -> None:
    bench.put()
    bench.drain_with(raiser(TemporaryFailure("not now", status="4.2.1")))
    (entry,) = bench.entries("in")
    assert entry.attempts == 1
    assert entry.history[-1]["text"] == "not now"
    wait_s = (entry.due - entry.arrival).total_seconds()
    assert 0.75 * 3600 <= wait_s <= 1.25 * 3600 + 1


def test_a_temporary_failure_may_say_when_to_try_again(bench: Bench) -> None:
    bench.put()
    bench.drain_with(raiser(TemporaryFailure("not now", delay=90)))
    (entry,) = bench.entries("in")
    assert 89 <= (entry.due - entry.arrival).total_seconds() <= 95


def test_a_requeue_costs_no_attempt(bench: Bench) -> None:
    bench.put()
    bench.drain_with(lambda e: Requeue(90, "wait"))
    (entry,) = bench.entries("in")
    assert entry.attempts == 0
    assert 89 <= (entry.due - entry.arrival).total_seconds() <= 95


def test_a_permanent_failure_is_reported_to_the_sender(bench: Bench) -> None:
    (id,) = bench.put()
    bench.drain_with(raiser(PermanentFailure("no such list", status="5.1.1")))
    (report,) = bench.entries("out")
    assert (report.sender, report.recipients, report.parents) == ("", ("from@example.org",), (id,))
    assert report.header("auto-submitted") == "auto-replied"
    assert b"no such list" in report.message
    assert b"Status: 5.1.1" in report.message


def test_what_the_null_sender_has_sent_is_the_postmasters_and_there_it_ends(bench: Bench) -> None:
    postmaster = bench.site.config.site.postmaster
    bench.site.enqueue("in", message=b"\n", sender="", recipients=["to@example.org"])
    bench.drain_with(raiser(PermanentFailure("never")))
    (report,) = bench.entries("out")
    assert (report.sender, report.recipients) == ("", (postmaster,))
    bench.site.enqueue("in", message=report.message, sender="", recipients=[postmaster])
    bench.drain_with(raiser(PermanentFailure("never")))
    assert bench.where() == {"out": 1}


def test_a_bug_leaves_its_traceback_in_the_history(bench: Bench) -> None:
    bench.put()
    bench.drain_with(raiser(ZeroDivisionError("seldom")))
    (entry,) = bench.entries("in", "shunt")
    assert entry.history[-1]["reason"] == "ZeroDivisionError: seldom"
    assert "test_engine.py" in entry.history[-1]["traceback"]


def test_an_entry_past_its_lifetime_ends_with_an_attempt_and_not_before(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, 'retry = { lifetime = "1ms" }')
    bench.put()
    bench.drain_with(lambda e: Requeue(0.1))
    assert bench.where() == {"in": 1}
    bench.put()
    bench.drain_with(raiser(TemporaryFailure("still not")))
    assert "out" in bench.where()
    assert b"still not" in bench.entries("out")[0].message


def test_time_that_was_spent_waiting_costs_no_lifetime(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, 'retry = { first = "1h", lifetime = "1s" }')
    bench.put()
    turns: list[int] = []

    class Waits(Runner):
        async def dispose(self, entry: Entry) -> Fate:
            turns.append(entry.attempts)
            if len(turns) < 4:
                return Requeue(0.34)
            raise TemporaryFailure("not yet")

    async def story() -> None:
        await until(lambda: len(turns) == 4 and engine.processed == 4, "four turns")

    engine = bench.engine(Waits)
    running(engine, story)
    # More than a second old, all but a moment of which it waited for nobody's fault.
    assert bench.where() == {"in": 1}


def test_no_more_than_concurrency_are_in_hand(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, "concurrency = 3")
    bench.put(20)
    now, most = 0, 0

    class Counts(Runner):
        async def dispose(self, entry: Entry) -> Fate:
            nonlocal now, most
            now += 1
            most = max(most, now)
            for _ in range(10):
                await asyncio.sleep(0)
            now -= 1
            return Done()

    bench.drain(Counts)
    assert most == 3
    assert bench.where() == {}


def test_who_only_waits_makes_room_for_another_and_twice_as_many_are_in_hand_at_most(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, "concurrency = 2")
    bench.put(9)

    class Waits(Runner):
        async def dispose(self, entry: Entry) -> Fate:
            self.desk.progress.waits(entry)
            await enough.wait()
            return Done()

    enough = asyncio.Event()
    engine = bench.engine(Waits)

    async def story() -> None:
        await until(lambda: engine.in_hand == 4)
        for _ in range(20):
            await asyncio.sleep(0)
        assert engine.in_hand == 4
        enough.set()
        await until(lambda: engine.processed == 9)

    running(engine, story)
    assert bench.where() == {}


def test_plain_functions_run_in_threads_beside_one_another(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, "concurrency = 4")
    bench.put(4)
    together = threading.Barrier(4)

    def dispose(entry: Entry) -> Fate:
        together.wait(timeout=10)
        return Done()

    bench.drain_with(dispose)
    assert bench.where() == {}


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_what_takes_longer_than_its_timeout_is_tried_again_later(tmp_path: Path, kind: str) -> None:
    bench = make_bench(tmp_path, 'timeout = "50ms"')
    bench.put()
    released = threading.Event()

    async def hangs(entry: Entry) -> Fate:
        await asyncio.Event().wait()
        return Done()

    def blocks(entry: Entry) -> Fate:
        released.wait(20)
        return Done()

    bench.drain_with(hangs if kind == "async" else blocks)
    released.set()
    (entry,) = bench.entries("in")
    assert entry.attempts == 1
    assert "0.05 s" in entry.history[-1]["text"]


def test_new_entries_are_taken_as_they_come(bench: Bench) -> None:
    async def story() -> None:
        for turn in range(1, 6):
            bench.put()
            await until(lambda turn=turn: engine.processed == turn, "the new entry")  # type: ignore[misc]

    class Ends(Runner):
        async def dispose(self, entry: Entry) -> Fate:
            return Done()

    engine = bench.engine(Ends)
    running(engine, story)


def test_a_stop_finishes_what_is_in_hand(bench: Bench) -> None:
    bench.put()
    begun, go_on = asyncio.Event(), asyncio.Event()

    class Slow(Runner):
        async def dispose(self, entry: Entry) -> Fate:
            begun.set()
            await go_on.wait()
            return Done()

    async def story() -> None:
        await begun.wait()
        engine.stop()
        go_on.set()

    engine = bench.engine(Slow)
    running(engine, story)
    assert bench.where() == {}


@pytest.mark.parametrize("kind", ["plain", "async"])
def test_at_the_end_of_the_grace_an_entry_is_put_back_unblamed(tmp_path: Path, kind: str) -> None:
    bench = make_bench(tmp_path, 'grace = "10ms"')
    bench.put()
    begun, released = threading.Event(), threading.Event()

    class Never(Runner):
        async def dispose(self, entry: Entry) -> Fate:
            begun.set()
            await asyncio.Event().wait()
            return Done()

    class Blocks(Runner):
        def dispose(self, entry: Entry) -> Fate:
            begun.set()
            released.wait(20)
            return Done()

    async def story() -> None:
        await until(begun.is_set, "the begin")

    running(bench.engine(Never if kind == "async" else Blocks), story)
    released.set()
    (entry,) = bench.entries("in")
    assert entry.attempts == 0
    assert entry.history == ()
    bench.drain_with(lambda e: Done())
    assert bench.where() == {}


def test_handlers_make_a_chain_that_a_fate_ends(bench: Bench) -> None:
    bench.put()
    seen: list[str] = []

    def first(entry: Entry) -> Entry:
        seen.append("first")
        return entry.with_header("X-First", "1")

    async def second(entry: Entry) -> None:
        seen.append(f"second saw {entry.header('x-first')}")

    def third(entry: Entry) -> Fate:
        return entry.forward("other")

    class Unreached(Runner):
        def dispose(self, entry: Entry) -> Fate:
            raise AssertionError("a fate ends the chain")

    engine = bench.engine(Unreached)
    engine.handlers = [first, second, third]
    asyncio.run(engine.run(once=True))
    assert seen == ["first", "second saw 1"]
    (entry,) = bench.entries("other")
    assert entry.header("X-First") == "1"


def test_a_recipient_that_a_handler_adds_again_and_who_has_it_is_not_owed(bench: Bench) -> None:
    bench.put(recipients=("a@example.org",))
    owed: list[tuple[str, ...]] = []

    class Delivers(Runner):
        async def dispose(self, entry: Entry) -> Fate:
            owed.append(entry.recipients)
            await self.desk.progress.note(entry, {"what": "delivered", "to": ["b@example.org"]})
            return Requeue(0.1)

    engine = bench.engine(Delivers)
    engine.handlers = [lambda entry: entry.replace(recipients=["a@example.org", "b@example.org"])]

    async def story() -> None:
        await until(lambda: len(owed) >= 2, "a second turn")

    running(engine, story)
    assert owed[:2] == [("a@example.org", "b@example.org"), ("a@example.org",)]


def test_idle_is_called_once_each_time_nothing_is_due(bench: Bench) -> None:
    calls: list[str] = []

    class Idles(Runner):
        async def start(self) -> None:
            calls.append("start")

        async def dispose(self, entry: Entry) -> Fate:
            calls.append("entry")
            return Done()

        async def idle(self) -> None:
            calls.append("idle")
            raise ValueError("logged, and stops nothing")

        async def cleanup(self) -> None:
            calls.append("cleanup")

    async def story() -> None:
        await until(lambda: calls == ["start", "idle"], "the first idle")
        bench.put()
        await until(lambda: calls[2:] == ["entry", "idle"], "the second idle")

    running(bench.engine(Idles), story)
    assert calls == ["start", "idle", "entry", "idle", "cleanup"]


def test_periodic_comes_again_and_never_two_at_once(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, 'periodic = "5ms"')
    now, most, calls = 0, 0, 0

    class Ticks(Runner):
        async def periodic(self) -> None:
            nonlocal now, most, calls
            now, calls = now + 1, calls + 1
            most = max(most, now)
            await asyncio.sleep(0)
            now -= 1
            raise ValueError("logged, and stops nothing")

    async def story() -> None:
        await until(lambda: calls >= 3, "three ticks")

    running(bench.engine(Ticks), story)
    assert most == 1


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()], ids=repr)
def test_a_hook_that_would_end_the_process_stops_nothing(tmp_path: Path, error: BaseException) -> None:
    bench = make_bench(tmp_path, 'periodic = "5ms"')
    calls: list[str] = []

    class Quits(Runner):
        async def dispose(self, entry: Entry) -> Fate:
            return Done()

        async def idle(self) -> None:
            calls.append("idle")
            raise error

        async def periodic(self) -> None:
            calls.append("periodic")
            raise error

        async def cleanup(self) -> None:
            raise error

    async def story() -> None:
        await until(lambda: calls.count("periodic") >= 2, "the second tick")
        bench.put()
        await until(lambda: calls.count("idle") >= 2, "the second idle")

    engine = bench.engine(Quits)
    running(engine, story)
    assert (bench.where(), engine.state) == ({}, "stopped")


def test_periodic_has_ended_before_cleanup(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, 'periodic = "5ms"')
    calls: list[str] = []

    class Long(Runner):
        async def periodic(self) -> None:
            calls.append("periodic")
            try:
                await asyncio.Event().wait()
            finally:
                calls.append("ended")

        async def cleanup(self) -> None:
            calls.append("cleanup")

    running(bench.engine(Long), lambda: until(lambda: bool(calls), "the first tick"))
    assert calls == ["periodic", "ended", "cleanup"]


def test_a_runner_whose_start_fails_does_not_come_up_and_claims_nothing(bench: Bench) -> None:
    bench.put()

    class Fails(Runner):
        async def start(self) -> None:
            raise RuntimeError("no database")

    engine = bench.engine(Fails)
    with pytest.raises(RuntimeError, match="no database"):
        asyncio.run(engine.run())
    assert (engine.state, engine.reason) == ("failed", "RuntimeError: no database")
    assert bench.where() == {"in": 1}


def test_who_was_in_hand_at_a_death_runs_alone(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, "concurrency = 10")
    bench.put(10)
    pid = os.fork()
    if pid == 0:

        class Dies(Runner):
            async def dispose(self, entry: Entry) -> Fate:
                if engine.in_hand == 10:
                    os.kill(os.getpid(), 9)
                await asyncio.Event().wait()
                return Done()

        engine = bench.engine(Dies)
        asyncio.run(engine.run())
        os._exit(0)
    os.waitpid(pid, 0)
    together: list[int] = []

    class Looks(Runner):
        async def dispose(self, entry: Entry) -> Fate:
            together.append(looking.in_hand)
            assert len(crash_marks("in", entry.history)) == 1
            await asyncio.sleep(0)
            return Done()

    looking = bench.engine(Looks)
    asyncio.run(looking.run(once=True))
    assert together == [1] * 10
    assert bench.where() == {}


@pytest.mark.parametrize("area", ["hold", "shunt"])
def test_what_is_set_aside_keeps_its_origin_and_its_reason(bench: Bench, area: Area) -> None:
    (id,) = bench.put()
    bench.drain_with((lambda e: Hold("look")) if area == "hold" else (lambda e: None))
    (entry,) = bench.entries("in", area)
    assert (entry.id, entry.queue, entry.history[-1]["what"]) == (id, "in", area)
