"""One connection of a client, as LMTP or SMTP (RFC 2033, RFC 5321), on aiosmtpd's protocol class.

From aiosmtpd come the streams with their flow control, the timer, the state of a session and the table of commands.
Ours is what it does otherwise than a queue needs it: each reply has an enhanced status code, and those to pipelined
commands go out together; LMTP answers once for each recipient, whatever happens to the message; a message is read in
pieces and not line by line, and ends at CRLF, dot, CRLF only; a client that has sent everything and closed its half is
still answered; parameters keep their case.

Guarantees: 250 for a message is said after ``Keeper.take`` has returned, and for nothing else. A message that the
client did not end is not taken. A client that says nothing whole within ``idle_timeout``, or nothing to the point in
a hundred commands, is sent away.

Not guaranteed: that a client whose connection breaks learns what became of its last message (RFC 1047).
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from aiosmtpd.smtp import SMTP

from qrunner.log import event
from qrunner.message import Draft, Recipient
from qrunner.smtpd import answers
from qrunner.smtpd.body import Body, has_longer_line
from qrunner.smtpd.grammar import Mail, Refusal, mail, rcpt
from qrunner.smtpd.inlet import PIECE, Inlet, LongLine
from qrunner.smtpd.room import Room
from qrunner.smtpd.terms import Keeper, Terms
from qrunner.smtpd.trace import protocol_name, received

_LONGEST_COMMAND = 4096
_POINTLESS = 100
_LINGER_S = 2.0
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_BYE = frozenset({b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"CONNECT"})
_COMMANDS = ("DATA", "HELP", "MAIL", "NOOP", "QUIT", "RCPT", "RSET", "VRFY")
_HELLOS = {True: ("LHLO",), False: ("EHLO", "HELO")}
_OFFERED = ("PIPELINING", "8BITMIME", "SMTPUTF8", "DSN", "ENHANCEDSTATUSCODES")

Command = Callable[[str], Awaitable[None]]


class Session(SMTP):
    """One of them; made for each connection, and in ``room`` until it ends."""

    line_length_limit = PIECE

    def __init__(self, terms: Terms, keeper: Keeper, room: Room, log: logging.Logger) -> None:
        super().__init__(
            None,
            data_size_limit=terms.max_size,
            enable_SMTPUTF8=True,
            hostname=terms.hostname,
            timeout=terms.idle_timeout_s,
            loop=asyncio.get_running_loop(),
        )
        self._terms, self._keeper, self._room, self._log = terms, keeper, room, log
        self._commands: dict[bytes, Command] = {
            name.encode(): self._smtp_methods[name] for name in (*_COMMANDS, *_HELLOS[terms.is_lmtp])
        }
        self._offered = (*_OFFERED, f"SIZE {terms.max_size}")
        self._peer = ""
        self._replies: list[bytes] = []
        self._pointless = 0
        self._deadline = 0.0
        self._in_data = self._is_taking = self._is_stopping = self._has_ended = False
        self._mail: Mail | None = None
        self._recipients: dict[str, Recipient] = {}
        self._answers_owed = 0
        room.enter(self)

    # The connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        name = transport.get_extra_info("peername")
        self._peer = str(name[0]) if isinstance(name, tuple) else ""
        self._inlet = Inlet(self._reader)

    def connection_lost(self, error: Exception | None) -> None:
        self._has_ended = True
        super().connection_lost(error)
        self._room.leave(self)

    def eof_received(self) -> bool | None:
        """It has no more to say, and may still listen."""
        return asyncio.StreamReaderProtocol.eof_received(self)

    def stop(self) -> None:
        """Ends it, once a message that is under way has been answered."""
        self._is_stopping = True
        if not self._in_data:
            self._say_bye("421 4.3.2 the service stops: try again later")

    def abort(self) -> None:
        """Ends it at once."""
        if isinstance(self.transport, asyncio.WriteTransport):
            self.transport.abort()

    def _say_bye(self, text: str) -> None:
        """The last reply. A client that does not read it is not waited for."""
        if self._has_ended or not isinstance(self.transport, asyncio.WriteTransport):
            return
        self._has_ended = True
        self._replies.append(answers.line(text) + b"\r\n")
        self.transport.write(b"".join(self._replies))
        self._replies.clear()
        self.transport.close()
        if self.transport.get_write_buffer_size():
            self.loop.call_later(_LINGER_S, self.transport.abort)

    # Its time

    def _reset_timeout(self, duration: float | None = None) -> None:
        """Something whole was said. The timer itself is left alone: it asks when it rings."""
        self._deadline = self.loop.time() + self._timeout_duration
        if self._timeout_handle is None:
            self._timeout_handle = self.loop.call_at(self._deadline, self._timeout_cb)

    def _timeout_cb(self) -> None:
        if self._is_taking:
            self._deadline = self.loop.time() + self._timeout_duration
        if self.loop.time() < self._deadline:
            self._timeout_handle = self.loop.call_at(self._deadline, self._timeout_cb)
            return
        self._say_bye("421 4.4.2 nothing came for too long")

    # The talk

    async def _handle_client(self) -> None:
        try:
            await self._talk()
        except (EOFError, OSError):
            pass
        except asyncio.CancelledError:
            self._room.free(self)
            raise
        except Exception as error:
            event(self._log, "session failed", level=logging.ERROR, peer=self._peer, exc=error)
            self._say_bye(answers.NOT_NOW.replace("451", "421", 1))
        self._room.free(self)
        if self.transport is not None:
            self.transport.close()

    async def _talk(self) -> None:
        kind = "LMTP" if self._terms.is_lmtp else "ESMTP"
        await self.push(f"220 {self._terms.hostname} {kind} qrunner")
        while not self._has_ended:
            if self._is_stopping:
                self.stop()
                return
            if not self._inlet.has_line:
                await self._flush()
            try:
                line = await self._inlet.line(_LONGEST_COMMAND)
            except LongLine:
                await self._pointless_reply("500 5.5.2 the line is too long")
                continue
            self._reset_timeout()
            await self._obey(line)

    async def _obey(self, line: bytes) -> None:
        verb, _, rest = line.rstrip(b"\r\n").partition(b" ")
        verb = verb.upper()
        if verb in _BYE or verb.endswith(b":"):
            # A browser that was made to post to this port; what it posts may look like mail.
            self._say_bye("554 5.5.1 this is a mail server")
            return
        if not line.endswith(b"\r\n") or _CONTROL.search(line, 0, len(line) - 2):
            await self._pointless_reply("500 5.5.2 a command is a line of text that ends with CRLF")
            return
        command = self._commands.get(verb)
        try:
            argument = rest.decode().strip(" ")
        except UnicodeDecodeError:
            await self._pointless_reply("500 5.5.2 this is not UTF-8")
            return
        if command is None:
            await self._pointless_reply("500 5.5.1 this command is not known here")
            return
        try:
            await command(argument)
        except Refusal as refusal:
            await self._pointless_reply(str(refusal))

    async def push(self, status: Any) -> None:
        """A reply. It goes out when the client has nothing more to say for now."""
        self._replies.append(answers.line(status) + b"\r\n")

    async def _flush(self) -> None:
        if self._replies and not self._has_ended:
            self._writer.write(b"".join(self._replies))
            self._replies.clear()
            await self._writer.drain()

    async def _pointless_reply(self, text: str) -> None:
        """A reply to what brought nobody any further; after many of them it is enough."""
        self._pointless += 1
        if self._pointless > _POINTLESS:
            self._say_bye("421 4.7.0 too many commands without a message")
            return
        await self.push(text)

    # Commands

    async def smtp_LHLO(self, name: str) -> None:
        await self._hello(name, extended=True)

    async def smtp_EHLO(self, name: str) -> None:
        await self._hello(name, extended=True)

    async def smtp_HELO(self, name: str) -> None:
        await self._hello(name, extended=False)

    async def _hello(self, name: str, *, extended: bool) -> None:
        if not name:
            raise Refusal("501 5.5.4 who are you?")
        assert self.session is not None
        self.session.host_name, self.session.extended_smtp = name, extended
        self._forget()
        lines = (self._terms.hostname, *self._offered) if extended else (self._terms.hostname,)
        for line in lines[:-1]:
            await self.push(f"250-{line}")
        await self._pointless_reply(f"250 {lines[-1]}")

    async def smtp_MAIL(self, argument: str | None) -> None:
        assert self.session is not None
        if not self.session.host_name:
            raise Refusal("503 5.5.1 say hello first")
        if self._mail is not None:
            raise Refusal("503 5.5.1 one sender a message: RSET begins another")
        if why := self._keeper.closed():
            raise Refusal(f"451 4.3.2 {why}")
        said = mail(argument or "", extended=self.session.extended_smtp)
        if said.size > self._terms.max_size:
            raise Refusal(f"552 5.3.4 more than {self._terms.max_size} bytes")
        self._mail = said
        await self._pointless_reply("250 2.1.0 ok")

    async def smtp_RCPT(self, argument: str | None) -> None:
        assert self.session is not None
        if self._mail is None:
            raise Refusal("503 5.5.1 MAIL comes first")
        one = rcpt(argument or "", extended=self.session.extended_smtp, utf8=self._mail.smtputf8)
        if self._answers_owed >= self._terms.max_recipients:
            await self.push("452 4.5.3 too many recipients: the rest in another message")
        elif not self._keeper.accepts(one.address):
            self._tell_refused("550 5.1.1", [one.address])
            await self.push("550 5.1.1 nobody of this name here")
        else:
            self._recipients.setdefault(one.address, one)
            self._answers_owed += 1
            await self.push("250 2.1.5 ok")

    async def smtp_RSET(self, argument: str | None) -> None:
        self._forget()
        await self._pointless_reply("250 2.0.0 ok")

    async def smtp_NOOP(self, argument: str | None) -> None:
        await self._pointless_reply("250 2.0.0 ok")

    async def smtp_VRFY(self, argument: str | None) -> None:
        await self._pointless_reply("252 2.0.0 send it, and see")

    async def smtp_HELP(self, argument: str | None) -> None:
        await self._pointless_reply("214 2.0.0 RFC 2033" if self._terms.is_lmtp else "214 2.0.0 RFC 5321")

    async def smtp_QUIT(self, argument: str | None) -> None:
        self._say_bye("221 2.0.0 bye")

    def _forget(self) -> None:
        """Ends a transaction."""
        self._mail, self._recipients, self._answers_owed = None, {}, 0

    # The message

    async def smtp_DATA(self, argument: str | None) -> None:
        if argument:
            raise Refusal("501 5.5.4 DATA stands alone")
        if self._mail is None or not self._recipients:
            raise Refusal("503 5.5.1 nobody to send it to")
        self._in_data = True
        try:
            await self.push("354 end it with CRLF, dot, CRLF")
            await self._flush()
            reply = await self._message(self._mail)
        finally:
            self._in_data = False
            self._room.free(self)
        for _ in range(self._answers_owed if self._terms.is_lmtp else 1):
            await self.push(reply)
        self._pointless = 0
        self._forget()
        self._reset_timeout()

    async def _message(self, said: Mail) -> str:
        """Reads the message and hands it in; the reply."""
        body = Body(self._received(said), self._terms.max_size)
        await self._read(body)
        message = b"" if body.is_dropped else body.message()
        if reply := self._unfit(body, message):
            self._tell_refused(reply, self._recipients)
            return reply
        return await self._hand_in(Draft(message, said.envelope(tuple(self._recipients.values()))))

    def _received(self, said: Mail) -> bytes:
        assert self.session is not None
        return received(
            helo=self.session.host_name or "",
            peer=self._peer,
            by=self._terms.hostname,
            protocol=self._protocol(said),
            recipients=tuple(self._recipients),
            when=self._keeper.now(),
        )

    def _protocol(self, said: Mail) -> str:
        assert self.session is not None
        return protocol_name(
            is_lmtp=self._terms.is_lmtp, extended=self.session.extended_smtp, utf8=said.smtputf8
        )

    async def _read(self, body: Body) -> None:
        """Reads to the message's end. Each timeout must bring a piece of it, or its end."""
        came = 0
        while True:
            data = await self._inlet.piece()
            rest = body.feed(data)
            if not body.is_dropped and not self._room.hold(self, body.held):
                body.drop()
            if rest is not None:
                self._inlet.put_back(rest)
                return
            came += len(data)
            if came >= PIECE:
                came = 0
                self._reset_timeout()

    def _unfit(self, body: Body, message: bytes) -> str:
        """Why it can't be taken whatever the keeper says."""
        if body.is_too_large:
            return f"552 5.3.4 more than {self._terms.max_size} bytes"
        if body.is_dropped:
            return answers.NO_ROOM
        if has_longer_line(message, self._terms.max_line):
            return f"554 5.6.0 a line is longer than {self._terms.max_line} bytes"
        return ""

    async def _hand_in(self, draft: Draft) -> str:
        """The reply. What has begun goes on although the client leaves: a message is never half taken."""
        self._is_taking = True
        try:
            ids = await self._room.finish(self._keeper.take(draft, peer=self._peer or "local"))
        except Exception as error:
            reply = answers.not_taken(error)
            self._tell_refused(f"{reply} ({error})", self._recipients)
            return reply
        finally:
            self._is_taking = False
        return answers.taken(ids)

    def _tell_refused(self, reply: str, addresses: Iterable[str]) -> None:
        sender = self._mail.sender if self._mail else ""
        self._keeper.refused(reply, to=list(addresses), sender=sender, peer=self._peer or "local")
