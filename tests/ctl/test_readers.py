"""Several processes look at very many entries: what they say comes in order, and none of them stays."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Sequence
from itertools import chain, islice

import pytest

from qrunner.ctl import readers
from qrunner.ctl.readers import rendered
from qrunner.errors import QRunnerError
from qrunner.switchboard import Ref

from .conftest import Place


def refs(count: int) -> list[Ref]:
    return [Ref("in", f"{number:040x}", number) for number in range(count)]


def said(part: Sequence[Ref]) -> list[str]:
    """One line of each but every third, and who says it."""
    return [f"{ref.due_ns} {os.getpid()}" for ref in part if ref.due_ns % 3]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_PART", 3)
    monkeypatch.setattr(readers, "_ALONE", 2)


@pytest.mark.parametrize("count", [0, 1, 3, 6, 7, 9, 12, 13, 100])
@pytest.mark.parametrize("readers", [1, 2, 3])
def test_all_is_said_once_and_in_order(count: int, readers: int) -> None:
    lines = [line.split() for line in chain.from_iterable(rendered(iter(refs(count)), said, readers))]
    assert [int(number) for number, _ in lines] == [number for number in range(count) if number % 3]
    assert not multiprocessing.active_children()


def test_a_short_list_is_read_by_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    # Not even by processes that find nothing left to read.
    monkeypatch.delattr(readers, "get_context")
    lines = chain.from_iterable(rendered(iter(refs(6)), said, 3))
    assert {line.split()[1] for line in lines} == {str(os.getpid())}


def test_a_long_one_is_shared() -> None:
    lines = list(chain.from_iterable(rendered(iter(refs(60)), said, 3)))
    assert len({line.split()[1] for line in lines}) == 4


def test_whoever_has_seen_enough_leaves_nobody_behind() -> None:
    parts = rendered(iter(refs(100_000)), said, 3)
    list(islice(parts, 5))
    assert len(multiprocessing.active_children()) == 3
    parts.close()
    assert not multiprocessing.active_children()


def test_a_reader_that_is_killed_is_an_error_and_not_an_end() -> None:
    def dies(part: Sequence[Ref]) -> list[str]:
        if part[0].due_ns >= 30:
            os.kill(os.getpid(), signal.SIGKILL)
        return said(part)

    with pytest.raises(QRunnerError, match="was killed"):
        list(rendered(iter(refs(60)), dies, 2))
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("words", [(), ("--json",), ("--older", "0s"), ("--limit", "10")])
def test_a_list_that_is_shared_is_the_list(
    place: Place, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(30):
        place.enqueue("in" if number % 2 else "out", sender=f"ann{number}@example.org", delay=number)
    alone = place.call("list", *words)
    monkeypatch.setattr(readers, "_ALONE", 1000)
    assert place.call("list", *words).stdout == alone.stdout
    assert alone.exit_code == 0
    assert alone.stdout.count("ann") == (10 if "--limit" in words else 30)
