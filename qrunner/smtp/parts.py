"""What a delivery to many domains comes to: a part for each, and what all of them say together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qrunner.fate import Failure, Later


@dataclass(slots=True)
class Part:
    """What became of the recipients of one domain. Who is in none of the lists got it.

    :param waiting: who is to be tried again, with what they met. ``untried``: for whom nothing was tried, or nothing
        that says anything about them; ``delay_s`` until it makes sense to come back for these.
    :param down: every host of the domain is known to be down.
    """

    failed: list[Failure] = field(default_factory=list)
    waiting: list[Failure] = field(default_factory=list)
    doubtful: list[Failure] = field(default_factory=list)
    untried: list[Failure] = field(default_factory=list)
    noted: set[str] = field(default_factory=set)
    delay_s: float = 0.0
    down: bool = False


def deferrals(parts: Iterable[Part]) -> tuple[Mapping[str, Any], ...]:
    """Lines of history for those whose waiting stands nowhere yet."""
    lines: dict[tuple[str, str], list[str]] = {}
    for part in parts:
        for one in part.waiting:
            if one.address not in part.noted:
                lines.setdefault((one.host, one.text), []).append(one.address)
    return tuple(
        {"what": "deferred", "to": to, "host": host or None, "reply": text}
        for (host, text), to in lines.items()
    )


def soonest(parts: Sequence[Part]) -> Later:
    """Nothing was tried: no attempt."""
    first = min(parts, key=lambda part: part.delay_s)
    return Later(first.untried[0].text, first.untried[0].status, first.delay_s, counts=False)
