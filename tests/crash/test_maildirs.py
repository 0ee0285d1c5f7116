"""A door's process dies at every call by which it takes mail from a maildir: nothing lost, nothing twice.

Four messages: one to a queue, one to three at once, one that a handler has finished, one that is shunted.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress

import pytest

from qrunner.errors import QueueError
from qrunner.maildir.box import Letter, Maildir
from qrunner.maildir.crossing import Crossing
from qrunner.switchboard import Add
from qrunner.switchboard.disk import Disk
from qrunner.switchboard.files import FilesSpool
from tests.crash.calls import Calls, points, slow_or_fast, some_or_all
from tests.crash.dying import Consumer, Stage
from tests.crash.power_faults import FAULTS, FailingDisk, Fault
from tests.crash.transitions import Step, draft
from tests.runners.letters import Box

GOES = {"m0": ["out"], "m1": ["out", "third", "out"], "m2": [], "m3": ["in"]}
ALL = Counter(f"{queue} {tag}" for tag, queues in GOES.items() for queue in queues)


class Shore:
    """A spool and a maildir with four messages in it."""

    def __init__(self, stage: Stage, box: Box) -> None:
        self.stage, self.box = stage, box
        self.consumer = Consumer(stage.root, stage.log)

    def fill(self) -> None:
        for tag in GOES:
            self.box.put(draft(tag).message, name=f"{tag}.host")

    def crossing(self, spool: FilesSpool) -> Crossing:
        maildir = Maildir(self.box.path, "a test")
        return Crossing(maildir, spool.staging(maildir.door), Disk(spool.disk.durable))

    def batch(self, crossing: Crossing) -> dict[Letter, Sequence[Add]]:
        """All that has come."""
        now = time.time_ns()
        batch: dict[Letter, Sequence[Add]] = {}
        for name in crossing.maildir.names():
            letter, tag = crossing.maildir.read(name, 0), name.partition(".")[0]
            area = "shunt" if tag == "m3" else "queue"
            batch[letter] = [Add(draft(tag), queue, now, area) for queue in GOES[tag]]  # type: ignore[arg-type]
        return batch

    def taking(self, spool: FilesSpool) -> Step:
        crossing = self.crossing(spool)
        crossing.settle()
        batch = self.batch(crossing)
        return lambda: crossing.take(batch)

    def recovering(self, spool: FilesSpool) -> Step:
        """What the next process does first."""
        return lambda: self.crossing(spool).settle()

    def judge(self) -> None:
        """The next process comes, and takes what is there: then everything is where it belongs."""
        spool = self.stage.spool(durable=False)
        crossing = self.crossing(spool)
        crossing.settle()
        crossing.take(self.batch(crossing))
        crossing.close()
        found = Counter(f"{place.queue} {place.tag}" for place in self.consumer.seen().elements())
        found.update(self.waiting(spool))
        assert found == ALL
        assert self.box.new() == []
        assert self.box.cur() == [f"{tag}.host:2," for tag in GOES]
        assert not os.listdir(f"{self.stage.root}/.door/{crossing.maildir.door}")

    def waiting(self, spool: FilesSpool) -> Iterator[str]:
        for queue, area in (("out", "queue"), ("third", "queue"), ("in", "shunt")):
            for ref in spool.peek(queue, area):  # type: ignore[arg-type]
                yield f"{queue} {spool.read(ref).header('Subject')}"

    def empty(self) -> None:
        for name in self.box.cur():
            (self.box.path / "cur" / name).unlink()
        spool = self.stage.spool(durable=False)
        for queue, area in (("out", "queue"), ("third", "queue"), ("in", "shunt")):
            for ref in spool.peek(queue, area):  # type: ignore[arg-type]
                spool.remove(ref)
        self.stage.log.unlink(missing_ok=True)


@pytest.fixture
def shore(stage: Stage) -> Iterator[Shore]:
    folder = stage.root.parent / "box"
    yield Shore(stage, Box(folder))
    shutil.rmtree(folder)
    shutil.rmtree(stage.root / ".door", ignore_errors=True)


@some_or_all(3)
@slow_or_fast()
def test_a_death_at_any_call_of_a_crossing_neither_loses_nor_doubles(
    shore: Shore, eager: bool, every: int
) -> None:
    shore.fill()
    clean = shore.stage.die_in(shore.taking)
    shore.judge()
    shore.empty()
    assert len(clean.calls) > 20
    for point in points(clean.calls, every):
        shore.fill()
        death = shore.stage.die_in(shore.taking, point, eager=eager)
        assert death.returned is (point is None)
        shore.judge()
        shore.empty()


@some_or_all(37)
def test_a_death_at_any_call_of_the_recovery_after_it_neither_loses_nor_doubles(
    shore: Shore, every: int
) -> None:
    shore.fill()
    clean = shore.stage.die_in(shore.taking)
    shore.judge()
    shore.empty()
    tried: set[tuple[str, ...]] = set()
    for first in points(clean.calls, every):
        shore.fill()
        shore.stage.die_in(shore.taking, first)
        recovery = shore.stage.die_in(shore.recovering, eager=True).calls
        shore.judge()
        shore.empty()
        for second in [] if recovery in tried else points(recovery):
            shore.fill()
            shore.stage.die_in(shore.taking, first)
            shore.stage.die_in(shore.recovering, second, eager=True)
            shore.judge()
            shore.empty()
        tried.add(recovery)


@some_or_all(3)
@pytest.mark.parametrize("moves", [True, False], ids=["moves", "deletes"])
def test_another_program_that_takes_a_message_away_meanwhile_changes_nothing(
    shore: Shore, moves: bool, every: int
) -> None:
    """What was read was seen: it goes on, whoever has moved the file."""
    shore.fill()
    many = len(shore.stage.die_in(shore.taking).calls)
    shore.judge()
    shore.empty()
    new, cur = shore.box.path / "new" / "m1.host", shore.box.path / "cur" / "m1.host:2,"
    for number in range(0, many, every):
        shore.fill()
        spool = shore.stage.spool()
        crossing = shore.crossing(spool)
        crossing.settle()
        batch, calls = shore.batch(crossing), Calls()

        def rival(number: int = number, calls: Calls = calls) -> None:
            if len(calls.names) == number + 1 and new.exists():
                os.replace(new, cur) if moves else new.unlink()

        calls.between = rival
        with calls.watched():
            calls.armed = True
            crossing.take(batch)
        crossing.close()
        if not cur.exists():
            cur.touch()
        shore.judge()
        shore.empty()


@some_or_all(5)
def test_a_maildir_that_is_away_decides_nothing(shore: Shore, every: int) -> None:
    """What is not in a place that is not there may well come back with it."""
    shore.fill()
    calls = shore.stage.die_in(shore.taking).calls
    shore.judge()
    shore.empty()
    for point in points(calls, every):
        shore.fill()
        shore.stage.die_in(shore.taking, point)
        before = sorted(shore.waiting(shore.stage.spool()))
        shore.box.path.rename(shore.box.path.with_name("away"))
        with pytest.raises(FileNotFoundError):
            shore.crossing(shore.stage.spool())
        assert sorted(shore.waiting(shore.stage.spool())) == before
        shore.box.path.with_name("away").rename(shore.box.path)
        shore.judge()
        shore.empty()


@some_or_all(5)
@pytest.mark.parametrize("dies", [False, True], ids=["the same process goes on", "another process comes"])
@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_disk_that_fails_at_any_call_neither_loses_nor_doubles(
    shore: Shore, fault: Fault, dies: bool, every: int
) -> None:
    failed, at = True, 1 - every
    while failed:
        at += every
        shore.fill()
        crossing = shore.crossing(shore.stage.spool())
        crossing.settle()
        batch, disk = shore.batch(crossing), FailingDisk(fault, at)
        with disk.mounted(), suppress(OSError, QueueError):
            crossing.take(batch)
        failed = bool(disk.failed)
        if not dies:
            if not crossing.is_settled:
                crossing.settle()
            crossing.take(shore.batch(crossing))
        crossing.close()
        shore.judge()
        shore.empty()
    assert at > 3
