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
from dataclasses import replace
from typing import Any, NoReturn

from qrunner.message import Envelope, Recipient, notifies
from qrunner.smtp import wire
from qrunner.smtp.channel import Channel, Lost
from qrunner.smtp.delivery import Delivery, Witness
from qrunner.smtp.reply import Kind, Outcome, Reply
from qrunner.verp import sender_for

__all__ = ["LOST_STATUS", "Delivery", "Session", "Witness"]

LOST_STATUS = "4.4.2"
_NO_UTF8 = "the host does not take addresses that are not ASCII (SMTPUTF8)"


# To MAIL, to RCPTs, and to DATA if that was sent.
Answers = tuple[Reply, list[tuple[Recipient, Reply]], Reply | None]


class Session:
    """The way of one message over one channel.

    :param max_recipients: of one transaction.
    :param reused: the channel has waited since its last message, and may have been closed by the host meanwhile.
    :param verp: delimiters: the sender names the recipient, so that each has a transaction of its own.
    :param slowly: one command at a time, whatever the host offers.
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
        slowly: bool = False,
    ) -> None:
        self._channel, self._witness = channel, witness
        self._max, self._reused, self._verp = max(max_recipients, 1), reused, verp
        self._another, self._slowly = another, slowly
        self._said_something = self._marked = self._dotted = False
        self._delivery = Delivery()
        self._rcpt: dict[str, bytes] = {}

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
                self._rcpt[recipient.address] = wire.rcpt_command(recipient, offer)
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
        together = self._channel.offer.has("PIPELINING") and not self._slowly
        first, answers, start = await (self._together if together else self._one_by_one)(mail, batch)
        if not first.is_success:
            await self._end(start)
            self._sender_refused(first, batch)
            return []
        accepted, again = _sorted_out(answers)
        wants_message = start is not None and start.is_intermediate
        if not wants_message and not await self._reset(believes=not together):
            self._moved()
        self._refuse(answers, but=again)
        if accepted and wants_message:
            await self._send(accepted)
        elif accepted and start is not None:
            self._answer(accepted, start)
        elif wants_message:
            await self._nothing()
        return again + batch[len(answers) :]

    async def _one_by_one(self, mail: bytes, batch: list[Recipient]) -> Answers:
        """Each command when the one before it has been answered, and none that would be of no use."""
        answers: list[tuple[Recipient, Reply]] = []
        try:
            first, start = await self._command(mail), None
            for one in batch if first.is_success else ():
                reply = await self._command(self._rcpt[one.address])
                if reply.means_too_many and _sorted_out(answers)[0]:
                    break
                answers.append((one, reply))
            if _sorted_out(answers)[0]:
                start = await self._command(b"DATA")
        except (Lost, _Refused):
            if not self._channel.has_surplus:
                self._refuse(answers)
            raise
        if start is not None and start.is_success:
            self._moved()
        return first, answers, start

    async def _together(self, mail: bytes, batch: list[Recipient]) -> Answers:
        """All commands up to DATA at once (RFC 2920)."""
        rcpt = [self._rcpt[one.address] for one in batch]
        try:
            replies = await self._channel.commands([mail, *rcpt, b"DATA"])
        except Lost as error:
            if _are_moved(error.replies) or self._channel.has_surplus:
                self._moved()
            self._heard(error.replies, batch)
            raise
        first, *middle, start = replies
        if _are_moved(replies[:-1]) or start.is_success or self._channel.has_surplus:
            self._moved()
        self._heard(replies, batch)
        return first, list(zip(batch, middle, strict=True)), start

    def _moved(self) -> NoReturn:
        """A reply too many, or too few, moves all that follow it by one place, and calls the wrong recipient refused. So no
        refusal is believed before 354 stands in the place of DATA's reply, or RSET was answered as it must be."""
        self._delivery.moved, self._said_something = True, True
        self._channel.close()
        raise Lost("the host's replies are not those to what it was asked")

    def _heard(self, replies: Sequence[Reply], batch: list[Recipient]) -> None:
        """Replies to several commands, perhaps not all. If the host went away, those that came before count.

        :raises _Refused: it said that it would.
        """
        for at, reply in enumerate(replies):
            if reply.is_closing:
                self._some(replies[:at], batch)
                self._closing(reply)
            self._said_something = True
        if len(replies) < len(batch) + 2:
            self._some(replies, batch)

    def _some(self, replies: Sequence[Reply], batch: list[Recipient]) -> None:
        if replies and not replies[0].is_success:
            self._sender_refused(replies[0], batch)
        self._refuse(list(zip(batch, replies[1:], strict=False)))

    def _refuse(self, answers: Sequence[tuple[Recipient, Reply]], but: Sequence[Recipient] = ()) -> None:
        for one, reply in answers:
            if not reply.is_success and one not in but:
                self._set(one.address, reply)

    def _sender_refused(self, reply: Reply, batch: list[Recipient]) -> None:
        """:raises _Refused: nobody is reached over this host with it."""
        if not self._verp:
            raise _Refused(reply)
        # The sender was this recipient's own.
        self._answer([one.address for one in batch], reply)

    async def _end(self, start: Reply | None) -> None:
        """Ends a transaction whose sender was refused. Who wants a message all the same does not get one."""
        if start is not None and start.is_intermediate:
            self._channel.close()
        else:
            await self._reset()

    async def _nothing(self) -> None:
        """The host wants a message though it has accepted nobody: it gets a dot (RFC 2920 section 3.1)."""

        reply = await self._channel.body(b"", lambda: None)
        if reply.is_closing:
            self._delivery.slower = True
            self._channel.close()

    def _mail(self, batch: list[Recipient]) -> bytes:
        size = wire.size(self._message) if self._channel.offer.has("SIZE") else 0
        sender = sender_for(self._envelope.sender, batch[0].address, self._verp)
        envelope = self._envelope
        if sender != envelope.sender:
            envelope = replace(envelope, sender=sender)
        return wire.mail_command(
            envelope,
            self._channel.offer,
            size,
            is_8bit=not self._message.isascii(),
            utf8=wire.needs_utf8(envelope, [one.address for one in batch]),
        )

    async def _command(self, line: bytes) -> Reply:
        if not self._channel.is_clean:
            raise Lost("the connection is no longer usable")
        reply = await self._channel.command(line)
        if reply.is_closing:
            self._closing(reply)
        self._said_something = True
        return reply

    def _closing(self, reply: Reply) -> NoReturn:
        """The host goes away. :raises Lost, _Refused: before the first word, or later."""
        self._channel.close()
        if self._reused and not self._said_something:
            raise Lost(str(reply))
        self._delivery.slower = True
        raise _Refused(reply)

    async def _reset(self, *, believes: bool = True) -> bool:
        """Ends a transaction without a message; a connection that can't do that is of no more use.

        :param believes: any answer will do.
        :returns: whether it says nothing against the replies before it.
        """
        try:
            reply = await self._channel.command(b"RSET")
        except Lost:
            return not self._channel.has_surplus
        if not reply.is_success:
            self._channel.close()
        return (believes or reply.is_success) and not self._channel.has_surplus

    async def _send(self, accepted: list[str]) -> None:
        self._marked = self._dotted = False

        def before_dot() -> None:
            self._marked = True
            self._witness.sending(accepted)
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
        if reply.is_success and not self._channel.offer.has("DSN"):
            self._relayed(accepted)
        await self._settled([self._delivery.outcomes[one] for one in accepted])

    def _relayed(self, addresses: Sequence[str]) -> None:
        """What RFC 3461 section 5.2.2 owes the sender if the host does not know of it."""
        asking = {one.address for one in self._envelope.recipients if notifies(one.notify, "SUCCESS")}
        for address in asking.intersection(addresses):
            self._delivery.outcomes[address] = replace(self._delivery.outcomes[address], relayed=True)

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
        await self._settled(outcomes)

    async def _settled(self, outcomes: Sequence[Outcome]) -> None:
        self._witness.settled(outcomes)
        if self._witness.behind:
            await to_the_end(self._witness.catch_up())


def _sorted_out(answers: Sequence[tuple[Recipient, Reply]]) -> tuple[list[str], list[Recipient]]:
    """Those accepted, and those for whom there was no room after them."""
    accepted: list[str] = []
    again: list[Recipient] = []
    for one, reply in answers:
        if reply.is_success:
            accepted.append(one.address)
        elif accepted and reply.means_too_many:
            again.append(one)
    return accepted, again


def _are_moved(replies: Sequence[Reply]) -> bool:
    """Whether the replies to MAIL and to RCPTs, perhaps not all of them, can't be those: a 3xx belongs to DATA, and "bad
    sequence of commands" is no answer to them in this sequence."""
    out_of_place = replies and (
        replies[0].code == 503 or replies[0].is_success and 503 in {one.code for one in replies}
    )
    return bool(out_of_place) or any(one.is_intermediate for one in replies)


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
