"""A queue as anybody sees it: what the names say, oldest due first, and the same when it is only counted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from qrunner.switchboard import AREAS, Area, Ref, counted
from qrunner.switchboard.files import FilesSpool
from qrunner.testing.clock import FakeClock

A, B, C = "ab" + "1" * 38, "ab" + "2" * 38, "cd" + "3" * 38
CLAIMED = ".7,aaaaaaaaaaaa,1,bbbbbbbbbbbb,node"
NOW = 1000
FILES = {
    "queue": [
        f"ab/{NOW + 1:020d}+{A}",
        f"ab/{NOW:020d}+{B}",
        f"ab/{5:020d}+{A}{CLAIMED}",
        f"ab/{6:020d}+{A}.not-a-claimant",
        f"ab/{NOW + 2:020d}+{C}",
        f"cd/{NOW + 2:020d}+{C}",
        f"{NOW - 1:020d}+{C}",
        f"ab/{NOW:020d}+{B.upper()}",
        f"ab/{2**63:020d}+{B}",
        "ab/.new.01",
        "ab/stranger",
    ],
    "hold": [f"{NOW + 3:020d}+{A}", f"{2:020d}+{B}"],
    "shunt": [f"{3:020d}+{A}{CLAIMED}"],
    "bad": [f"{4:020d}+{A}.0a1b2c3d", "whatever"],
}


@pytest.fixture
def spool(tmp_path: Path) -> FilesSpool:
    spool = FilesSpool(tmp_path, FakeClock(), durable=False)
    spool.prepare(["in"])
    for area, names in FILES.items():
        for name in names:
            folder = tmp_path / "in" if area == "queue" else tmp_path / area / "in"
            (folder / name).touch()
    return spool


def test_all_that_is_an_entry_is_seen_wherever_it_lies_and_each_by_its_path(
    spool: FilesSpool, tmp_path: Path
) -> None:
    refs = list(spool.peek("in"))
    assert [(ref.due_ns, ref.id, ref.active) for ref in refs] == [
        (5, A, True),
        (NOW - 1, C, False),
        (NOW, B, False),
        (NOW + 1, A, False),
        (NOW + 2, C, False),
        (NOW + 2, C, False),
    ]
    assert {str(Path(ref.token).relative_to(tmp_path / "in")) for ref in refs} < set(FILES["queue"])
    assert len({ref.token for ref in refs}) == 6


@pytest.mark.parametrize("area", AREAS)
def test_the_counts_are_those_of_the_refs(spool: FilesSpool, area: Area) -> None:
    counts, refs = spool.counts("in", NOW, area), list(spool.peek("in", area))
    assert counts == counted(refs, NOW)
    assert counts.depth == len(refs) > 0
    assert counts.first == refs[0]


def test_the_counts_tell_ready_deferred_and_active_apart(spool: FilesSpool) -> None:
    counts = spool.counts("in", NOW)
    assert (counts.ready, counts.deferred, counts.active, counts.next_due_ns) == (2, 3, 1, NOW + 1)


@pytest.mark.parametrize("queue", ["out", "nowhere"])
def test_of_nothing_there_is_nothing_to_count(spool: FilesSpool, queue: str) -> None:
    spool.prepare(["out"])
    assert spool.counts(queue, NOW) == counted((), NOW)
    assert list(spool.peek(queue)) == []
    assert not spool.has_work(queue, NOW)


@pytest.mark.parametrize(
    ("name", "works"),
    [
        (f"ab/{NOW:020d}+{A}", True),
        (f"ab/{NOW + 1:020d}+{A}", False),
        (f"ab/{NOW + 1:020d}+{A}{CLAIMED}", True),
        (f"ab/{NOW + 1:020d}+{A}.stranger", False),
        (f"{NOW:020d}+{A}", True),
    ],
)
def test_there_is_work_where_something_is_due_or_in_hand(spool: FilesSpool, name: str, works: bool) -> None:
    spool.prepare(["out"])
    Path(spool.layout.queue("out"), name).touch()
    assert spool.has_work("out", NOW) is works


def test_very_many_are_seen_once_each_in_order(spool: FilesSpool) -> None:
    spool.prepare(["out"])
    names = [f"{number * 7919 % 3000:020d}+{number % 256:02x}{number:038x}" for number in range(3000)]
    for name in names:
        Path(spool.layout.queue("out"), name[21:23], name).touch()
    refs = list(spool.peek("out"))
    assert Counter(ref.id for ref in refs) == Counter(name[21:] for name in names)
    assert [(ref.due_ns, ref.id) for ref in refs] == sorted((ref.due_ns, ref.id) for ref in refs)
    assert all(Path(ref.token).exists() for ref in refs)
    assert isinstance(refs[0], Ref)
