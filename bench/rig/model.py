"""A simple model of a site on one machine, and its simulation, event by event.

A message comes in by a door, is synced, makes hops, and is delivered by a slice. Every runner is one process: it does one
thing at a time, on one core at a time, and whatever has come while it was busy it does in one go, so that waking costs it
less for each, the more there is to do. The disk syncs in groups: what comes while it writes shares its next write.

Not modelled: what hosts refuse or put off, the memory, the network, and that a busy cache makes everything slower.
"""

from __future__ import annotations

import heapq
import itertools
import random
import statistics
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

Step = Callable[[], None]


@dataclass(frozen=True)
class Costs:
    """What things cost on a machine, in seconds; of processor time, but for the syncs.

    ``accept``: a message at the door. ``hop``: from one queue to the next, unchanged. ``deliver``: a message of no size to
    one recipient, ``recipient``: each further one, ``kilobyte``: of its size; ``wake``: what a slice spends each time that it
    has something to do. ``commit``: a write of the file system's journal, ``member``: and each message in it. ``name``: a
    name of a directory that is looked through. ``begin``: the start of a process. ``source``, ``sink``: what the other ends
    spend on a message, where they are on the same machine.
    """

    accept: float
    hop: float
    deliver: float
    recipient: float
    kilobyte: float
    wake: float
    commit: float
    member: float
    name: float = 0.0
    begin: float = 0.0
    source: float = 0.0
    sink: float = 0.0

    def delivery(self, load: Load) -> float:
        """Of one message, without the waking."""
        return self.deliver + self.recipient * (load.recipients - 1) + self.kilobyte * load.kilobytes


@dataclass(frozen=True)
class Load:
    """What comes, and what is there for it.

    :param hops: queues before the last; ``hop_slices``: of each of them.
    :param host_s: how long a host takes to answer a delivery; ``concurrency``: deliveries of a slice under way.
    :param is_here: the source and the host are on this machine.
    """

    cores: float = 2.0
    slices: int = 2
    doors: int = 1
    hops: int = 1
    hop_slices: int = 1
    recipients: int = 1
    kilobytes: float = 4.0
    host_s: float = 0.0
    concurrency: int = 20
    is_here: bool = False

    def ceilings(self, costs: Costs) -> dict[str, float]:
        """Messages a second that each part alone could do at most."""
        fullest = costs.delivery(self) + costs.wake / self.concurrency
        total = costs.accept + self.hops * costs.hop + fullest
        total += (costs.source + costs.sink) if self.is_here else 0.0
        found = {
            "cores": self.cores / total,
            "the door": self.doors / costs.accept,
            "slices": self.slices / fullest,
            "disk": 1 / costs.member if costs.member else float("inf"),
        }
        if self.hops:
            found["a hop"] = self.hop_slices / costs.hop
        if self.host_s:
            found["answers of the host"] = self.slices * self.concurrency / self.host_s
        return found

    def bottleneck(self, costs: Costs) -> tuple[str, float]:
        """The part that is the first to be full, and at how many messages a second."""
        found = self.ceilings(costs)
        name = min(found, key=lambda one: found[one])
        return name, found[name]


