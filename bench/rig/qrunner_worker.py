"""qrunner's switchboard at work: `qrunner_worker.py DIRECTORY COUNT THREADS SIZE`.

Prints JSON: messages enqueued a second, file and directory synced, and claimed, read, verified and finished a second.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

from qrunner.clock import SystemClock
from qrunner.message import Draft, Envelope
from qrunner.slices import WHOLE
from qrunner.switchboard import Hop
from qrunner.switchboard.files import FilesSpool


def main() -> None:
    """Measure and print."""
    directory, count, threads, size = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    clock = SystemClock()
    spool = FilesSpool(directory, clock)
    spool.prepare(["in"])
    raw = b"From: ann@a.example\nTo: bob@b.example\nSubject: hello\n\n" + (b"x" * 71 + b"\n") * (size // 72)

    def enqueue() -> None:
        for number in range(count // threads):
            envelope = Envelope.of("ann@a.example", ["bob@b.example"])
            spool.enqueue("in", Draft(raw, envelope, {"number": number}))

    workers = [threading.Thread(target=enqueue) for _ in range(threads)]
    began_s = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    enqueued_s = time.perf_counter() - began_s
    began_s = time.perf_counter()
    lease = spool.lease("in", WHOLE, "in", 0)
    lease.refresh()
    finished = 0
    while refs := lease.due(clock.now_ns(), 100):
        for ref in refs:
            claim = lease.claim(ref)
            assert claim is not None
            lease.commit(Hop(finished=(claim,)))
            finished += 1
    finished_s = time.perf_counter() - began_s
    lease.release()
    made = count // threads * threads
    assert finished == made
    print(json.dumps({"enqueue": made / enqueued_s, "finish": made / finished_s}))


if __name__ == "__main__":
    main()
