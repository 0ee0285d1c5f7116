"""A backlog of 4 KB messages drained to smtp-sink, two slices and 20 connections, beside Postfix draining as many.

Postfix takes the backlog while its queue manager is off; qrunner's is enqueued durably before its master starts. Both
keep their queue on the same disk, log to a file, and send to a smtp-sink with up to 20 connections. What is measured is
the rate at which messages come to the sink, from the twentieth part of them to the last.

Options: `--quick`, `--runs N`, `--count N`, `--directory DIR` (on the file system to measure), `--json`.
"""

from __future__ import annotations

import sys
import tempfile
from argparse import Namespace
from pathlib import Path

from rig.peers import feed, postfix
from rig.rounds import Claim, options, report
from rig.sinks import smtp_sink
from rig.sites import Place, fill

CLAIM = Claim("drain", "drain a backlog to smtp-sink, two slices, 20 connections", "messages/s", at_least=3.0)
SITE = """
[smtp.sink]
host = "127.0.0.1"
port = {port}
max_connections = 20
[runner.out]
class = "outgoing"
smtp = "sink"
instances = 2
concurrency = 10
"""


def main() -> int:
    """Measure and print."""
    asked = options(__doc__, runs=5, quick_runs=1, count=20_000, quick_count=2_000)
    found: dict[str, list[float]] = {"Postfix": [], "qrunner": []}
    for _ in range(asked.runs):
        found["Postfix"].append(drain_postfix(asked))
        found["qrunner"].append(drain_qrunner(asked))
    return report(CLAIM, found, peer="Postfix", asked=asked)


def drain_postfix(asked: Namespace) -> float:
    """Messages a second."""
    with tempfile.TemporaryDirectory(dir=asked.directory) as folder, smtp_sink() as sink:
        Path(folder).chmod(0o755)
        with postfix(Path(folder, "mta"), sink.port, delivers=False) as mta:
            feed(mta.port, asked.count)
            sink.forget()
            mta.queue_manager(on=True)
            sink.wait(asked.count)
            return sink.rate()


def drain_qrunner(asked: Namespace) -> float:
    """Messages a second."""
    with tempfile.TemporaryDirectory(dir=asked.directory) as folder, smtp_sink() as sink:
        place = Place(Path(folder))
        fill(place.configure(SITE.format(port=sink.port)), "out", asked.count)
        with place.started():
            sink.wait(asked.count)
            return sink.rate()


if __name__ == "__main__":
    sys.exit(main())
