"""What the history of an entry says of its deliveries: written before the end of a message goes out and after the reply,
and read again when the entry comes back.

Guarantees: an outcome that can't be written down is kept in hand until it can.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from qrunner.clock import Clock
from qrunner.log import event
from qrunner.message import Entry
from qrunner.smtp.reply import Kind, Outcome

Write = Callable[[Entry, Mapping[str, Any]], None]

_SETTLED = frozenset({"delivered", "failed", "deferred", "expired"})
_DEALT_WITH = frozenset({"attempt", "hold", "rewrite"})


class Notes:
    """Writes the history of one entry over one host: the session's witness.

    :param write: adds a line to the history. ``conclude``: the same, of a line after which nobody is owed anything.
    :param assumes: what is in doubt counts as delivered.
    """

    def __init__(
        self,
        entry: Entry,
        host: str,
        write: Write,
        conclude: Write,
        clock: Clock,
        log: logging.Logger,
        *,
        assumes: bool,
    ) -> None:
        self.entry, self.host = entry, host
        self._write, self._conclude = write, conclude
        self._clock, self._log, self._assumes = clock, log, assumes
        self._owed = set(entry.recipients)
        self.noted: set[str] = set()
        self._unwritten: deque[tuple[Mapping[str, Any], Write]] = deque()

    def sending(self, addresses: Sequence[str]) -> None:
        """The end of a message to these is about to be sent."""
        self._write(self.entry, {"what": "sending", "to": list(addresses), "host": self.host})

    def settled(self, outcomes: Sequence[Outcome]) -> None:
        """What is final stands in the history at once; a refusal is reported with the commit, and until then only
        takes the mark back."""
        self.noted.update(one.address for one in outcomes)
        self._owed.difference_update(one.address for one in outcomes if one.is_over)
        records = grouped(self.host, outcomes)
        for record in records:
            self._keep(record, self._write if self._owed or record is not records[-1] else self._conclude)
            self._tell(record)
        doubtful = [one.address for one in outcomes if one.kind == "ambiguous"]
        if doubtful and self._assumes:
            self.assumed(doubtful)

    def assumed(self, addresses: Sequence[str]) -> None:
        """The site has decided that these got it."""
        reply = "assumed (on_ambiguous)"
        record = {"what": "delivered", "to": list(addresses), "host": self.host, "reply": reply}
        self._keep(record, self._write)

    def _keep(self, record: Mapping[str, Any], write: Write) -> None:
        self._unwritten.append((record, write))
        self._write_down()

    def _write_down(self) -> None:
        try:
            while self._unwritten:
                record, write = self._unwritten[0]
                write(self.entry, record)
                self._unwritten.popleft()
        except OSError as error:
            event(self._log, "outcome not written", id=self.entry.id, reason=str(error))

    @property
    def behind(self) -> bool:
        """Whether an outcome could not be written down yet."""
        return bool(self._unwritten)

    async def catch_up(self) -> None:
        """Returns when all outcomes are written down."""
        while self._unwritten:
            await self._clock.wait(asyncio.Event(), 1.0)
            self._write_down()

    def _tell(self, record: Mapping[str, Any]) -> None:
        what, to, reply = str(record["what"]), record["to"], record.get("reply")
        event(self._log, what, id=self.entry.id, to=to, host=self.host, reply=reply)


_NOTED: Mapping[Kind, str] = {
    "delivered": "delivered",
    "ambiguous": "ambiguous",
    "deferred": "deferred",
    "failed": "deferred",
}


def grouped(host: str, outcomes: Iterable[Outcome]) -> list[Mapping[str, Any]]:
    """Lines of history: one for all recipients that met the same."""
    lines: dict[tuple[str, str, bool], list[str]] = {}
    for outcome in outcomes:
        key = (_NOTED[outcome.kind], outcome.text, outcome.relayed)
        lines.setdefault(key, []).append(outcome.address)
    return [
        {"what": what, "to": to, "host": host, "reply": text, **({"relayed": True} if relayed else {})}
        for (what, text, relayed), to in lines.items()
    ]


def in_doubt(entry: Entry) -> tuple[str, tuple[str, ...]] | None:
    """The host and the recipients of a delivery whose reply was lost and that nobody has dealt with since."""
    doubtful: dict[str, str] = {}
    for line in entry.history:
        what, to = line.get("what"), line.get("to", ())
        if what in ("sending", "ambiguous"):
            doubtful.update((address, str(line.get("host", ""))) for address in to)
        elif what in _DEALT_WITH:
            doubtful.clear()
        elif what in _SETTLED:
            for address in to:
                doubtful.pop(address, None)
    owed = tuple(address for address in entry.recipients if address in doubtful)
    return (doubtful[owed[0]], owed) if owed else None
