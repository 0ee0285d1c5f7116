"""No power cut loses or doubles what a door takes from a maildir, in any state that a journalling file system allows."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from qrunner.maildir.box import LOCK, Letter, Maildir
from qrunner.maildir.crossing import Crossing
from qrunner.switchboard import Add
from qrunner.switchboard.disk import Disk
from qrunner.switchboard.files import FilesSpool
from qrunner.testing.clock import FakeClock
from tests.crash.power import Operation, Rename, SyncDirectory, Trace, states
from tests.crash.power_recording import Ledger, Recorder, files_under
from tests.crash.power_stories import QUEUES, Site, cornered, key_of, message_of

MEMORY = "/dev/shm"
GOES = {"one": ["out"], "two": ["out", "in"]}
ALL = Counter(f"{queue} {key}" for key, queues in GOES.items() for queue in queues)


@pytest.fixture
def root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY if os.path.isdir(MEMORY) else None) as made:
        yield Path(made) / "qfiles"


@pytest.fixture(autouse=True)
def _one_inode(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is laid out has another inode than the one that was on the disk: here each has the same."""
    read = Maildir.read
    monkeypatch.setattr(Maildir, "read", lambda self, name, now_s: replace(read(self, name, now_s), inode=7))
    monkeypatch.setattr(Maildir, "holds", lambda self, name, inode: os.path.lexists(f"{self.new}/{name}"))


def crossing(spool: FilesSpool, root: Path) -> Crossing:
    maildir = Maildir(root / "box", "a test")
    return Crossing(maildir, spool.staging(maildir.door), Disk())


def batch(site: Site, came: Crossing) -> dict[Letter, Sequence[Add]]:
    letters = [came.maildir.read(name, 0) for name in came.maildir.names()]
    return {
        letter: [
            Add(site.draft(key_of(letter.message)), queue, site.clock.now_ns()) for queue in GOES[letter.name]
        ]
        for letter in letters
    }


def seeded(recorder: Recorder) -> None:
    """What is there already is on the disk."""
    ledger: Ledger = recorder.ledger
    for number, (path, data) in enumerate(files_under(ledger.root).items()):
        ledger.trace.before[path] = data
        ledger._names[path] = -1 - number
        ledger._sizes[-1 - number] = len(data)


def recorded(root: Path) -> Trace:
    """A door takes two messages."""
    site = Site.at(root)
    for name in ("new", "cur"):
        (root / "box" / name).mkdir(parents=True)
    for key in GOES:
        (root / "box" / "new" / key).write_bytes(message_of(key))
    came = crossing(site.spool, root)
    came.settle()
    seeded(site.recorder)
    with site.recorder.recording() as trace:
        came.take(batch(site, came))
    came.close()
    return trace


def boot(root: Path, files: dict[str, bytes]) -> tuple[Counter[str], list[str], list[str]]:
    """The machine comes up: what is in the queues, what in ``cur``, and what is left staged."""
    for path, data in files.items():
        (root / path).write_bytes(data)
    clock = FakeClock(datetime.now(UTC))
    spool = FilesSpool(root, clock, node="a")
    site = Site(root, Recorder(str(root)), spool, clock)
    came = crossing(spool, root)
    came.settle()
    came.take(batch(site, came))
    came.close()
    found = Counter(f"{q} {key_of(spool.read(ref).message)}" for q in QUEUES for ref in spool.peek(q))
    cur = sorted(os.listdir(root / "box" / "cur"))
    left = os.listdir(spool.layout.door(came.maildir.door))
    wipe(root)
    return found, cur, left


def wipe(root: Path) -> None:
    for directory, _, names in os.walk(root):
        for name in names:
            if "/.lease" not in directory and name != LOCK:
                os.unlink(f"{directory}/{name}")


def try_all(trace: Trace, root: Path) -> int:
    wipe(root)
    seen = set()
    for state in states(trace):
        files = frozenset(state.files.items())
        if files not in seen:
            seen.add(files)
            outcome = boot(root, dict(state.files))
            assert outcome == (ALL, ["one:2,", "two:2,"], []), f"cut after {state.cut}: {sorted(state.files)}"
    return len(seen)


def test_what_a_door_takes_is_there_once_after_a_power_cut(root: Path) -> None:
    with cornered():
        assert try_all(recorded(root), root) > 10


def is_of_the_maildir(one: Operation) -> bool:
    path = one.source if isinstance(one, Rename) else one.path if isinstance(one, SyncDirectory) else ""
    return path.startswith("box/")


def test_the_move_is_synced_before_anything_is_published(root: Path) -> None:
    """The maildir may lie on another file system, so that the order of names says nothing."""
    with cornered():
        operations = recorded(root).operations
    in_the_maildir = [n for n, one in enumerate(operations) if is_of_the_maildir(one)]
    assert [type(operations[n]) for n in in_the_maildir] == [Rename, Rename, SyncDirectory, SyncDirectory]
    published = [n for n, one in enumerate(operations) if isinstance(one, Rename) and ".door" in one.source]
    assert max(in_the_maildir) < min(published)


def test_a_maildir_that_lost_moves_which_were_not_synced_would_double(root: Path) -> None:
    with cornered():
        trace = recorded(root)
        kept = [one for one in trace.operations if not is_of_the_maildir(one)]
        with pytest.raises(AssertionError, match="cut after"):
            try_all(Trace(trace.before, kept), root)
