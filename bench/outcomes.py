"""What it would cost to sync each outcome as well, so that a loss of power repeats nothing either.

The drain of ``bench/drain.py``, twice: as it is, which is the peer, and with a runner that syncs the entry's file once
its outcome stands in it, and only then finishes it. The syncs are made in threads, so that those of one time share the
file system's journal.

Options: `--quick`, `--runs N`, `--count N`, `--directory DIR` (on the file system to measure), `--json`.
"""

from __future__ import annotations

import sys
import tempfile
from argparse import Namespace
from pathlib import Path

from rig.rounds import Claim, options, report
from rig.sinks import smtp_sink
from rig.sites import REPOSITORY, Place, fill

USUAL, SYNCED = "as it is", "each outcome synced"
CLAIM = Claim("outcomes", "drain a backlog, each outcome synced as well", "messages/s")
CLASSES = {USUAL: "qrunner.runners.outgoing:OutgoingRunner", SYNCED: "rig.synced:SyncedRunner"}
SITE = """
python_path = ["{bench}"]
[smtp.sink]
host = "127.0.0.1"
port = {port}
max_connections = 20
[runner.out]
class = "{kind}"
concurrency = 10
slices = [{{ smtp = "sink" }}, {{ smtp = "sink" }}]
"""


def main() -> int:
    """Measure and print."""
    asked = options(__doc__, runs=5, quick_runs=1, count=10_000, quick_count=2_000)
    found: dict[str, list[float]] = {USUAL: [], SYNCED: []}
    for _ in range(asked.runs):
        for name, figures in found.items():
            figures.append(drain(name, asked))
    return report(CLAIM, found, peer=USUAL, asked=asked)


def drain(name: str, asked: Namespace) -> float:
    """Messages a second."""
    with tempfile.TemporaryDirectory(dir=asked.directory) as folder, smtp_sink() as sink:
        place = Place(Path(folder))
        text = SITE.format(bench=REPOSITORY / "bench", port=sink.port, kind=CLASSES[name])
        fill(place.configure(text), "out", asked.count)
        with place.started():
            sink.wait(asked.count)
            return sink.rate()


if __name__ == "__main__":
    sys.exit(main())
