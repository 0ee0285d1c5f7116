"""Commits, beside the loop where they are slow.

A commit of one operation takes microseconds, and is done in the loop. While others sync, that one operation may wait
for the file system's journal: then commits go to a thread, as many at a time as have come, and the loop goes on.

Guarantees: a commit that was begun comes to its end, whoever is cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from queue import SimpleQueue

from qrunner.switchboard import Hop

# Above this, handing over to a thread and back costs less than the loop would lose.
_SLOW_S = 500e-6
_WEIGHT = 0.05

Wish = tuple[Hop, asyncio.Future[tuple[str, ...]]]
Outcome = tuple[asyncio.Future[tuple[str, ...]], tuple[str, ...], BaseException | None]


class Committer:
    """Commits for one engine.

    :param commit: does it; raises ``OSError`` if nothing was done.
    :param at_once: plain hops are never handed over.
    """

    def __init__(self, commit: Callable[[Hop], tuple[str, ...]], *, at_once: bool = False) -> None:
        self._commit, self._at_once = commit, at_once
        self._takes_s = 0.0
        self._waiting: SimpleQueue[Wish | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    @property
    def is_prompt(self) -> bool:
        """Whether a plain hop is committed before the loop turns to anything else."""
        return self._at_once or self._takes_s < _SLOW_S

    async def commit(self, hop: Hop) -> tuple[str, ...]:
        """The ids of what was added; raises as the lease's own ``commit``."""
        if not hop.is_plain:
            return await asyncio.shield(asyncio.to_thread(self._commit, hop))
        if self.is_prompt:
            return self._timed(hop)
        return await asyncio.shield(self._handed_over(hop))

    def close(self) -> None:
        """Ends the thread, after what was handed over to it."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread = None

    def _timed(self, hop: Hop) -> tuple[str, ...]:
        began_s = time.monotonic()
        try:
            return self._commit(hop)
        finally:
            # One that took long is one of many: the mean moves slowly.
            self._takes_s += (min(time.monotonic() - began_s, 0.01) - self._takes_s) * _WEIGHT

    def _handed_over(self, hop: Hop) -> asyncio.Future[tuple[str, ...]]:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[tuple[str, ...]] = loop.create_future()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, args=(loop,), daemon=True, name="commits")
            self._thread.start()
        self._waiting.put((hop, done))
        return done

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        goes_on = True
        while goes_on:
            wishes = [self._waiting.get()]
            while not self._waiting.empty():
                wishes.append(self._waiting.get())
            goes_on = None not in wishes
            outcomes = [self._outcome(*wish) for wish in wishes if wish is not None]
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
                loop.call_soon_threadsafe(_tell, outcomes)

    def _outcome(self, hop: Hop, done: asyncio.Future[tuple[str, ...]]) -> Outcome:
        try:
            return done, self._timed(hop), None
        except BaseException as error:  # it belongs to who waits for it
            return done, (), error


def _tell(outcomes: Sequence[Outcome]) -> None:
    for done, ids, error in outcomes:
        if done.cancelled():
            continue
        if error is None:
            done.set_result(ids)
        else:
            done.set_exception(error)
