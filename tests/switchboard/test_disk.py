"""What a failing disk does to those who enqueue, and what a look at leases does to nobody."""

from __future__ import annotations

import errno
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from qrunner.errors import QueueError
from qrunner.format import history_line, parse_history
from qrunner.message import Draft, Envelope
from qrunner.slices import WHOLE
from qrunner.switchboard import Add
from qrunner.switchboard.disk import Disk
from qrunner.switchboard.files import FilesSpool
from qrunner.switchboard.leases import is_live
from qrunner.testing.clock import FakeClock

NOW = datetime.now(UTC)
DRAFT = Draft(b"Subject: hello\n\nhi\n", Envelope.of("ann@example.org", ["bob@example.org"]))


@pytest.fixture
def spool(tmp_path: Path) -> FilesSpool:
    spool = FilesSpool(tmp_path / "qfiles", FakeClock(NOW), node="a", durable=False)
    spool.prepare(["in", "out"])
    return spool


def fail_directory_syncs(
    monkeypatch: pytest.MonkeyPatch, spool: FilesSpool, *, then_claim_in: tuple[str, ...] = ()
) -> None:
    """The names are there, their sync fails; by then runners may have taken the entries of some queues."""

    def sync_directory(disk: Disk, directory: str, fd: int | None = None) -> None:
        for queue in then_claim_in:
            lease = spool.lease(queue, WHOLE, queue, 0)
            lease.refresh()
            for ref in lease.due(spool.clock.now_ns(), 10):
                assert lease.claim(ref)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Disk, "sync_directory", sync_directory)
    monkeypatch.setattr(spool, "prepare", lambda queues: None)


def test_a_name_whose_directory_could_not_be_synced_is_withdrawn(
    spool: FilesSpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_directory_syncs(monkeypatch, spool)
    with pytest.raises(QueueError):
        spool.enqueue("in", DRAFT)
    assert not list(spool.peek("in"))


def test_of_several_that_belong_together_one_taken_by_a_runner_does_not_swallow_the_failure_of_the_others(
    spool: FilesSpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = spool.clock.now_ns()
    fail_directory_syncs(monkeypatch, spool, then_claim_in=("in",))
    with pytest.raises(QueueError):
        spool.enqueue_all([Add(DRAFT, "in", now), Add(DRAFT, "out", now)])
    assert [ref.active for ref in spool.peek("in")] == [True]
    assert not list(spool.peek("out"))


def test_a_name_that_can_be_neither_synced_nor_withdrawn_is_not_called_accepted(
    spool: FilesSpool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unlink(path: str, **_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    fail_directory_syncs(monkeypatch, spool)
    monkeypatch.setattr(os, "unlink", unlink)
    with pytest.raises(QueueError):
        spool.enqueue("in", DRAFT)


def test_who_asks_whether_a_lease_is_live_is_never_taken_for_its_owner(spool: FilesSpool) -> None:
    lease = spool.lease("in", WHOLE, "in", 0)
    directory, nonce = spool.layout.leases("in"), lease.holder.nonce
    assert is_live(directory, nonce)
    lease.release()
    with open(directory / f"{nonce}.lock", "rb") as another:
        import fcntl

        fcntl.flock(another, fcntl.LOCK_SH | fcntl.LOCK_NB)
        assert not is_live(directory, nonce)
    (directory / f"{nonce}.lock").unlink()
    assert not is_live(directory, nonce)
    assert not (directory / f"{nonce}.lock").exists()


def test_what_a_dead_process_left_of_an_intent_that_was_never_in_effect_is_swept_when_a_day_old(
    spool: FilesSpool,
) -> None:
    left = Path(spool.layout.hops("in")) / ".new.0123456789abcdef"
    left.write_bytes(b"half an int")
    lease = spool.lease("in", WHOLE, "in", 0)
    lease.refresh()
    assert left.exists()
    os.utime(left, (0, 0))
    lease.refresh()
    assert not left.exists()


def test_lines_that_a_recovery_wrote_a_second_time_count_once() -> None:
    lines = [{"t": 1, "what": "failed", "to": ["ann"]}, {"t": 1, "what": "attempt", "text": "later"}]
    tail = b"".join(map(history_line, lines))
    assert list(parse_history(tail + tail)) == lines
