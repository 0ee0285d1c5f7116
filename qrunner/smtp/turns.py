"""Turns to send a message, for hosts with a ``rate``: waited for here, without a connection in hand, or put off.

How turns are dealt out among processes ``pace`` says. A turn that was waited for in vain, or that led to no
connection, is given back.
"""

from __future__ import annotations

import asyncio
from time import monotonic

from qrunner.smtp.berth import Berth, HostBusy
from qrunner.smtp.board import Board

# Between two messages over one connection: less than any host waits for a command.
NEXT_S = 30.0


class Turns:
    """The turns of this process."""

    def __init__(self, board: Board) -> None:
        self._board = board

    async def take(self, berth: Berth, within_s: float) -> None:
        """Waits for the host's next turn. :raises HostBusy: it is too far away."""
        name, rate = berth.host.name, berth.host.rate
        if rate is None:
            return
        turn = self._board.turn(name, rate, within_s)
        berth.paced_until_s = monotonic() + turn.wait_s
        if not turn.may:
            raise HostBusy(too_much(name), turn.wait_s)
        if turn.wait_s > 0:
            try:
                await asyncio.sleep(turn.wait_s)
            except BaseException:
                self.give_back(berth)
                raise

    def give_back(self, berth: Berth) -> None:
        """Nothing was sent."""
        if berth.host.rate is not None:
            self._board.give_back(berth.host.name, berth.host.rate)


def too_much(name: str) -> str:
    """Why mail for this host waits."""
    return f"{name} is sent as much as its rate allows"
