"""The power goes while something is appended to an mbox: what was there stays, and nothing is ever read in part."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from qrunner.mailstore.mbox import Mbox, Spot, framed
from qrunner.switchboard.disk import Disk
from tests.crash.power import Mark, Trace, states
from tests.crash.power_recording import Recorder
from tests.mailstore.letters import ARRIVAL, read_mbox

MEMORY = "/dev/shm"
MESSAGES = [b"Subject: %d\n\nFrom here on\n%s" % (n, b"text " * 40) for n in range(3)]


@pytest.fixture
def root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY if os.path.isdir(MEMORY) else None) as made:
        yield Path(made)


def record(message: bytes) -> bytes:
    return framed("ann@example.org", ARRIVAL, message)


def recorded(folder: Path) -> Trace:
    """Three messages appended."""
    (folder / "kept").mkdir(parents=True)
    recorder = Recorder(str(folder))
    with recorder.recording() as trace:
        for number, message in enumerate(MESSAGES):
            with Mbox.opened(f"{folder}/kept/m", Disk()) as box:
                spot = box.spot_for(record(message))
                recorder.mark("begins", str(number))
                box.append(record(message))
                recorder.mark("kept", str(number), spot)
    return trace


def test_an_mbox_is_whole_after_any_power_cut_and_has_all_that_it_had(root: Path) -> None:
    trace, disk = recorded(root / "recorded"), root / "laid out"
    path, seen, torn = disk / "kept" / "m", set(), 0
    path.parent.mkdir(parents=True)
    for state in states(trace):
        marks = [one for one in trace.operations[: state.cut] if isinstance(one, Mark)]
        key = (frozenset(state.files.items()), len(marks))
        if key in seen:
            continue
        seen.add(key)
        for name, data in state.files.items():
            (disk / name).write_bytes(data)
        # It has nobody who holds it, after a boot.
        (disk / "kept" / "m.lock").unlink(missing_ok=True)
        before = path.read_bytes() if path.exists() else b""
        with Mbox.opened(str(path), Disk(durable=False)) as box:
            torn += path.stat().st_size < len(before)
            for mark in marks:
                assert mark.what == "begins" or (isinstance(mark.value, Spot) and box.holds(mark.value)), (
                    state
                )
            box.append(record(b"next\n"))
        *found, last = read_mbox(path)
        begun = sum(mark.what == "begins" for mark in marks)
        whole = [message + b"\n" for message in MESSAGES[:begun]]
        assert found in (whole, whole[:-1]), state
        assert last == b"next\n"
        for left in path.parent.iterdir():
            left.unlink()
    assert torn > 20
