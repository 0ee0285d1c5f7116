"""The costs of the model, measured on this machine: processor time of real runners under their real master, and syncs.

Each measurement loads one part, so that what it costs can be told from the rest.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qrunner.clock import SystemClock
from qrunner.slices import WHOLE
from qrunner.switchboard.files import FilesSpool
from rig.crowds import cpu_s, lay_down
from rig.model import Costs
from rig.peers import feed
from rig.sinks import Sink, free_port, listens, smtp_sink, until
from rig.sites import Place, fill

KB = 1 << 10
TOGETHER = 50
OUT = """
[smtp.sink]
host = "127.0.0.1"
port = {sink}
max_connections = 40
[runner.out]
class = "outgoing"
smtp = "sink"
instances = {slices}
concurrency = {concurrency}
enabled = {delivers}
"""
IN = """
[runner.in]
class = "incoming"
next = "out"
enabled = {hops}
"""
DOOR = """
[runner.door]
class = "lmtp"
protocol = "smtp"
listen = "127.0.0.1:{port}"
next = "in"
"""


@dataclass(frozen=True)
class Spent:
    """Of a run: messages a second, processor time a message, of the runners and of the sink or source, and the cores
    that were left for them by what else the machine did."""

    rate: float
    runner_s: float
    other_s: float
    cores: float


class Meter:
    """What has been spent since it was made, and by whom."""

    def __init__(self, *pids: int) -> None:
        self._pids, self._cpu_s, self._busy_s = pids, cpu_s(pids), _busy_s()
        self._children_s, self._began_s = _children_s(), time.monotonic()

    def spent_s(self) -> float:
        """By these processes."""
        return cpu_s(self._pids) - self._cpu_s

    def cores_left(self, *besides: Meter) -> float:
        """What these, the meters ``besides``, and programs that we waited for did not have to share with strangers."""
        ours_s = self.spent_s() + sum(one.spent_s() for one in besides) + _children_s() - self._children_s
        strangers_s = max(0.0, _busy_s() - self._busy_s - ours_s)
        return (os.cpu_count() or 1) - strangers_s / (time.monotonic() - self._began_s)


def _busy_s() -> float:
    fields = [int(one) for one in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measured(directory: str | None, count: int) -> Costs:
    """All of them.

    :param count: of messages in each measurement.
    """
    alone_s, shared_s = synced(directory, count // 8, 1), synced(directory, count, 16)
    member_s = max((16 * shared_s - alone_s) / 15, 1e-6)
    plain, alone = drained(directory, count), drained(directory, count // 2, concurrency=1)
    wake_s = max(alone.runner_s - plain.runner_s, 0.0) / (1 - 1 / 20)
    deliver_s = max(plain.runner_s - wake_s / 20, 1e-6)
    some = drained(directory, count // 2, recipients=TOGETHER)
    large = drained(directory, count // 2, size=256 * KB)
    door, source_s = taken_in(directory, count)
    return Costs(
        accept=door,
        hop=hopped(directory, count),
        deliver=deliver_s,
        recipient=max(some.runner_s - plain.runner_s, 0.0) / (TOGETHER - 1),
        kilobyte=max(large.runner_s - plain.runner_s, 0.0) / 252,
        wake=wake_s,
        commit=max(alone_s - member_s, 1e-6),
        member=member_s,
        name=looked_through(directory, count * 10) / (count * 10),
        begin=begun(directory),
        source=source_s,
        sink=plain.other_s,
    )


def synced(directory: str | None, count: int, threads: int) -> float:
    """Seconds for each message that is enqueued, file and directory synced; without what Python spends on it, which the
    door's figure has."""
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        place = Place(Path(folder))
        site = place.configure(OUT.format(sink=9, slices=1, concurrency=1, delivers="false"))
        fill(site, "out", 50)
        began_s, used_s = time.perf_counter(), _user_s()
        fill(site, "out", count, threads=threads)
        return max(time.perf_counter() - began_s - (_user_s() - used_s), 1e-6) / count


def _user_s() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime


