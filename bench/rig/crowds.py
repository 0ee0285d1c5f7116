"""Queues with very many entries, laid down without syncs since only their number matters; and what processes cost."""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from qrunner.format import parse_name, ready_name, seal
from qrunner.message import Draft, Envelope


def lay_down(queue: Path, count: int, due_ns: int, *, arrival_ns: int | None = None) -> None:
    """So many entries, due from then on, a microsecond apart; whole ones of a few hundred bytes. They are on the disk when
    it returns: what a site has waiting was written long ago, and nothing that is measured next should wait for it.

    :param arrival_ns: when they were accepted; None: when they are due.
    """
    envelope = Envelope.of("ann@a.example", ["bob@b.example"])

    def share(first: int, after: int) -> None:
        for number in range(first, after):
            nonce = hashlib.sha1(b"%d" % number).hexdigest()[:16]
            draft = Draft(b"Subject: %d\n\nhello\n" % number, envelope)
            sealed = seal(draft, due_ns if arrival_ns is None else arrival_ns, nonce)
            path = queue / sealed.id[:2] / ready_name(due_ns + number * 1000, sealed.id)
            write_new(str(path), b"".join(sealed.parts))

    in_shares(share, count)
    os.sync()


def put_off(queue: Path, by_ns: int) -> None:
    """All entries of the queue are due so much later, also on the disk."""
    directories = sorted(path for path in queue.iterdir() if len(path.name) == 2)

    def share(first: int, after: int) -> None:
        for directory in directories[first:after]:
            for text in os.listdir(directory):
                name = parse_name(text)
                if name is not None and name.claimant is None:
                    os.rename(directory / text, directory / ready_name(name.due_ns + by_ns, name.id))

    in_shares(share, len(directories))
    os.sync()


def write_new(path: str, data: bytes, mode: int = 0o600, owner: tuple[int, int] | None = None) -> None:
    """A file, not synced."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    if owner is not None:
        os.fchown(fd, *owner)
    os.write(fd, data)
    os.close(fd)


def in_shares(work: Callable[[int, int], None], count: int) -> None:
    """The numbers below ``count``, a share of them for each CPU: ``work(first, after)``, each in a process of its own."""
    shares = os.cpu_count() or 1
    bounds = [count * share // shares for share in range(shares + 1)]
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=work, args=pair) for pair in itertools.pairwise(bounds)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError("not all of it could be laid down")


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
