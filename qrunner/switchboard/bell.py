"""The bell of a queue of files: names that appear go straight into the index, without a listing.

While names appear all the time, most of them of what we claim ourselves, they are looked at every few milliseconds; else at
once.

Not guaranteed: every name. When the kernel has lost count, or a directory was replaced, ``lost_count`` says so and
a listing makes up for it; on network file systems only the poll tells.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Iterable

from qrunner.format import READY_LENGTH, parse_name
from qrunner.slices import Range
from qrunner.switchboard.index import DueIndex, key_of
from qrunner.wakeup import Watch

# One at a time is looked at when it comes; so many looks within so long a time are too many.
_LOOKS, _CROWDED_S = 8, 0.008
_PAUSE_S = 0.004


class InotifyBell:
    """Watches directories for as long as it is not closed."""

    def __init__(self, watch: Watch, part: Range, index: DueIndex, bell: Callable[[], None]) -> None:
        self._watch, self._part, self._index, self._bell = watch, part, index, bell
        self._loop: asyncio.AbstractEventLoop | None = None
        self._looks_s = deque([0.0] * _LOOKS, _LOOKS)
        self._pause: asyncio.TimerHandle | None = None
        self.lost_count = False

    @classmethod
    def hang(
        cls,
        directories: Iterable[str],
        part: Range,
        index: DueIndex,
        bell: Callable[[], None],
        loop: asyncio.AbstractEventLoop,
    ) -> InotifyBell | None:
        """A bell that rings in ``loop``; None where the kernel gives no watches."""
        try:
            watch = Watch()
        except OSError:
            return None
        try:
            for directory in directories:
                watch.add(directory)
        except OSError:
            watch.close()
            return None
        self = cls(watch, part, index, bell)
        self._loop = loop
        loop.add_reader(watch.fileno(), self._on_events)
        return self

    def close(self) -> None:
        """Takes it down."""
        if self._pause is not None:
            self._pause.cancel()
        if self._loop is not None:
            self._loop.remove_reader(self._watch.fileno())
            self._loop = None
        self._watch.close()

    def _on_events(self) -> None:
        self._look()
        assert self._loop is not None
        now_s, before_s = self._loop.time(), self._looks_s[0]
        self._looks_s.append(now_s)
        if now_s - before_s < _CROWDED_S:
            self._loop.remove_reader(self._watch.fileno())
            self._pause = self._loop.call_later(_PAUSE_S, self._after_pause)

    def _after_pause(self) -> None:
        assert self._loop is not None
        self._pause = None
        if self._look():
            self._pause = self._loop.call_later(_PAUSE_S, self._after_pause)
        else:
            self._loop.add_reader(self._watch.fileno(), self._on_events)

    def _look(self) -> bool:
        """Learns what has appeared; whether anything has."""
        events = self._watch.read()
        rings = False
        for event in events:
            if event.lost:
                self.lost_count = rings = True
            elif self._learn(os.fsdecode(event.name)):
                rings = True
        if rings:
            self._bell()
        return bool(events)

    def _learn(self, text: str) -> bool:
        # Most of what appears is what we have claimed, under a longer name.
        name = parse_name(text) if len(text) == READY_LENGTH else None
        if name is None or not self._part.owns(name.id):
            return False
        self._index.add(key_of(name.due_ns, name.id))
        return True
