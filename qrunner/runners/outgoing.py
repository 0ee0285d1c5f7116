"""The stock runner ``outgoing``: hands mail to SMTP hosts.

Each slice has its host, or several, of which the living one with the most room is taken; with ``mode = "mx"`` each
recipient's domain has its own. Every recipient has an
outcome of its own: who got it is written down at once and is never sent it again; 4xx waits for the same host, 5xx
is reported, one report for all of an attempt. While no host of the slice is up, entries go on unchanged to the first
queue of ``on_down`` that has a living host, else to the last of them, for later. Waiting for a host is no attempt, nor
is waiting for a domain that is suspended.

Guarantees: before the end of a message goes out, its history says so. What was under way when the connection, the
process or the time ended stands there as ``ambiguous``, and goes as the host's ``on_ambiguous`` says: ``retry`` on
the schedule, ``hold``, or ``assume`` that it arrived.

Configuration: ``smtp`` (of the runner or its slices), ``on_down``, ``defer_to``, ``verp``, ``max_hops``, ``[smtp.NAME]``.
"""

from __future__ import annotations

import asyncio
import functools
import random
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qrunner import verp
from qrunner.engine.trouble import Trouble
from qrunner.errors import ConfigError, PermanentFailure
from qrunner.fate import Failure, Fate, Hold, Later, Settled
from qrunner.message import Entry, Recipient, received_count
from qrunner.runner import Desk, Runner
from qrunner.schedule import delay_s
from qrunner.smtp.channel import Dialer
from qrunner.smtp.client import SmtpDialer
from qrunner.smtp.delivery import Delivery
from qrunner.smtp.lanes import LaneFull, Lanes
from qrunner.smtp.living import SentOn, hosts_behind, is_living, is_off
from qrunner.smtp.notes import Notes, grouped, in_doubt
from qrunner.smtp.parts import deferrals, soonest
from qrunner.smtp.pool import HostBusy, HostDown, Pool
from qrunner.smtp.session import LOST_STATUS, Session
from qrunner.smtp.turns import too_much
from qrunner.suspension import domain_of

if TYPE_CHECKING:
    from qrunner.smtp.direct import Direct
    from qrunner.smtp.mx import Finder

_MAX_HOPS = 50
_OURS_S = 5.0
_AT_ONCE_S = 0.1
_SILENT_S = 2.0


