"""``only_when_idle``: whether a runner may begin something, or waits until the machine is otherwise idle.

It waits while something has to wait for a CPU for more than ``pressure`` percent of the time, while others take more
than 40 percent of all CPU time (or ``pressure``, if that is more), and while there is anything due, or in hand, in the
queues that it leaves the way to.

Guarantees: what has begun is finished. The CPUs are looked at about once a second; looking at queues costs a
twentieth of the time at most, however long they are. Two runners that wait for idle times do not wait for each other.

Not guaranteed: that a runner which loads the machine by itself works without pauses. What it has in hand ends, and then
the figures are others' again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from qrunner.config import RunnerConfig, WhenIdle
from qrunner.pressure import Load
from qrunner.site import Site

# More than one program of two CPUs, or than what a machine does that has nothing to do.
MOST_BUSY = 40.0
_SHARE = 20
_CHEAP_S = 0.001


class Idleness:
    """Of one runner. Whoever does not say ``only_when_idle`` is never kept waiting.

    :param cost_s: CPU time of the calling thread.
    """

    def __init__(
        self,
        site: Site,
        config: RunnerConfig,
        *,
        monotonic_s: Callable[[], float] = time.monotonic,
        cost_s: Callable[[], float] = time.thread_time,
    ) -> None:
        self._site, self._when = site, config.only_when_idle
        self._now_s, self._cost_s = monotonic_s, cost_s
        self._queues = site.config.watched(config)
        self._next_look_s = 0.0
        self._in_the_way = ""

    def cpus(self) -> str:
        """Why the CPUs are not idle; empty: they are."""
        if self._when is None:
            return ""
        return too_busy(self._site.pressure(), self._when)

    async def why_not(self) -> str:
        """Why nothing may begin; empty: it may."""
        if self._when is None:
            return ""
        if busy := self.cpus():
            return busy
        if self._now_s() >= self._next_look_s:
            self._in_the_way, cost_s = await asyncio.to_thread(self._look)
            # What costs nothing need not be remembered.
            self._next_look_s = self._now_s() + (_SHARE * cost_s if cost_s > _CHEAP_S else 0.0)
        return f"the queue {self._in_the_way} has work to do" if self._in_the_way else ""

    def _look(self) -> tuple[str, float]:
        began_s = self._cost_s()
        return self._first_at_work(), self._cost_s() - began_s

    def _first_at_work(self) -> str:
        """The first queue with something due or in hand; a disk that does not tell is no idle machine's."""
        now_ns = self._site.clock.now_ns()
        for queue in self._queues:
            try:
                if self._site.spool.has_work(queue, now_ns):
                    return queue
            except OSError:
                return queue
        return ""


def too_busy(load: Load | None, when: WhenIdle) -> str:
    """In words; empty: it is idle enough."""
    if load is None:
        return "the load is being measured"
    if load.stalled is not None and load.stalled > when.pressure:
        return f"programs wait for a CPU {load.stalled:.1f} % of the time, more than {when.pressure:g} %"
    most = max(MOST_BUSY, when.pressure)
    if load.busy > most:
        return f"other programs take {load.busy:.1f} % of the CPUs, more than {most:g} %"
    return ""
