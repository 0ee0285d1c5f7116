"""Where the connections to one host lie: those that wait for mail, the mail that waits for one, and why it gets none."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from qrunner.config import HostConfig
from qrunner.smtp.board import Seat
from qrunner.smtp.channel import Channel
from qrunner.smtp.health import Health


class HostDown(Exception):
    """No connection to be had before the host's next probe."""

    def __init__(self, health: Health) -> None:
        super().__init__(f"{health.name} is {health.state}: {health.last_error}")
        self.health = health


class HostBusy(Exception):
    """The host is there and takes no connection now; come again in ``delay_s`` seconds."""

    def __init__(self, text: str, delay_s: float) -> None:
        super().__init__(text)
        self.delay_s = delay_s


@dataclass(eq=False, slots=True)
class Loan:
    """A connection in somebody's hands. ``slowly``: nothing but one command at a time."""

    channel: Channel
    seat: Seat
    born_s: float
    messages: int = 0
    idle_since_s: float = 0.0
    slowly: bool = False

    @property
    def reused(self) -> bool:
        """Whether it has carried a message before, or has waited for one."""
        return self.messages > 0 or self.idle_since_s > 0


@dataclass(eq=False, slots=True)
class Waiter:
    """Somebody who waits for a connection; is handed one, or told to look again (None)."""

    turn: asyncio.Future[Loan | None]
    fresh: bool

    def tell(self, loan: Loan | None) -> None:
        """Ends the waiting, unless it has ended."""
        if not self.turn.done():
            self.turn.set_result(loan)


@dataclass(eq=False, slots=True)
class Berth:
    """The connections that this process has to one host.

    ``full_until_s``: all seats were found taken, and are not asked for again before. ``gave_s``: when one was last
    given up to another process. ``paced_until_s``: its rate allows no message before. All monotonic.
    ``welcome``: it has let this process in before. ``slowly``: it was not up to several commands at once. ``turned_away``:
    how often in a row it has asked for less when there was nothing; until ``closed_until_ns``, monotonic, it is left alone.
    ``is_watched``: a look at those that wait is on its way.
    """

    host: HostConfig
    idle: list[Loan] = field(default_factory=list)
    in_use: int = 0
    waiters: deque[Waiter] = field(default_factory=deque)
    full_until_s: float = 0.0
    gave_s: float = 0.0
    paced_until_s: float = 0.0
    welcome: bool = False
    slowly: bool = False
    turned_away: int = 0
    closed_until_ns: int = 0
    is_watched: bool = False
    door: asyncio.Lock = field(default_factory=asyncio.Lock)

    def next_waiter(self, *, for_idle: bool) -> Waiter | None:
        """Takes the first who waits out of the line; ``for_idle``: who wants no fresh connection."""
        for waiter in self.waiters:
            if not waiter.turn.done() and not (for_idle and waiter.fresh):
                self.waiters.remove(waiter)
                return waiter
        return None
