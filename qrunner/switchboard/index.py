"""What is ready in a range, in the order in which it is due: 28 bytes a name.

Not guaranteed: that a name is still there. A claim that finds nothing is a skip, so the index may be stale.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Iterable

from qrunner.format import due_within


def key_of(due_ns: int, id: str) -> bytes:
    """Due time and id, packed so that keys sort as they are due."""
    return due_within(due_ns).to_bytes(8, "big") + bytes.fromhex(id)


def parts_of(key: bytes) -> tuple[int, str]:
    """A key taken apart: due time and id."""
    return int.from_bytes(key[:8], "big"), key[8:].hex()


class DueIndex:
    """A heap of keys; any thread may add to it while another takes from it."""

    def __init__(self) -> None:
        self._heap: list[bytes] = []
        self._lock = threading.Lock()
        self._added: list[bytes] | None = None

    def begin(self) -> None:
        """A listing starts: what is added from now on outlives it."""
        with self._lock:
            self._added = []

    def replace(self, keys: Iterable[bytes]) -> None:
        """What a listing found, in place of what was known before it began."""
        heap = list(keys)
        with self._lock:
            heap.extend(self._added or ())
            self._added = None
            heapq.heapify(heap)
            self._heap = heap

    def add(self, key: bytes) -> None:
        """One more."""
        with self._lock:
            heapq.heappush(self._heap, key)
            if self._added is not None:
                self._added.append(key)

    def take(self, now_ns: int, limit: int) -> list[bytes]:
        """Up to ``limit`` keys that are due, oldest first, each once."""
        bound = now_ns.to_bytes(8, "big") + b"\xff" * 20
        taken: list[bytes] = []
        with self._lock:
            while len(taken) < limit and self._heap and self._heap[0] <= bound:
                key = heapq.heappop(self._heap)
                if not taken or taken[-1] != key:
                    taken.append(key)
        return taken

    def peek(self, now_ns: int) -> list[bytes]:
        """All keys that are due, oldest first; they stay."""
        bound = now_ns.to_bytes(8, "big") + b"\xff" * 20
        with self._lock:
            return sorted({key for key in self._heap if key <= bound})

    def next_due_ns(self, after_ns: int = -1) -> int | None:
        """When the first is due that is due after ``after_ns``."""
        with self._lock:
            if self._heap and int.from_bytes(self._heap[0][:8], "big") <= after_ns:
                bound = after_ns.to_bytes(8, "big") + b"\xff" * 20
                later = min((key for key in self._heap if key > bound), default=None)
                return None if later is None else int.from_bytes(later[:8], "big")
            return int.from_bytes(self._heap[0][:8], "big") if self._heap else None

    def __len__(self) -> int:
        return len(self._heap)
