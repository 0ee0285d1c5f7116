"""What one process does while another one recovers: moments that no kill at a call of one process shows."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from filelock import FileLock

from qrunner.clock import SystemClock
from qrunner.slices import WHOLE
from qrunner.switchboard.disk import Disk
from qrunner.switchboard.files import FilesSpool
from qrunner.switchboard.hops import Child, Hops
from qrunner.switchboard.leases import is_live
from tests.crash.calls import Point
from tests.crash.dying import Stage
from tests.crash.looking import look
from tests.crash.transitions import TRANSITIONS, recovering


def intent_of(stage: Stage) -> Path:
    """Lets a process die right after it has committed one to three."""
    transition = TRANSITIONS["one to three"]
    stage.fill(transition)
    calls = stage.die_in(transition.begin).calls
    stage.empty(stage.recover())
    stage.fill(transition)
    # The last name that is given before anything moves is the intent's.
    stage.die_in(transition.begin, Point(len(calls) - calls[::-1].index("link")))
    (intent,) = (stage.root / "in" / ".hops").glob("*.intent")
    return intent


def test_who_asks_about_a_lease_does_not_make_the_dead_look_alive(stage: Stage) -> None:
    """A claim of the dead was put back while its hop, their lock being asked about, was left for later: both then
    happened."""
    nonce = intent_of(stage).name.split(".")[1].split("-")[0]
    leases = stage.root / ".lease" / "in"
    spool = stage.spool(durable=False)
    lease = spool.lease("in", WHOLE, "in", 0)
    # As by somebody who asked before the lease was forgotten, and rudely.
    with FileLock(leases / f"{nonce}.lock"):
        lease.refresh()
        assert [ref.active for ref in spool.peek("in")] == [True]
    lease.refresh()
    lease.release()
    assert look(stage.root).places == TRANSITIONS["one to three"].after


def test_any_number_may_ask_about_a_lease_at_once(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "a.lock")
    with lock:
        assert is_live(tmp_path, "a")
    fd = os.open(tmp_path / "a.lock", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    assert not is_live(tmp_path, "a")
    os.close(fd)
    assert not is_live(tmp_path, "b")


def test_a_hop_that_is_committed_while_its_owner_is_asked_about_is_not_swept(stage: Stage) -> None:
    """Its children were in the listing, its intent was not yet: they were taken for uncommitted."""
    spool = FilesSpool(stage.root, SystemClock(), durable=False)
    id = "ab" * 20
    hops = Hops(spool.layout, Disk(durable=False), "in")
    intent = Path(hops.commit(f"{id}.0123-1", [Child(id, "out", "queue", time.time_ns(), [b"x"])], []))
    not_yet = intent.rename(stage.root / "not yet")

    def is_live(nonce: str) -> bool:
        if not_yet.exists():
            not_yet.rename(intent)
        return False

    assert hops.recover(is_live) == 1
    assert [ref.id for ref in spool.peek("out")] == [id]


def test_a_death_is_put_down_to_those_who_were_in_hand_at_it_even_if_a_second_one_cuts_the_recovery_short(
    stage: Stage,
) -> None:
    """The last to be put back seemed to have been alone in hand."""
    transition = TRANSITIONS["claim"]
    stage.fill(transition)
    stage.die_in(transition.begin)
    # Three marks, one entry put back.
    calls = stage.die_in(recovering, Point(4)).calls
    assert calls == ("write", "write", "write", "renameat2", "renameat2")
    marks = [line for entry in stage.recover().entries for line in entry.history]
    assert [(mark["what"], mark["alone"]) for mark in marks] == [("crash", False)] * 3