class Clock:
    """Does what is to happen, in the order of its time."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._events: list[tuple[float, int, Step]] = []
        self._count = itertools.count()

    def after(self, delay_s: float, step: Step) -> None:
        """So many seconds from now."""
        heapq.heappush(self._events, (self.now_s + delay_s, next(self._count), step))

    def run(self, until: Callable[[], bool]) -> None:
        """Until that is so, or nothing happens any more."""
        while self._events and not until():
            self.now_s, _, step = heapq.heappop(self._events)
            step()


class Cores:
    """So many, for whoever wants one, in turns. A share of a core makes all of them slower."""

    def __init__(self, clock: Clock, count: float) -> None:
        whole = max(1, round(count))
        self._clock, self._free, self._pace = clock, whole, count / whole
        self._waiting: deque[tuple[Sequence[tuple[float, Step]], Step]] = deque()
        self.busy_s = 0.0

    def work(self, parts: Sequence[tuple[float, Step]], ended: Step) -> None:
        """That much processor time, one part after another, as soon as there is a core."""
        self._waiting.append((parts, ended))
        self._begin()

    def _begin(self) -> None:
        while self._free and self._waiting:
            self._free -= 1
            parts, ended = self._waiting.popleft()
            spent_s = 0.0
            for cost_s, done in parts:
                spent_s += cost_s
                self._clock.after(spent_s / self._pace, done)
            self.busy_s += spent_s
            self._clock.after(spent_s / self._pace, self._freed(ended))

    def _freed(self, ended: Step) -> Step:
        def step() -> None:
            self._free += 1
            ended()
            self._begin()

        return step


class Process:
    """Wakes, and does what has come, one after another, as far as it has places. ``free`` gives a place back."""

    def __init__(self, cores: Cores, wake_s: float = 0.0, places: int = 1 << 30) -> None:
        self._cores, self._wake_s, self._places = cores, wake_s, places
        self._waiting: deque[tuple[float, Step]] = deque()
        self._is_busy = False

    def do(self, cost_s: float, done: Step) -> None:
        """That much work, and then a step."""
        self._waiting.append((cost_s, done))
        self._begin()

    def free(self) -> None:
        """What was done has left its place."""
        self._places += 1
        self._begin()

    def _begin(self) -> None:
        if self._is_busy or not self._waiting or not self._places:
            return
        taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._places))]
        self._places -= len(taken)
        self._is_busy = True
        woken = (self._wake_s + taken[0][0], taken[0][1])
        self._cores.work([woken, *taken[1:]], self._ended)

    def _ended(self) -> None:
        self._is_busy = False
        self._begin()


class Disk:
    """Writes its journal for all who wait at that time."""

    def __init__(self, clock: Clock, commit_s: float, member_s: float) -> None:
        self._clock, self._commit_s, self._member_s = clock, commit_s, member_s
        self._waiting: list[Step] = []
        self._is_busy = False

    def sync(self, done: Step) -> None:
        """Takes part in the next write."""
        self._waiting.append(done)
        self._begin()

    def _begin(self) -> None:
        if self._is_busy or not self._waiting:
            return
        taken, self._waiting = self._waiting, []
        self._is_busy = True
        self._clock.after(self._commit_s + self._member_s * len(taken), lambda: self._ended(taken))

    def _ended(self, taken: Sequence[Step]) -> None:
        self._is_busy = False
        for done in taken:
            done()
        self._begin()


@dataclass
class Result:
    """What a simulation has found: when each message was delivered, and how long that took it."""

    ends_s: list[float] = field(default_factory=list)
    took_s: list[float] = field(default_factory=list)
    cores: float = 0.0

    def rate(self, skip: float = 0.05) -> float:
        """Messages a second, from this share of them to the last, as the benchmarks count."""
        first = int(len(self.ends_s) * skip)
        return (len(self.ends_s) - 1 - first) / (self.ends_s[-1] - self.ends_s[first])

    def quantile_s(self, share: float) -> float:
        """How long the slowest of this share took; the first fifth, in which queues fill, is left out."""
        settled = self.took_s[len(self.took_s) // 5 :]
        return statistics.quantiles(settled, n=1000)[round(share * 1000) - 1]


class Machine:
    """One that messages go through."""

    def __init__(self, costs: Costs, load: Load, seed: int = 1) -> None:
        self._costs, self._load = costs, load
        self._clock, self.result, self._dice = Clock(), Result(), random.Random(seed)
        self._cores = Cores(self._clock, load.cores)
        self._doors = [Process(self._cores) for _ in range(load.doors)]
        self._hops = [[Process(self._cores) for _ in range(load.hop_slices)] for _ in range(load.hops)]
        self._slices = [Process(self._cores, costs.wake, load.concurrency) for _ in range(load.slices)]
        self._source, self._sink = Process(self._cores), Process(self._cores)
        self._disk = Disk(self._clock, costs.commit, costs.member)

    def arriving(self, rate: float, count: int) -> Result:
        """Messages come by themselves, so many a second in the mean."""
        when_s = 0.0
        for _ in range(count):
            when_s += self._dice.expovariate(rate)
            self._clock.after(when_s, lambda: self._accept(lambda: None))
        return self._run(count)

    def fed(self, sessions: int, count: int) -> Result:
        """So many sessions of a source send, each its next message when the last is accepted."""
        left = iter(range(count))

        def send() -> None:
            if next(left, None) is not None:
                self._source.do(self._costs.source if self._load.is_here else 0.0, lambda: self._accept(send))

        for _ in range(sessions):
            send()
        return self._run(count)

    def drained(self, count: int) -> Result:
        """All of them wait in the last queue."""
        for _ in range(count):
            self._deliver(0.0)
        return self._run(count)

    def _run(self, count: int) -> Result:
        self._clock.run(lambda: len(self.result.ends_s) >= count)
        self.result.cores = self._cores.busy_s / self._clock.now_s if self._clock.now_s else 0.0
        return self.result

    def _accept(self, accepted: Step) -> None:
        began_s = self._clock.now_s

        def durable() -> None:
            accepted()
            self._hop(iter(self._hops), began_s)

        door = self._dice.choice(self._doors)
        door.do(self._costs.accept, lambda: self._disk.sync(durable))

    def _hop(self, left: Iterator[list[Process]], began_s: float) -> None:
        following = next(left, None)
        if following is None:
            self._deliver(began_s)
        else:
            self._dice.choice(following).do(self._costs.hop, lambda: self._hop(left, began_s))

    def _deliver(self, began_s: float) -> None:
        slice = self._dice.choice(self._slices)

        def answered() -> None:
            slice.free()
            self.result.ends_s.append(self._clock.now_s)
            self.result.took_s.append(self._clock.now_s - began_s)

        def handed_over() -> None:
            if self._load.is_here:
                self._sink.do(self._costs.sink, answered)
            else:
                self._clock.after(self._load.host_s, answered)

        slice.do(self._costs.delivery(self._load), handed_over)


def carries(costs: Costs, load: Load, count: int = 6_000) -> float:
    """Messages a second that a machine carries for ever: as many as come out while more than enough wait outside."""
    return Machine(costs, load).fed(64, count).rate()


def waits(
    costs: Costs, load: Load, shares: Sequence[float], count: int = 8_000
) -> list[tuple[float, float, float]]:
    """For shares of what it carries: the share, and within how many seconds half and 99 of 100 are delivered."""
    most = carries(costs, load)
    found = []
    for share in shares:
        result = Machine(costs, load).arriving(most * share, count)
        found.append((share, result.quantile_s(0.5), result.quantile_s(0.99)))
    return found
