"""Waiting that is nobody's attempt, as the history tells it: a line where it begins, which says what is waited for.

It lasts until the next line that says something else. So an entry that waits for days, looked at every few minutes,
grows by one line; and the time it has waited can be taken off its age.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

WAITS = "waits"
_KEPT = 50
_NUMBER = re.compile(r"[0-9.]+")

History = Sequence[Mapping[str, Any]]


def is_news(history: History, reason: str) -> bool:
    """Whether a line is to be added: the last one says nothing of waiting, or something else is waited for now."""
    last = history[-1] if history else {}
    if last.get("what") != WAITS:
        return True
    return (
        _gist(str(last.get("reason"))) != _gist(reason)
        and sum(1 for line in history if line.get("what") == WAITS) < _KEPT
    )


def _gist(reason: str) -> str:
    """Without numbers: how long something took this time, or which of ten connections, is no news."""
    return _NUMBER.sub("", reason)


def spells(history: History, now_ns: int) -> list[tuple[int, int]]:
    """From when until when it has waited; the last time may go on."""
    found: list[tuple[int, int]] = []
    for line, after in zip(history, (*history[1:], {"t": now_ns}), strict=False):
        begin, end = line.get("t"), after.get("t")
        if line.get("what") == WAITS and isinstance(begin, int) and isinstance(end, int) and begin < end:
            found.append((begin, end))
    return found
