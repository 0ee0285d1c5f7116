"""The memory switchboard keeps the contract."""

from __future__ import annotations

from qrunner.switchboard import Lease, Ref, Spool, Staging
from qrunner.switchboard.memory import MemoryLease, MemorySpool, MemoryStaging
from qrunner.testing.clock import FakeClock
from qrunner.testing.contract import DamageContract


class TestMemorySpool(DamageContract):
    def make_spool(self, clock: FakeClock) -> Spool:
        return MemorySpool(clock)

    def kill(self, lease: Lease | Staging) -> None:
        if isinstance(lease, MemoryStaging):
            lease.release()
        else:
            assert isinstance(lease, MemoryLease)
            lease.abandon()

    def damage(self, spool: Spool, ref: Ref) -> None:
        assert isinstance(spool, MemorySpool)
        kept = spool._kept[ref.id]
        kept.data = kept.data.replace(b"world", b"w0rld")
