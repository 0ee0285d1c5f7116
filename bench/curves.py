"""A backlog drained with more slices, larger messages and more recipients, beside Postfix draining the same.

One thing changes at a time: slices, of 4 KB messages for one recipient; the size, and the number of recipients, over two
slices. There are 20 connections in all, and 50 recipients to a transaction, for both. One Postfix serves all points of a
round; it takes each backlog while its queue manager is off. The rate is that of ``bench/drain.py``; where there are few
messages, it is counted from the first connection to the last message, since all connections end at about the same time.

Options: `--quick` (the ends of each curve, few messages), `--runs N`, `--directory DIR`, `--json`.
"""

from __future__ import annotations

import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rig.peers import Postfix, feed, postfix
from rig.rounds import Claim, options, report
from rig.sinks import Sink, smtp_sink
from rig.sites import Place, fill

KB, MB = 1 << 10, 1 << 20
CONNECTIONS, TOGETHER, FEW = 20, 50, 500
# The default is 10 MB.
LARGE = "message_size_limit = 0\n"
SITE = """
[smtp.sink]
host = "127.0.0.1"
port = {port}
max_connections = {connections}
[runner.out]
class = "outgoing"
smtp = "sink"
instances = {slices}
concurrency = {concurrency}
"""


@dataclass(frozen=True)
class Point:
    """One load of a curve; ``at`` is where on it.

    :param count: of messages; ``quick``: for a rough figure, which does without this point if it is 0.
    """

    curve: str
    at: int
    label: str
    count: int
    quick: int = 0
    slices: int = 2
    size: int = 4 * KB
    recipients: int = 1

    @property
    def parts(self) -> int:
        """How many messages the sink counts for one."""
        return -(-self.recipients // TOGETHER)

    def claim(self) -> Claim:
        """What is to be shown of it."""
        unit = "recipients/s" if self.curve == "recipients" else "messages/s"
        name = f"curve-{self.curve}-{self.at}"
        return Claim(name, f"drain, {self.label}", unit, at_least=1.0, curve=self.curve, at=self.at)


POINTS = (
    Point("slices", 1, "1 slice", 8000, slices=1),
    Point("slices", 2, "2 slices", 12000),
    Point("slices", 4, "4 slices", 12000, 2000, slices=4),
    Point("size", KB, "1 KB", 8000, size=KB),
    Point("size", 64 * KB, "64 KB", 3000, size=64 * KB),
    Point("size", MB, "1 MB", 400, size=MB),
    Point("size", 20 * MB, "20 MB", 60, size=20 * MB),
    Point("recipients", 1, "1 recipient", 8000),
    Point("recipients", 50, "50 recipients", 2000, recipients=50),
    Point("recipients", 500, "500 recipients", 300, 40, recipients=500),
)


def main() -> int:
    """Measure and print."""
    asked = options(__doc__, runs=3, quick_runs=1)
    points = [point for point in POINTS if point.quick or not asked.quick]
    found: dict[Point, dict[str, list[float]]] = {point: {"Postfix": [], "qrunner": []} for point in points}
    for _ in range(asked.runs):
        with peer(asked) as (mta, sink):
            for point in points:
                count = point.quick if asked.quick else point.count
                found[point]["Postfix"].append(drain_postfix(point, count, mta, sink))
                found[point]["qrunner"].append(drain_qrunner(point, count, asked))
    for point, figures in found.items():
        report(point.claim(), figures, peer="Postfix", asked=asked)
    return 0


@contextmanager
def peer(asked: Namespace) -> Iterator[tuple[Postfix, Sink]]:
    """A Postfix that delivers nothing yet, and its sink."""
    with tempfile.TemporaryDirectory(dir=asked.directory) as folder, smtp_sink() as sink:
        Path(folder).chmod(0o755)
        with postfix(
            Path(folder, "mta"), sink.port, connections=CONNECTIONS, delivers=False, more=LARGE
        ) as mta:
            yield mta, sink


def drain_postfix(point: Point, count: int, mta: Postfix, sink: Sink) -> float:
    """Messages, or recipients, a second."""
    feed(mta.port, count, size=point.size, recipients=point.recipients)
    sink.forget()
    mta.queue_manager(on=True)
    sink.wait(count * point.parts)
    found = rate(point, count, sink)
    mta.queue_manager(on=False)
    return found


def drain_qrunner(point: Point, count: int, asked: Namespace) -> float:
    """Messages, or recipients, a second."""
    with tempfile.TemporaryDirectory(dir=asked.directory) as folder, smtp_sink() as sink:
        place = Place(Path(folder))
        text = SITE.format(
            port=sink.port,
            connections=CONNECTIONS,
            slices=point.slices,
            concurrency=CONNECTIONS // point.slices,
        )
        fill(place.configure(text), "out", count, size=point.size, recipients=point.recipients)
        sink.forget()
        with place.started():
            sink.wait(count * point.parts)
            return rate(point, count, sink)


def rate(point: Point, count: int, sink: Sink) -> float:
    """What the sink has counted, as the curve counts it."""
    messages = sink.rate() if count * point.parts >= FEW else sink.rate_from_connection()
    return messages * point.recipients / point.parts


if __name__ == "__main__":
    sys.exit(main())
