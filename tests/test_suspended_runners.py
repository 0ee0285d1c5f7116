"""Engines whose runner or queue an operator has suspended: they claim nothing, finish what they have, and go on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from qrunner import BatchRunner, Done, Entry, Fate, Runner, TemporaryFailure
from qrunner.site import Site
from qrunner.smtp.board import FileBoard
from qrunner.smtp.mxboard import MxBoard
from qrunner.suspension import Suspensions
from qrunner.testing.clock import FakeClock
from tests.driving import Bench, make_bench, running, until
from tests.runners.test_outgoing import ALONE, WITH_BACKOFF, lines, waits_s
from tests.runners.test_outgoing import Bench as Outgoing
from tests.runners.test_outgoing import bench as outgoing

TARGETS = [("runner", "in"), ("queue", "in")]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = make_bench(tmp_path)
    (tmp_path / "var").mkdir()
    return bench


class Onward(Runner):
    async def dispose(self, entry: Entry) -> Fate:
        return entry.forward("out")


class OneByOne(BatchRunner):
    def dispose_batch(self, entries: Sequence[Entry]) -> Iterator[tuple[Sequence[Entry], Fate]]:
        for entry in entries:
            yield [entry], entry.forward("out")


def test_whoever_wants_to_know_is_told_of_each_state(bench: Bench) -> None:
    bench.site.suspensions.suspend(TARGETS[0], reason="the disk")
    engine = bench.engine(Onward)
    told: list[str] = []
    engine.changed = lambda: told.append(engine.state)

    async def story() -> None:
        await until(lambda: engine.state == "suspended", "the suspension")
        bench.site.suspensions.resume(TARGETS[0])
        await until(lambda: engine.state == "running", "its end")

    running(engine, story)
    assert told[-3:] == ["suspended", "running", "stopped"]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("runner_class", [Onward, OneByOne])
def test_nothing_is_claimed_until_it_is_resumed_and_then_all_of_it(
    bench: Bench, runner_class: type[Runner], target: tuple[str, str]
) -> None:
    bench.site.suspensions.suspend(target, reason="the disk")
    bench.put(2)
    engine = bench.engine(runner_class)

    async def story() -> None:
        await until(lambda: engine.state == "suspended", "the suspension")
        bench.put(1)
        assert "is suspended: the disk" in engine.reason
        assert (bench.where(), engine.in_hand) == ({"in": 3}, 0)
        bench.site.suspensions.resume(target)
        await until(lambda: bench.where() == {"out": 3}, "all that has waited")
        assert engine.state == "running"

    running(engine, story)


def test_a_running_runner_is_suspended_without_a_word_to_it_and_finishes_what_it_has(bench: Bench) -> None:
    go = asyncio.Event()

    class Slow(Runner):
        async def dispose(self, entry: Entry) -> Fate:
            await go.wait()
            return entry.forward("out")

    engine = bench.engine(Slow)
    bench.put(2)

    async def story() -> None:
        await until(lambda: engine.in_hand == 1, "one in hand")
        bench.site.suspensions.suspend(("queue", "in"))
        await until(lambda: engine.state == "suspended", "the suspension")
        go.set()
        await until(lambda: bench.where() == {"in": 1, "out": 1}, "the one in hand")
        await until(lambda: engine.in_hand == 0, "nothing more")

    running(engine, story)
    assert bench.where() == {"in": 1, "out": 1}
    assert bench.entries("in")[0].attempts == 0


def test_a_batch_stops_between_two_pairs(bench: Bench) -> None:
    class Stops(BatchRunner):
        def dispose_batch(self, entries: Sequence[Entry]) -> Iterator[tuple[Sequence[Entry], Fate]]:
            yield entries[:1], entries[0].forward("out")
            bench.site.suspensions.suspend(("runner", "in"))
            yield entries[1:2], entries[1].forward("out")
            yield entries[2:], Done()

    bench.put(3)
    engine = bench.engine(Stops)

    async def story() -> None:
        await until(lambda: engine.state == "suspended", "the suspension")

    running(engine, story)
    # The pair that was being made when it came is whole, and the last was not asked for.
    assert bench.where() == {"in": 1, "out": 2}


def test_a_suspended_runner_is_not_idle_and_does_not_spin(bench: Bench) -> None:
    turns, idle = 0, 0

    class Counts(Runner):
        async def idle(self) -> None:
            nonlocal idle
            idle += 1

        async def dispose(self, entry: Entry) -> Fate:
            return Done()

    bench.site.suspensions.suspend(("runner", "in"))
    bench.put(1)
    engine = bench.engine(Counts)
    work = engine._work

    async def counted() -> bool:
        nonlocal turns
        turns += 1
        return await work()

    engine._work = counted  # type: ignore[method-assign]

    async def story() -> None:
        await until(lambda: engine.state == "suspended", "the suspension")
        for _ in range(1_000):
            await asyncio.sleep(0)
        assert (turns, idle) == (1, 0)
        bench.site.suspensions.resume(("runner", "in"))
        await until(lambda: idle == 1, "idleness")

    running(engine, story)


@pytest.mark.parametrize("target", TARGETS)
def test_the_time_that_it_was_suspended_is_no_part_of_the_lifetime(
    tmp_path: Path, target: tuple[str, str]
) -> None:
    bench = make_bench(tmp_path, 'retry = { first = "1h", lifetime = "1h" }')
    (tmp_path / "var").mkdir()
    clock = FakeClock()
    site = bench.site = Site(bench.site.config, clock=clock)
    bench.put()
    site.suspensions.suspend(target)
    clock.advance("3h")
    site.suspensions.resume(target)

    class Fails(Runner):
        async def dispose(self, entry: Entry) -> Fate:
            raise TemporaryFailure("not yet")

    bench.drain(Fails)
    assert bench.where() == {"in": 1}
    clock.advance("2h")
    bench.drain(Fails)
    assert bench.where() == {"out": 1}


def story(toml: str = ALONE):  # type: ignore[no-untyped-def]
    """A test on a site with an outgoing runner, in memory, whose suspensions are in files."""

    def decorate(test):  # type: ignore[no-untyped-def]
        def run(tmp_path: Path) -> None:
            async def whole() -> None:
                async with outgoing(toml) as one:
                    one.site.suspensions = Suspensions(tmp_path, tmp_path, one.clock.now_ns)
                    await test(one)

            asyncio.run(whole())

        return run

    return decorate


NET = ("domain", "example.net")


@story()
async def test_mail_for_a_suspended_domain_waits_and_what_else_is_owed_goes_out(one: Outgoing) -> None:
    one.site.suspensions.suspend(NET, reason="they asked")
    one.send("bob@example.net", "cat@example.org", "eve@EXAMPLE.NET")
    await one.settle()
    assert one.got() == [("cat@example.org",)]
    (entry,) = one.entries()
    assert (entry.recipients, entry.attempts) == (("bob@example.net", "eve@EXAMPLE.NET"), 0)
    # As long again as it has lasted, and up to as much more.
    assert 1 <= waits_s(one, entry) <= 2
    one.clock.advance("1h")
    await one.settle()
    (entry,) = one.entries()
    assert 300 <= waits_s(one, entry) <= 600
    one.site.suspensions.resume(NET)
    one.clock.advance("10m")
    await one.settle()
    assert (one.got()[1:], one.entries()) == ([("bob@example.net", "eve@EXAMPLE.NET")], [])


@story()
async def test_a_suspended_domain_costs_no_lifetime_though_another_recipient_is_tried_to_its_end(
    one: Outgoing,
) -> None:
    one.site.suspensions.suspend(NET)
    one.sink["mta1"].reply("RCPT TO:<cat", "451 4.2.1 later", times=None)
    one.send("bob@example.net", "cat@example.org")
    for _ in range(60):
        await one.settle()
        one.clock.advance("1h")
    (entry,) = one.entries()
    assert entry.recipients == ("bob@example.net", "cat@example.org")
    one.site.suspensions.resume(NET)
    one.clock.advance("5h")
    await one.settle()
    assert (one.got(), one.entries()) == ([("bob@example.net",)], [])
    (report,) = one.entries("reports")
    assert (b"cat@example.org" in report.message, b"bob@example.net" in report.message) == (True, False)


@story()
async def test_an_attempt_for_the_others_counts_for_them_alone(one: Outgoing) -> None:
    one.sink["mta1"].reply("RCPT TO:<cat", "451 4.2.1 later", times=None)
    one.send("bob@example.net", "cat@example.org")
    one.clock.advance("3d")
    one.site.suspensions.suspend(NET)
    await one.settle()
    (report,) = one.entries("reports")
    assert (b"cat@example.org" in report.message, b"bob@example.net" in report.message) == (True, False)
    (entry,) = one.entries()
    assert entry.recipients == ("bob@example.net",)
    assert [line["to"] for line in lines(entry, "expired")] == [["cat@example.org"]]


@story(WITH_BACKOFF)
async def test_mail_for_a_suspended_domain_does_not_spin_while_the_host_is_down(one: Outgoing) -> None:
    one.site.suspensions.suspend(NET)
    for sink in one.sink.values():
        sink.down = True
    one.send("bob@example.net", "cat@example.org")
    for _ in range(20):
        one.clock.advance("1m")
        await one.settle()
    asked = one.engines["out"].processed + one.engines["backoff"].processed
    assert asked < 100
    for sink in one.sink.values():
        sink.down = False
    one.clock.advance("10m")
    await one.settle()
    assert sorted(one.got("mta1") + one.got("mta2")) == [("cat@example.org",)]


HOST = ("host", "mta1")


@pytest.mark.parametrize("kind", [FileBoard, MxBoard])
def test_a_suspended_host_is_down_for_as_long_as_it_is_suspended_and_its_health_is_its_own(
    tmp_path: Path, kind: type[FileBoard]
) -> None:
    board = kind(tmp_path / "host")
    board.lay_out()
    suspensions = Suspensions(tmp_path, tmp_path)
    suspensions.suspend(HOST)
    assert (board.read("mta1").is_up, board.read("mta2").is_up) == (False, True)
    board.change("mta1", lambda health: replace(health, failures=2))
    assert board.read("mta1").suspended
    suspensions.resume(HOST)
    fresh = kind(tmp_path / "host").read("mta1")
    assert (fresh.suspended, fresh.suspension, fresh.failures, fresh.is_up) == (False, None, 2, True)


def _looks_again(board: FileBoard) -> None:
    """As it does by itself after a moment."""
    board._suspended._look_at_s = 0.0
    board._seen.clear()


def test_mail_for_a_suspended_host_goes_around_it_or_waits_at_no_cost(tmp_path: Path) -> None:
    @story(WITH_BACKOFF)
    async def test(one: Outgoing) -> None:
        pools = [one.engines[name].runner.pool for name in ("out", "backoff")]  # type: ignore[attr-defined]
        board = FileBoard(tmp_path / "host")
        for pool in pools:
            pool._board = board
        one.engines["out"].runner._board = board  # type: ignore[attr-defined]
        board.lay_out()
        real = Suspensions(tmp_path, tmp_path)
        real.suspend(HOST)
        _looks_again(board)
        one.send("bob@x")
        await one.settle()
        assert (one.got("mta1"), one.got("mta2")) == ([], [("bob@x",)])
        real.suspend(("host", "mta2"))
        _looks_again(board)
        one.send("cat@x")
        await one.settle()
        (entry,) = one.entries("backoff")
        assert (entry.attempts, one.got("mta1")) == (0, [])
        real.resume(HOST)
        _looks_again(board)
        one.clock.advance("10m")
        await one.settle()
        assert one.got("mta1") == [("cat@x",)]

    test(tmp_path)
