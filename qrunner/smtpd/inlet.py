"""What a client says, as lines and as bytes, read in large pieces."""

from __future__ import annotations

import asyncio

PIECE = 64 << 10


class LongLine(Exception):
    """A line was longer than it may be; it has been read to its end."""


class Inlet:
    """Reads ahead from a stream. Raises EOFError where the client has ended."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._ahead = bytearray()

    @property
    def has_line(self) -> bool:
        """Whether the next line is here already."""
        return b"\n" in self._ahead

    async def line(self, longest: int) -> bytes:
        """The next line with its end, which is LF; whether a CR is before it is for the caller to ask.

        :raises LongLine: it is longer than that.
        """
        ahead, is_long, look_from = self._ahead, False, 0
        while (end := ahead.find(b"\n", look_from)) < 0:
            if len(ahead) > longest:
                is_long = True
                ahead.clear()
            look_from = len(ahead)
            ahead += await self._more()
        found = bytes(ahead[: end + 1])
        del ahead[: end + 1]
        if is_long or len(found) > longest:
            raise LongLine
        return found

    async def piece(self) -> bytes:
        """Whatever comes next, one byte at least."""
        if not self._ahead:
            return await self._more()
        found = bytes(self._ahead)
        self._ahead.clear()
        return found

    def put_back(self, data: bytes) -> None:
        """These were read too early."""
        self._ahead[:0] = data

    async def _more(self) -> bytes:
        data = await self._reader.read(PIECE)
        if not data:
            raise EOFError
        return data
