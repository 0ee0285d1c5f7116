"""Listing the directories of a range, each as seldom as may be.

Of a million entries that wait, a look through the range costs what has changed, not what waits: a large directory of
which nothing has been taken, or an empty one, whose time of modification is that of the last listing is not listed again.
It is all the same once in ten minutes, since a network file system's word for that is weaker than a disk's.

An entry that was *written in our future* says that the clock was set back since; what counts then is the delay that it
was given, from now on. Of many entries that are not due, a few of each directory are asked when they were written; all
of them where one of these, the directory's own time or a step of the clock says that it was set back.

Not guaranteed: that of very many entries the one is found at once that was written in our future, if nothing else was.
"""

from __future__ import annotations

import os
import random
import time
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qrunner.clock import Clock
from qrunner.format import ids_begin, ready_name, sorted_out
from qrunner.slices import SPACE, WHOLE, Range
from qrunner.switchboard.index import Row, packed
from qrunner.switchboard.reading import names_in

# A few are as well listed as remembered.
_MANY = 100
# A file system's clock ticks every few milliseconds, or every second or two: a change within the tick of the last one
# does not show.
_TICK_NS = 2 * 10**9
_TRUSTED_NS = 600 * 10**9
_ASKED = 4
_AHEAD_NS = 2 * 10**9
_STEP_NS = 10**9


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at a directory found: the ready names of the range that are to be known, and every other name.

    ``ahead``: ready names of the range that were written in our future, with the time that they were written at. They
    are not in the row.
    """

    row: Row
    others: Sequence[str] = ()
    ahead: Sequence[tuple[str, int]] = ()


_NOTHING = Row(b"")


@dataclass(frozen=True, slots=True)
class _Listed:
    row: Row
    modified_ns: int
    until_ns: int


class Lister:
    """Lists the directories of one range, again and again."""

    def __init__(self, part: Range, clock: Clock) -> None:
        self._part, self._clock = part, clock
        self._lo, self._hi = f"{part.lo:040x}", f"{part.hi:040x}" if part.hi < SPACE else "g"
        self._listed: dict[str, _Listed] = {}
        self._ahead = Ahead(clock)

    def look(self, directories: Sequence[str]) -> list[tuple[str, Look]]:
        """What is in them, each by its path. May take seconds."""
        was_set_back = self._ahead.begin()
        found = [] if was_set_back else self._pass(directories)
        if self._ahead.asks_all:
            # What a pass has found that asked a few only is of no use.
            self._listed.clear()
            found = self._pass(directories)
        return found

    def _pass(self, directories: Iterable[str]) -> list[tuple[str, Look]]:
        return [(directory, self._look(directory)) for directory in directories]

    def _look(self, directory: str) -> Look:
        # Asked before the names are: what comes in between is a change.
        modified_ns = _modified_ns(directory)
        known = self._listed.pop(directory, None)
        if known is not None and self._still(known, modified_ns):
            self._listed[directory] = known
            return Look(known.row)
        names = names_in(directory)
        if not names:
            return self._learned(directory, _NOTHING, modified_ns)
        ready, others = sorted_out(names)
        ready = self._owned(directory, ready)
        ahead = self._ahead.among(directory, modified_ns, ready)
        if ahead:
            gone = {name for name, _ in ahead}
            ready = [name for name in ready if name not in gone]
        row = Row(packed(ready))
        if len(ready) >= _MANY and not others and not ahead:
            return self._learned(directory, row, modified_ns)
        return Look(row, others, ahead)

    def _learned(self, directory: str, row: Row, modified_ns: int) -> Look:
        # The machine's own clock, since that is what the file system's time is of.
        if 0 < modified_ns < time.time_ns() - _TICK_NS:
            until_ns = self._clock.monotonic_ns() + int(_TRUSTED_NS * random.uniform(0.75, 1.25))
            self._listed[directory] = _Listed(row, modified_ns, until_ns)
        return Look(row)

    def _still(self, known: _Listed, modified_ns: int) -> bool:
        """Whether a listing would find the same again."""
        is_same = known.modified_ns == modified_ns and known.row.is_whole
        return is_same and self._clock.monotonic_ns() < known.until_ns

    def _owned(self, directory: str, names: list[str]) -> list[str]:
        """Those of them that are in the range; of a directory that is wholly in it this is one question, not thousands."""
        if self._part == WHOLE or self._holds(os.path.basename(directory), names):
            return names
        return [name for name in names if self._lo <= name[21:] < self._hi]

    def _holds(self, digits: str, names: Sequence[str]) -> bool:
        """Whether all ids that begin so are in the range, and those of all these names do."""
        if len(digits) != 2 or digits.ljust(40, "0") < self._lo or digits.ljust(40, "f") >= self._hi:
            return False
        return ids_begin(names, digits)


class Ahead:
    """Finds entries that were written in our future."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offset_ns: int | None = None
        self.asks_all = False

    def begin(self) -> bool:
        """A look begins; whether the clock was set back since the one before."""
        before_ns, self._offset_ns = self._offset_ns, self._clock.now_ns() - self._clock.monotonic_ns()
        self.asks_all = before_ns is not None and self._offset_ns < before_ns - _STEP_NS
        return self.asks_all

    def among(self, directory: str, modified_ns: int, names: Sequence[str]) -> list[tuple[str, int]]:
        """Those of these sorted names that are not due and were written in our future, each with the time it was written."""
        now_ns = self._clock.now_ns()
        late = names[bisect_right(names, ready_name(now_ns, "g")) :]
        asked = late
        if len(late) > _ASKED and not self.asks_all and modified_ns <= now_ns + _AHEAD_NS:
            asked = random.sample(late, _ASKED)
        found = [
            (name, written_ns)
            for name in asked
            if (written_ns := _written_ns(f"{directory}/{name}")) > now_ns + _AHEAD_NS
        ]
        self.asks_all = self.asks_all or bool(found)
        return found


def _written_ns(path: str) -> int:
    """When a file last changed, its name included; 0: it is not there any more."""
    try:
        return os.lstat(path).st_ctime_ns
    except OSError:
        return 0


def _modified_ns(directory: str) -> int:
    """When names in it last changed; 0: it does not say."""
    try:
        return os.stat(directory).st_mtime_ns
    except OSError:
        return 0
