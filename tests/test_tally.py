"""Once an hour, and the rest is counted."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest

from qrunner.tally import PAUSE_NS, Answer, FileTally, MemoryTally, Tally

NOW_NS = 1_795_000_000 * 10**9


@pytest.fixture(params=["memory", "files"])
def tally(request: pytest.FixtureRequest, tmp_path: Path) -> Tally:
    return MemoryTally() if request.param == "memory" else FileTally(tmp_path / "report")


def ask(tally: Tally, key: str, id: str, now_ns: int = NOW_NS) -> Answer:
    return tally.ask([key], id, now_ns)[key]


def test_one_an_hour_is_told_and_the_next_says_how_many_were_not(tally: Tally) -> None:
    assert ask(tally, "k", "1") == Answer(True, 0)
    assert ask(tally, "k", "2") == Answer(False, 1)
    assert ask(tally, "k", "3", NOW_NS + PAUSE_NS - 1) == Answer(False, 2)
    assert ask(tally, "other", "3") == Answer(True, 0)
    assert ask(tally, "k", "4", NOW_NS + PAUSE_NS) == Answer(True, 2)
    assert ask(tally, "k", "5", NOW_NS + 2 * PAUSE_NS) == Answer(True, 0)


def test_who_died_before_telling_is_answered_as_before(tally: Tally) -> None:
    ask(tally, "k", "1")
    ask(tally, "k", "2")
    assert ask(tally, "k", "3", NOW_NS + PAUSE_NS) == Answer(True, 1)
    assert ask(tally, "k", "3", NOW_NS + PAUSE_NS + 1) == Answer(True, 1)
    assert ask(tally, "k", "4", NOW_NS + PAUSE_NS + 2) == Answer(False, 1)


def test_a_clock_that_was_set_back_silences_nobody(tally: Tally) -> None:
    ask(tally, "k", "1")
    assert ask(tally, "k", "2", NOW_NS - 2 * PAUSE_NS).may


def test_many_are_asked_at_once(tally: Tally) -> None:
    keys = [f"failed <a@example.org> <{n}\udcff@example.net>" for n in range(600)]
    assert all(answer.may for answer in tally.ask(keys, "1", NOW_NS).values())
    assert not any(answer.may for answer in tally.ask(keys, "2", NOW_NS).values())


def test_tallies_of_one_folder_count_together(tmp_path: Path) -> None:
    one, two = FileTally(tmp_path / "report"), FileTally(tmp_path / "report")
    assert ask(one, "k", "1") == Answer(True, 0)
    assert ask(two, "k", "2") == Answer(False, 1)
    assert ask(one, "k", "3") == Answer(False, 2)
    assert list(two.left_out()) == [("k", 2)]


def ask_often(folder: Path, who: int) -> None:
    tally = FileTally(folder)
    for n in range(50):
        ask(tally, "k", f"{who}-{n}")


def test_processes_count_together(tmp_path: Path) -> None:
    folder = tmp_path / "report"
    ask(FileTally(folder), "k", "first")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=ask_often, args=(folder, who)) for who in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert list(FileTally(folder).left_out()) == [("k", 150)]


def test_what_matters_no_more_is_forgotten(tmp_path: Path) -> None:
    tally = FileTally(tmp_path)
    for key in ("a", "b"):
        ask(tally, key, "1")
    ask(tally, "b", "2")
    (shard_a,) = [path for path in tmp_path.glob("*.json") if '"a"' in path.read_text()]
    tally.ask(_same_shard("a"), "3", NOW_NS + PAUSE_NS)
    assert '"a"' not in shard_a.read_text()
    tally.ask(_same_shard("b"), "3", NOW_NS + 24 * PAUSE_NS)
    assert list(tally.left_out()) == [("b", 1)]
    tally.ask(_same_shard("b", 1), "3", NOW_NS + 200 * PAUSE_NS)
    assert list(tally.left_out()) == []


def _same_shard(key: str, skip: int = 0) -> list[str]:
    from qrunner.tally import _shards

    (shard,) = _shards([key])
    found = (f"x{n}" for n in range(10_000) if shard in _shards([f"x{n}"]))
    return [next(one for at, one in enumerate(found) if at == skip)]


def garbage(path: Path) -> None:
    path.write_bytes(b'{"k": [1, 2')


def nonsense(path: Path) -> None:
    path.write_text('{"k": [1, 2, 3, 4], "l": 5, "m": [1, "x", null, 0]}')


def a_list(path: Path) -> None:
    path.write_text("[1]")


@pytest.mark.parametrize("spoil", [garbage, nonsense, a_list])
def test_a_file_that_is_none_silences_nobody(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    tally = FileTally(tmp_path)
    ask(tally, "k", "1")
    for path in tmp_path.glob("*.json"):
        spoil(path)
    assert ask(tally, "k", "2") == Answer(True, 0)


def test_what_can_not_be_written_is_kept_in_memory(tmp_path: Path) -> None:
    tally = FileTally(tmp_path / "not" / "there")
    assert ask(tally, "k", "1") == Answer(True, 0)
    assert ask(tally, "k", "2") == Answer(False, 1)
    assert list(tmp_path.iterdir()) == []
