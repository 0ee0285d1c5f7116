"""How much of this machine others use: what a runner asks that works only while it is otherwise idle.

Two figures, each in percent, over the second or so before the question:

``stalled``   the share of time in which something that could run had to wait for a CPU: pressure stall information,
              ``some`` of ``/proc/pressure/cpu``. None where the kernel has none.
``busy``      the share of all CPU time that other processes took (``/proc/stat``, without what this one and its
              children took); where that can't be read, the load by CPU.

Both, because neither tells all: a program on each CPU stalls nobody, and leaves no room; ten programs on one CPU of
many, as a container may have them, leave room that they can't use. Totals are read, and not the kernel's averages,
whose shortest is still at a third ten seconds after the burden has gone.

Not guaranteed: that what our own children take is told from others' before they have ended. A container sees the
whole machine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_WINDOW_S = 1.0
_LONGEST_S = 5.0
_TICKS = os.sysconf("SC_CLK_TCK")
# What "cpu" of /proc/stat counts: user, nice, system, idle, iowait, irq, softirq. What another guest of the host has
# stolen is neither used nor free.
_COUNTED, _IDLE = slice(0, 7), slice(3, 5)


@dataclass(frozen=True, slots=True)
class Load:
    """How much is used, in percent, 0 to 100."""

    stalled: float | None
    busy: float


@dataclass(frozen=True, slots=True)
class Counts:
    """What the kernel has counted since it started, in seconds. None: it does not count that."""

    stalled_s: float | None = None
    used_s: float | None = None
    all_s: float | None = None
    own_s: float = 0.0


class Gauge:
    """Asked as often as one likes; measures about once a second.

    :param proc: where the kernel shows its counts. The others are the clock and what this process has used, in
        seconds.
    """

    def __init__(
        self,
        proc: Path = Path("/proc"),
        monotonic_s: Callable[[], float] = time.monotonic,
        own_s: Callable[[], float] = lambda: sum(os.times()[:4]),
    ) -> None:
        self._proc, self._now_s, self._own_s = proc, monotonic_s, own_s
        self._from: Counts | None = None
        self._from_s = 0.0
        self._load: Load | None = None

    def __call__(self) -> Load | None:
        """The load of the last second; None: it is not known yet, ask again in a second."""
        now_s = self._now_s()
        if self._from is None or now_s - self._from_s > _LONGEST_S:
            # Nobody has asked for a while, and what was then is not what is now.
            self._load = None
            self._begin(now_s, self._counts())
        elif now_s - self._from_s >= _WINDOW_S:
            counts = self._counts()
            self._load = load_between(self._from, counts, now_s - self._from_s) or _by_load_average()
            self._begin(now_s, counts)
        return self._load

    def _begin(self, now_s: float, counts: Counts) -> None:
        self._from_s, self._from = now_s, counts

    def _counts(self) -> Counts:
        used_s, all_s = self._cpu_s()
        return Counts(self._stalled_s(), used_s, all_s, self._own_s())

    def _stalled_s(self) -> float | None:
        """Of ``some avg10=0.26 avg60=0.53 avg300=6.66 total=5803390702``, in microseconds."""
        try:
            line = (self._proc / "pressure" / "cpu").read_text("ascii").partition("\n")[0]
            return int(line.rpartition("total=")[2]) / 1e6
        except (OSError, ValueError):
            return None

    def _cpu_s(self) -> tuple[float | None, float | None]:
        try:
            with open(self._proc / "stat", "rb") as file:
                counts = [int(word) for word in file.readline().split()[1:]]
        except (OSError, ValueError):
            return None, None
        every = sum(counts[_COUNTED])
        return (every - sum(counts[_IDLE])) / _TICKS, every / _TICKS


def load_between(first: Counts, last: Counts, wall_s: float) -> Load | None:
    """What was used between two counts; None: the CPU's time was not counted."""
    stalled = None
    if first.stalled_s is not None and last.stalled_s is not None:
        stalled = _percent(last.stalled_s - first.stalled_s, wall_s)
    if first.used_s is None or last.used_s is None or first.all_s is None or last.all_s is None:
        return None
    all_s = last.all_s - first.all_s
    if all_s <= 0:
        return None
    return Load(stalled, _percent(last.used_s - first.used_s - (last.own_s - first.own_s), all_s))


def _by_load_average() -> Load:
    """Where nothing better is: programs that run or wait, by CPU, over a minute."""
    return Load(None, _percent(os.getloadavg()[0], os.cpu_count() or 1))


def _percent(part: float, whole: float) -> float:
    return max(0.0, min(100.0, 100.0 * part / whole))
