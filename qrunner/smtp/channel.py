"""The contract of a connection to a host, command by command, and of who makes one.

``qrunner.smtp.client`` is the real one; ``qrunner.smtp.sink`` plays it without a network. Everything above knows
only what stands here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from qrunner.config import HostConfig
from qrunner.smtp.board import Board
from qrunner.smtp.reply import Reply
from qrunner.smtp.wire import Offer

if TYPE_CHECKING:
    from qrunner.smtp.mx import Finder

BeforeDot = Callable[[], None]


class HostFailure(Exception):
    """No connection came about, or none that may be used; says nothing about any message.

    :param slow: the host is there and wants less (a greeting of 4xx, 421): no reason to call it down.
    :param at_once: trying again soon would do harm, as with a wrong password, which locks accounts.
    """

    def __init__(self, text: str, *, slow: bool = False, at_once: bool = False) -> None:
        super().__init__(text)
        self.text, self.slow, self.at_once = text, slow, at_once


class Lost(Exception):
    """The connection ended, or nothing that comes over it can be trusted any more.

    :param replies: to the first of several commands, which had come before.
    """

    def __init__(self, text: str, replies: Sequence[Reply] = ()) -> None:
        super().__init__(text)
        self.replies = tuple(replies)


class Channel(Protocol):
    """One connection, greeted and ready for a transaction.

    A method that raises anything, cancellation included, leaves the channel closed.
    """

    offer: Offer

    @property
    def is_clean(self) -> bool:
        """Whether it is open and the host has said nothing that it was not asked for."""
        ...

    @property
    def has_surplus(self) -> bool:
        """Whether the host has said something that it was not asked for; stays so when the channel is closed."""
        ...

    async def command(self, line: bytes) -> Reply:
        """Sends one command and waits for its reply. :raises Lost: there was none."""
        ...

    async def commands(self, lines: Sequence[bytes]) -> Sequence[Reply]:
        """Sends several commands at once, to a host that offers PIPELINING (RFC 2920), and waits for as many replies.

        :raises Lost: there were fewer.
        """
        ...

    async def body(self, message: bytes, before_dot: BeforeDot) -> Reply:
        """Sends the message, puts it in the form of the wire, and waits for the final reply.

        ``before_dot`` is called before the first byte of the end is sent, and what it raises keeps that from
        being sent. :raises Lost: there was no reply.
        """
        ...

    async def quit(self) -> None:
        """Ends the session politely and closes. Never raises."""
        ...

    def close(self) -> None:
        """Closes at once. Twice is as good as once."""
        ...


class Dialer(Protocol):
    """Makes connections."""

    async def dial(self, host: HostConfig, at: Sequence[str] = ()) -> Channel:
        """A connection that is ready: greeted, encrypted and authenticated as configured.

        :param at: addresses that the host was found to have, to be tried in turn; none: its name is looked up.
        :raises HostFailure: there is none to be had now.
        :raises OSError: this machine is at fault (no file descriptors left), not the host.
        """
        ...

    def board(self, folder: Path) -> Board:
        """Where the health of the hosts is written up: in this folder, or in memory."""
        ...

    def finder(self) -> Finder | None:
        """Who finds the hosts of a domain; None: whatever a host of mode ``mx`` is given, it takes itself."""
        ...
