"""How much a door has in hand: sessions, the bytes that come in over them, and messages on their way to the disk."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol

_BUFFER = 64 << 10


class Guest(Protocol):
    """A session, as the room sees it."""

    def stop(self) -> None: ...

    def abort(self) -> None: ...


class Room:
    """All sessions of a door.

    :param max_guests: at a time.
    :param max_bytes: that they may hold together.
    """

    def __init__(self, max_guests: int, max_bytes: int) -> None:
        self._max_guests, self._max_bytes = max_guests, max_bytes
        self._guests: set[Guest] = set()
        self._held: dict[Guest, int] = {}
        self._total = 0
        self._finishing: set[asyncio.Task[Any]] = set()
        self.buffer = memoryview(bytearray(_BUFFER))
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    @property
    def is_full(self) -> bool:
        """Whether no other session may begin."""
        return len(self._guests) >= self._max_guests

    @property
    def guests(self) -> int:
        """Sessions that there are."""
        return len(self._guests)

    @property
    def held(self) -> int:
        """Bytes that they hold."""
        return self._total

    def enter(self, guest: Guest) -> None:
        """A session begins."""
        self._guests.add(guest)
        self._is_empty.clear()

    def leave(self, guest: Guest) -> None:
        """It has ended."""
        self._guests.discard(guest)
        if not self._guests:
            self._is_empty.set()

    def hold(self, guest: Guest, size: int) -> bool:
        """Notes that it holds so many bytes; False: there is no room for them, and it must let go.

        What one alone holds is never too much, so that there is always somebody who comes to an end.
        """
        self.free(guest)
        if self._total and self._total + size > self._max_bytes:
            return False
        self._total += size
        self._held[guest] = size
        return True

    def free(self, guest: Guest) -> None:
        """It holds nothing any more."""
        self._total -= self._held.pop(guest, 0)

    def finish(self, work: Coroutine[Any, Any, None]) -> None:
        """Begins work that comes to its end whatever becomes of the guest."""
        task = asyncio.get_running_loop().create_task(work)
        self._finishing.add(task)
        task.add_done_callback(self._finishing.discard)

    async def clear(self) -> None:
        """Asks all to end, and returns when they have."""
        for guest in list(self._guests):
            guest.stop()
        await self._is_empty.wait()
        if self._finishing:
            await asyncio.wait(self._finishing)

    def abort(self) -> None:
        """Ends all at once."""
        for guest in list(self._guests):
            guest.abort()
