"""Poison: which entries kill the process that has them in hand.

Whoever recovers a range marks what was in hand at an unexplained death. The one that did it and those that were
in hand beside it can't be told apart at first, so each then runs alone; an entry that has collected its marks,
all but one of them alone, did it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qrunner.message import Entry


def crash_mark(queue: str, alone: bool, now_ns: int) -> Mapping[str, Any]:
    """The history's line for an entry that was in hand at an unexplained death.

    :param alone: nothing else was in that process's hands.
    """
    return {"t": now_ns, "what": "crash", "queue": queue, "alone": alone}


def crashes(entry: Entry) -> list[Mapping[str, Any]]:
    """The marks that an entry has got in the queue it is in."""
    return [
        line for line in entry.history if line.get("what") == "crash" and line.get("queue") == entry.queue
    ]


def is_poison(entry: Entry, max_crashes: int) -> bool:
    """Whether its marks are enough: as many as that, all but one of them alone, and one alone at least."""
    marks = crashes(entry)
    alone = sum(bool(mark.get("alone")) for mark in marks)
    return len(marks) >= max_crashes and alone >= max(1, max_crashes - 1)
