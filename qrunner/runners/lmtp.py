"""The door ``lmtp``: mail comes in by LMTP (RFC 2033) or, with ``protocol = "smtp"``, by SMTP.

Guarantees: 250 is said for a message once it is durable in every queue it goes to, and to every recipient of it or to
none; sessions that end a message at the same time share their syncs. Whatever may end by itself, a disk without room
first of all, is a 4xx, and nothing of the message stays. Content is kept byte for byte, under one ``Received:`` line.
Mail for a recipient that ``accept`` does not name is refused.

Not guaranteed: secrecy; there is no TLS and no password, so it belongs on loopback, a Unix socket or a network of
one's own. That a client whose connection broke after its message does not send it again (RFC 1047).

Configuration: ``listen protocol accept max_connections max_size max_recipients max_line max_memory idle_timeout
socket_mode``.

Failures: a ``ConfigError`` from ``start``, where it can't listen.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence, Set
from datetime import datetime
from functools import partial

from qrunner.clock import to_datetime
from qrunner.config import Listen
from qrunner.errors import ConfigError
from qrunner.log import event
from qrunner.match import Pattern
from qrunner.message import Draft
from qrunner.runner import Desk, Door
from qrunner.smtpd.listener import Listener
from qrunner.smtpd.room import Room
from qrunner.smtpd.session import Session
from qrunner.smtpd.terms import Terms

# With these a local part names a way: whoever is handed the mail may go it, for anybody (RFC 5321 appendix F.2).
_ROUTING = "%!@"


class LmtpRunner(Door):
    """The stock runner ``lmtp``."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        said = desk.config.settings
        self.terms = Terms(
            desk.site.config.site.hostname,
            said["protocol"],
            said["max_connections"],
            said["max_size"],
            said["max_recipients"],
            said["max_line"],
            said["idle_timeout"],
            said["max_memory"],
        )
        self._accept: tuple[Pattern, ...] | None = said["accept"]
        self._listen: Listen | None = said["listen"]
        self.room = Room(self.terms.max_connections, self.terms.max_memory)
        self.listener: Listener | None = None

    async def start(self) -> None:
        """Listens. :raises ConfigError: it can't, or anybody could send to anybody through it."""
        place = self._listen
        if place is None:
            raise ConfigError(f"{self.name}: listen is missing")
        if self._accept is None and not place.is_local:
            raise ConfigError(
                f"{self.name}: accept is missing, and {place} can be reached from other machines"
            )
        mode = int(self.desk.config.settings["socket_mode"], 8)
        make = partial(Session, self.terms, self, self.room, self.log)
        self.listener = Listener(place, make, self.room, self.log, mode=mode)
        await self.listener.open()

    async def serve(self, stopping: asyncio.Event) -> None:
        """Sessions live by themselves; at the end a message that is coming in is waited for, and nothing else."""
        try:
            await stopping.wait()
            self._close()
            await self.room.clear()
        finally:
            self.room.abort()

    async def cleanup(self) -> None:
        """Stops listening, if it still does."""
        self._close()
        self.room.abort()

    def _close(self) -> None:
        if self.listener is not None:
            self.listener.close()

    # What a session asks: it is its keeper.

    def now(self) -> datetime:
        """The site's time."""
        return to_datetime(self.clock.now_ns())

    def closed(self) -> str:
        """A suspended door takes nothing, which drains it."""
        return "no mail is taken just now: try again later" if self.suspension is not None else ""

    def accepts(self, address: str) -> bool:
        """Whether ``accept`` names this recipient."""
        if self._accept is None:
            return True
        ways = {character for character in _ROUTING if character in address.rpartition("@")[0]}
        return any(pattern.fits(address) and _means(pattern, ways) for pattern in self._accept)

    async def take(self, draft: Draft, *, peer: str) -> tuple[str, ...]:
        """Hands it in; raises as ``Intake.take``."""
        return await self.intake.take(draft, peer=peer)

    def refused(self, reply: str, *, to: Sequence[str], sender: str, peer: str) -> None:
        """Says so in the log."""
        event(self.log, "refused", level=logging.INFO, to=list(to), sender=sender, peer=peer, reply=reply)


def _means(pattern: Pattern, ways: Set[str]) -> bool:
    """Whether a pattern that fits is meant for a local part that names a way on: ``*@here`` is not for ``a%there@here``."""
    return pattern.text == "*" or ways <= set(pattern.text.rpartition("@")[0])
