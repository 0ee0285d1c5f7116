"""Fan-out to 20 queues, 4 KB, durable, beside one copy and beside 20 enqueues.

What is measured is the commit that takes a claimed entry to where it goes: from the claim to its return. The peer is
`forward` to one queue, which is one rename; since that syncs nothing, a hop with one new entry is measured as well: the
least that any commit of several files can take. 20 enqueues are what a program would do that copies by itself, and which may
die between two of them.

Options: `--quick`, `--runs N`, `--size BYTES`, `--queues N`, `--directory DIR` (on the file system to measure; default:
a temporary one), `--json`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from interleaved import document, measure, table

from qrunner.clock import SystemClock
from qrunner.message import Draft, Envelope
from qrunner.slices import WHOLE
from qrunner.switchboard import Add, Claim, Hop, Move
from qrunner.switchboard.files import FilesSpool

PEER = "forward to one queue"


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
    asked = options()
    with tempfile.TemporaryDirectory(dir=asked.directory) as root:
        source = Source(Path(root), asked.size, asked.queues)
        ways = {
            PEER: source.forward,
            "one new entry in one queue": lambda: source.copy(1),
            f"fan-out to {asked.queues} queues": lambda: source.copy(asked.queues),
            f"{asked.queues} enqueues, one by one": lambda: source.enqueue(together=False),
            f"{asked.queues} enqueues in one call": lambda: source.enqueue(together=True),
        }
        source.fill(len(ways) * (asked.runs + 3))
        found = measure(ways, asked.runs)
        source.lease.release()
    print(json.dumps(document(found, PEER), indent=2) if asked.json else table(found, PEER))
    return 0


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Fan-out, beside one copy and beside enqueues.")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--runs", type=int)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--queues", type=int, default=20)
    parser.add_argument("--directory")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    asked.runs = asked.runs or (20 if asked.quick else 200)
    return asked


if __name__ == "__main__":
    sys.exit(main())
