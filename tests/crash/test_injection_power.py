"""No power cut loses or doubles what is injected from an mbox, in any state that a journalling file system allows."""

from __future__ import annotations

import logging
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from qrunner.config import parse
from qrunner.ctl import bulk
from qrunner.ctl.letters import MboxFile
from qrunner.ctl.orders import Order
from qrunner.site import Site as RealSite
from qrunner.switchboard.files import FilesSpool
from qrunner.testing.clock import FakeClock
from tests.crash.power import Rename, Sync, Trace, Write, states
from tests.crash.power_stories import QUEUES, Site, cornered, key_of, message_of

MEMORY = "/dev/shm"
CONFIG = (
    '[site]\nhostname = "x.example"\nqueue_dir = "{0}"\nstate_dir = "{0}/var"\n[runner.out]\nclass = "m:C"\n'
)
ORDER = Order("me@x.example", "out", None, ("b@y.example",), {}, False, False, 0)
KEYS = ("one", "two", "three")


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(bulk, "_BATCH", 2)
    with tempfile.TemporaryDirectory(dir=MEMORY if os.path.isdir(MEMORY) else None) as made:
        box = Path(made) / "box"
        box.write_bytes(b"".join(b"From a@x 1:00 2024\n%s\n\n" % message_of(key) for key in KEYS))
        yield Path(made) / "qfiles"


def inject(root: Path, spool: FilesSpool) -> None:
    config = parse(CONFIG.format(root), root / "etc" / "qrunner.toml")
    site = RealSite(config, spool=spool, clock=spool.clock)
    stop = bulk.Stop()
    with bulk.door(site, "me", stop) as staging:
        log = logging.getLogger("qrunner.test")
        assert bulk.Bulk(site, ORDER, "me", log, staging, stop).inject(MboxFile(str(root.parent / "box")))


def recorded(root: Path) -> Trace:
    site = Site.at(root)
    for folder in (".door/ctl-inject", "var/inject"):
        (root / folder).mkdir(parents=True)
    with site.recorder.recording() as trace:
        inject(root, site.spool)
    return trace


def arrived(root: Path, files: dict[str, bytes]) -> tuple[Counter[str], list[str]]:
    """The machine comes up and the same command is given: what is in the queues, and what is left staged."""
    for path, data in files.items():
        (root / path).write_bytes(data)
    spool = FilesSpool(root, FakeClock(datetime.now(UTC)), node="a")
    inject(root, spool)
    found = Counter(key_of(spool.read(ref).message) for queue in QUEUES for ref in spool.peek(queue))
    left = os.listdir(root / ".door/ctl-inject")
    wipe(root)
    return found, left


def wipe(root: Path) -> None:
    for directory, _, names in os.walk(root):
        for name in names:
            if "/.lease" not in directory:
                os.unlink(f"{directory}/{name}")


def try_all(trace: Trace, root: Path) -> int:
    wipe(root)
    seen = set()
    for state in states(trace):
        files = frozenset(state.files.items())
        if files not in seen:
            seen.add(files)
            outcome = arrived(root, dict(state.files))
            assert outcome == (Counter(KEYS), []), f"cut after {state.cut}: {sorted(state.files)}"
    return len(seen)


def test_what_is_injected_is_there_once_after_a_power_cut_and_the_same_command(root: Path) -> None:
    with cornered():
        assert try_all(recorded(root), root) > 30


def test_a_line_of_the_journal_is_synced_before_anything_is_published(root: Path) -> None:
    """The journal may lie on another file system, so that the order of operations says nothing."""
    with cornered():
        operations = recorded(root).operations
    journal = {one.file for one in operations if isinstance(one, Write) and b'"parcel"' in one.data}
    assert len(journal) == 1
    notes = [n for n, one in enumerate(operations) if isinstance(one, Write) and one.file in journal]
    assert len(notes) == 3
    for note in notes:
        assert operations[note + 1] == Sync(*journal)
    published = [n for n, one in enumerate(operations) if isinstance(one, Rename) and ".staged" in one.source]
    assert notes[0] < published[0] < notes[1] < published[1] < notes[2]


def test_a_journal_that_was_not_synced_would_lose_or_double(root: Path) -> None:
    with cornered():
        trace = recorded(root)
        journal = {one.file for one in trace.operations if isinstance(one, Write) and b'"parcel"' in one.data}
        kept = [one for one in trace.operations if not (isinstance(one, Sync) and one.file in journal)]
        with pytest.raises(AssertionError, match="cut after"):
            try_all(Trace(trace.before, kept), root)
