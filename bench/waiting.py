"""A million entries in one queue: all due, and none due for a day.

All due: from the master's start to the first delivery, the memory of the runner (PSS) while it works, and its rate
beside that on a backlog of 10,000. None due: what looking after them costs, and how late one is that becomes due among
them. The entries are laid down without syncs; they are whole, small and for one recipient.

Options: `--quick` (a hundred thousand), `--runs N`, `--count N`, `--directory DIR`, `--json`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path

from rig.crowds import cpu_s, lay_down, pss_mb
from rig.rounds import Claim, options, report
from rig.sinks import smtp_sink
from rig.sites import Place, fill

FIRST = Claim("waiting-first", "{count} waiting: start to first delivery", "s", at_most=1.0)
MEMORY = Claim("waiting-memory", "{count} waiting: memory of the runner (PSS)", "MB", at_most=1.0)
RATE = Claim("waiting-rate", "{count} waiting: rate", "messages/s", at_least=0.9)
CPU = Claim(
    "deferred-cpu", "{count} deferred, none due: processor time of the runner", "% of a core", at_most=1.0
)
LATE = Claim(
    "deferred-late", "{count} deferred, one due among them: delivered after its time", "s", at_most=1.0
)
SMALL, SOME = 10_000, 5_000
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
    asked = options(__doc__, runs=1, quick_runs=1, count=1_000_000, quick_count=100_000)
    found: dict[Claim, dict[str, list[float]]] = {
        FIRST: {"5 s": [], "qrunner": []},
        MEMORY: {"150 MB": [], "qrunner": []},
        RATE: {f"{SMALL:,} waiting": [], "qrunner": []},
        CPU: {"1 %": [], "qrunner": []},
        LATE: {"1 s": [], "qrunner": []},
    }
    for _ in range(asked.runs):
        all_due(asked, found)
        none_due(asked, found)
    for claim, figures in found.items():
        named = Claim(
            claim.name, claim.work.format(count=f"{asked.count:,}"), claim.unit, claim.at_least, claim.at_most
        )
        report(named, figures, peer=next(iter(figures)), asked=asked)
    return 0


def all_due(asked: Namespace, found: dict[Claim, dict[str, list[float]]]) -> None:
    """The backlog."""
    few = drained(asked, SMALL)
    many = drained(asked, asked.count)
    for claim, limit, figure in (
        (FIRST, 5.0, many[0]),
        (MEMORY, 150.0, many[1]),
        (RATE, few[2], many[2]),
    ):
        peer, ours = found[claim]
        found[claim][peer].append(limit)
        found[claim][ours].append(figure)


def drained(asked: Namespace, count: int) -> tuple[float, float, float]:
    """Seconds to the first delivery, MB, and messages a second after it."""
    with tempfile.TemporaryDirectory(dir=asked.directory) as folder, smtp_sink() as sink:
        place = Place(Path(folder))
        place.configure(SITE.format(port=sink.port))
        lay_down(place.root / "qfiles" / "out", count, time.time_ns() - DAY_NS)
        began_s = time.monotonic()
        with place.started():
            sink.wait(1)
            first_s = time.monotonic() - began_s
            sink.forget()
            sink.wait(min(SOME, count // 2))
            return first_s, pss_mb(runner(place)), sink.rate()


def none_due(asked: Namespace, found: dict[Claim, dict[str, list[float]]]) -> None:
    """The deferred."""
    seconds = 20 if asked.quick else 90
    with tempfile.TemporaryDirectory(dir=asked.directory) as folder, smtp_sink() as sink:
        place = Place(Path(folder))
        site = place.configure(SITE.format(port=sink.port))
        lay_down(place.root / "qfiles" / "out", asked.count, time.time_ns() + DAY_NS)
        with place.started():
            fill(site, "out", 1)
            sink.wait(1)
            pid = runner(place)
            before_s = cpu_s([pid])
            time.sleep(seconds)
            found[CPU]["1 %"].append(1.0)
            found[CPU]["qrunner"].append(max(100 * (cpu_s([pid]) - before_s) / seconds, 1e-6))
            sink.forget()
            due_s = time.time() + 3
            site.enqueue("out", message=b"Subject: now\n\n", sender="", recipients=["bob@b.example"], delay=3)
            sink.wait(1)
            found[LATE]["1 s"].append(1.0)
            found[LATE]["qrunner"].append(max(time.time() - due_s, 1e-3))


def runner(place: Place) -> int:
    """The process id of the runner."""
    pid: int = json.loads(place.ctl("status", "--json"))["runners"][0]["pid"]
    return pid


if __name__ == "__main__":
    sys.exit(main())
