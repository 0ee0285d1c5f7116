"""One entry over one connection: transactions, and an outcome for every recipient.

Guarantees: each recipient has exactly one outcome at the end, or is put off. Replies that were read survive the connection's
end. Nothing is sent after a reply that could belong to something else. Before the end of a message goes out
``Witness.sending`` has returned; after a final reply, or its loss, ``Witness.settled`` is told before anything else
happens, even if the task is cancelled meanwhile.

Not guaranteed: that the host did not take a message whose final reply was lost (RFC 1047): ``ambiguous``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from qrunner.message import Envelope, Recipient
from qrunner.smtp import wire
from qrunner.smtp.channel import Channel, Lost
from qrunner.smtp.reply import Kind, Outcome, Reply
from qrunner.verp import sender_for

LOST_STATUS = "4.4.2"
_NO_UTF8 = "the host does not take addresses that are not ASCII (SMTPUTF8)"


class Witness(Protocol):
    """Writes down what must be known after a crash."""

    async def sending(self, addresses: Sequence[str]) -> None:
        """The end of a message to these is about to be sent. What this raises keeps it from being sent."""
        ...

    async def settled(self, outcomes: Sequence[Outcome]) -> None:
        """What became of them."""
        ...


@dataclass(slots=True)
class Delivery:
    """What one connection did for an entry.

    ``lost``: the connection ended inside a transaction. ``slower``: the host said 421. ``stale``: it had ended
    before the first word, so nothing was tried at all. ``put_off``: those for whom nothing was tried, since a further
    message to this host must wait for ``put_off_s`` seconds; they alone have no outcome.
    """

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    lost: bool = False
    slower: bool = False
    stale: bool = False
    put_off: tuple[str, ...] = ()
    put_off_s: float = 0.0

    def of_kind(self, *kinds: Kind) -> list[Outcome]:
        """The outcomes of these kinds, in the order in which they came."""
        return [outcome for outcome in self.outcomes.values() if outcome.kind in kinds]

    def words(self) -> str:
        """The last bad news."""
        return next((one.text for one in reversed(self.outcomes.values()) if one.kind != "delivered"), "")


class Session:
    """The way of one message over one channel.

    :param max_recipients: of one transaction.
    :param reused: the channel has waited since its last message, and may have been closed by the host meanwhile.
    :param verp: delimiters: the sender names the recipient, so that each has a transaction of its own.
    :param another: awaited before each transaction but the first; what is not 0 is when the rest may come again.
    """

    def __init__(
        self,
        channel: Channel,
        witness: Witness,
        *,
        max_recipients: int = 50,
        reused: bool = False,
        verp: str = "",
        another: Callable[[], Awaitable[float]] | None = None,
    ) -> None:
        self._channel, self._witness = channel, witness
        self._max, self._reused, self._verp = max(max_recipients, 1), reused, verp
        self._another = another
        self._said_something = self._marked = self._dotted = False
        self._delivery = Delivery()

    async def deliver(self, envelope: Envelope, recipients: Sequence[Recipient], message: bytes) -> Delivery:
        """Tries all recipients. Raises only what the witness raised, or cancellation."""
        self._envelope, self._message = envelope, message
        if not envelope.sender:
            self._verp = ""
        if self._verp:
            self._max = 1
        left = self._sayable(recipients)
        try:
            while left:
                left = await self._transaction(left[: self._max]) + left[self._max :]
                if left and not await self._goes_on():
                    self._delivery.put_off = tuple(one.address for one in left)
                    break
        except Lost as error:
            self._delivery.lost = True
            self._give_up(recipients, str(error))
        except _Refused as refusal:
            for recipient in recipients:
                self._set(recipient.address, refusal.reply)
        return self._delivery

    async def _goes_on(self) -> bool:
        """Whether there may be one more transaction."""
        if self._another is not None:
            self._delivery.put_off_s = await self._another()
        return self._delivery.put_off_s == 0

    def _set(self, address: str, reply: Reply) -> None:
        self._delivery.outcomes.setdefault(address, Outcome.of(address, reply))

    def _give_up(self, recipients: Sequence[Recipient], text: str) -> None:
        if self._reused and not self._said_something:
            self._delivery.stale, self._delivery.lost = True, False
            return
        for one in recipients:
            self._delivery.outcomes.setdefault(
                one.address, Outcome(one.address, "deferred", text, LOST_STATUS)
            )

    def _sayable(self, recipients: Sequence[Recipient]) -> list[Recipient]:
        """Those that may be put on the wire for this host; the others fail here."""
        offer = self._channel.offer
        if not offer.has("SMTPUTF8") and wire.needs_utf8(self._envelope, ()):
            return self._unsayable(recipients, wire.Unsendable(_NO_UTF8, "5.6.7"))
        kept = []
        for recipient in recipients:
            try:
                wire.rcpt_command(recipient, offer)
                if not recipient.address.isascii() and not offer.has("SMTPUTF8"):
                    raise wire.Unsendable(_NO_UTF8, "5.6.7")
                kept.append(recipient)
            except wire.Unsendable as error:
                self._unsayable([recipient], error)
        return kept

    def _unsayable(self, recipients: Sequence[Recipient], error: wire.Unsendable) -> list[Recipient]:
        for recipient in recipients:
            failed = Outcome(recipient.address, "failed", error.text, error.status)
            self._delivery.outcomes.setdefault(recipient.address, failed)
        return []

    async def _transaction(self, batch: list[Recipient]) -> list[Recipient]:
        """One transaction; returns those of the batch that the host wants in another one."""
        try:
            mail = self._mail(batch)
        except wire.Unsendable as error:
            return self._unsayable(batch, error)
        if not await self._mailed(mail, batch):
            return []
        accepted, again = await self._ask(batch)
        if not accepted:
            await self._reset()
            return again
        start = await self._command(b"DATA")
        if not 300 <= start.code < 400:
            # 2xx to DATA is nonsense, and becomes a reason to try again like any other.
            refusal = start if not start.is_success else Reply(451, f"DATA was answered with {start}")
            self._answer(accepted, refusal)
            await self._reset()
            return again
        await self._send(accepted)
        return again

    def _mail(self, batch: list[Recipient]) -> bytes:
        size = len(wire.body(self._message)) if self._channel.offer.has("SIZE") else 0
        sender = sender_for(self._envelope.sender, batch[0].address, self._verp)
        envelope = replace(self._envelope, sender=sender)
        return wire.mail_command(
            envelope,
            self._channel.offer,
            size,
            is_8bit=not self._message.isascii(),
            utf8=wire.needs_utf8(envelope, [one.address for one in batch]),
        )

    async def _mailed(self, line: bytes, batch: list[Recipient]) -> bool:
        """Whether the host takes the sender. :raises _Refused: nobody is reached over this host with it."""
        reply = await self._command(line)
        if reply.is_success:
            return True
        await self._reset()
        if not self._verp:
            raise _Refused(reply)
        # The sender was this recipient's own.
        self._answer([one.address for one in batch], reply)
        return False

    async def _command(self, line: bytes) -> Reply:
        if not self._channel.is_clean:
            raise Lost("the connection is no longer usable")
        reply = await self._channel.command(line)
        if reply.is_closing:
            self._channel.close()
            if self._reused and not self._said_something:
                raise Lost(str(reply))
            self._delivery.slower = True
            raise _Refused(reply)
        self._said_something = True
        return reply

    async def _ask(self, batch: list[Recipient]) -> tuple[list[str], list[Recipient]]:
        """Every RCPT; those accepted, and those for whom there was no room after them."""
        accepted: list[str] = []
        for at, recipient in enumerate(batch):
            reply = await self._command(wire.rcpt_command(recipient, self._channel.offer))
            if reply.is_success:
                accepted.append(recipient.address)
            elif accepted and reply.means_too_many:
                return accepted, batch[at:]
            else:
                self._set(recipient.address, reply)
        return accepted, []

    async def _reset(self) -> None:
        """Ends a transaction without a message; a connection that can't do that is of no more use."""
        try:
            reply = await self._channel.command(b"RSET")
        except Lost:
            return
        if not reply.is_success:
            self._channel.close()

    async def _send(self, accepted: list[str]) -> None:
        self._marked = self._dotted = False

        async def before_dot() -> None:
            self._marked = True
            await to_the_end(self._witness.sending(accepted))
            self._dotted = True

        try:
            reply = await self._channel.body(self._message, before_dot)
        except Lost as error:
            await self._unanswered(accepted, str(error))
            raise
        except asyncio.CancelledError:
            await self._unanswered(accepted, "stopped")
            raise
        if reply.is_closing:
            self._delivery.slower = True
            self._channel.close()
        self._answer(accepted, reply)
        await to_the_end(self._witness.settled([self._delivery.outcomes[one] for one in accepted]))

    def _answer(self, addresses: Sequence[str], reply: Reply) -> None:
        for address in addresses:
            self._set(address, reply)

    async def _unanswered(self, accepted: list[str], text: str) -> None:
        """The connection, or our patience, ended before a final reply. If the end of the message was not on its way
        the mark must be taken back, or it would be read as a doubt."""
        if not self._marked:
            return
        kind: Kind = "ambiguous" if self._dotted else "deferred"
        outcomes = [Outcome(address, kind, text, LOST_STATUS) for address in accepted]
        self._delivery.outcomes.update((outcome.address, outcome) for outcome in outcomes)
        await to_the_end(self._witness.settled(outcomes))


class _Refused(Exception):
    """A reply that ends the attempt for every recipient who has no outcome yet."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(str(reply))
        self.reply = reply


async def to_the_end(act: Coroutine[Any, Any, None]) -> None:
    """Awaits something that must not be left half done; a cancellation comes through after it."""
    task = asyncio.ensure_future(act)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise
