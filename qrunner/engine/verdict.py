"""From what a runner decided to one commit: fates, exceptions, and what is neither.

Guarantees: every value and every exception has a commit; what makes no sense is shunted with its reason, so that
mail is never finished by forgetting to say so.
"""

from __future__ import annotations

import logging
import random
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from qrunner.bounce import Bounce, bounces
from qrunner.config import RunnerConfig
from qrunner.engine import waits
from qrunner.engine.reports import WARNED, Reports
from qrunner.errors import PermanentFailure, QRunnerError, TemporaryFailure
from qrunner.fate import Done, Failure, Forward, Hold, Later, Requeue, Settled
from qrunner.message import RELAYED, Draft, Entry
from qrunner.schedule import checked_delay_s, delay_s, due_after, expired
from qrunner.site import Site
from qrunner.suspension import domain_of
from qrunner.switchboard import Add, Area, Claim, Hop, Move

_LEAST_S = 0.1
_REQUEUES_KEPT = 200
_TRACEBACK = 4_000


@dataclass(frozen=True, slots=True)
class Verdict:
    """One commit, and what the log and the counters say of it."""

    hop: Hop
    what: str
    failed: bool = False
    reason: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    bounces: tuple[Bounce, ...] = ()


class NoSuchQueue(QRunnerError):
    """A fate names a queue that is not there."""


