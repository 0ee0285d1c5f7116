"""What a session is held to, and whom it asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from qrunner.message import Draft


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for every session of a door.

    :param protocol: ``lmtp`` or ``smtp``.
    :param max_size: of a message, in bytes, as it is kept.
    :param max_line: of a line of a message, in bytes, its CRLF not counted.
    :param idle_timeout_s: within which a client must have said something whole.
    :param max_memory: bytes of messages that all sessions together may hold while they come in.
    """

    hostname: str
    protocol: str = "lmtp"
    max_connections: int = 100
    max_size: int = 50 << 20
    max_recipients: int = 1000
    max_line: int = 1 << 20
    idle_timeout_s: float = 300.0
    max_memory: int = 256 << 20

    @property
    def is_lmtp(self) -> bool:
        """Whether each recipient has an answer of its own."""
        return self.protocol == "lmtp"


class Keeper(Protocol):
    """Who decides for a session, and takes what it brings."""

    def now(self) -> datetime:
        """The time, for what a message is marked with."""
        ...

    def closed(self) -> str:
        """Why nothing is taken just now; empty: it is."""
        ...

    def accepts(self, address: str) -> bool:
        """Whether mail is taken for this recipient."""
        ...

    async def take(self, draft: Draft, *, peer: str) -> tuple[str, ...]:
        """Makes the message ours, durably; its ids, none if a handler finished it.

        :raises QueueError, TemporaryFailure: not now. PermanentFailure: never.
        """
        ...

    def refused(self, reply: str, *, to: Sequence[str], sender: str, peer: str) -> None:
        """Writes down that a recipient, or a message, was not taken."""
        ...
