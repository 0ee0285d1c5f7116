"""What is in a queue of files, as anybody may see it: by names alone.

Guarantees: nothing is opened. A name costs about a microsecond, and the memory for itself until its ref is asked for.

Not guaranteed: that what moves meanwhile is seen, or seen once.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from qrunner.format import ids_begin, parse_name, ready_name, sorted_out
from qrunner.switchboard import Area, Counts, Ref, counted
from qrunner.switchboard.layout import Layout, ref_of
from qrunner.switchboard.reading import names_in


@dataclass(frozen=True, slots=True)
class Survey:
    """Of a queue, or of what is set aside from it.

    :param is_live: whether the process of a nonce still runs; what is set aside may be in an operator's hand.
    """

    layout: Layout
    queue: str
    area: Area
    is_live: Callable[[str], bool]

    def refs(self) -> Iterator[Ref]:
        """All that is there, oldest due first."""
        names: list[str] = []
        others: list[Ref] = []
        for ready, rest in self._directories():
            names += ready
            others += rest
        # Runs that are sorted already: this merges them.
        names.sort()
        others.sort(key=lambda ref: (ref.due_ns, ref.id))
        at = 0
        for other in others:
            upto = bisect_right(names, ready_name(other.due_ns, other.id))
            yield from map(self._ref, islice(names, at, upto))
            yield other
            at = upto
        yield from map(self._ref, islice(names, at, None))

    def counts(self, now_ns: int) -> Counts:
        """How many are there, and the foremost."""
        total = Counts()
        last = ready_name(now_ns, "g")
        for names, others in self._directories():
            due = bisect_right(names, last)
            total += counted(others, now_ns)
            if names:
                next_due_ns = self._ref(names[due]).due_ns if due < len(names) else None
                total += Counts(due, len(names) - due, 0, self._ref(names[0]), next_due_ns)
        return total

    def has_work(self, now_ns: int) -> bool:
        """Whether anything is due by then, or in somebody's hand."""
        last = ready_name(now_ns, "g")
        return any(
            (names and names[0] <= last) or any(ref.active or ref.due_ns <= now_ns for ref in others)
            for names, others in self._directories()
        )

    def _directories(self) -> Iterator[tuple[list[str], list[Ref]]]:
        """Of each directory: the ready names that are where they belong, in order; everything else that is an entry."""
        for directory in self.layout.directories(self.queue, self.area):
            names, rest = sorted_out(names_in(directory))
            digits = os.path.basename(directory)
            if self.area == "queue" and not (len(digits) == 2 and ids_begin(names, digits)):
                names, rest = [], [*names, *rest]
            refs = (ref_of(self.area, self.queue, directory, name) for name in rest)
            yield names, [self._told_apart(ref) for ref in refs if ref is not None]

    def _ref(self, name: str) -> Ref:
        """Of a ready name that is where it belongs."""
        id = name[21:]
        directory = self.layout.destination(self.area, self.queue, id)
        return Ref(self.queue, id, int(name[:20]), self.area, False, f"{directory}/{name}")

    def _told_apart(self, ref: Ref) -> Ref:
        """What is set aside is in nobody's hand, but for an operator's; what is bad has names of its own."""
        name = parse_name(os.path.basename(ref.token)) if self.area in ("hold", "shunt") else None
        if name is None or name.claimant is None:
            return ref
        return ref._replace(active=self.is_live(name.claimant.nonce))
