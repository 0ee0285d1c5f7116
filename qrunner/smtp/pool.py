"""Connections to hosts: kept, counted, lent out; and what their use says about the hosts' health.

Guarantees: no host has more connections from this machine than it is given now; a host that is down is bothered
by one probe at a time. A connection is lent to one at a time, and only if the host has said nothing since. A host with
a ``rate`` is sent no more messages than that; who waits for a turn has no connection in hand.

Not guaranteed: fairness to the millisecond. A process that finds all seats taken says so, and the others give
one up between two messages.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Coroutine, Iterable, Mapping, Sequence

from qrunner.clock import Clock
from qrunner.config import HostConfig
from qrunner.smtp import health as h
from qrunner.smtp.berth import Berth, HostBusy, HostDown, Loan, Waiter
from qrunner.smtp.board import Board, Change, Seat
from qrunner.smtp.channel import Channel, Dialer, HostFailure
from qrunner.smtp.delivery import Delivery
from qrunner.smtp.health import Health
from qrunner.smtp.turns import NEXT_S, Turns

__all__ = ["HostBusy", "HostDown", "Pool"]

SESSION_LIFE_S = 300.0
_LOOK_S = 0.25
_GIVE_S = 4.0
_SLOW_S = 5.0
_SLOW_MAX_S = 60.0
_PROBES_S = 2.0


class Pool:
    """The connections of this process.

    :param hosts: all that are known; only those that are asked for are ever connected to.
    """

    # How long an entry waits in hand for its turn. All that a named host is sent waits alike, so nothing is gained by
    # putting it back sooner.
    patience_s = 2.0

    def __init__(
        self, hosts: Mapping[str, HostConfig], dialer: Dialer, board: Board, clock: Clock, log: logging.Logger
    ) -> None:
        self._berths = {name: Berth(host) for name, host in hosts.items()}
        self._dialer, self._board, self._clock, self._log = dialer, board, clock, log
        self._turns = Turns(board)
        self._tasks: set[asyncio.Task[None]] = set()
        self._probes: set[asyncio.Task[None]] = set()
        self._end = asyncio.Event()

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
        if self._now_s() < berth.paced_until_s or (not berth.idle and self._now_s() < berth.full_until_s):
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
        waits = [self._wait_s(name, now_ns) for name in names]
        soonest_s, spread_s = min(waits, default=(60.0, 60.0))
        return max(1.0, soonest_s) + random.random() * spread_s

    def _wait_s(self, name: str, now_ns: int) -> tuple[float, float]:
        """How long, and by how much at most longer."""
        health, usual_s = self.health(name), self._berths[name].host.probe_after_s
        if health.suspension is not None:
            wait_s = health.suspension.wait_s(now_ns)
            return wait_s, min(wait_s, usual_s)
        if health.suspended:
            return usual_s, usual_s
        return health.probe_in_s(now_ns), usual_s

    def lend(self, name: str, *, fresh: bool = False) -> Lending:
        """A connection for one entry, and the turn to send a message over it, for an ``async with``.

        :param fresh: one that has carried no message yet, instead of one lent before: the turn is the same.
        :raises HostDown, HostBusy: there is none.
        """
        return Lending(self, self._berths[name], fresh)

    async def _lend(self, berth: Berth, *, fresh: bool) -> Loan:
        if not fresh:
            await self._turns.take(berth, self.patience_s)
        try:
            loan = await self._get(berth, fresh=fresh)
        except BaseException:
            self._turns.give_back(berth)
            raise
        berth.in_use += 1
        loan.slowly = berth.slowly
        return loan

    def _return(self, berth: Berth, loan: Loan) -> None:
        berth.in_use -= 1
        loan.messages += 1
        self._take_back(berth, loan)

    async def another(self, name: str) -> float:
        """Waits for the turn to send one more message over a connection in hand; 0, or the seconds to come again after,
        since there is none soon."""
        try:
            await self._turns.take(self._berths[name], NEXT_S)
        except HostBusy as error:
            return error.delay_s
        return 0.0

    async def _get(self, berth: Berth, *, fresh: bool) -> Loan:
        failures = 0
        while True:
            if not fresh and (loan := self._waiting(berth)) is not None:
                return loan
            health = self.health(berth.host.name)
            if not health.is_up:
                return await self._probe(berth, health)
            self._must_be_open(berth, health)
            seat = self._seat(berth, health)
            if seat is None:
                handed = await self._turn(berth, fresh=fresh)
                if handed is not None:
                    return handed
                continue
            try:
                return await self._dial(berth, seat)
            except HostFailure as error:
                failures += 1
                await self._after_failure(berth, error, failures)

    def _must_be_open(self, berth: Berth, health: Health) -> None:
        """:raises HostBusy: the host wants no connection for a while, from however many messages."""
        left_s = (berth.closed_until_ns - self._clock.monotonic_ns()) / 1e9
        if left_s > 0:
            raise HostBusy(health.last_error, left_s + max(_SLOW_S, _pause_s(berth)) * random.random())

    def _waiting(self, berth: Berth) -> Loan | None:
        """The connection that was used last, if the host has left it alone."""
        while berth.idle:
            loan = berth.idle.pop()
            if loan.channel.is_clean:
                return loan
            self._drop(berth, loan)
        return None

    def _seat(self, berth: Berth, health: Health) -> Seat | None:
        """A seat. Asking for one that nobody has costs a system call for each that there is, so who finds none has
        found none for all who wait here, for a moment."""
        if self._now_s() < berth.full_until_s:
            return None
        name = berth.host.name
        seat = self._board.seat(name, health.connections(berth.host))
        if seat is None and berth.idle:
            # Only reached for a fresh one: its place is taken by one that waits.
            self._drop(berth, berth.idle.pop())
        elif seat is None:
            berth.full_until_s = self._now_s() + _LOOK_S
            self._board.want(name)
        return seat

    async def _turn(self, berth: Berth, *, fresh: bool) -> Loan | None:
        """A connection that was given back, or None when it is time to look again."""
        waiter = Waiter(asyncio.get_running_loop().create_future(), fresh)
        berth.waiters.append(waiter)
        alarm = asyncio.get_running_loop().call_later(_LOOK_S, waiter.tell, None)
        try:
            return await waiter.turn
        except asyncio.CancelledError:
            # It may have been handed over in the same instant.
            if not waiter.turn.cancelled() and (loan := waiter.turn.result()) is not None:
                self._take_back(berth, loan)
            raise
        finally:
            alarm.cancel()
            if waiter in berth.waiters:
                berth.waiters.remove(waiter)

    async def _dial(self, berth: Berth, seat: Seat) -> Loan:
        berth.in_use += 1
        try:
            channel = await self._let_in(berth)
        except BaseException:
            seat.release()
            raise
        finally:
            berth.in_use -= 1
        berth.turned_away = 0
        return Loan(channel, seat, self._now_s())

    async def _let_in(self, berth: Berth) -> Channel:
        """A connection. Where a password is asked for, one at a time until it was right: twenty wrong ones at once lock
        accounts. :raises HostDown: another one has just failed."""
        if berth.host.username is None or berth.welcome:
            return await self._reach(berth.host)
        async with berth.door:
            health = self.health(berth.host.name)
            if health.state == "down":
                raise HostDown(health)
            channel = await self._reach(berth.host)
            berth.welcome = True
        return channel

    async def _reach(self, host: HostConfig) -> Channel:
        return await self._dialer.dial(host)

    async def _after_failure(self, berth: Berth, error: HostFailure, failures: int) -> None:
        """Returns if it is worth another try at once. :raises HostDown, HostBusy: it is not."""
        health = self._counted(berth, error)
        if error.slow:
            if berth.in_use == 0:
                berth.turned_away += 1
                berth.closed_until_ns = self._clock.monotonic_ns() + round(_pause_s(berth) * 1e9)
                self._must_be_open(berth, health)
            berth.full_until_s = self._now_s() + _LOOK_S
            return
        if not health.is_up:
            raise HostDown(health) from error
        if failures >= berth.host.failures_to_open:
            raise HostBusy(error.text, _SLOW_S * (1 + random.random())) from error

    def _counted(self, berth: Berth, error: HostFailure) -> Health:
        if not error.slow:
            return self._failed(berth, error)
        in_use = berth.in_use + 1
        return self._change(berth.host.name, lambda health: h.slowed(health, error.text, in_use))

    def _failed(self, berth: Berth, error: HostFailure) -> Health:
        now_ns, dice = self._clock.now_ns(), random.random()
        berth.welcome = berth.welcome and not error.at_once
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

    async def _probe(self, berth: Berth, health: Health) -> Loan:
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
        probe = self._spawn(self._probe_alone(self._berths[name]))
        self._probes.add(probe)
        probe.add_done_callback(self._probes.discard)

    def look_after(self, names: Sequence[str]) -> None:
        """Makes the probes of these hosts when their time has come, whether or not there is mail for them: what is sent
        elsewhere while a host is down would never find out that it is back."""
        self._probes.add(self._spawn(self._look_after_them(names)))

    async def _look_after_them(self, names: Sequence[str]) -> None:
        while not self._end.is_set():
            for name in filter(self.probe_due, names):
                self.probe_soon(name)
            await self._clock.wait(self._end, self._until_probes_s(names))

    def _until_probes_s(self, names: Sequence[str]) -> float:
        """Seconds until it is worth looking whether a probe is due."""
        soon_s = _PROBES_S * random.uniform(0.75, 1.25)
        if not all(self.health(name).is_up for name in names):
            return soon_s
        # Whatever goes down from now on is not probed before that.
        return max(soon_s, min(h.least_wait_s(self._berths[name].host) for name in names))

    async def _probe_alone(self, berth: Berth) -> None:
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
        berth = self._berths[name]
        host = berth.host
        if delivery.moved:
            if not berth.slowly:
                self._log.warning("host %s answers out of step, and is asked one thing at a time now", name)
            berth.slowly = True
        elif delivery.slower:
            in_use = berth.in_use + 1
            self._change(name, lambda health: h.slowed(health, delivery.words(), in_use))
        elif delivery.lost:
            now_ns, dice, words = self._clock.now_ns(), random.random(), delivery.words()
            self._change(
                name, lambda health: h.lost(health, host, entry_id, words, now_ns=now_ns, random=dice)
            )
        elif not delivery.stale and not self.health(name).is_spotless:
            self._change(name, lambda health: h.succeeded(health, host))

    def _take_back(self, berth: Berth, loan: Loan) -> None:
        now_s = self._now_s()
        if self._end.is_set() or not self._worth_keeping(berth, loan, now_s) or self._must_give(berth, now_s):
            self._drop(berth, loan)
            return
        loan.idle_since_s = now_s
        waiter = berth.next_waiter(for_idle=True)
        if waiter is not None:
            waiter.tell(loan)
        elif berth.waiters:
            self._drop(berth, loan)
        else:
            berth.idle.append(loan)
            self._watch(berth)

    def _worth_keeping(self, berth: Berth, loan: Loan, now_s: float) -> bool:
        host = berth.host
        return (
            loan.channel.is_clean
            and (host.max_messages is None or loan.messages < host.max_messages)
            and now_s - loan.born_s < SESSION_LIFE_S
            and loan.seat.number < self.health(host.name).connections(host)
        )

    def _must_give(self, berth: Berth, now_s: float) -> bool:
        """Whether to give a seat up to another process that waits for one.

        The more seats, the more often, so that those who share a host come to equal parts; but never so often that
        each message would need a connection of its own.
        """
        seats = berth.in_use + len(berth.idle) + 1
        if now_s - berth.gave_s < _GIVE_S / seats or not self._board.wanted(berth.host.name):
            return False
        # Not for our own who wait.
        berth.gave_s, berth.full_until_s = now_s, now_s + 2 * _LOOK_S
        return True

    def _watch(self, berth: Berth) -> None:
        """Looks at the connections that wait, as long as there are any."""
        if not berth.is_watched:
            berth.is_watched = True
            look_s = min(_LOOK_S, berth.host.idle_timeout_s)
            asyncio.get_running_loop().call_later(look_s, self._look_over, berth, look_s)

    def _look_over(self, berth: Berth, look_s: float) -> None:
        """Ends those that have waited long enough, or whose seats another process needs."""
        berth.is_watched = False
        now_s, is_wanted = self._now_s(), self._board.wanted(berth.host.name)
        for loan in list(berth.idle):
            waited_s = now_s - loan.idle_since_s
            enough_s = look_s if is_wanted else berth.host.idle_timeout_s
            if waited_s >= enough_s or not self._worth_keeping(berth, loan, now_s):
                berth.idle.remove(loan)
                self._drop(berth, loan)
        if berth.idle:
            self._watch(berth)

    def _drop(self, berth: Berth, loan: Loan) -> None:
        """Ends a connection, politely if the host still listens; its seat is free after that."""
        if loan.channel.is_clean:
            self._spawn(self._leave(berth, loan))
            return
        loan.channel.close()
        self._free(berth, loan)

    async def _leave(self, berth: Berth, loan: Loan) -> None:
        try:
            await loan.channel.quit()
        finally:
            loan.channel.close()
            self._free(berth, loan)

    def _free(self, berth: Berth, loan: Loan) -> None:
        loan.seat.release()
        if self._now_s() - berth.gave_s < _LOOK_S:
            return
        berth.full_until_s = 0.0
        waiter = berth.next_waiter(for_idle=False)
        if waiter is not None:
            waiter.tell(None)

    def _now_s(self) -> float:
        return time.monotonic()

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Ends every connection that waits; those that are lent out end when they come back."""
        self._end.set()
        # A host that is down may keep a probe waiting for minutes.
        for probe in self._probes:
            probe.cancel()
        for berth in self._berths.values():
            while berth.idle:
                self._drop(berth, berth.idle.pop())
        while self._tasks:
            await asyncio.wait(self._tasks)


class Lending:
    """A connection in an entry's hands, until the end of the ``async with``. As a class, since a delivery has one."""

    __slots__ = ("_berth", "_fresh", "_loan", "_pool")

    def __init__(self, pool: Pool, berth: Berth, fresh: bool) -> None:
        self._pool, self._berth, self._fresh = pool, berth, fresh

    async def __aenter__(self) -> Loan:
        self._loan = await self._pool._lend(self._berth, fresh=self._fresh)
        return self._loan

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is not None:
                self._loan.channel.close()
        finally:
            self._pool._return(self._berth, self._loan)


def _pause_s(berth: Berth) -> float:
    """How long to leave a host alone that has turned us away so often."""
    return float(min(_SLOW_S * 2 ** min(berth.turned_away - 1, 16), _SLOW_MAX_S))
