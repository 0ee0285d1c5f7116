"""Fan-out to 20 queues, 4 KB, durable, beside one copy and beside 20 enqueues.

What is measured is the commit that takes a claimed entry to where it goes: from the claim to its return. The peer is
`forward` to one queue, which is one rename; since that syncs nothing, a hop with one new entry is measured as well: the
least that any commit of several files can take. 20 enqueues are what a program would do that copies by itself, and which may
die between two of them.

Options: `--quick`, `--runs N`, `--directory DIR` (on the file system to measure), `--json`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from rig.rounds import Claim as Goal
from rig.rounds import in_turns, options, report

from qrunner.clock import SystemClock
from qrunner.message import Draft, Envelope
from qrunner.slices import WHOLE
from qrunner.switchboard import Add, Claim, Hop, Move
from qrunner.switchboard.files import FilesSpool

PEER = "forward to one queue"
SIZE, QUEUES = 4096, 20
CLAIM = Goal("fanout", "a claimed entry goes to where it goes, durably", "ms")


class Source:
    """A queue that always has one entry more, and the queues that it feeds."""

    def __init__(self, root: Path, size: int, queues: int) -> None:
        self.clock = SystemClock()
        self.spool = FilesSpool(root, self.clock, node="bench")
        self.queues = [f"sub-{number}" for number in range(queues)]
        self.spool.prepare(["in", *self.queues])
        message = (b"Subject: a benchmark\n\n" + b"x" * 71 + b"\n") * size
        self.draft = Draft(message[:size], Envelope.of("ann@a.example", ["bob@b.example"]))
        self.lease = self.spool.lease("in", WHOLE, "bench", 0)

    def fill(self, count: int) -> None:
        """So many entries for the ways to claim."""
        for _ in range(count):
            self.spool.enqueue("in", self.draft)
        self.lease.refresh()

    def claim(self) -> Claim:
        (ref,) = self.lease.due(self.clock.now_ns(), 1)
        claim = self.lease.claim(ref)
        assert claim is not None
        return claim

    def forward(self) -> None:
        """One to one."""
        self.lease.commit(Hop(moved=(Move(self.claim(), self.queues[0], self.clock.now_ns()),)))

    def copy(self, count: int) -> None:
        """One to ``count``, in one commit."""
        now = self.clock.now_ns()
        added = tuple(Add(self.draft, queue, now) for queue in self.queues[:count])
        self.lease.commit(Hop(finished=(self.claim(),), added=added))

    def enqueue(self, *, together: bool) -> None:
        """To each of the queues, and then the original is finished."""
        claim, now = self.claim(), self.clock.now_ns()
        adds = [Add(self.draft, queue, now) for queue in self.queues]
        for part in [adds] if together else [[one] for one in adds]:
            self.spool.enqueue_all(part)
        self.lease.commit(Hop(finished=(claim,)))


def main() -> int:
    """Measure and print."""
    asked = options(__doc__, runs=200, quick_runs=20)
    with tempfile.TemporaryDirectory(dir=asked.directory) as root:
        source = Source(Path(root), SIZE, QUEUES)
        ways = {
            PEER: source.forward,
            "one new entry in one queue": lambda: source.copy(1),
            f"fan-out to {QUEUES} queues": lambda: source.copy(QUEUES),
            f"{QUEUES} enqueues, one by one": lambda: source.enqueue(together=False),
            f"{QUEUES} enqueues in one call": lambda: source.enqueue(together=True),
        }
        source.fill(len(ways) * (asked.runs + 3))
        found = in_turns(ways, asked.runs)
        source.lease.release()
    return report(CLAIM, found, peer=PEER, asked=asked)


if __name__ == "__main__":
    sys.exit(main())
