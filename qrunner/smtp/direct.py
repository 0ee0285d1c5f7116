"""Delivery to each recipient's own hosts (``mode = "mx"``): one entry, domain by domain.

A domain's hosts are tried in their order (RFC 5321 section 5.1) until one has answered: another is tried after a
connection that did not come about or was lost, a greeting that is no welcome, a 421; never after an answer about the
message or a recipient, and never for a recipient whose outcome is in doubt.

Guarantees: each recipient is in exactly one place of one part of what comes back. Trouble of our own, be it name
servers, places or the disk, is told from what domains and their hosts did (``counts``).

Not guaranteed: DANE and MTA-STS. Not yet.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from email.utils import format_datetime
from functools import partial

from qrunner.clock import Clock
from qrunner.config import HostConfig
from qrunner.fate import Failure
from qrunner.message import Entry, Recipient
from qrunner.smtp.channel import Dialer, HostFailure
from qrunner.smtp.delivery import Delivery
from qrunner.smtp.lanes import LaneFull, Lanes
from qrunner.smtp.mx import Finder, MailHost, Nowhere, domain_of, equals
from qrunner.smtp.mxboard import MxBoard
from qrunner.smtp.mxpool import MxPool
from qrunner.smtp.notes import Notes
from qrunner.smtp.parts import Part
from qrunner.smtp.pool import HostBusy, HostDown
from qrunner.smtp.reply import Outcome
from qrunner.smtp.session import Session
from qrunner.smtp.turns import too_much

DOWN_STATUS = "4.4.1"
_AT_A_TIME = 5
_OURS_S = 5.0
_RESOLVER_S = 60.0
_RETURN_PATH = re.compile(rb"return-path[ \t]*:[^\n]*\n(?:[ \t][^\n]*\n)*", re.IGNORECASE)


Noting = Callable[[str], Notes]


@dataclass(frozen=True, slots=True)
class _Trip:
    """One entry on its way: what all domains of it share."""

    entry: Entry
    message: bytes
    noting: Noting
    before: Collection[str]
    verp: str


class Direct:
    """Delivers for one ``[smtp.NAME]`` of mode ``mx``.

    :param names: every host of the configuration: one that is found must not be taken for one of these.
    :param concurrency: deliveries that the runner makes at a time; one destination gets at most half of them.
    """

    def __init__(
        self,
        config: HostConfig,
        dialer: Dialer,
        finder: Finder,
        board: MxBoard,
        clock: Clock,
        log: logging.Logger,
        *,
        hostname: str,
        concurrency: int,
        names: Mapping[str, HostConfig],
    ) -> None:
        self.config = config
        self.pool = MxPool(dialer, board, clock, log)
        self._finder, self._hostname, self._clock = finder, hostname, clock
        alone = len([one for one in names.values() if one.mode == "mx"]) == 1
        self._suffix, self._names = "" if alone else f":{config.name}", frozenset(names)
        most = min(config.max_connections, max(1, concurrency // 2))
        self._domains, self._hosts = Lanes(most), Lanes(most)
        board.sweep(clock.now_ns())

    async def close(self) -> None:
        """Takes leave of the hosts."""
        await self.pool.close()

    async def deliver(
        self, entry: Entry, recipients: Sequence[Recipient], noting: Noting, *, verp: str = ""
    ) -> list[Part]:
        """Tries all recipients; a part for each domain. Raises only cancellation, and what must be shunted.

        :param noting: makes the witness for a host of this name.
        """
        suffix = f":{self.config.name}"
        seen = {str(line["host"]).removesuffix(suffix) for line in entry.history if line.get("host")}
        trip = _Trip(entry, relayed(entry, self._hostname), noting, seen, verp)
        by_domain: dict[str, list[Recipient]] = {}
        for recipient in recipients:
            by_domain.setdefault(domain_of(recipient.address), []).append(recipient)
        room = asyncio.Semaphore(_AT_A_TIME)

        async def one(domain: str, those: list[Recipient]) -> Part:
            async with room:
                return await self._domain(trip, domain, those)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(domain, those)) for domain, those in by_domain.items()]
        return [task.result() for task in tasks]

    async def _domain(self, trip: _Trip, domain: str, recipients: list[Recipient]) -> Part:
        found = await self._finder.find(domain, self.config, trip.before)
        if isinstance(found, Nowhere):
            return _nowhere(found, recipients)
        lane = self._domains.lane(domain)
        try:
            await lane.enter()
        except LaneFull as error:
            return _later(recipients, str(error), error.delay_s)
        began_s = self._now_s()
        tour = _Tour(self, trip, recipients)
        try:
            return await tour.over(found)
        finally:
            lane.learn(self._now_s() - began_s, well=tour.answered)
            lane.leave()

    def known(self, host: MailHost) -> HostConfig:
        """The host as the pool knows it, by the name under which its health is kept."""
        suffix = self._suffix or (f":{self.config.name}" if host.name in self._names else "")
        config = replace(self.config, name=host.name + suffix, host=host.peer)
        self.pool.know(config, host.addresses)
        return config

    def may_try(self, name: str) -> bool:
        """Whether the host is up, or its probe is due."""
        return self.pool.health(name).is_up or self.pool.probe_due(name)

    async def session(
        self, host: HostConfig, trip: _Trip, notes: Notes, those: Sequence[Recipient]
    ) -> Delivery:
        """One delivery over one host. :raises HostFailure, HostDown, HostBusy, LaneFull, OSError: there was none."""
        lane = self._hosts.lane(host.name)
        await lane.enter()
        began_s, well = self._now_s(), False
        try:
            delivery = await self._lent(host, trip, notes, those, fresh=False)
            if delivery.stale:
                # The host had ended a session that waited; that is no news about it, nor about the entry.
                delivery = await self._lent(host, trip, notes, those, fresh=True)
            well = not (delivery.lost or delivery.slower)
            return delivery
        finally:
            lane.learn(self._now_s() - began_s, well=well)
            lane.leave()

    async def _lent(
        self, host: HostConfig, trip: _Trip, notes: Notes, those: Sequence[Recipient], *, fresh: bool
    ) -> Delivery:
        async with self.pool.lend(host.name, fresh=fresh) as loan:
            session = Session(
                loan.channel,
                notes,
                max_recipients=host.max_recipients,
                reused=loan.reused and not fresh,
                verp=trip.verp,
                slowly=loan.slowly,
                another=partial(self.pool.another, host.name),
            )
            delivery = await session.deliver(trip.entry.envelope, those, trip.message)
        self.pool.judge(host.name, trip.entry.id, delivery)
        return delivery

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()


class _Tour:
    """The hosts of one domain, one after the other, for the recipients that are left."""

    def __init__(self, direct: Direct, trip: _Trip, recipients: list[Recipient]) -> None:
        self._direct, self._trip, self._left = direct, trip, recipients
        self._part = Part()
        self._met: dict[str, Failure] = {}
        self._news: tuple[str, str] = ("", "")
        self._up = self._failed = False
        self._busy: HostBusy | LaneFull | None = None
        self.answered = False

    async def over(self, hosts: Sequence[MailHost]) -> Part:
        try:
            for group in equals(hosts):
                for host in group:
                    await self._try(self._direct.known(host))
                    if not self._left:
                        return self._part
                if self._busy is not None:
                    # A worse host is for when the better ones are down, not for when we keep them busy.
                    break
        except OSError as error:
            # The history can't be written, or there are no descriptors left: no end of a message was sent.
            return self._ours(f"this machine: {error}", _OURS_S * (1 + random.random()))
        return self._end()

    async def _try(self, host: HostConfig) -> None:
        direct, pool = self._direct, self._direct.pool
        if not direct.may_try(host.name):
            health = pool.health(host.name)
            self._failed |= not health.suspended
            self._news = (
                host.name,
                f"{host.name} is {'suspended' if health.suspended else 'down'}: {health.last_error}",
            )
            return
        notes = self._trip.noting(host.name)
        try:
            self._take(host, await direct.session(host, self._trip, notes, self._left))
        except (HostBusy, LaneFull) as error:
            self._busy, self._up = error, True
        except HostDown as error:
            self._failed, self._news = True, (host.name, error.health.last_error)
        except HostFailure as error:
            self._failed, self._news = True, (host.name, error.text)
            self._up |= pool.health(host.name).is_up
        finally:
            self._part.noted |= notes.noted

    def _take(self, host: HostConfig, delivery: Delivery) -> None:
        """Outcomes; those whom the host did not speak of are left for the next one."""
        self._up, self.answered = True, self.answered or not delivery.lost
        left, self._left = self._left, []
        if delivery.put_off:
            self._part.untried += [Failure(one, "4.3.0", too_much(host.name)) for one in delivery.put_off]
            self._part.delay_s = delivery.put_off_s
        for recipient in left:
            if recipient.address in delivery.put_off:
                continue
            one = delivery.outcomes[recipient.address]
            met = Failure(one.address, one.status, one.text, host.name)
            if one.kind == "failed":
                self._part.failed.append(met if one.said else replace(met, host=""))
            elif one.kind == "ambiguous":
                self._part.doubtful.append(met)
            elif one.kind == "deferred" and _is_session_s(one, delivery):
                self._met[one.address] = met
                self._left.append(recipient)
            elif one.kind == "deferred":
                self._part.waiting.append(met)

    def _end(self) -> Part:
        """Nobody else to try."""
        if self._busy is not None:
            return self._ours(str(self._busy), self._busy.delay_s)
        if not (self._failed or self._met):
            return self._ours(self._news[1], self._direct.config.probe_after_s * (1 + random.random()))
        host, text = self._news
        self._part.waiting += [
            self._met.get(one.address, Failure(one.address, DOWN_STATUS, text, host)) for one in self._left
        ]
        self._part.down = not self._up
        return self._part

    def _ours(self, text: str, delay_s: float) -> Part:
        """What is left waits for a reason of our own; but what a host has said to it counts."""
        self._part.waiting += [self._met[one.address] for one in self._left if one.address in self._met]
        self._part.untried += [
            Failure(one.address, "4.3.0", text) for one in self._left if one.address not in self._met
        ]
        self._part.delay_s = delay_s
        return self._part


def _is_session_s(outcome: Outcome, delivery: Delivery) -> bool:
    """Whether it is the session that failed, not the recipient or the message: another host may do better."""
    return (delivery.lost and not outcome.said) or (delivery.slower and outcome.text.startswith("421"))


def _nowhere(found: Nowhere, recipients: Sequence[Recipient]) -> Part:
    those = [Failure(one.address, found.status, found.text) for one in recipients]
    if found.is_permanent:
        return Part(failed=those)
    if found.counts:
        return Part(waiting=those)
    return Part(untried=those, delay_s=_RESOLVER_S * (1 + random.random()))


def _later(recipients: Sequence[Recipient], text: str, delay_s: float) -> Part:
    return Part(untried=[Failure(one.address, "4.3.0", text) for one in recipients], delay_s=delay_s)


def relayed(entry: Entry, hostname: str) -> bytes:
    """The message as we pass it on: with a trace line of ours (RFC 5321 section 4.4), without a ``Return-Path:`` in
    front, which is for whoever delivers at last. It is the same at each attempt."""
    message = entry.message
    found = _RETURN_PATH.match(message)
    if found is not None:
        message = message[found.end() :]
    ending = b"\r\n" if message[: message.find(b"\n") + 1].endswith(b"\r\n") else b"\n"
    name = hostname.encode("idna") if not hostname.isascii() else hostname.encode()
    date = format_datetime(entry.arrival.replace(microsecond=0)).encode()
    lines = (b"Received: by " + name + b" (qrunner) id " + entry.id.encode() + b";", b"\t" + date)
    return b"".join(line + ending for line in lines) + message
