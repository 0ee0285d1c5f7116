"""Batches: pairs are commits, looking is not claiming, and what is not named stays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from qrunner import BatchRunner, Done, Entry, Fate, Requeue, TemporaryFailure
from tests.driving import Bench, make_bench, running, until

Pair = tuple[Sequence[Entry], Fate]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return make_bench(tmp_path)


class InThrees(BatchRunner):
    def dispose_batch(self, entries: Sequence[Entry]) -> Iterator[Pair]:
        for at in range(0, len(entries) - len(entries) % 3, 3):
            three = entries[at : at + 3]
            joined = three[0].replace(message=b"".join(entry.message for entry in three))
            yield three, joined.forward("out")


class InThreesAsync(BatchRunner):
    async def dispose_batch(self, entries: Sequence[Entry]) -> AsyncIterator[Pair]:
        for at in range(0, len(entries) - len(entries) % 3, 3):
            await asyncio.sleep(0)
            yield entries[at : at + 3], entries[at].forward("out")


@pytest.mark.parametrize("kind", [InThrees, InThreesAsync])
def test_three_become_one_in_one_commit_and_the_rest_stays_at_no_cost(
    bench: Bench, kind: type[BatchRunner]
) -> None:
    ids = bench.put(8)
    bench.drain(kind)
    assert bench.where() == {"in": 2, "out": 2}
    assert [entry.history for entry in bench.entries("in")] == [(), ()]
    parents = [parent for entry in bench.entries("out") for parent in entry.parents]
    assert set(parents) == set(ids[:6])


def test_entries_are_shown_oldest_first(bench: Bench) -> None:
    ids = bench.put(5)
    seen: list[str] = []

    class Looks(BatchRunner):
        def dispose_batch(self, entries: Sequence[Entry]) -> Iterator[Pair]:
            seen.extend(entry.id for entry in entries)
            return iter(())

    bench.drain(Looks)
    assert seen == ids


def test_the_batch_is_called_when_something_has_come(bench: Bench) -> None:
    async def story() -> None:
        bench.put(2)
        await until(lambda: bench.where() == {"in": 2}, "two waiting")
        bench.put(1)
        await until(lambda: bench.where() == {"out": 1}, "the third to complete them")

    running(bench.engine(InThrees), story)


def test_the_batch_is_called_when_a_due_time_has_passed(bench: Bench) -> None:
    async def story() -> None:
        bench.put(2)
        bench.put(1, delay=0.2)
        await until(lambda: bench.where() == {"out": 1}, "the delayed one to complete them")

    running(bench.engine(InThrees), story)


def test_a_pair_of_which_one_has_gone_is_dropped_whole_and_the_batch_called_again(bench: Bench) -> None:
    bench.put(3)
    shown: list[int] = []

    class Loses(BatchRunner):
        def dispose_batch(self, entries: Sequence[Entry]) -> Iterator[Pair]:
            shown.append(len(entries))
            if len(shown) == 1:
                # An operator is faster.
                assert self.site.spool.remove(next(iter(self.site.spool.peek("in"))))
            yield entries, entries[0].forward("out")

    async def story() -> None:
        await until(lambda: bench.where() == {"out": 1}, "the two that are left")

    running(bench.engine(Loses), story)
    assert shown[:2] == [3, 2]
    assert len(bench.entries("out")[0].parents) == 2


BAD_PAIRS: list[Any] = [None, 7, ([], Done()), (7, Done()), (["x"], Done())]


@pytest.mark.parametrize("pair", BAD_PAIRS, ids=repr)
def test_what_is_no_pair_changes_nothing_and_is_said(bench: Bench, pair: Any) -> None:
    bench.put(2)

    class Wrong(BatchRunner):
        def dispose_batch(self, entries: Sequence[Entry]) -> Iterator[Pair]:
            yield pair

    engine = bench.engine(Wrong)

    async def story() -> None:
        await until(lambda: engine.state == "waiting", "the trouble to be said")

    running(engine, story)
    assert bench.where() == {"in": 2}


def test_a_fate_that_is_none_shunts_the_pair(bench: Bench) -> None:
    bench.put(2)

    class Forgets(BatchRunner):
        def dispose_batch(self, entries: Sequence[Entry]) -> Iterator[Any]:
            yield entries, None

    bench.drain(Forgets)
    assert bench.where() == {"shunt/in": 2}


def test_a_fate_that_makes_no_sense_shunts_the_pair_and_nothing_stays_in_hand(bench: Bench) -> None:
    bench.put(3)

    class Endless(BatchRunner):
        def dispose_batch(self, entries: Sequence[Entry]) -> Iterator[Pair]:
            yield entries[:2], Requeue(float("inf"))
            yield entries[2:], entries[2].forward("out")

    bench.drain(Endless)
    assert bench.where() == {"shunt/in": 2, "out": 1}


@pytest.mark.parametrize("error", [ValueError("bug"), TemporaryFailure("later", delay=0.1), SystemExit(1)])
def test_what_was_committed_before_an_exception_stands_and_the_rest_is_shown_again(
    bench: Bench, error: BaseException
) -> None:
    bench.put(2)
    calls: list[int] = []

    class Stumbles(BatchRunner):
        def dispose_batch(self, entries: Sequence[Entry]) -> Iterator[Pair]:
            calls.append(len(entries))
            yield entries[:1], Done()
            if len(calls) == 1:
                raise error

    engine = bench.engine(Stumbles)

    async def story() -> None:
        await until(lambda: bench.where() == {}, "the second call")

    running(engine, story)
    assert calls == [2, 1]


def test_handlers_see_each_entry_before_the_batch(bench: Bench) -> None:
    bench.put(3)
    engine = bench.engine(InThrees)
    engine.handlers = [
        lambda entry: Done("odd") if entry.header("x-n") == "1" else entry.with_header("X-H", "1")
    ]

    async def story() -> None:
        bench.put(1)
        await until(lambda: bench.where() == {"out": 1}, "the three that are left")

    running(engine, story)
    (joined,) = bench.entries("out")
    assert joined.message.count(b"X-H: 1") == 3


def test_a_stop_in_the_middle_of_a_batch_leaves_whole_pairs(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, 'grace = "10ms"')
    bench.put(4)

    class Hangs(BatchRunner):
        async def dispose_batch(self, entries: Sequence[Entry]) -> AsyncIterator[Pair]:
            yield entries[:2], entries[0].forward("out")
            await asyncio.Event().wait()

    async def story() -> None:
        await until(lambda: bench.where() == {"in": 2, "out": 1}, "the first pair")

    running(bench.engine(Hangs), story)
    assert bench.where() == {"in": 2, "out": 1}
