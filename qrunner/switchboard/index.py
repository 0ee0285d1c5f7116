"""What is ready in a range, in the order in which it is due: 30 bytes a name.

A directory's listing is a row: its keys, sorted, one behind the other. What comes singly is in a heap beside the rows,
and what is due first is found at the front of one of them.

Not guaranteed: that a name is still there. A claim that finds nothing is a skip, so the index may be stale.
"""

from __future__ import annotations

import heapq
import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

from qrunner.format import due_within

_WIDTH = 30
_NEVER = b"\xff" * _WIDTH


def key_of(due_ns: int, id: str) -> bytes:
    """Due time and id, packed two digits a byte as they stand in a name, so that keys sort as they are due."""
    return bytes.fromhex(f"{due_within(due_ns):020d}{id}")


def parts_of(key: bytes) -> tuple[int, str]:
    """A key taken apart: due time and id."""
    text = key.hex()
    return int(text[:20]), text[20:]


def packed(names: Sequence[str]) -> bytes:
    """The keys of ready names, one behind the other."""
    return bytes.fromhex("".join(names).replace("+", ""))


def _upto(due_ns: int) -> bytes:
    """No key that is due by then is larger."""
    return key_of(due_ns, "f" * 40)


class Row:
    """Sorted keys, taken from the front."""

    __slots__ = ("_at", "_keys")

    def __init__(self, keys: bytes) -> None:
        self._keys, self._at = keys, 0

    @property
    def is_whole(self) -> bool:
        """Whether nothing has been taken from it."""
        return self._at == 0

    @property
    def front(self) -> bytes:
        """The first key that is left; one that is never due, if none is."""
        return self._keys[self._at : self._at + _WIDTH] or _NEVER

    def advance(self) -> None:
        """The front has been taken."""
        self._at += _WIDTH

    def upto(self, bound: bytes) -> Iterator[bytes]:
        """The keys that are no larger, in order; they stay."""
        return (self[number] for number in range(bisect_right(self, bound)))

    def after(self, bound: bytes) -> bytes:
        """The first that is larger."""
        number = bisect_right(self, bound)
        return self[number] if number < len(self) else _NEVER

    def __len__(self) -> int:
        return (len(self._keys) - self._at) // _WIDTH

    def __getitem__(self, number: int) -> bytes:
        start = self._at + number * _WIDTH
        return self._keys[start : start + _WIDTH]


class DueIndex:
    """Keys by the time they are due; any thread may add to it while another takes from it."""

    def __init__(self) -> None:
        self._heap: list[bytes] = []
        # Their fronts, each with the number of its row: the front of one that is used up is never due.
        self._fronts: list[tuple[bytes, int]] = []
        self._rows: Sequence[Row] = ()
        self._lock = threading.Lock()
        self._added: list[bytes] | None = None

    def begin(self) -> None:
        """A listing starts: what is added from now on outlives it."""
        with self._lock:
            self._added = []

    def replace(self, keys: Iterable[bytes], rows: Sequence[Row] = ()) -> None:
        """What a listing found, in place of what was known before it began. A row of before may be among them."""
        heap = list(keys)
        with self._lock:
            heap.extend(self._added or ())
            self._added = None
            heapq.heapify(heap)
            self._heap, self._rows = heap, rows
            self._fronts = [(row.front, number) for number, row in enumerate(rows) if len(row)]
            heapq.heapify(self._fronts)

    def add(self, key: bytes) -> None:
        """One more."""
        with self._lock:
            heapq.heappush(self._heap, key)
            if self._added is not None:
                self._added.append(key)

    def take(self, now_ns: int, limit: int) -> list[bytes]:
        """Up to ``limit`` keys that are due, oldest first, each once."""
        bound = _upto(now_ns)
        taken: list[bytes] = []
        with self._lock:
            while len(taken) < limit and (key := self._first()) <= bound:
                # One that was listed and came singly as well is there twice.
                self._drop(key)
                taken.append(key)
        return taken

    def _first(self) -> bytes:
        return min(self._heap[0] if self._heap else _NEVER, self._fronts[0][0] if self._fronts else _NEVER)

    def _drop(self, key: bytes) -> None:
        while self._heap and self._heap[0] == key:
            heapq.heappop(self._heap)
        while self._fronts and self._fronts[0][0] == key:
            number = self._fronts[0][1]
            row = self._rows[number]
            row.advance()
            heapq.heapreplace(self._fronts, (row.front, number))

    def peek(self, now_ns: int) -> list[bytes]:
        """All keys that are due, oldest first; they stay."""
        bound = _upto(now_ns)
        with self._lock:
            due = {key for key in self._heap if key <= bound}
            for row in self._rows:
                due.update(row.upto(bound))
        return sorted(due)

    def next_due_ns(self, after_ns: int = -1) -> int | None:
        """When the first is due that is due after ``after_ns``."""
        with self._lock:
            first = self._first()
            if after_ns >= 0 and first <= (bound := _upto(after_ns)):
                later = (key for key in self._heap if key > bound)
                first = min((min(later, default=_NEVER), *(row.after(bound) for row in self._rows)))
        return None if first == _NEVER else parts_of(first)[0]

    def __len__(self) -> int:
        return len(self._heap) + sum(map(len, self._rows))
