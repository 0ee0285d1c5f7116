"""The switchboard of files keeps the contract."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from qrunner.errors import QueueError
from qrunner.slices import WHOLE
from qrunner.switchboard import Lease, Ref, Spool, Staging
from qrunner.switchboard.claims import FilesLease
from qrunner.switchboard.files import FilesSpool
from qrunner.switchboard.staging import FilesStaging
from qrunner.testing.clock import FakeClock
from qrunner.testing.contract import DamageContract, draft


class TestFilesSpool(DamageContract):
    @pytest.fixture(autouse=True)
    def _root(self, tmp_path: Path) -> None:
        self.root = tmp_path / "qfiles"

    @pytest.fixture
    def clock(self) -> FakeClock:
        # Files carry the kernel's own times, with which a clock of another year would not agree.
        return FakeClock(datetime.now(UTC))

    def make_spool(self, clock: FakeClock) -> Spool:
        return FilesSpool(self.root, clock, node="a", durable=False, site="test")

    def kill(self, lease: Lease | Staging) -> None:
        assert isinstance(lease, FilesLease | FilesStaging)
        if isinstance(lease, FilesLease):
            lease.subscribe(None)
        # A lock is all that the kernel takes from a process that dies.
        lease._held.lock.release()

    def damage(self, spool: Spool, ref: Ref) -> None:
        path = Path(ref.token)
        path.write_bytes(path.read_bytes().replace(b"world", b"w0rld"))


@pytest.mark.parametrize("name", ["in/../out", "./in", "in/", "..", "", "IN", ".lease", "hold"])
def test_a_directory_that_has_no_queue_s_name_takes_nothing(tmp_path: Path, name: str) -> None:
    spool = FilesSpool(tmp_path, FakeClock(), durable=False)
    spool.prepare(["in", "out"])
    with pytest.raises(QueueError, match="there is no queue"):
        spool.enqueue(name, draft())
    assert [list(spool.peek(queue)) for queue in ("in", "out")] == [[], []]


def test_who_is_not_the_owner_leaves_nothing_that_the_owner_could_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = FilesSpool(tmp_path, FakeClock(), durable=False)
    spool.prepare(["in"])
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(QueueError, match="belongs to uid"):
        spool.enqueue("in", draft())
    assert list(spool.peek("in")) == []


def test_an_outcome_is_whole_whatever_came_behind_its_mark_and_no_descriptor_stays(tmp_path: Path) -> None:
    clock = FakeClock(datetime.now(UTC))
    spool = FilesSpool(tmp_path / "q", clock, durable=False)
    spool.prepare(["in"])
    spool.enqueue("in", draft())
    lease = spool.lease("in", WHOLE, "in", 0)
    lease.refresh()
    before = os.listdir("/proc/self/fd")
    (ref,) = lease.due(2**62, 1)
    claim = lease.claim(ref)
    assert claim is not None
    lease.note(claim, {"what": "sending", "to": ["b@x"]})
    with open(claim.token, "ab") as file:
        file.write(b"torn by somebody")
    lease.note(claim, {"what": "deferred", "to": ["b@x"]})
    clock.advance(1)
    # The reply to this one is never written down.
    lease.note(claim, {"what": "sending", "to": ["b@x"]})
    lease.put_back(claim)
    assert os.listdir("/proc/self/fd") == before
    (ref,) = spool.peek("in")
    assert [line["what"] for line in spool.read(ref).history] == ["sending", "deferred", "sending"]
    lease.release()