class OutgoingRunner(Runner):
    """Delivers what its slice owns to its slice's hosts."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        settings = desk.config.settings
        self._hosts = desk.slice_config.smtp
        self._on_down: tuple[str, ...] = tuple(settings.get("on_down") or ())
        self._defer_to: str | None = settings.get("defer_to")
        self._verp: str = settings.get("verp") or ""
        self._max_hops: int = settings.get("max_hops") or _MAX_HOPS
        self._config = desk.site.config
        # A domain that a host of ours takes its time for does not get every place; one for which all goes well does.
        places = desk.slice_config.concurrency
        self._lanes = Lanes(places, first=(places + 1) // 2)
        self._pool: Pool | None = None
        self._sent_on, self._trouble = SentOn(self.clock), Trouble(self.clock)
        self._direct: Mapping[str, Direct] = {}

    @property
    def pool(self) -> Pool:
        """The connections; there are some between ``start`` and ``cleanup``."""
        assert self._pool is not None
        return self._pool

    async def start(self) -> None:
        """:raises ConfigError: the slice has no host that mail can be handed to."""
        if not self._hosts:
            raise ConfigError(f"runner {self.name}: slice {self.slice} has no smtp host")
        dialer: Dialer = self.site.dialer or SmtpDialer(self._config.site.hostname)
        self._board = dialer.board(self._config.site.state_dir / "host")
        self._pool = Pool(self._config.smtp, dialer, self._board, self.clock, self.log)
        by_mx = [name for name in self._hosts if self._config.smtp[name].mode == "mx"]
        self._pool.look_after([name for name in self._hosts if name not in by_mx])
        finder = dialer.finder() if by_mx else None
        if finder is not None:
            self._direct = {name: self._direct_by(name, dialer, finder) for name in by_mx}

    def _direct_by(self, name: str, dialer: Dialer, finder: Finder) -> Direct:
        # Here, so that sites whose hosts have names do not pay for it.
        from qrunner.smtp.direct import Direct
        from qrunner.smtp.mxboard import MxBoard

        board = MxBoard(self._config.site.state_dir / "host")
        board.lay_out()
        return Direct(
            self._config.smtp[name],
            dialer,
            finder,
            board,
            self.clock,
            self.log,
            hostname=self._config.site.hostname,
            concurrency=self.desk.slice_config.concurrency,
            names=self._config.smtp,
        )

    async def cleanup(self) -> None:
        """Takes leave of the hosts."""
        for direct in self._direct.values():
            await direct.close()
        if self._pool is not None:
            await self._pool.close()

    async def dispose(self, entry: Entry) -> Fate | Settled:  # type: ignore[override]
        """Delivers to everybody who is owed."""
        if not entry.recipients:
            return Settled(reason="everybody has it")
        if (hops := received_count(entry.message)) > self._max_hops:
            raise PermanentFailure(f"{hops} Received: lines: the message is in a mail loop", status="5.4.6")
        doubt = in_doubt(entry)
        if doubt is None:
            return await self._deliver(entry, entry.recipients)
        host, addresses = doubt
        policy = self.policy(host)
        if policy == "hold":
            return Hold(f"{host} may have taken it for {', '.join(addresses)}: its reply was lost")
        if policy == "retry":
            return self._after_doubt(entry, host)
        notes = self._notes(entry, host)
        notes.assumed(addresses)
        await notes.catch_up()
        owed = [address for address in entry.recipients if address not in addresses]
        return await self._deliver(entry, owed) if owed else Settled(reason="assumed to have arrived")

    def _notes(self, entry: Entry, host: str) -> Notes:
        assumes = self.policy(host) == "assume"
        progress = self.desk.progress
        return Notes(entry, host, progress.jot, progress.conclude, self.clock, self.log, assumes=assumes)

    def policy(self, host: str) -> str:
        """What ``on_ambiguous`` says of a host, which may be one that was found in the DNS."""
        found = (direct.config for direct in self._direct.values())
        config = self._config.smtp.get(host) or next(found, None)
        return config.on_ambiguous if config is not None else "retry"

    def _after_doubt(self, entry: Entry, host: str) -> Settled:
        """An attempt, and the schedule's delay; but no end of the lifetime, since nobody answered it."""
        text = f"the final reply of {host} was lost"
        record = {"what": "attempt", "queue": self.queue, "text": text, "status": LOST_STATUS, "host": host}
        wait_s = delay_s(self.desk.config.retry, entry.attempts + 1, random.random())
        later = Later(text, LOST_STATUS, wait_s, counts=False, queue=self._defer_to, host=host)
        return Settled(later=later, records=(record,))

    async def _deliver(self, entry: Entry, owed: Sequence[str]) -> Fate | Settled:
        """Hands it to those whose domain is not suspended; the others wait, at no cost."""
        asleep = {one: found for one in owed if (found := self.site.suspensions.of_address(one)) is not None}
        awake = [address for address in owed if address not in asleep]
        unchanged = len(owed) == len(entry.recipients)
        if not asleep:
            return await self._try(entry, awake, unchanged=unchanged)
        now_ns = self.clock.now_ns()
        first = min(asleep.values(), key=lambda one: one.wait_s(now_ns))
        rest = Later(str(first), delay_s=first.wait_s(now_ns) * (1 + random.random()), counts=False)
        if not awake:
            return Settled(later=rest)
        return _with_the_rest(await self._try(entry, awake, unchanged=unchanged), awake, rest)

    async def _try(self, entry: Entry, owed: Sequence[str], *, unchanged: bool) -> Fate | Settled:
        """Tries hosts until one has answered.

        :param unchanged: nothing has been written into its history yet.
        """
        known = {recipient.address: recipient for recipient in entry.envelope.recipients}
        recipients = [known.get(address, Recipient(address)) for address in owed]
        tried: set[str] = set()
        busy: HostBusy | LaneFull | None = None
        while (name := self._choose(entry, tried)) is not None:
            tried.add(name)
            try:
                fate = await self._over(name, entry, recipients, unchanged=unchanged)
                self._trouble.end()
                return fate
            except HostDown:
                continue
            except (HostBusy, LaneFull) as error:
                busy = error
            except OSError as error:
                # The history can't be written, or there are no descriptors left: no end of a message was sent.
                self._trouble.meet()
                wait_s = max(_OURS_S, self._trouble.next_s)
                return _wait(f"this machine: {error}", wait_s * (1 + random.random()))
        if busy is not None:
            return _wait(str(busy), busy.delay_s)
        return self._away(entry, unchanged=unchanged)

    def _choose(self, entry: Entry, tried: Collection[str]) -> str | None:
        """The living host with the most room, or the one that already answered this entry (a host that puts mail
        off wants to see the same client again); else one that may be probed."""
        hosts = [name for name in self._hosts if name not in tried]
        if len(hosts) == 1 and self.pool.health(hosts[0]).is_up:
            return hosts[0]
        living = self.pool.living(hosts)
        due = [name for name in hosts if self.pool.probe_due(name)]
        if not living:
            return random.choice(due) if due else None
        for name in due:
            self.pool.probe_soon(name)
        before = next((line["host"] for line in reversed(entry.history) if line.get("host") in living), None)
        return str(before) if before is not None else living[0]

    async def _over(
        self, name: str, entry: Entry, recipients: Sequence[Recipient], *, unchanged: bool
    ) -> Fate | Settled:
        """:raises HostDown, HostBusy, LaneFull, OSError: nobody was delivered to."""
        if name in self._direct:
            return await self._to_their_own(self._direct[name], entry, recipients, unchanged=unchanged)
        notes, lane = self._notes(entry, name), self._lanes.lane(_destination(name, recipients))
        await lane.enter()
        began_s = time.monotonic()
        try:
            delivery = await self._session(notes, recipients, fresh=False)
            if delivery.stale:
                # The host had ended a session that waited; that is no news about it, nor about the entry.
                delivery = await self._session(notes, recipients, fresh=True)
            lane.learn(time.monotonic() - began_s, well=not (delivery.lost or delivery.slower))
        finally:
            lane.leave()
        return self._settled(notes, delivery)

    async def _session(self, notes: Notes, recipients: Sequence[Recipient], *, fresh: bool) -> Delivery:
        host, entry = self._config.smtp[notes.host], notes.entry
        pair = verp.wanted(self._verp, entry.meta)
        async with self.pool.lend(host.name, fresh=fresh) as loan:
            session = Session(
                loan.channel,
                notes,
                max_recipients=host.max_recipients,
                reused=loan.reused and not fresh,
                verp=pair,
                slowly=loan.slowly,
                another=functools.partial(self.pool.another, host.name),
            )
            delivery = await session.deliver(entry.envelope, recipients, entry.message)
        self.pool.judge(host.name, entry.id, delivery)
        return delivery

    def _settled(self, notes: Notes, delivery: Delivery) -> Fate | Settled:
        host = self._config.smtp[notes.host]
        failures = tuple(
            Failure(one.address, one.status, one.text, host.host if one.said else "")
            for one in delivery.of_kind("failed")
        )
        deferred, doubtful = delivery.of_kind("deferred"), delivery.of_kind("ambiguous")
        records = tuple(grouped(host.name, [one for one in deferred if one.address not in notes.noted]))
        if doubtful and host.on_ambiguous == "hold":
            return self._held(host.name, failures, records)
        waiting = deferred + (doubtful if host.on_ambiguous == "retry" else [])
        rest = (
            Later(too_much(host.name), delay_s=delivery.put_off_s, counts=False) if delivery.put_off else None
        )
        if not waiting:
            return Settled(failures, rest)
        first = waiting[0]
        later = Later(first.text, first.status, queue=self._defer_to, host=host.name)
        settled = Settled(failures, later, records)
        return settled if rest is None else _with_the_rest(settled, [one.address for one in waiting], rest)

    async def _to_their_own(
        self, direct: Direct, entry: Entry, recipients: Sequence[Recipient], *, unchanged: bool
    ) -> Fate | Settled:
        """Each recipient to its domain's hosts. One that is silent must not keep us from the others."""
        alarm = asyncio.get_running_loop().call_later(_SILENT_S, self.desk.progress.waits, entry)
        try:
            parts = await direct.deliver(
                entry,
                recipients,
                lambda host: self._notes(entry, host),
                verp=verp.wanted(self._verp, entry.meta),
            )
        finally:
            alarm.cancel()
        failures = tuple(one for part in parts for one in part.failed)
        waiting = [one for part in parts for one in part.waiting]
        doubtful = [one for part in parts for one in part.doubtful]
        policy = direct.config.on_ambiguous
        if doubtful and policy == "hold":
            return self._held(doubtful[0].host, failures, deferrals(parts))
        if policy == "retry":
            waiting += doubtful
        untried = [part for part in parts if part.untried]
        if not (waiting or untried):
            return Settled(failures)
        if self._on_down and not untried and all(part.down for part in parts if part.waiting):
            unchanged = unchanged and len(waiting) == len(recipients)
            return self._past_the_dead(entry, failures, waiting, unchanged=unchanged)
        if not waiting:
            return Settled(failures, soonest(untried))
        first = waiting[0]
        later = Later(first.text, first.status, queue=self._defer_to, host=first.host, of=tuple(waiting))
        return Settled(failures, later, deferrals(parts))

    def _past_the_dead(
        self,
        entry: Entry,
        failures: tuple[Failure, ...],
        waiting: Sequence[Failure],
        *,
        unchanged: bool,
    ) -> Fate | Settled:
        """All who wait have no host that is up: by ``on_down``."""
        if failures:
            return Settled(failures, Later(waiting[0].text, delay_s=_AT_ONCE_S, counts=False))
        return self._away(entry, unchanged=unchanged)

    def _held(
        self, host: str, failures: tuple[Failure, ...], records: tuple[Mapping[str, Any], ...]
    ) -> Fate | Settled:
        reason = f"{host} may have taken it: its reply was lost"
        if not failures:
            return Hold(reason)
        # The report first. The history still says that it is in doubt, and the next look holds it.
        return Settled(failures, Later(reason, delay_s=_AT_ONCE_S, counts=False), records)

    def _away(self, entry: Entry, *, unchanged: bool) -> Fate | Settled:
        """No host of ours is up: on to a queue that has one, or wait."""
        if not unchanged:
            # Its history has just grown; what is moved must be read anew.
            return _wait("no host is up", _AT_ONCE_S)
        queues = [one for one in self._on_down if one != self.queue and not is_off(self._config, one)]
        for queue in queues:
            if is_living(self._config, self._board, queue) and self._sent_on.again(entry.id):
                return entry.forward(queue)
        if queues:
            hosts = hosts_behind(self._config, queues[-1])
            return entry.forward(queues[-1], delay=self.pool.wait_s(hosts))
        return _wait(self._bad_news(), self.pool.wait_s(self._hosts))

    def _bad_news(self) -> str:
        return "no host is up (" + "; ".join(map(self._news_of, self._hosts)) + ")"

    def _news_of(self, name: str) -> str:
        health = self.pool.health(name)
        return str(health.suspension or f"{name}: {'suspended' if health.suspended else health.last_error}")


def _destination(host: str, recipients: Sequence[Recipient]) -> str:
    """What a delivery may crowd others out by: its host, and the domain behind that. Entries for several domains are one
    destination together."""
    domain = domain_of(recipients[0].address)
    alone = len(recipients) == 1 or all(domain_of(one.address) == domain for one in recipients)
    return f"{domain} at {host}" if alone else host


def _with_the_rest(fate: Fate | Settled, tried: Sequence[str], rest: Later) -> Fate | Settled:
    """What became of those who were tried, and the others wait. An attempt says nothing of these: at its end the
    lifetime is over for the tried ones only."""
    if not isinstance(fate, Settled):
        return fate
    later = fate.later
    if later is None:
        return replace(fate, later=rest)
    if not later.counts or later.of:
        return fate
    met = tuple(Failure(address, later.status, later.text, later.host) for address in tried)
    return replace(fate, later=replace(later, of=met))


def _wait(text: str, wait_s: float) -> Settled:
    """Waits at no cost: nothing was tried."""
    return Settled(later=Later(text, delay_s=wait_s, counts=False))
