"""What the owner of a range does about what others left in it.

Committed hops are rolled forward before anything is claimed. A claim whose claimant is gone is put back; if that
death is unexplained, everything its claimant had in hand is a suspect and gets a ``crash`` mark, and at the last
mark it is shunted. A file that is named like an entry and is none goes to ``bad``, byte for byte; a file that is
not named like one is left alone and said once.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from qrunner.clock import Clock
from qrunner.errors import CorruptEntry
from qrunner.format import Claimant, Name, Opened, crash_marks, history_line, parse_name, unanswered
from qrunner.log import visible
from qrunner.message import SETTLED, Entry, relayed
from qrunner.switchboard import Claim, Recovered, hands
from qrunner.switchboard.disk import HIDDEN, Disk, append, rename_new
from qrunner.switchboard.hops import Hops, is_ours, move
from qrunner.switchboard.index import Row, key_of
from qrunner.switchboard.layout import Layout
from qrunner.switchboard.leases import (
    HeldLease,
    is_explained,
    is_live,
    lookers,
    mark_looking,
    registry,
    sweep,
)
from qrunner.switchboard.listing import Lister
from qrunner.switchboard.poison import ambiguous_line, crash_mark, is_poison, shunt_line
from qrunner.switchboard.reading import names_in, open_path

_DAY_S = 86_400
_MEMORY = 10_000


class Recovery:
    """Looks through one range."""

    def __init__(
        self,
        layout: Layout,
        disk: Disk,
        clock: Clock,
        queue: str,
        held: HeldLease,
        max_crashes: int,
        log: logging.Logger,
        hops: Hops,
        in_hand: Mapping[str, Claim | None],
    ) -> None:
        assert held.holder.range is not None
        self._layout, self._disk, self._clock, self._queue = layout, disk, clock, queue
        self._held, self._range, self._mine = held, held.holder.range, held.holder
        self._max_crashes, self._log, self._hops, self._in_hand = max_crashes, log, hops, in_hand
        self._lister = Lister(self._range, clock)
        self._said: set[str] = set()

    def look_through(self) -> tuple[Recovered, list[bytes], list[Row]]:
        """Recovers, and lists what is ready: directory by directory in rows, and what was moved meanwhile."""
        # Asked once a nonce: whom the hops take for alive may not be dead to the claims, whose fate a hop may name.
        is_live = functools.cache(self._is_live)
        found = Recovered(rolled=self._roll_forward(is_live), looked=self._died_looking(is_live))
        found.rolled += hands.settle(self._layout, self._hops.disk, self._queue, is_live)
        keys: list[bytes] = []
        dead: list[tuple[str, Name]] = []
        looks = self._lister.look(self._layout.directories(self._queue, part=self._range))
        for directory, look in looks:
            keys.extend(self._set_right(directory, name, written_ns) for name, written_ns in look.ahead)
            dead.extend(self._claims(directory, look.others))
        keys.extend(self._recover(dead, found, is_live))
        sweep(self._held.directory, self._clock.now_ns() / 1e9 - 7 * _DAY_S)
        return found, keys, [look.row for _, look in looks]

    def _died_looking(self, is_live: Callable[[str], bool]) -> bool:
        """Whether one of those who looked at what was due has died of it."""
        directory, died = self._held.directory, False
        for nonce in lookers(directory):
            if not is_live(nonce):
                died = died or not is_explained(directory, nonce)
                with contextlib.suppress(OSError):
                    mark_looking(directory, nonce, on=False)
        return died

    def _claims(self, directory: str, names: Iterable[str]) -> Iterator[tuple[str, Name]]:
        """Of names that are not those of ready entries: the claimed ones of the range that are not in our hand."""
        for text in names:
            path = f"{directory}/{text}"
            name = parse_name(text)
            if name is not None:
                if self._range.owns(name.id) and path not in self._in_hand:
                    yield path, name
            elif text.startswith(HIDDEN):
                self._sweep_old(path)
            elif not text.startswith(".") and not _is_place(directory, self._layout.queue(self._queue), text):
                self._say_once(path)

    def _sweep_old(self, path: str) -> None:
        with contextlib.suppress(OSError):
            if os.stat(path).st_mtime < self._clock.now_ns() / 1e9 - _DAY_S:
                os.unlink(path)

    def _say_once(self, path: str, why: str = "") -> None:
        if path not in self._said and len(self._said) < _MEMORY:
            self._said.add(path)
            self._log.warning("a stranger is left alone path=%s%s", visible(path), f": {why}" if why else "")

    def set_aside(self, path: str, why: str) -> None:
        """Moves a file that is no entry to ``bad``, byte for byte, under a name of its own; says so once.

        One that can't be moved (a directory of somebody else's, a name that grows too long) stays, and stops nothing.
        """
        name = os.path.basename(path)
        target = f"{self._layout.aside('bad', self._queue)}/{name}.{os.urandom(4).hex()}"
        try:
            rename_new(path, target)
        except FileNotFoundError:
            return
        except OSError as error:
            self._say_once(path, f"{why}; it can't be set aside: {error.strerror}")
            return
        self._log.error("set aside as bad path=%s: %s", visible(target), why)

    def _set_right(self, directory: str, text: str, written_ns: int) -> bytes:
        """The clock was set back since it was written: what counts is the delay that it was given."""
        name = parse_name(text)
        assert name is not None
        due_ns = self._clock.now_ns() + max(0, name.due_ns - written_ns)
        try:
            return _key_of(move(f"{directory}/{text}", directory, due_ns, name.id))
        except OSError:
            return key_of(name.due_ns, name.id)

    def _roll_forward(self, is_live: Callable[[str], bool]) -> int:
        names = names_in(self._hops.directory)
        for name in names:
            if name.startswith(HIDDEN):
                self._sweep_old(f"{self._hops.directory}/{name}")
            elif not is_ours(name):
                self._say_once(f"{self._hops.directory}/{name}")
        if all(name.startswith(HIDDEN) for name in names):
            return 0
        # Under the queue's registry lock: an intent may name parents of several ranges, and whoever comes first does it.
        with registry(self._held.directory):
            return self._hops.recover(is_live)

    def _is_live(self, nonce: str) -> bool:
        return nonce == self._mine.nonce or is_live(self._held.directory, nonce)

    def _recover(
        self, dead: list[tuple[str, Name]], found: Recovered, is_live: Callable[[str], bool]
    ) -> Iterator[bytes]:
        hands = Counter(name.claimant.nonce for _, name in dead if name.claimant)
        steps: list[Callable[[], bytes | None]] = []
        for path, name in dead:
            assert name.claimant is not None
            if name.claimant.nonce != self._mine.nonce and is_live(name.claimant.nonce):
                continue
            try:
                opened = open_path(path, self._queue, name)
                alone = hands[name.claimant.nonce] == 1
                steps.append(self._recover_one(path, opened, name.claimant, alone, found))
            except FileNotFoundError:
                continue
            except CorruptEntry as error:
                self.set_aside(path, str(error))
                found.bad.append(name.id)
        # All have their marks before any is moved: who comes after our own death counts the same hands.
        for step in steps:
            with contextlib.suppress(FileNotFoundError):
                key = step()
                if key is not None:
                    yield key

    def _recover_one(
        self, path: str, opened: Opened, claimant: Claimant, alone: bool, found: Recovered
    ) -> Callable[[], bytes | None]:
        """Writes down what is to be; what is left to do is one rename."""
        entry, hop = opened.entry, opened.hop
        id, due_ns = entry.id, entry.due_ns
        if hop is not None and hop.get("claim") == os.path.basename(path) and hop.get("from") == self._queue:
            found.rolled += 1
            return functools.partial(self._onward, path, id, hop)
        if entry.envelope.recipients and not entry.recipients and not relayed(entry.history):
            # It owes nobody any more: its last outcome was written down, and then its claimant died.
            found.finished.append(id)
            return functools.partial(os.unlink, path)
        lines = self._unanswered(entry)
        if self._is_blamed(claimant):
            now, claim = self._clock.now_ns(), f"{claimant.nonce}-{claimant.serial}"
            if not any(mark.get("claim") == claim for mark in crash_marks(self._queue, entry.history)):
                lines.append(crash_mark(self._queue, alone, now, claim))
            if is_poison(self._queue, (*entry.history, *lines), self._max_crashes):
                self._append(path, entry, [*lines, shunt_line(now)])
                found.shunted.append(id)
                self._log.error("shunted: it killed its process again and again id=%s", id)
                return functools.partial(self._shunt, path, id, due_ns)
            found.suspects.add(id)
        self._append(path, entry, lines)
        return functools.partial(self._put_back, path, id, due_ns)

    def _shunt(self, path: str, id: str, due_ns: int) -> None:
        move(path, self._layout.aside("shunt", self._queue), due_ns, id)

    def _put_back(self, path: str, id: str, due_ns: int) -> bytes:
        return _key_of(move(path, self._layout.place(self._queue, id), due_ns, id))

    def _onward(self, path: str, id: str, hop: Mapping[str, Any]) -> bytes | None:
        target = self._layout.destination(hop["area"], hop["to"], id)
        if not os.path.isdir(target):
            self._layout.prepare([hop["to"]], self._disk)
        moved = move(path, target, int(hop["due"]), id)
        return _key_of(moved) if (hop["area"], hop["to"]) == ("queue", self._queue) else None

    def _unanswered(self, entry: Entry) -> list[Mapping[str, Any]]:
        mark = unanswered(entry.history)
        return [] if mark is None else [ambiguous_line(mark, self._clock.now_ns())]

    def _is_blamed(self, claimant: Claimant) -> bool:
        """Whether a death is the fault of what was in hand: not ours to put back, not the machine's, not announced."""
        mine = self._mine
        if claimant.nonce == mine.nonce or is_explained(self._held.directory, claimant.nonce):
            return False
        return claimant.node != mine.node or claimant.boot == mine.boot

    def _append(self, path: str, entry: Entry, lines: list[Mapping[str, Any]]) -> None:
        progressed = any(line.get("what") in SETTLED for line in entry.history)
        if lines or progressed:
            append(path, b"".join(map(history_line, lines)), disk=self._disk if progressed else None)


def _key_of(path: str) -> bytes:
    name = parse_name(os.path.basename(path))
    assert name is not None
    return key_of(name.due_ns, name.id)


def _is_place(directory: str, queue: str, text: str) -> bool:
    return directory == queue and len(text) == 2 and all(digit in "0123456789abcdef" for digit in text)
