"""Messages of 4 KB accepted durably and delivered at the same time, beside Postfix relaying the same.

smtp-source sends over ten sessions, to a door of qrunner by SMTP (door, `in`, `out`: three queues' worth of hops) and
to Postfix in turn; both hand on to a smtp-sink. What is measured is the rate at which messages come out of the sink,
from the twentieth part of them to the last.

Options: `--quick`, `--runs N`, `--count N`, `--directory DIR` (on the file system to measure), `--json`.
"""

from __future__ import annotations

import sys
import tempfile
from argparse import Namespace
from pathlib import Path

from rig.peers import feed, postfix
from rig.rounds import Claim, options, report
from rig.sinks import free_port, listens, smtp_sink, until
from rig.sites import Place

CLAIM = Claim("relay", "accept durably and deliver at the same time", "messages/s", at_least=2.0)
SITE = """
[smtp.sink]
host = "127.0.0.1"
port = {sink}
max_connections = 20
[runner.door]
class = "lmtp"
protocol = "smtp"
listen = "127.0.0.1:{port}"
next = "in"
[runner.in]
class = "incoming"
next = "out"
[runner.out]
class = "outgoing"
smtp = "sink"
"""


def main() -> int:
    """Measure and print."""
    asked = options(__doc__, runs=5, quick_runs=1, count=10_000, quick_count=1_000)
    found: dict[str, list[float]] = {"Postfix": [], "qrunner": []}
    for _ in range(asked.runs):
        found["Postfix"].append(through_postfix(asked))
        found["qrunner"].append(through_qrunner(asked))
    return report(CLAIM, found, peer="Postfix", asked=asked)


def through_postfix(asked: Namespace) -> float:
    """Messages a second."""
    with tempfile.TemporaryDirectory(dir=asked.directory) as folder, smtp_sink() as sink:
        Path(folder).chmod(0o755)
        with postfix(Path(folder, "mta"), sink.port) as mta:
            feed(mta.port, asked.count)
            sink.wait(asked.count)
            return sink.rate()


def through_qrunner(asked: Namespace) -> float:
    """Messages a second."""
    with tempfile.TemporaryDirectory(dir=asked.directory) as folder, smtp_sink() as sink:
        place, port = Place(Path(folder)), free_port()
        place.configure(SITE.format(sink=sink.port, port=port))
        with place.started():
            until(lambda: listens(port), what="the door")
            feed(port, asked.count)
            sink.wait(asked.count)
            return sink.rate()


if __name__ == "__main__":
    sys.exit(main())