@dataclass(slots=True)
class Judge:
    """Turns what became of claimed entries into verdicts, for one runner."""

    site: Site
    config: RunnerConfig
    log: logging.Logger
    dice: random.Random = field(default_factory=random.Random)
    _known: frozenset[str] = frozenset()
    _reports: Reports = field(init=False)

    def __post_init__(self) -> None:
        self._reports = Reports(self.site, self.config, self.log)

    def judge(self, claims: Sequence[Claim], fate: object) -> Verdict:
        """The verdict on a returned value: a fate, or something that is none."""
        try:
            return self._returned(claims, fate)
        except (
            Exception
        ) as error:  # a fate with something in it that can't be done, such as a delay of no number
            return self.judge_error(claims, error)

    def _returned(self, claims: Sequence[Claim], fate: object) -> Verdict:
        if isinstance(fate, Forward):
            fate = [fate]
        if isinstance(fate, Sequence) and fate and all(isinstance(one, Forward) for one in fate):
            return self._forward(claims, list(fate))
        if isinstance(fate, Done):
            return Verdict(Hop(finished=tuple(claims)), "done", reason=fate.reason)
        if isinstance(fate, Requeue):
            return self._requeue(claims, fate)
        if isinstance(fate, Hold):
            record = {"what": "hold", "reason": str(fate.reason)}
            return Verdict(self._aside(claims, "hold", record), "held", reason=str(fate.reason))
        if isinstance(fate, Settled) and len(claims) == 1:
            return self._settle(claims[0], fate)
        return self.shunt(claims, f"{self.config.class_name} returned {_said(fate)}, which is no fate")

    def judge_error(self, claims: Sequence[Claim], error: BaseException) -> Verdict:
        """The verdict on an exception."""
        try:
            if isinstance(error, TemporaryFailure):
                return self._each(claims, lambda claim: self._temporary(claim, error))
            if isinstance(error, PermanentFailure):
                return self._each(claims, lambda claim: self._permanent(claim, error))
        except Exception as second:  # its arguments make no sense; the traceback shows both
            error = second
        lines = "".join(traceback.format_exception(error))
        reason = "".join(traceback.format_exception_only(error)).strip()
        return self.shunt(claims, reason, lines[-_TRACEBACK:])

    def shunt(self, claims: Sequence[Claim], reason: str, lines: str = "") -> Verdict:
        """Our fault: a person looks."""
        record = {"what": "shunt", "queue": self.config.queue, "reason": reason[:1_000]}
        if lines:
            record["traceback"] = lines
        hop = self._aside(claims, "shunt", record)
        return Verdict(hop, "shunted", failed=True, reason=reason, fields={"traceback": lines or None})

    def _each(self, claims: Sequence[Claim], one: Any) -> Verdict:
        verdicts: list[Verdict] = [one(claim) for claim in claims]
        hop = Hop(
            tuple(claim for verdict in verdicts for claim in verdict.hop.finished),
            tuple(move for verdict in verdicts for move in verdict.hop.moved),
            tuple(add for verdict in verdicts for add in verdict.hop.added),
        )
        first = verdicts[0]
        given_up = tuple(bounce for verdict in verdicts for bounce in verdict.bounces)
        return Verdict(hop, first.what, first.failed, first.reason, first.fields, given_up)

    def _aside(self, claims: Sequence[Claim], area: Area, record: Mapping[str, Any]) -> Hop:
        queue = self.config.queue
        return Hop(
            moved=tuple(Move(claim, queue, claim.entry.due_ns, area, records=(record,)) for claim in claims)
        )

    # On to other queues

    def _forward(self, claims: Sequence[Claim], forwards: Sequence[Forward]) -> Verdict:
        now = self.site.clock.now_ns()
        try:
            goes = [
                (queue, part, due_after(now, forward.delay_s))
                for forward in forwards
                for queue, part in self._resolved(forward)
            ]
        except (NoSuchQueue, TypeError, ValueError) as error:
            return self.shunt(claims, str(error))
        names = [queue for queue, _, _ in goes]
        if len(goes) == 1 and len(claims) == 1 and goes[0][1].id == claims[0].entry.id:
            queue, part, due = goes[0]
            move = Move(claims[0], queue, due, content=part)
            return Verdict(Hop(moved=(move,)), "forwarded", fields={"to_queue": names})
        parents = tuple(claim.entry.id for claim in claims)
        added = tuple(Add(_child(part, parents), queue, due) for queue, part, due in goes)
        return Verdict(Hop(finished=tuple(claims), added=added), "forwarded", fields={"to_queue": names})

    def _resolved(self, forward: Forward) -> list[tuple[str, Entry]]:
        if not isinstance(forward.entry, Entry):
            raise TypeError(f"forward() of {type(forward.entry).__name__}, which is no Entry")
        found = self.site.routing.resolve(forward.queue, forward.entry)
        for queue, _ in found:
            if queue not in self._known:
                self._known = frozenset(self.site.spool.queues())
            if queue not in self._known:
                known = ", ".join(sorted(self._known))
                raise NoSuchQueue(f"there is no queue {queue!r} to forward to; the queues are: {known}")
        return found

    # Staying

    def _requeue(self, claims: Sequence[Claim], fate: Requeue) -> Verdict:
        delay = max(_LEAST_S, checked_delay_s(fate.delay))
        due = due_after(self.site.clock.now_ns(), delay)
        record = {"what": "requeue", "delay_s": round(delay, 3), "reason": str(fate.reason)}
        moved = tuple(
            Move(claim, self.config.queue, due, records=(record,) if _keeps(claim.entry) else ())
            for claim in claims
        )
        return Verdict(Hop(moved=moved), "requeued", reason=str(fate.reason), fields={"delay_s": delay})

    def _temporary(self, claim: Claim, error: TemporaryFailure) -> Verdict:
        later = Later(error.text, error.status, error.delay_s)
        return self._settle(claim, Settled(later=later))

    def _permanent(self, claim: Claim, error: PermanentFailure) -> Verdict:
        owed = claim.entry.recipients or ("",)
        failures = tuple(Failure(address, error.status, error.text) for address in owed)
        return self._settle(claim, Settled(failures, reason=error.text))

    # Outcomes of recipients

    def _settle(self, claim: Claim, settled: Settled) -> Verdict:
        failures, later, records = settled.failures, settled.later, list(settled.records)
        if later is not None and later.counts and self._is_expired(claim.entry):
            over, later = _at_the_end(claim.entry, failures, later)
            failures += over
        records += _failure_records(failures)
        added, given_up = self._reports.of_failures(claim.entry, failures), bounces(claim.entry, failures)
        passed_on, to = self._reports.of_success(claim.entry)
        added += passed_on
        if to:
            records.append({"what": RELAYED, "to": to})
        if later is None:
            what = "failed" if failures else "done"
            reason = settled.reason or "; ".join(dict.fromkeys(failure.text for failure in failures))
            fields = {"to": [failure.address for failure in failures] or None}
            return Verdict(Hop((claim,), (), added), what, bool(failures), reason, fields, given_up)
        waiting = _without(claim.entry.recipients, failures)
        warnings = self._late(claim.entry, later, waiting)
        if warnings is not None:
            records.append({"what": WARNED, "to": waiting})
        return self._later(claim, later, records, added + (warnings or ()), given_up, waiting)

    def _late(self, entry: Entry, later: Later, waiting: Sequence[str]) -> tuple[Add, ...] | None:
        """A delay warning, if it is time for one."""
        warn_s = self.config.retry.warn_s
        if warn_s is None or not later.counts or self._age_ns(entry) < warn_s * 1e9:
            return None
        return self._reports.of_delay(entry, later, waiting)

    def _later(
        self,
        claim: Claim,
        later: Later,
        records: list[Mapping[str, Any]],
        added: tuple[Add, ...],
        given_up: tuple[Bounce, ...],
        waiting: Sequence[str],
    ) -> Verdict:
        delay = later.delay_s
        if delay is None:
            delay = delay_s(self.config.retry, claim.entry.attempts + 1, self.dice.random())
        if later.counts:
            record = {"what": "attempt", "queue": self.config.queue, "text": later.text}
            records.append({**record, "status": later.status, "host": later.host or None})
        elif waits.is_news(claim.entry.history, later.text):
            records.append({"what": waits.WAITS, "queue": self.config.queue, "reason": later.text})
        due = due_after(self.site.clock.now_ns(), max(_LEAST_S, checked_delay_s(delay)))
        goes = self._goes(claim.entry, later.queue, waiting)
        fields = {"delay_s": round(delay, 3), "status": later.status, "to_queue": later.queue}
        what = "deferred" if later.counts else "waits"
        if len(goes) == 1:
            hop = Hop((), (Move(claim, goes[0][0], due, records=tuple(records)),), added)
        else:
            parts = tuple(Add(_child(part, (claim.entry.id,)), queue, due) for queue, part in goes)
            hop = Hop((claim,), (), parts + added)
        return Verdict(hop, what, later.counts, later.text, fields, given_up)

    def _goes(self, entry: Entry, queue: str | None, waiting: Sequence[str]) -> list[tuple[str, Entry]]:
        """Where it waits. A route may send its recipients to different queues."""
        if queue is None:
            return [(self.config.queue, entry)]
        return self.site.routing.resolve(queue, entry.replace(recipients=waiting))

    def _is_expired(self, entry: Entry) -> bool:
        return expired(self.config.retry, 0, self._age_ns(entry))

    def _age_ns(self, entry: Entry) -> int:
        """Waiting that was nobody's attempt costs no lifetime: it is taken off the entry's age."""
        waited_s = sum(
            float(line.get("delay_s", 0)) for line in entry.history if line.get("what") == "requeue"
        )
        now, known = self.site.clock.now_ns(), self.site.suspensions.any_known()
        spells = waits.spells(entry.history, now)
        if known or spells:
            targets = self._waited_for(entry) if known else ()
            waited_s += self.site.suspensions.lasted_s(targets, entry.arrival_ns, spells)
        return now - entry.arrival_ns - int(waited_s * 1e9)

    def _waited_for(self, entry: Entry) -> set[tuple[str, str]]:
        """What it may have had to wait for while that was suspended: all that it meets here, and runners without hosts,
        through which it may have come."""
        runners = self.site.config.runners.values()
        before = [one for one in runners if not any(part.smtp for part in one.slices)]
        targets = {("runner", one.name) for one in (self.config, *before)}
        targets |= {("queue", one.queue) for one in (self.config, *before)}
        targets |= {("host", name) for part in self.config.slices for name in part.smtp}
        return targets | {("domain", domain_of(address)) for address in entry.recipients}


