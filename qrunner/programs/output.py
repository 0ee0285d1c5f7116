"""What a program prints, within bounds: its end, how much it was, and, where it is wanted whole, all of it."""

from __future__ import annotations

import asyncio

KEPT = 4_096


class Output(asyncio.Protocol):
    """Takes in one of a program's outputs, however much that is.

    :param whole: bytes up to which all of it is kept; 0: only the last ``KEPT``.
    """

    def __init__(self, whole: int = 0) -> None:
        self.size = 0
        self._limit = max(whole, KEPT)
        self._kept = bytearray()
        self.ended = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.size += len(data)
        self._kept += data
        # Not each time, so that what is printed in small pieces is not moved for each of them.
        if not self.is_whole and len(self._kept) > 2 * KEPT:
            del self._kept[:-KEPT]

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    @property
    def is_whole(self) -> bool:
        """Whether it was no more than is kept of it."""
        return self.size <= self._limit

    @property
    def data(self) -> bytes:
        """All of it, or its end."""
        return bytes(self._kept if self.is_whole else self._kept[-KEPT:])

    @property
    def text(self) -> str:
        """Its end, for people: what is no UTF-8 stands there as ``\\\\xff``."""
        end = bytes(self._kept[-KEPT:]).decode("utf-8", "backslashreplace")
        return end if self.size <= KEPT else f"… {end}"

    @property
    def last_line(self) -> str:
        """The last line that is not empty; what can't be printed is a space."""
        lines = [line for line in self.text.splitlines() if line.strip()]
        return "".join(c if c.isprintable() else " " for c in lines[-1])[-_LINE:].strip() if lines else ""


_LINE = 500
