"""The switchboard of files keeps the contract."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from qrunner.switchboard import Lease, Ref, Spool
from qrunner.switchboard.claims import FilesLease
from qrunner.switchboard.files import FilesSpool
from qrunner.testing.clock import FakeClock
from qrunner.testing.contract import DamageContract


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

    def kill(self, lease: Lease) -> None:
        assert isinstance(lease, FilesLease)
        lease.subscribe(None)
        # A lock is all that the kernel takes from a process that dies.
        lease._held.lock.release()

    def damage(self, spool: Spool, ref: Ref) -> None:
        path = Path(ref.token)
        path.write_bytes(path.read_bytes().replace(b"world", b"w0rld"))
