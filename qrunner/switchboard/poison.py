"""Poison: which entries kill the process that has them in hand.

Whoever recovers a range marks what was in hand at an unexplained death. The one that did it and those that were
in hand beside it can't be told apart at first, so each then runs alone; an entry that has collected its marks,
all but one of them alone, did it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from qrunner.format import crash_marks


def crash_mark(queue: str, alone: bool, now_ns: int, claim: str = "") -> Mapping[str, Any]:
    """The history's line for an entry that was in hand at an unexplained death.

    :param alone: nothing else was in that process's hands.
    :param claim: in which claim of it, so that a recovery which itself died half way blames nobody twice.
    """
    mark = {"t": now_ns, "what": "crash", "queue": queue, "alone": alone}
    return {**mark, "claim": claim} if claim else mark


def is_poison(queue: str, history: Iterable[Mapping[str, Any]], max_crashes: int) -> bool:
    """Whether the marks are enough: as many as that, all but one of them alone, and one alone at least."""
    marks = crash_marks(queue, history)
    alone = sum(bool(mark.get("alone")) for mark in marks)
    return len(marks) >= max_crashes and alone >= max(1, max_crashes - 1)


def shunt_line(now_ns: int) -> Mapping[str, Any]:
    """The history's line for an entry that goes to ``shunt`` for it."""
    reason = "the process that had it in hand died again and again"
    return {"t": now_ns, "what": "shunt", "reason": reason}


def ambiguous_line(mark: Mapping[str, Any], now_ns: int) -> Mapping[str, Any]:
    """The history's line for recipients of whom nobody knows whether they got it (RFC 1047).

    :param mark: the unanswered ``sending`` line.
    """
    return {"t": now_ns, "what": "ambiguous", "to": mark.get("to", []), "host": mark.get("host", "")}
