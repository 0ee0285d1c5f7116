"""Entries that may have killed their process: each runs alone until it is settled, or has lived for a while.

Everybody in hand at an unexplained death is a suspect. Alone means that a second death tells which of them it was,
and that nobody beside it is blamed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from qrunner.switchboard import Ref

_TRIAL_S = 30.0


@dataclass(slots=True)
class Suspects:
    """Who is suspected, who waits to run alone, and until when (monotonic ns) nobody runs beside it."""

    known: set[str] = field(default_factory=set)
    waiting: deque[Ref] = field(default_factory=deque)
    alone_until_ns: int = 0

    def accuse(self, ids: Iterable[str]) -> None:
        """They were in hand when their process died."""
        self.known.update(ids)

    def queue(self, ref: Ref) -> None:
        """It runs alone when its turn comes."""
        self.known.add(ref.id)
        self.waiting.append(ref)

    def begin(self, marks: int, now_ns: int) -> None:
        """One of them starts, with so many deaths to its name: the more, the longer nobody runs beside it."""
        self.alone_until_ns = now_ns + int(_TRIAL_S * 2 ** max(0, marks - 1) * 1e9)

    def settle(self, id: str) -> None:
        """Something became of it."""
        self.known.discard(id)
        self.alone_until_ns = 0
