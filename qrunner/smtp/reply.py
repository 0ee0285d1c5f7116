"""What a host said, and what it means for a recipient."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["delivered", "failed", "deferred", "ambiguous"]

_ENHANCED = re.compile(r"([245])\.(\d{1,3})\.(\d{1,3})(?=\s|\Z)")


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply (RFC 5321 section 4.2). ``text`` is what followed the code, a line each."""

    code: int
    text: str = ""

    @property
    def is_success(self) -> bool:
        """Any 2xx: which of them tells a program nothing (section 4.3.2)."""
        return 200 <= self.code < 300

    @property
    def is_intermediate(self) -> bool:
        """Any 3xx: go on."""
        return 300 <= self.code < 400

    @property
    def is_permanent(self) -> bool:
        """Any 5xx."""
        return 500 <= self.code < 600

    @property
    def is_closing(self) -> bool:
        """The host goes away (section 3.8): says nothing about the message."""
        return self.code == 421

    @property
    def status(self) -> str:
        """The enhanced status code (RFC 3463): the reply's own if its class is the code's, else a general one."""
        found = _ENHANCED.match(self.text)
        if found and found[1] == str(self.code)[0]:
            return found[0]
        return "5.0.0" if self.is_permanent else "2.0.0" if self.is_success else "4.0.0"

    @property
    def means_too_many(self) -> bool:
        """To a RCPT after accepted ones: enough for this transaction (section 4.5.3.1.10; RFC 3463, 5.5.3)."""
        return self.code == 452 or (self.code == 552 and self.status == "5.5.3")

    def __str__(self) -> str:
        return f"{self.code} {' '.join(self.text.split())}".strip()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one recipient.

    ``text`` is the host's reply if it ``said`` so, else what happened instead; ``status`` is an enhanced code.
    ``relayed``: the sender wants to hear of success, and will not from this host.
    """

    address: str
    kind: Kind
    text: str
    status: str
    said: bool = False
    relayed: bool = False

    @property
    def is_over(self) -> bool:
        """Whether nobody has to do anything more for this recipient."""
        return self.kind == "delivered" and not self.relayed

    @classmethod
    def of(cls, address: str, reply: Reply) -> Outcome:
        """By the reply's class: what is neither 2xx nor 5xx is a reason to try again."""
        kind: Kind = "delivered" if reply.is_success else "failed" if reply.is_permanent else "deferred"
        return cls(address, kind, str(reply), reply.status, said=True)
