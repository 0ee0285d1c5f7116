"""Queues with very many entries, laid down without syncs since only their number matters; and what processes cost."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from qrunner.format import ready_name, seal
from qrunner.message import Draft, Envelope


def lay_down(queue: Path, count: int, due_ns: int, *, first: int = 0) -> None:
    """So many entries, due from then on, a microsecond apart; whole ones of a few hundred bytes."""
    envelope = Envelope.of("ann@a.example", ["bob@b.example"])
    for number in range(first, first + count):
        nonce = hashlib.sha1(b"%d" % number).hexdigest()[:16]
        sealed = seal(Draft(b"Subject: %d\n\nhello\n" % number, envelope), due_ns, nonce)
        path = queue / sealed.id[:2] / ready_name(due_ns + number * 1000, sealed.id)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(fd, b"".join(sealed.parts))
        os.close(fd)


def cpu_s(pids: Iterable[int]) -> float:
    """Seconds of processor time that these processes have used, the kernel's for them counted."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def pss_mb(pid: int) -> float:
    """Memory of a process, what it shares counted in part."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"process {pid} says nothing of its memory")
