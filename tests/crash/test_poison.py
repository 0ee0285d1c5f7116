"""What kills its process is set aside, and what was in hand beside it is not blamed (G7)."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from qrunner.fate import Fate
from qrunner.message import Entry
from qrunner.runner import BatchRunner
from qrunner.slices import WHOLE
from qrunner.switchboard.files import FilesSpool
from tests.crash.dying import Stage
from tests.crash.running import counted_site, expected
from tests.crash.transitions import TRANSITIONS, Step, claims_of
from tests.driving import Bench, make_bench
from tests.sites import wait_for


def poison_one(folder: Path, count: int, limit_s: float) -> None:
    poison = 4 * (count // 8)  # passed on as it is, if it were not what it is
    with counted_site(folder) as site:
        site.change('poison = "none"', f'poison = "{poison}"')
        site.change("concurrency = 8", "concurrency = 20")
        site.change("slices = [{ weight = 70 }, { weight = 30 }]\nmax_crashes = 1000", "")
        site.put(*range(count))
        site.begin()
        site.drain(limit_s)
        (entry,) = site.entries("in", "shunt")
        assert entry.header("X-N") == str(poison)
        assert len(site.aside()) == 1
        assert site.arrived() == expected(n for n in range(count) if n != poison)
        # The runner is up, and has died no more often than the one message takes.
        wait_for(lambda: site.pids()["in/0"] and site.pid("in/0"))
        assert [one["restarts"] for one in site.status()["runners"]] == [3, 0, 0]
        # Those deaths were the message's: the next one would be followed by a start as soon as the first was.
        assert max(one.streak for one in site.master.processes) <= 1
        assert [mark["alone"] for mark in crashes(entry)][1:] == [True, True]


def crashes(entry: Entry) -> list[dict[str, object]]:
    return [dict(line) for line in entry.history if line["what"] == "crash"]


def test_one_message_that_kills_its_process_is_shunted_and_all_others_arrive(tmp_path: Path) -> None:
    poison_one(tmp_path, 300, 60)


@pytest.mark.stress
@pytest.mark.timeout(600)
def test_one_in_five_thousand_that_kills_its_process_is_shunted(tmp_path: Path) -> None:
    poison_one(tmp_path, 5_000, 500)


def with_three_claims_of_the_dead(stage: Stage) -> None:
    transition = TRANSITIONS["claim"]
    stage.fill(transition)
    stage.die_in(transition.begin)


def nobody_is_blamed(stage: Stage) -> None:
    spool = stage.spool(durable=False)
    lease = spool.lease("in", WHOLE, "in", 0)
    assert not lease.refresh().suspects
    entries = [spool.read(ref) for ref in spool.peek("in")]
    lease.release()
    assert [(entry.queue, entry.history) for entry in entries] == [("in", ())] * 3


def test_a_reboot_blames_nobody(stage: Stage) -> None:
    with_three_claims_of_the_dead(stage)
    for path in stage.look().claimed:
        pid, nonce, serial, boot, node = path.rpartition(".")[2].split(",")
        before_the_boot = ",".join([pid, nonce, serial, boot[::-1], node])
        os.rename(path, f"{path.rpartition('.')[0]}.{before_the_boot}")
    nobody_is_blamed(stage)


def test_a_death_that_the_master_announced_blames_nobody(stage: Stage) -> None:
    with_three_claims_of_the_dead(stage)
    nonce = stage.look().claimed[0].rpartition(".")[2].split(",")[1]
    (stage.root / ".lease" / "in" / f"{nonce}.explained").touch()
    nobody_is_blamed(stage)


def test_a_death_while_stopping_blames_nobody(stage: Stage) -> None:
    def stopping(spool: FilesSpool) -> Step:
        lease, _ = claims_of(spool)
        return lease.stopping

    stage.fill(TRANSITIONS["claim"])
    stage.die_in(stopping)
    nobody_is_blamed(stage)


def test_deaths_on_another_machine_blame_what_was_in_hand_there(stage: Stage) -> None:
    with_three_claims_of_the_dead(stage)
    for path in stage.look().claimed:
        os.rename(path, path.removesuffix(",a") + ",b")
    sight = stage.recover()
    assert [len(crashes(entry)) for entry in sight.entries] == [1, 1, 1]


def test_a_death_is_forgiven_to_what_has_got_on_since(stage: Stage) -> None:
    """Marks are of one queue: whoever survived there is not nearer to ``shunt`` elsewhere."""
    transition = TRANSITIONS["hop"]
    for _ in range(5):
        stage.fill(transition)
        stage.die_in(lambda spool: (claims_of(spool), lambda: None)[1])
        stage.recover()
        stage.die_in(transition.begin)
        sight = stage.recover()
        assert [(entry.queue, len(crashes(entry))) for entry in sight.entries] == [("out", 1)]
        stage.empty(sight)


# A runner that looks at all that is due


class Sorts(BatchRunner):
    """Passes pairs on, and is killed by one message, wherever it stands."""

    at: ClassVar[str] = "batch"

    async def dispose_batch(self, entries: Sequence[Entry]) -> AsyncIterator[tuple[Sequence[Entry], Fate]]:
        if self.at == "batch" and any(map(_is_poison, entries)):
            os.kill(os.getpid(), signal.SIGKILL)
        for one, other in zip(entries[::2], entries[1::2], strict=False):
            yield [one, other], [one.forward("out"), other.forward("out")]


class Handles(Sorts):
    at = "handler"


def handle(entry: Entry) -> None:
    if _is_poison(entry):
        os.kill(os.getpid(), signal.SIGKILL)


def _is_poison(entry: Entry) -> bool:
    return entry.header("X-N") == "5"


@pytest.mark.parametrize("kind", [Sorts, Handles])
def test_one_message_that_kills_whoever_looks_at_it_is_shunted(tmp_path: Path, kind: type[Sorts]) -> None:
    bench = make_bench(tmp_path, _keys(kind))
    ids = bench.put(11)
    deaths = 0
    while (status := _ended(bench, kind)) != 0:
        assert status == signal.SIGKILL
        deaths += 1
        assert deaths < 10
    assert deaths == 3
    (poison,) = bench.entries("in", "shunt")
    assert poison.id == ids[5]
    assert [mark["alone"] for mark in crashes(poison)] == [False, True, True]
    assert len(bench.entries("out")) == 10
    assert not bench.entries("in")


def _ended(bench: Bench, kind: type[Sorts]) -> int:
    """How a process ended that ran until nothing was due."""
    pid = os.fork()
    if not pid:
        try:
            make_bench(bench.site.config.path.parent.parent, _keys(kind)).drain(kind)
        finally:
            os._exit(1 if sys.exc_info()[0] else 0)
    return os.waitpid(pid, 0)[1]


def _keys(kind: type[Sorts]) -> str:
    return f'handlers = ["{__name__}:handle"]' if kind is Handles else ""
