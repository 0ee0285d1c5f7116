"""Connections to hosts: kept, counted, lent out; and what their use says about the hosts' health.

Guarantees: no host has more connections from this machine than it is given now; a host that is down is bothered
by one probe at a time. A connection is lent to one at a time, and only if the host has said nothing since.

Not guaranteed: fairness to the millisecond. A process that finds all seats taken says so, and the others give
one up between two messages.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from qrunner.clock import Clock
from qrunner.config import HostConfig
from qrunner.smtp import health as h
from qrunner.smtp.board import Board, Change, Seat
from qrunner.smtp.channel import Channel, Dialer, HostFailure
from qrunner.smtp.health import Health
from qrunner.smtp.session import Delivery

SESSION_LIFE_S = 300.0
_LOOK_S = 0.25
_SLOW_S = 5.0


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
    """A connection in somebody's hands."""

    channel: Channel
    seat: Seat
    born_s: float
    messages: int = 0
    idle_since_s: float = 0.0

    @property
    def reused(self) -> bool:
        """Whether it has carried a message before, or has waited for one."""
        return self.messages > 0 or self.idle_since_s > 0


@dataclass(eq=False, slots=True)
class _Berth:
    """The connections that this process has to one host. ``full`` while others hold the rest."""

    host: HostConfig
    idle: list[Loan] = field(default_factory=list)
    in_use: int = 0
    full: bool = False
    freed: asyncio.Event = field(default_factory=asyncio.Event)


