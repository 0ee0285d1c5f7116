"""What becomes of a message that has come: entries, a place aside, a report, or another time.

What the handlers of a door say is done as if an entry had met it: where they send it, done, reported if they refuse it,
later if they want it later, and shunted if they stumble.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from qrunner.delivered import envelope_of
from qrunner.engine.reports import Reports
from qrunner.errors import HandlerFailed, PermanentFailure, QueueError, TemporaryFailure
from qrunner.fate import Failure
from qrunner.log import event, visible
from qrunner.maildir.box import Letter
from qrunner.message import Draft, Entry, Envelope
from qrunner.runner import Desk
from qrunner.schedule import delay_s
from qrunner.switchboard import Add

_LONGEST_REASON = 1000
_LEAST_S = 0.1


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A message that is to be looked at again, and how often it has been put off."""

    attempts: int
    until_s: float


class Becoming:
    """Decides, for one door. What is to wait is remembered by the name of its file, for as long as we live."""

    def __init__(self, desk: Desk) -> None:
        assert desk.intake is not None
        self.config, self.site, self.log, self.intake = desk.config, desk.site, desk.log, desk.intake
        self._sender: str = desk.config.settings["sender"] or ""
        self._recipients: Sequence[str] = desk.config.settings["recipients"]
        self._reports = Reports(desk.site, desk.config, desk.log)
        self._later: dict[str, _Waiting] = {}

    def draft(self, letter: Letter) -> Draft:
        """The message with the envelope that its delivery has written on top, or else that of the configuration."""
        found = envelope_of(letter.message)
        sender = self._sender if found.sender is None else found.sender
        return Draft(letter.message, Envelope.of(sender, found.recipients or self._recipients))

    async def adds(self, letter: Letter, draft: Draft, *, is_poison: bool = False) -> Sequence[Add] | None:
        """What it becomes; None: it is left where it is, for later."""
        if is_poison:
            return self._shunted(draft, "the process that had it in hand died again and again")
        if not draft.envelope.recipients:
            return self._shunted(
                draft, "no recipients: no Delivered-To or X-Original-To on top, and no key `recipients`"
            )
        try:
            adds = await self.intake.adds(draft)
        except PermanentFailure as error:
            return self._refused(letter, draft, error)
        except HandlerFailed as error:
            return self._shunted(draft, error.text, error.traceback)
        except (TemporaryFailure, QueueError) as error:
            self.put_off(letter.name, getattr(error, "delay_s", None), str(error))
            return None
        if unknown := self._unknown(adds):
            return self._shunted(draft, f"a handler named queues that are not there: {', '.join(unknown)}")
        self._later.pop(letter.name, None)
        return adds

    def _unknown(self, adds: Iterable[Add]) -> list[str]:
        """Queues that neither the configuration nor the spool knows."""
        known = set(self.site.config.queues())
        unknown = [add.queue for add in adds if add.queue not in known]
        return [queue for queue in unknown if queue not in self.site.spool.queues()] if unknown else []

    # Later

    def put_off(self, name: str, wait_s: float | None, reason: str = "") -> None:
        """Looks at it again after so long; None: as the schedule says."""
        before = self._later.get(name)
        attempts = before.attempts + 1 if before else 1
        if wait_s is None:
            wait_s = delay_s(self.config.retry, attempts, random.random())
        wait_s = max(_LEAST_S, wait_s)
        self._later[name] = _Waiting(attempts, self._now_s() + wait_s)
        event(self.log, "put off", file=visible(name), reason=reason or None, delay_s=round(wait_s, 1))

    def is_for_later(self, name: str, now_s: float) -> bool:
        """Whether it is not time yet (seconds of the monotonic clock)."""
        waits = self._later.get(name)
        return waits is not None and waits.until_s > now_s

    def waiting(self) -> Iterable[float]:
        """When it is time for those that wait."""
        return [waits.until_s for waits in self._later.values()]

    def forget_all_but(self, names: Collection[str]) -> None:
        """What has gone need not be waited for."""
        self._later = {name: waits for name, waits in self._later.items() if name in names}

    def _now_s(self) -> float:
        return self.site.clock.monotonic_ns() / 1e9

    # Aside, and back

    def _shunted(self, draft: Draft, reason: str, traceback: str = "") -> Sequence[Add]:
        """Set aside from the queue it would have gone to, for a person to look at."""
        record = {"what": "shunt", "queue": self.config.name, "reason": reason[:_LONGEST_REASON]}
        if traceback:
            record["traceback"] = traceback
        event(self.log, "shunted", level=logging.ERROR, reason=reason)
        return self.intake.aside(draft, "shunt", record)

    def _refused(self, letter: Letter, draft: Draft, error: PermanentFailure) -> Sequence[Add]:
        """A report, as ``report`` says, in the place of the message."""
        now_ns, to = self.site.clock.now_ns(), draft.envelope.addresses
        # The same at each try, so that the report is not taken for one more.
        name = hashlib.sha1(f"{letter.inode} {letter.name}".encode("utf-8", "replace"), usedforsecurity=False)
        entry = Entry(
            id=name.hexdigest(),
            queue=self.config.name,
            envelope=draft.envelope,
            message=draft.message,
            recipients=to,
            meta={"source": self.config.name},
            arrival_ns=now_ns,
            due_ns=now_ns,
        )
        event(self.log, "refused by a handler", level=logging.WARNING, reason=error.text, to=list(to))
        failures = [Failure(address, error.status, error.text) for address in to]
        return self._reports.of_failures(entry, failures)
