"""A million entries in one queue: all due, and none due for a day.

None due: what looking after them costs, and how late one is that becomes due among them, beside the same runner with an
empty queue. All due: from the command `start` to the first delivery, the memory of the runner (PSS) while it works, and
its rate, beside the same runner with 10,000 waiting. The entries are whole, small and for one recipient; they were written
to the disk before, and their directories are in memory. Ten messages more are delivered before anything of the deferred is
measured.

Options: `--quick` (twenty thousand, beside a fifth of that), `--runs N`, `--count N`, `--directory DIR`, `--json`.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path

from rig.crowds import cpu_s, lay_down, pss_mb, put_off
from rig.rounds import Claim, options, report
from rig.sinks import Sink, smtp_sink
from rig.sites import Place, fill

from qrunner.site import Site

FIRST = Claim("waiting-first", "{count} waiting: start to first delivery", "s", below=5.0)
MEMORY = Claim("waiting-memory", "{count} waiting: memory of the runner (PSS)", "MB", below=150.0)
RATE = Claim("waiting-rate", "{count} waiting: rate", "messages/s", at_least=0.9)
CPU = Claim(
    "deferred-cpu", "{count} deferred, none due: processor time of the runner", "% of a core", below=1.0
)
LATE = Claim(
    "deferred-late", "{count} deferred, one due among them: delivered after its time", "s", below=1.0
)
SMALL, AGAIN = 10_000, 3
# Of the million so many that the runner looks through its range meanwhile.
SOME = 60_000
DAY_NS = 86_400 * 10**9
SITE = """
[smtp.sink]
host = "127.0.0.1"
port = {port}
[runner.out]
class = "outgoing"
smtp = "sink"
"""


def main() -> int:
    """Measure and print."""
    asked = options(__doc__, runs=1, quick_runs=1, count=1_000_000, quick_count=20_000)
    figures: dict[Claim, tuple[list[float], list[float]]] = {
        claim: ([], []) for claim in (FIRST, MEMORY, RATE, CPU, LATE)
    }
    few, again = (asked.count // 5, 1) if asked.quick else (SMALL, AGAIN)
    for _ in range(asked.runs):
        small = [measured(asked, few, 9 * few // 10) for _ in range(again)]
        beside = {claim: statistics.median(one[claim] for one in small) for claim in (FIRST, MEMORY, RATE)}
        beside |= measured(asked, 0, 0)
        many = measured(asked, asked.count, min(SOME, asked.count // 2))
        for claim, (theirs, ours) in figures.items():
            theirs.append(beside[claim])
            ours.append(many[claim])
    for claim, (theirs, ours) in figures.items():
        peer = "an empty queue" if claim in (CPU, LATE) else f"{few:,} waiting"
        named = dataclasses.replace(claim, work=claim.work.format(count=f"{asked.count:,}"))
        report(named, {peer: theirs, "qrunner": ours}, peer=peer, asked=asked)
    return 0


def measured(asked: Namespace, count: int, delivered: int) -> dict[Claim, float]:
    """What is to be said of so many, first deferred and then due; only what can be said of none, or of a few."""
    with tempfile.TemporaryDirectory(dir=asked.directory) as folder, smtp_sink() as sink:
        place = Place(Path(folder))
        place.configure(SITE.format(port=sink.port))
        queue = place.root / "qfiles" / "out"
        lay_down(queue, count, time.time_ns() + DAY_NS)
        found = deferred(place, sink, asked) if count in (0, asked.count) else {}
        sink.forget()
        put_off(queue, -2 * DAY_NS)
        return found | (backlog(place, sink, delivered) if delivered else {})


def deferred(place: Place, sink: Sink, asked: Namespace) -> dict[Claim, float]:
    """None is due."""
    seconds, site = 4 if asked.quick else 90, Site.load(place.file)
    with place.started():
        fill(site, "out", 10)
        sink.wait(10)
        pid = runner(place)
        before_s = cpu_s([pid])
        time.sleep(seconds)
        used_s = cpu_s([pid]) - before_s
        sink.forget()
        due_s = time.time() + 3
        site.enqueue("out", message=b"Subject: now\n\n", sender="", recipients=["bob@b.example"], delay=3)
        sink.wait(1)
        late_s = time.time() - due_s
    return {CPU: max(100 * used_s / seconds, 0.001), LATE: max(late_s, 0.001)}


def backlog(place: Place, sink: Sink, delivered: int) -> dict[Claim, float]:
    """All are due."""
    began_s = time.monotonic()
    with place.started():
        sink.wait(1)
        first_s = time.monotonic() - began_s
        sink.forget()
        sink.wait(delivered)
        return {FIRST: first_s, RATE: sink.rate(), MEMORY: pss_mb(runner(place))}


def runner(place: Place) -> int:
    """The process id of the runner."""
    pid: int = json.loads(place.ctl("status", "--json"))["runners"][0]["pid"]
    return pid


if __name__ == "__main__":
    sys.exit(main())
