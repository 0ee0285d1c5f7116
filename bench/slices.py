"""Ten slices on one queue of 200,000: the processor time that all of them spend on finding work, and that of one slice.

Finding work is everything but the work: the lease, the watches on directories, five looks through the range, and after
each of them all that is due handed out, one by one. Nothing is claimed, so that each look finds all of it again; a
runner looks twice a minute. A slice is a process, under the loop that an engine has; its start and imports do not count.

Options: `--quick` (fifty thousand), `--runs N`, `--count N`, `--directory DIR`, `--json`.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from rig.crowds import lay_down
from rig.rounds import Claim, options, report

from qrunner.clock import SystemClock
from qrunner.slices import cut
from qrunner.switchboard.files import FilesSpool

SLICES, LOOKS = 10, 5


def main() -> int:
    """Measure and print."""
    asked = options(__doc__, runs=5, quick_runs=2, count=200_000, quick_count=20_000)
    work = f"{SLICES} slices on {asked.count:,}: finding work"
    claim = Claim("slices", work, "ms of CPU", at_most=1.5)
    found: dict[str, list[float]] = {"one slice": [], f"{SLICES} slices": []}
    with tempfile.TemporaryDirectory(dir=asked.directory) as folder:
        root = Path(folder)
        FilesSpool(root, SystemClock()).prepare(["out"])
        lay_down(root / "out", asked.count, time.time_ns() - 86_400 * 10**9)
        for _ in range(asked.runs):
            for name, slices in zip(found, (1, SLICES), strict=True):
                found[name].append(1000 * spent_s(root, asked.count, slices))
    return report(claim, found, peer="one slice", asked=asked)


def spent_s(root: Path, count: int, slices: int) -> float:
    """Seconds of processor time of all slices, the kernel's for them counted. They take turns, each alone."""
    spawn, total_s, handed_out = multiprocessing.get_context("spawn"), 0.0, 0
    for number in range(slices):
        ours, theirs = multiprocessing.Pipe()
        process = spawn.Process(target=slice_of, args=(root, number, slices, theirs), daemon=True)
        process.start()
        found: tuple[float, int] = ours.recv()
        process.join()
        total_s, handed_out = total_s + found[0], handed_out + found[1]
    if handed_out != LOOKS * count:
        raise ValueError(f"{handed_out} of {LOOKS * count} were found")
    return total_s


def slice_of(root: Path, number: int, slices: int, pipe: Connection) -> None:
    """A slice's process."""
    pipe.send(asyncio.run(find(root, number, slices)))


async def find(root: Path, number: int, slices: int) -> tuple[float, int]:
    """How much processor time it took to find, and how many were found."""
    clock = SystemClock()
    spool, handed_out = FilesSpool(root, clock), 0
    began_s = time.process_time()
    lease = spool.lease("out", cut([1] * slices)[number], "out", number)
    lease.subscribe(lambda: None)
    for _ in range(LOOKS):
        lease.refresh()
        while lease.due(clock.now_ns(), 1):
            handed_out += 1
    spent_s = time.process_time() - began_s
    lease.release()
    return spent_s, handed_out


if __name__ == "__main__":
    sys.exit(main())
