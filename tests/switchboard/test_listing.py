"""A look through a range lists what has changed, and finds what was written in our future."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import patch

import pytest

from qrunner.format import Name, parse_name, ready_name
from qrunner.slices import SPACE, WHOLE, Range
from qrunner.switchboard import listing
from qrunner.switchboard.index import DueIndex, parts_of
from qrunner.switchboard.listing import Lister, Look
from qrunner.switchboard.reading import names_in
from qrunner.testing.clock import FakeClock

MANY = 120
HOUR_NS = 3600 * 10**9


def id_of(number: int, digits: str = "ab") -> str:
    return f"{digits}{number:038x}"


class Stage:
    """A directory with very many entries, and who lists it."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock(datetime.now(UTC))
        self.directory = folder / "ab"
        self.directory.mkdir()
        self.listed: list[str] = []
        self.due_ns = self.clock.now_ns() - HOUR_NS

    def put(self, *numbers: int, due_ns: int | None = None, digits: str = "ab") -> None:
        for number in numbers:
            name = ready_name((self.due_ns if due_ns is None else due_ns) + number, id_of(number, digits))
            (self.directory / name).touch()

    def long_ago(self) -> None:
        """What is in the directory has been there for a while."""
        past_ns = self.clock.now_ns() - 10 * 10**9
        os.utime(self.directory, ns=(past_ns, past_ns))

    def look(self, lister: Lister) -> Look:
        self.listed.clear()
        ((_, look),) = lister.look([str(self.directory)])
        return look

    def numbers(self, look: Look) -> list[int]:
        index = DueIndex()
        index.replace([], [look.row])
        return [int(parts_of(key)[1][2:], 16) for key in index.peek(2**62)]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)

    def listed(directory: str) -> Sequence[str]:
        made.listed.append(directory)
        return names_in(directory)

    with patch.object(listing, "names_in", listed):
        yield made


@pytest.fixture
def lister(stage: Stage) -> Lister:
    return Lister(WHOLE, stage.clock)


def test_a_large_directory_that_has_not_changed_is_not_listed_again(stage: Stage, lister: Lister) -> None:
    stage.put(*range(MANY))
    stage.long_ago()
    first = stage.look(lister)
    assert stage.listed
    again = stage.look(lister)
    assert not stage.listed
    assert again.row is first.row
    assert stage.numbers(again) == list(range(MANY))


def take_one(stage: Stage, look: Look) -> None:
    index = DueIndex()
    index.replace([], [look.row])
    index.take(2**62, 1)


