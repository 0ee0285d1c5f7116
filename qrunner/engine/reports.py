"""Whom one runner tells what: reports of failures and of delays, and what is left out of them.

Guarantees: no more than one report an hour about mail from one sender to one address; those left out are logged, each
of them, counted, and named in the next report. A report that fails is reported to the postmaster; if it was for him,
it stands in the log and that is all.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qrunner.config import RunnerConfig
from qrunner.fate import Failure, Later
from qrunner.log import event
from qrunner.message import Entry, relayed
from qrunner.report import About, Action, audience, build, is_last_word
from qrunner.site import Site
from qrunner.switchboard import Add

WARNED = "warned"
_STATUS = re.compile(r"2\d\d (2\.\d{1,3}\.\d{1,3})(?=\s|\Z)")


@dataclass(frozen=True, slots=True)
class Reports:
    """What one runner has to say."""

    site: Site
    config: RunnerConfig
    log: logging.Logger

    def of_failures(self, entry: Entry, failures: Sequence[Failure]) -> tuple[Add, ...]:
        """What is added to the commit that gives these up."""
        if not failures:
            return ()
        if is_last_word(entry, self.site.config.site.postmaster):
            gone = [failure.address for failure in failures]
            event(self.log, "nobody told", level=logging.ERROR, id=entry.id, to=gone, reason=failures[0].text)
            return ()
        to, told = self._audience(entry, failures, "failed")
        return self._report(entry, to, told, "failed") if told else ()

    def of_delay(
        self, entry: Entry, later: Later, waiting: Sequence[str], left_ns: int
    ) -> tuple[Add, ...] | None:
        """What is added to the commit that lets these wait, if they have waited for long; None: it has been said, or
        nobody is to hear of it.

        :param left_ns: for how long they will be tried, if nothing stands in the way.
        """
        if any(line.get("what") == WARNED for line in entry.history):
            return None
        met = {one.address: one for one in later.of}
        usual = (Failure(address, later.status, later.text, later.host) for address in waiting)
        late = [met.get(one.address, one) for one in usual if not met or one.address in met]
        to, told = self._audience(entry, late, "delayed")
        until = self.site.clock.now_ns() + max(0, left_ns)
        return self._report(entry, to, told, "delayed", until) if told else None

    def of_success(self, entry: Entry) -> tuple[tuple[Add, ...], list[str]]:
        """What is added to the next commit because recipients got it from a host that reports no success, and who they
        are. Each is asked for, so none is left out."""
        untold = relayed(entry.history)
        if not untold:
            return (), []
        told = [self._passed_on(address, line) for address, line in untold.items()]
        to, wanted = self._audience(entry, told, "relayed")
        return self._report(entry, to, wanted, "relayed") if wanted else (), list(untold)

    def _place(self, name: str) -> str:
        """A host's name in the DNS; we may call it otherwise."""
        hosts = self.site.config.smtp
        if name in hosts:
            return hosts[name].host or name
        host, _, found_by = name.rpartition(":")
        return host if found_by in hosts else name

    def _passed_on(self, address: str, line: Mapping[str, Any]) -> Failure:
        """A recipient as a report names him, with the host's words."""
        reply, name = str(line.get("reply") or ""), str(line.get("host") or "")
        status = _STATUS.match(reply)
        return Failure(address, status[1] if status else "2.0.0", reply, name)

    def _audience(
        self, entry: Entry, failures: Sequence[Failure], action: Action
    ) -> tuple[str, tuple[Failure, ...]]:
        postmaster = self.site.config.site.postmaster
        return audience(entry, failures, report=self.config.report, postmaster=postmaster, action=action)

    def _report(
        self, entry: Entry, to: str, told: Sequence[Failure], action: Action, until: int | None = None
    ) -> tuple[Add, ...]:
        site, now = self.site.config.site, self.site.clock.now_ns()
        said, left_out = (list(told), {}) if action == "relayed" else self._sparing(entry, told, action, now)
        if not said:
            return ()
        said = [replace(one, host=self._place(one.host)) for one in said]
        draft = build(entry, said, to, About(site.hostname, now, action, until, left_out))
        return tuple(Add(part, queue, now) for queue, part in self.site.parts(site.report_queue, draft, now))

    def _sparing(
        self, entry: Entry, told: Sequence[Failure], action: Action, now_ns: int
    ) -> tuple[list[Failure], dict[str, int]]:
        """Those that may be reported now, and of each how many like it were left out before."""
        keys = {one.address: f"{action} <{entry.sender}> <{one.address}>".lower() for one in told}
        answers = self.site.tally.ask(keys.values(), entry.id, now_ns)
        said: list[Failure] = []
        left_out: dict[str, int] = {}
        for one in told:
            answer = answers[keys[one.address]]
            if answer.may:
                said.append(one)
                left_out[one.address] = answer.left_out
                continue
            event(
                self.log,
                "report left out",
                level=logging.WARNING,
                id=entry.id,
                to=one.address,
                sender=entry.sender,
                left_out=answer.left_out,
                status=one.status,
                reason=one.text,
            )
        return said, left_out
