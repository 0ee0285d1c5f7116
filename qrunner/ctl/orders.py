"""What the command line of ``inject`` says of every message, and what a message becomes by it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qrunner.addressing import taken_from_headers
from qrunner.ctl.letters import Letter
from qrunner.ctl.mbox import Quoting
from qrunner.ctl.selectors import unique
from qrunner.errors import PermanentFailure
from qrunner.message import Draft, Envelope

# Written down, a character may take six times its room, and the file's format has an end.
_LONGEST_ENVELOPE = 10_000_000


@dataclass(frozen=True, slots=True)
class Order:
    """The options. ``fallback`` is the sender if nothing else names one."""

    fallback: str
    queue: str
    sender: str | None
    recipients: tuple[str, ...]
    meta: Mapping[str, str]
    from_headers: bool
    no_recipients: bool
    max_size: int
    quoting: Quoting = "mboxrd"

    @property
    def command(self) -> dict[str, Any]:
        """What makes it another command than one that differs in it."""
        return {
            "queue": self.queue,
            "sender": self.sender,
            "recipients": list(self.recipients),
            "meta": dict(self.meta),
            "-t": self.from_headers,
            "no_recipients": self.no_recipients,
            "quoting": self.quoting,
        }

    def draft(self, letter: Letter) -> Draft:
        """What is to be queued of a message. :raises PermanentFailure: it can't be."""
        message = letter.message
        if message is None:
            raise PermanentFailure(letter.trouble)
        if self.max_size and len(message) > self.max_size:
            raise PermanentFailure(f"larger than {self.max_size} bytes")
        recipients = list(self.recipients)
        if self.from_headers:
            addressed, message = taken_from_headers(message)
            recipients += addressed
        if not recipients and not self.no_recipients:
            recipients += letter.recipients
            if not recipients:
                raise PermanentFailure("no recipient")
        sender = self.sender if self.sender is not None else letter.sender
        envelope = Envelope.of(self.fallback if sender is None else sender, unique(recipients))
        if len(envelope.sender) + sum(map(len, envelope.addresses)) > _LONGEST_ENVELOPE:
            raise PermanentFailure("its envelope is too long")
        return Draft(message, envelope, self.meta)