def drained(
    directory: str | None,
    count: int,
    *,
    slices: int = 1,
    concurrency: int = 20,
    recipients: int = 1,
    size: int = 4 * KB,
    skip: float = 0.2,
) -> Spent:
    """A backlog handed to a sink; counted once this share of it is done."""
    with tempfile.TemporaryDirectory(dir=directory) as folder, smtp_sink() as sink:
        place = Place(Path(folder))
        delivery = OUT.format(sink=sink.port, slices=slices, concurrency=concurrency, delivers="true")
        fill(place.configure(delivery), "out", count, recipients=recipients, size=size)
        sink.forget()
        with place.started():
            return _spent(place, sink, count, skip)


def _spent(place: Place, sink: Sink, count: int, skip: float) -> Spent:
    everybody = pids(place)
    sink.wait(int(count * skip))
    runners, other, before = Meter(*everybody), Meter(sink.process.pid), sink.taken
    sink.wait(count)
    made = sink.taken - before
    left = runners.cores_left(other)
    return Spent(sink.rate(skip), runners.spent_s() / made, other.spent_s() / made, left)


def hopped(directory: str | None, count: int) -> float:
    """Processor time of a hop from one queue to the next."""
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        place = Place(Path(folder))
        text = OUT.format(sink=9, slices=1, concurrency=1, delivers="false") + IN.format(hops="true")
        site = place.configure(text)
        fill(site, "in", count)
        with place.started():
            everybody, queue = pids(place, "in"), site.config.site.queue_dir / "in"
            # What went before the meter was there is not counted by it.
            before, meter = _waiting(queue), Meter(*everybody)
            until(lambda: not _waiting(queue), what="the hops")
            return meter.spent_s() / max(before, 1)


def _waiting(queue: Path) -> int:
    return sum(1 for folder in queue.iterdir() if len(folder.name) == 2 for _ in folder.iterdir())


def taken_in(directory: str | None, count: int) -> tuple[float, float]:
    """Processor time of the door for a message, and of who sends it."""
    with (
        tempfile.TemporaryDirectory(dir=directory) as folder,
        door(Path(folder), hops=False) as (place, port),
    ):
        meter, before_s = Meter(*pids(place, "door")), _children_s()
        feed(port, count)
        return meter.spent_s() / count, (_children_s() - before_s) / count


@contextmanager
def door(folder: Path, *, hops: bool, sink: int = 9) -> Iterator[tuple[Place, int]]:
    """A site with a door at this port, whose other runners run or do not."""
    place, port = Place(folder), free_port()
    said = "true" if hops else "false"
    text = OUT.format(sink=sink, slices=1, concurrency=20, delivers=said) + IN.format(hops=said)
    place.configure(text + DOOR.format(port=port))
    with place.started():
        until(lambda: listens(port), what="the door")
        yield place, port


def relayed(directory: str | None, count: int) -> Spent:
    """In at the door, through ``in``, out at a slice: what the model is not fitted to."""
    with (
        tempfile.TemporaryDirectory(dir=directory) as folder,
        smtp_sink() as sink,
        door(Path(folder), hops=True, sink=sink.port) as (place, port),
    ):
        runners, other = Meter(*pids(place)), Meter(sink.process.pid)
        feed(port, count)
        sink.wait(count)
        left = runners.cores_left(other)
        return Spent(sink.rate(), runners.spent_s() / count, other.spent_s() / count, left)


def looked_through(directory: str | None, count: int) -> float:
    """Seconds to look through a queue with so many entries."""
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        spool = FilesSpool(Path(folder), SystemClock(), durable=False)
        spool.prepare(["out"])
        lay_down(Path(folder, "out"), count, time.time_ns())
        lease = spool.lease("out", WHOLE, "out", 0)
        took_s = []
        for _ in range(3):
            began_s = time.process_time()
            lease.refresh()
            took_s.append(time.process_time() - began_s)
        lease.release()
        return statistics.median(took_s)


def begun(directory: str | None) -> float:
    """Processor time from a runner's start until it waits for mail."""
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        place = Place(Path(folder))
        place.configure(OUT.format(sink=9, slices=2, concurrency=1, delivers="true"))
        with place.started():
            return cpu_s(pids(place)) / 2


def pids(place: Place, runner: str = "*") -> list[int]:
    """Of the runners' processes, or of this one's; what they write of themselves is at hand sooner than a verb's answer."""
    files = sorted((place.root / "var" / "run").glob(f"runner.{runner}.*.json"))
    return [int(json.loads(file.read_text())["pid"]) for file in files]
