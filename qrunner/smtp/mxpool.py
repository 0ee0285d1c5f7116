"""Connections to hosts that were found in the DNS. Where there is another host, nothing is tried twice.

Differs from the pool that it derives from: hosts become known as they are found, each with its addresses; a
connection that does not come about is the caller's news at once; a place is waited for only a moment.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from qrunner.clock import Clock
from qrunner.config import HostConfig
from qrunner.smtp.berth import Berth, Loan
from qrunner.smtp.channel import Channel, Dialer, HostFailure
from qrunner.smtp.mxboard import MxBoard
from qrunner.smtp.pool import HostBusy, Pool

KNOWN_MAX = 2_000
_BUSY_S = 5.0


class MxPool(Pool):
    """The connections of this process to hosts that were found. ``lend`` raises ``HostFailure`` as well: it was tried
    and failed, and stands on the board."""

    patience_s = 0.5

    def __init__(self, dialer: Dialer, board: MxBoard, clock: Clock, log: logging.Logger) -> None:
        super().__init__({}, dialer, board, clock, log)
        self._addresses: dict[str, tuple[str, ...]] = {}

    def know(self, host: HostConfig, addresses: Sequence[str]) -> None:
        """A host was found at these addresses; to be said before each use, since they change."""
        if host.name not in self._berths:
            self._forget_some()
            self._berths[host.name] = Berth(host)
        self._addresses[host.name] = tuple(addresses)

    def _forget_some(self) -> None:
        """Hosts come without end; those that nobody uses now are found again."""
        if len(self._berths) < KNOWN_MAX:
            return
        for name, berth in list(self._berths.items()):
            if not (berth.in_use or berth.idle or berth.waiters):
                del self._berths[name], self._addresses[name]

    async def _reach(self, host: HostConfig) -> Channel:
        return await self._dialer.dial(host, self._addresses[host.name])

    async def _after_failure(self, berth: Berth, error: HostFailure, failures: int) -> None:
        self._counted(berth, error)
        raise error

    async def _turn(self, berth: Berth, *, fresh: bool) -> Loan | None:
        loan = await super()._turn(berth, fresh=fresh)
        # Zero: a place has become free, and we are told to take it.
        if loan is None and berth.full_until_s != 0.0:
            raise HostBusy(
                f"{berth.host.name}: every connection that this machine may have is in use", _BUSY_S
            )
        return loan