def _at_the_end(
    entry: Entry, failures: Sequence[Failure], later: Later
) -> tuple[tuple[Failure, ...], Later | None]:
    """Who is given up, since the lifetime is over; the rest goes on waiting if the attempt said nothing of it."""
    owed = _without(entry.recipients, failures)
    if not later.of:
        words = Failure("", later.status, later.text, later.host, expired=True)
        return tuple(replace(words, address=address) for address in owed or [""]), None
    over = tuple(replace(one, expired=True) for one in later.of if one.address in owed)
    left = len(owed) > len(over)
    return over, replace(later, counts=False, of=()) if left else None


def _without(addresses: Sequence[str], failures: Sequence[Failure]) -> list[str]:
    gone = {failure.address for failure in failures}
    return [address for address in addresses if address not in gone]


def _failure_records(failures: Sequence[Failure]) -> list[Mapping[str, Any]]:
    return [
        {
            "what": "expired" if failure.expired else "failed",
            "to": [failure.address],
            "host": failure.host,
            "reply": failure.text,
            "status": failure.status,
        }
        for failure in failures
        if failure.address
    ]


def _child(part: Entry, parents: tuple[str, ...]) -> Draft:
    # Its age is its parent's: a lifetime does not begin anew at every fork.
    envelope = part.envelope.only(part.recipients)
    return Draft(part.message, envelope, part.meta, parents, part.arrival_ns)


def _keeps(entry: Entry) -> bool:
    """Whether one more requeue is written down: an entry that waits forever must not grow forever."""
    return sum(1 for line in entry.history if line.get("what") == "requeue") < _REQUEUES_KEPT


def _said(fate: object) -> str:
    return "nothing" if fate is None else f"{type(fate).__name__} {str(fate)[:200]!r}"