class Pool:
    """The connections of this process.

    :param hosts: all that are known; only those that are asked for are ever connected to.
    """

    def __init__(
        self, hosts: Mapping[str, HostConfig], dialer: Dialer, board: Board, clock: Clock, log: logging.Logger
    ) -> None:
        self._berths = {name: _Berth(host) for name, host in hosts.items()}
        self._dialer, self._board, self._clock, self._log = dialer, board, clock, log
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def health(self, name: str) -> Health:
        """What is known of a host."""
        return self._board.read(name)

    def living(self, names: Iterable[str]) -> list[str]:
        """Those of the hosts that are up, the one with the most room first."""
        up = [name for name in names if self.health(name).is_up]
        return sorted(up, key=lambda name: (-self.room(name), random.random()))

    def room(self, name: str) -> int:
        """How many more deliveries this process may begin with a host, as far as it knows."""
        berth = self._berths[name]
        if berth.full and not berth.idle:
            return 0
        return self.health(name).connections(berth.host) - berth.in_use

    def probe_due(self, name: str) -> bool:
        """Whether a host that is down may be tried now."""
        health = self.health(name)
        if health.is_up or health.suspended:
            return False
        return health.probe_in_s(self._clock.now_ns()) <= 0

    def wait_s(self, names: Iterable[str]) -> float:
        """Seconds until the first of these hosts may be tried, and some more, different each time: mail that waited
        for one host must not come back all at once."""
        now_ns = self._clock.now_ns()
        waits = [(self._wait_s(name, now_ns), self._berths[name].host.probe_after_s) for name in names]
        soonest_s, spread_s = min(waits, default=(60.0, 60.0))
        return max(1.0, soonest_s) + random.random() * spread_s

    def _wait_s(self, name: str, now_ns: int) -> float:
        health = self.health(name)
        if health.suspended:
            return self._berths[name].host.probe_after_s
        return health.probe_in_s(now_ns)

    @asynccontextmanager
    async def lend(self, name: str, *, fresh: bool = False) -> AsyncIterator[Loan]:
        """A connection for one entry.

        :param fresh: one that has carried no message yet.
        :raises HostDown, HostBusy: there is none.
        """
        berth = self._berths[name]
        loan = await self._get(berth, fresh=fresh)
        berth.in_use += 1
        try:
            yield loan
        except BaseException:
            loan.channel.close()
            raise
        finally:
            berth.in_use -= 1
            loan.messages += 1
            self._take_back(berth, loan)

    async def _get(self, berth: _Berth, *, fresh: bool) -> Loan:
        failures = 0
        while True:
            if not fresh and (loan := self._waiting(berth)) is not None:
                return loan
            health = self.health(berth.host.name)
            if not health.is_up:
                return await self._probe(berth, health)
            seat = self._seat(berth, health)
            if seat is None:
                await self._turn(berth)
                continue
            try:
                return await self._dial(berth, seat)
            except HostFailure as error:
                failures += 1
                await self._after_failure(berth, error, failures)

    def _waiting(self, berth: _Berth) -> Loan | None:
        """The connection that was used last, if the host has left it alone."""
        while berth.idle:
            loan = berth.idle.pop()
            if loan.channel.is_clean:
                return loan
            self._drop(berth, loan)
        return None

    def _seat(self, berth: _Berth, health: Health) -> Seat | None:
        name = berth.host.name
        seat = self._board.seat(name, health.connections(berth.host))
        if seat is None and berth.idle:
            # Only reached for a fresh one: its place is taken by one that waits.
            self._drop(berth, berth.idle.pop())
            seat = self._board.seat(name, health.connections(berth.host))
        berth.full = seat is None
        return seat

    async def _turn(self, berth: _Berth) -> None:
        """Until one of ours is given back, or it is time to look whether another process gave one up."""
        self._board.want(berth.host.name)
        berth.freed.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_S):
                await berth.freed.wait()

    async def _dial(self, berth: _Berth, seat: Seat) -> Loan:
        berth.in_use += 1
        try:
            channel = await self._dialer.dial(berth.host)
        except BaseException:
            seat.release()
            raise
        finally:
            berth.in_use -= 1
        return Loan(channel, seat, asyncio.get_running_loop().time())

    async def _after_failure(self, berth: _Berth, error: HostFailure, failures: int) -> None:
        """Returns if it is worth another try at once. :raises HostDown, HostBusy: it is not."""
        name = berth.host.name
        if error.slow:
            self._change(name, lambda health: h.slowed(health, error.text, berth.in_use + 1))
            if berth.in_use == 0:
                raise HostBusy(error.text, _SLOW_S * (1 + random.random())) from error
            await self._turn(berth)
            return
        health = self._failed(berth, error)
        if not health.is_up:
            raise HostDown(health) from error
        if failures >= berth.host.failures_to_open:
            raise HostBusy(error.text, _SLOW_S * (1 + random.random())) from error

    def _failed(self, berth: _Berth, error: HostFailure) -> Health:
        now_ns, dice = self._clock.now_ns(), random.random()
        return self._change(
            berth.host.name,
            lambda health: h.failed(
                health, berth.host, error.text, now_ns=now_ns, random=dice, at_once=error.at_once
            ),
        )

    def _change(self, name: str, change: Change) -> Health:
        before = self.health(name)
        after = self._board.change(name, change)
        if before.state == "up" and after.state == "down":
            self._log.warning("host %s is down: %s", name, after.last_error)
        elif before.state != "up" and after.state == "up":
            self._log.info("host %s is up again", name)
        return after

    async def _probe(self, berth: _Berth, health: Health) -> Loan:
        """The probe, if it is due and nobody else makes it. :raises HostDown: it is not, or it failed."""
        name = berth.host.name
        right = self._board.probe(name) if self.probe_due(name) else None
        if right is None:
            raise HostDown(health)
        try:
            # Whoever held the right before us may have found the host up, or down anew.
            seat = self._board.seat(name, berth.host.max_connections) if self.probe_due(name) else None
            if seat is None:
                raise HostDown(self.health(name))
            self._change(name, h.probing)
            loan = await self._dial(berth, seat)
            self._change(name, lambda health: h.reached(health, berth.host))
            return loan
        except HostFailure as error:
            raise HostDown(self._failed(berth, error)) from error
        finally:
            right.release()

    def probe_soon(self, name: str) -> None:
        """Makes the probe beside the deliveries, for a host that has no mail waiting for it alone."""
        self._spawn(self._probe_alone(self._berths[name]))

    async def _probe_alone(self, berth: _Berth) -> None:
        try:
            loan = await self._probe(berth, self.health(berth.host.name))
        except HostDown:
            return
        except OSError as error:
            self._log.warning("no probe of %s: %s", berth.host.name, error)
            return
        self._take_back(berth, loan)

    def judge(self, name: str, entry_id: str, delivery: Delivery) -> None:
        """What a delivery says about the host."""
        host = self._berths[name].host
        if delivery.slower:
            in_use = self._berths[name].in_use + 1
            self._change(name, lambda health: h.slowed(health, delivery.words(), in_use))
        elif delivery.lost:
            now_ns, dice, words = self._clock.now_ns(), random.random(), delivery.words()
            self._change(
                name, lambda health: h.lost(health, host, entry_id, words, now_ns=now_ns, random=dice)
            )
        elif not delivery.stale and not self.health(name).is_spotless:
            self._change(name, lambda health: h.succeeded(health, host))

    def _take_back(self, berth: _Berth, loan: Loan) -> None:
        now_s = asyncio.get_running_loop().time()
        if self._closed or not self._worth_keeping(berth, loan, now_s):
            self._drop(berth, loan)
            return
        loan.idle_since_s = now_s
        berth.idle.append(loan)
        berth.freed.set()
        self._look_after(berth, loan)

    def _worth_keeping(self, berth: _Berth, loan: Loan, now_s: float) -> bool:
        host, name = berth.host, berth.host.name
        return (
            loan.channel.is_clean
            and (host.max_messages is None or loan.messages < host.max_messages)
            and now_s - loan.born_s < SESSION_LIFE_S
            and loan.seat.number < self.health(name).connections(host)
            and not self._board.wanted(name)
        )

    def _look_after(self, berth: _Berth, loan: Loan) -> None:
        """Ends the connection when it has waited long enough, or when another process needs its seat."""
        loop = asyncio.get_running_loop()

        def look() -> None:
            if loan not in berth.idle:
                return
            waited_s = loop.time() - loan.idle_since_s
            if waited_s >= berth.host.idle_timeout_s or not self._worth_keeping(berth, loan, loop.time()):
                berth.idle.remove(loan)
                self._drop(berth, loan)
            else:
                loop.call_later(min(1.0, berth.host.idle_timeout_s), look)

        loop.call_later(min(1.0, berth.host.idle_timeout_s), look)

    def _drop(self, berth: _Berth, loan: Loan) -> None:
        """Ends a connection, politely if the host still listens; its seat is free after that."""
        if loan.channel.is_clean:
            self._spawn(self._leave(berth, loan))
            return
        loan.channel.close()
        self._free(berth, loan)

    async def _leave(self, berth: _Berth, loan: Loan) -> None:
        try:
            await loan.channel.quit()
        finally:
            loan.channel.close()
            self._free(berth, loan)

    def _free(self, berth: _Berth, loan: Loan) -> None:
        loan.seat.release()
        berth.freed.set()

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Ends every connection that waits; those that are lent out end when they come back."""
        self._closed = True
        for berth in self._berths.values():
            while berth.idle:
                self._drop(berth, berth.idle.pop())
        while self._tasks:
            await asyncio.wait(self._tasks)
