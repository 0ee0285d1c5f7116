"""The last line of a history, which the end of its entry makes superfluous: left out only where that end follows at once."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from qrunner import Done, Entry, Fate, Hold, PermanentFailure, Requeue, Runner, TemporaryFailure
from qrunner.engine.loop import Engine
from qrunner.fate import Failure, Later, Settled
from qrunner.switchboard import Hop
from tests.driving import Bench, make_bench, running, until

BOB = "to@example.org"
DELIVERED = {"what": "delivered", "to": [BOB], "host": "mta"}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = make_bench(tmp_path)
    bench.put()
    return bench


def whats(entry: Entry) -> list[Any]:
    return [line["what"] for line in entry.history]


def is_named(entry: Entry) -> bool:
    """Whether a report says that he did not get it."""
    return b"Final-Recipient: rfc822; " + BOB.encode() in entry.message


class Watched:
    """What an engine's lease is told, in order; and how often it is to fail first."""

    def __init__(self, engine: Engine, **failures: int) -> None:
        self.told: list[str] = []
        self._failures = failures
        self._lease = engine.lease
        self._note, self._commit = engine.lease.note, engine.lease.commit
        engine.lease.note, engine.lease.commit = self.note, self.commit  # type: ignore[method-assign]

    def _act(self, what: str, name: str) -> None:
        if self._failures.get(what, 0):
            self._failures[what] -= 1
            self.told.append(f"no {name}")
            raise OSError(errno.EIO, "the disk fails")
        self.told.append(name)

    def note(self, claim: Any, record: Mapping[str, Any], *, sync: bool = False) -> None:
        self._act("notes", record["what"])
        self._note(claim, record, sync=sync)

    def commit(self, hop: Hop) -> tuple[str, ...]:
        self._act("commits", "commit")
        return self._commit(hop)


def concluding(then: Callable[[Entry], Any]) -> type[Runner]:
    class Concludes(Runner):
        async def dispose(self, entry: Entry) -> Fate:
            if entry.recipients:
                self.desk.progress.conclude(entry, DELIVERED)
            fate: Fate = await then(entry)
            return fate

    return Concludes


def ends(entry: Entry) -> Any:
    async def end() -> Any:
        return Settled()

    return end()


def told(bench: Bench, runner_class: type[Runner], **failures: int) -> list[str]:
    """What the lease is told from the claim to the end."""
    engine = bench.engine(runner_class)

    async def story() -> list[str]:
        await engine.open()
        watched = Watched(engine, **failures)
        async with asyncio.timeout(20):
            while bench.where():
                await engine.step()
        await engine.close()
        return watched.told

    return asyncio.run(story())


def test_an_end_at_once_says_it_all(bench: Bench) -> None:
    assert told(bench, concluding(ends)) == ["commit"]


def test_it_is_written_before_anybody_else_has_a_turn(bench: Bench) -> None:
    seen: list[list[Any]] = []

    async def end(entry: Entry) -> Any:
        await asyncio.sleep(0)
        (path,) = [one for one in bench.site.config.site.queue_dir.rglob("*+*") if "." in one.name]
        seen.append([b"delivered" in path.read_bytes()])
        return Settled()

    assert told(bench, concluding(end)) == ["delivered", "commit"]
    assert seen == [[True]]


def test_it_is_written_before_a_commit_that_waits_its_turn(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, "concurrency = 2")
    bench.put()
    engine = bench.engine(concluding(ends))

    async def story() -> list[str]:
        await engine.open()
        watched = Watched(engine)
        # As after commits that took long: the next one goes to a thread.
        engine._committer._takes_s = 1.0
        async with asyncio.timeout(20):
            while bench.where():
                await engine.step()
        await engine.close()
        return watched.told

    assert asyncio.run(story()) == ["delivered", "commit"]


def test_an_end_that_the_disk_refuses_leaves_it_written(bench: Bench) -> None:
    assert told(bench, concluding(ends), commits=1) == ["no commit", "delivered", "commit"]


def test_what_can_not_be_written_is_written_later(bench: Bench) -> None:
    class Fails(Runner):
        async def dispose(self, entry: Entry) -> Fate:
            if not entry.recipients:
                return Done()
            self.desk.progress.conclude(entry, DELIVERED)
            raise TemporaryFailure("after all", delay=0.1)

    assert told(bench, Fails, notes=1) == ["no delivered", "delivered", "commit", "commit"]


FATES: dict[str, Callable[[Entry], Any]] = {
    "forward": lambda entry: entry.forward("out"),
    "forward changed": lambda entry: entry.with_header("X-A", "b").forward("out"),
    "forward to two": lambda entry: [entry.forward("out"), entry.forward("other")],
    "done": lambda entry: Done(),
    "hold": lambda entry: Hold("why"),
    "requeue": lambda entry: Requeue(60),
    "nothing": lambda entry: None,
    "a failure of another": lambda entry: Settled((Failure("x@example.org", "5.0.0", "no"),)),
    "later": lambda entry: Settled(later=Later("no", "4.0.0", 60)),
    "a record": lambda entry: Settled(records=({"what": "seen"},)),
    "temporary": lambda entry: TemporaryFailure("later", delay=60),
    "permanent": lambda entry: PermanentFailure("never"),
    "a bug": lambda entry: ZeroDivisionError("x"),
}


@pytest.mark.parametrize("name", FATES)
def test_every_other_fate_finds_it_written(tmp_path: Path, name: str) -> None:
    """As if it had been written at once."""
    found = []
    for verb in ("jot", "conclude"):
        (tmp_path / verb).mkdir()
        bench = make_bench(tmp_path / verb)
        bench.put()

        class Says(Runner):
            say = verb

            async def dispose(self, entry: Entry) -> Fate:
                getattr(self.desk.progress, self.say)(entry, DELIVERED)
                fate = FATES[name](entry)
                if isinstance(fate, Exception):
                    raise fate
                return fate  # type: ignore[no-any-return]

        bench.drain(Says)
        left = [
            (
                place,
                entry.recipients,
                whats(entry),
                [line.get("to") for line in entry.history],
                is_named(entry),
            )
            for place in bench.where()
            for area, _, queue in [place.rpartition("/")]
            for entry in bench.entries(queue, area or "queue")  # type: ignore[arg-type]
        ]
        found.append(left)
    assert found[0] == found[1]


def test_a_stop_puts_it_back_with_it(bench: Bench) -> None:
    began = asyncio.Event()
    engine: Engine

    class Waits(Runner):
        async def dispose(self, entry: Entry) -> Fate:
            Watched(engine, notes=1)
            self.desk.progress.conclude(entry, DELIVERED)
            began.set()
            await asyncio.Event().wait()
            return Done()

    engine = bench.engine(Waits)

    async def story() -> None:
        await until(began.is_set, "the entry")
        engine.stop()
        engine.cut_short()

    running(engine, story)
    (entry,) = bench.entries("in")
    assert entry.recipients == ()
    assert whats(entry) == ["delivered"]