CHANGES: dict[str, Callable[[Stage, Look], object]] = {
    "one that came": lambda stage, _: stage.put(MANY),
    "one that was moved": lambda stage, _: next(stage.directory.iterdir()).rename(stage.directory / "x"),
    "one that is gone": lambda stage, _: next(stage.directory.iterdir()).unlink(),
    "one that was handed out": take_one,
    "ten minutes and a quarter": lambda stage, _: stage.clock.advance("751s"),
    "a clock that was set back": lambda stage, _: stage.clock.set_back("5s"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_it_is_listed_again_after(change: str, stage: Stage, lister: Lister) -> None:
    stage.put(*range(MANY))
    stage.long_ago()
    CHANGES[change](stage, stage.look(lister))
    again = stage.look(lister)
    assert stage.listed
    there = [name for path in stage.directory.iterdir() if (name := parse_name(path.name))]
    assert stage.numbers(again) == sorted(int(name.id[2:], 16) for name in there)


@pytest.mark.parametrize(
    "change", ["one that came", "ten minutes and a quarter", "a clock that was set back"]
)
def test_an_empty_directory_is_listed_once_and_again_after(change: str, stage: Stage, lister: Lister) -> None:
    stage.long_ago()
    stage.look(lister)
    assert stage.listed
    first = stage.look(lister)
    assert (stage.listed, stage.numbers(first)) == ([], [])
    CHANGES[change](stage, first)
    again = stage.look(lister)
    assert stage.listed
    assert stage.numbers(again) == ([MANY] if change == "one that came" else [])


def test_an_empty_directory_that_was_full_a_moment_ago_is_listed_each_time(
    stage: Stage, lister: Lister
) -> None:
    for _ in range(2):
        assert stage.numbers(stage.look(lister)) == []
        assert stage.listed


def test_a_change_within_the_tick_of_the_one_before_is_not_missed(stage: Stage, lister: Lister) -> None:
    stage.put(*range(MANY))
    about = os.stat(stage.directory)
    stage.look(lister)
    stage.put(MANY)
    # As a clock shows it that ticks too seldom.
    os.utime(stage.directory, ns=(about.st_mtime_ns, about.st_mtime_ns))
    assert MANY in stage.numbers(stage.look(lister))


@pytest.mark.parametrize(
    "name", [".new.0123", "stranger", f"{Name(5, id_of(MANY))}.7,{'a' * 12},1,{'b' * 12},node"]
)
def test_a_directory_with_other_names_is_listed_each_time_since_they_may_want_something(
    stage: Stage, lister: Lister, name: str
) -> None:
    stage.put(*range(MANY))
    (stage.directory / name).touch()
    stage.long_ago()
    assert stage.look(lister).others == [name]
    assert stage.look(lister).others == [name]


def test_a_small_directory_is_listed_each_time(stage: Stage, lister: Lister) -> None:
    stage.put(*range(5))
    stage.long_ago()
    stage.look(lister)
    stage.look(lister)
    assert stage.listed


def test_one_that_is_not_there_has_nothing_in_it(stage: Stage, lister: Lister) -> None:
    stage.directory.rmdir()
    assert stage.numbers(stage.look(lister)) == []


@pytest.mark.parametrize(
    ("part", "wanted"),
    [
        (Range(0xAB << 152, 0xAC << 152), [0, 1, 2, 3]),
        (Range(0, SPACE), [0, 1, 2, 3, 7]),
        (Range(0, int(id_of(2), 16)), [0, 1]),
        (Range(int(id_of(2), 16), int(id_of(3), 16)), [2]),
        (Range(int(id_of(2), 16), SPACE), [2, 3, 7]),
    ],
)
def test_only_what_is_in_the_range_is_found_wherever_somebody_has_put_it(
    stage: Stage, part: Range, wanted: list[int]
) -> None:
    stage.put(0, 1, 2, 3)
    stage.put(7, digits="cd")
    assert stage.numbers(stage.look(Lister(part, stage.clock))) == wanted


# The clock


def asked(stage: Stage, lister: Lister, written_ns: Callable[[str], int]) -> tuple[set[str], Look]:
    """Who was asked when it was written, by its name, and what was found."""
    names: set[str] = set()

    def written(path: str) -> int:
        names.add(os.path.basename(path))
        return written_ns(os.path.basename(path))

    with patch.object(listing, "_written_ns", written):
        return names, stage.look(lister)


def test_of_very_many_that_are_not_due_a_few_are_asked_when_they_were_written(
    stage: Stage, lister: Lister
) -> None:
    stage.put(*range(MANY), due_ns=stage.clock.now_ns() + HOUR_NS)
    stage.put(MANY)
    names, look = asked(stage, lister, lambda _: 0)
    assert 0 < len(names) < 10
    assert (len(stage.numbers(look)), list(look.ahead)) == (MANY + 1, [])


def test_if_one_of_the_few_was_written_in_our_future_all_are_asked(stage: Stage, lister: Lister) -> None:
    now_ns = stage.clock.now_ns()
    stage.put(*range(MANY), due_ns=now_ns + HOUR_NS)
    odd = ready_name(now_ns + HOUR_NS + 7, id_of(7))
    names, look = asked(stage, lister, lambda name: now_ns + (0 if name == odd else HOUR_NS // 2))
    assert len(names) == MANY
    assert len(look.ahead) == MANY - 1
    assert stage.numbers(look) == [7]


def test_all_are_asked_after_the_clock_was_set_back_and_a_few_again_after_that(
    stage: Stage, lister: Lister
) -> None:
    stage.put(*range(MANY), due_ns=stage.clock.now_ns() + HOUR_NS)
    stage.long_ago()
    stage.look(lister)
    stage.clock.set_back("5s")
    assert len(asked(stage, lister, lambda _: 0)[0]) == MANY
    stage.put(MANY)
    stage.long_ago()
    assert len(asked(stage, lister, lambda _: 0)[0]) < 10


def test_all_are_asked_where_the_directory_itself_was_changed_in_our_future(
    stage: Stage, lister: Lister
) -> None:
    stage.put(*range(MANY), due_ns=stage.clock.now_ns() + HOUR_NS)
    future_ns = stage.clock.now_ns() + HOUR_NS // 2
    os.utime(stage.directory, ns=(future_ns, future_ns))
    assert len(asked(stage, lister, lambda _: 0)[0]) == MANY
