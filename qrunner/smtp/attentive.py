"""aiosmtplib's protocol, more attentive: it knows of what the host has said unasked, and reads replies to several
commands at once.

Guarantees: a reply belongs to the command in whose place it comes. What comes beyond the last one that was asked for,
in the same segment or later, is never given out, and leaves the connection unclean for good.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Sequence

from aiosmtplib import SMTPResponse, SMTPResponseException, SMTPServerDisconnected, SMTPStatus
from aiosmtplib.protocol import COMMAND_INJECTION_REGEX, MAX_RESPONSE_LENGTH, SMTPProtocol

_AT_ONCE = 1 << 14
_LINES = re.compile(rb"(?:[0-9]{3}(?:[ -][^\n]*|\r?)\n)*[^\n]*\Z")


class Attentive(SMTPProtocol):
    """aiosmtplib's protocol, which throws away what it did not ask for; this one remembers that there was some."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._unasked = self._ended = False
        self._patience = Patience(loop)
        self._group = Group(self._patience)
        self._may_write = asyncio.Event()
        self._may_write.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        # Asyncio asks for 256 KB each time, which is memory from the kernel for a reply of a line.
        if hasattr(transport, "max_size"):
            transport.max_size = _AT_ONCE

    @property
    def is_clean(self) -> bool:
        return self.is_connected and not self._ended and not self.has_surplus

    @property
    def has_surplus(self) -> bool:
        return self._unasked or bool(self._buffer)

    def data_received(self, data: bytes) -> None:
        if self._group.left:
            self._grouped(data)
            return
        waiter = self._response_waiter
        if waiter is None or waiter.done() or not self._response_pending:
            self._unasked = True
        super().data_received(data)

    async def read_response(self, timeout: float | None = None) -> SMTPResponse:  # noqa: ASYNC109 - its own signature
        response = await super().read_response(timeout)
        # STARTTLS empties the buffer afterwards: what was slipped in behind its reply would be forgotten, not found.
        self._unasked = self._unasked or bool(self._buffer)
        return response

    def eof_received(self) -> bool:
        self._ended = True
        self._group.fail(SMTPServerDisconnected("Unexpected EOF received"))
        return super().eof_received()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._may_write.clear()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._may_write.set()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._patience.close()
        self._group.fail(SMTPServerDisconnected("Connection lost"))
        self._may_write.set()

    @property
    def may_go_on(self) -> bool:
        """Whether ``drain`` would return at once."""
        return self._may_write.is_set() and self.is_connected

    async def drain(self) -> None:
        await self._may_write.wait()
        if not self.is_connected:
            raise ConnectionResetError("the connection was lost")

    def send_group(self, commands: Sequence[bytes]) -> Group:
        """Writes all of the commands; as many replies are theirs, and beyond these nothing is a reply.

        :raises SMTPException, ValueError: it can't be written.
        """
        if any(COMMAND_INJECTION_REGEX.search(command) for command in commands):
            raise ValueError("Command arg contains a prohibited control character")
        return self.send(b"\r\n".join((*commands, b"")), len(commands))

    def send(self, data: bytes, replies: int) -> Group:
        """Writes something that as many replies come to. :raises SMTPException: it can't be written."""
        self._group = Group(self._patience, replies)
        self.write(data)
        return self._group

    def _grouped(self, data: bytes) -> None:
        """What has come takes part of the group's replies with it, or all, or more than all."""
        self._buffer.extend(data)
        # A piece of a reply too many would make one of the next one and itself. Of a single reply all else is too many.
        self._unasked = self._unasked or (self._group.asked > 1 and not _LINES.match(self._buffer))
        try:
            if self._unasked:
                raise SMTPResponseException(SMTPStatus.invalid_response, "Malformed SMTP response line")
            while self._group.left and (response := self._read_response_from_buffer()) is not None:
                self._group.add(response)
            if self._group.left and len(self._buffer) > MAX_RESPONSE_LENGTH:
                raise SMTPResponseException(SMTPStatus.invalid_response, "Response too long")
        except Exception as error:
            self._group.fail(error)
        # What is left over then, nobody has asked for.
        self._unasked = self._unasked or bool(self._buffer and not self._group.left)


class Group:
    """The replies to what was ``asked``, ``left`` of which are still to come."""

    def __init__(self, patience: Patience, asked: int = 0) -> None:
        self.asked = self.left = asked
        self._patience = patience
        self._replies: deque[SMTPResponse] = deque()
        self._error: BaseException | None = None

    def add(self, response: SMTPResponse) -> None:
        self._replies.append(response)
        self.left -= 1
        self._patience.end()

    def fail(self, error: BaseException) -> None:
        """There will be no more; those that came are given out first."""
        self._error = self._error or error
        self.left = 0
        self._patience.end()

    async def next(self, timeout: float) -> SMTPResponse:  # noqa: ASYNC109 - as its neighbours
        """:raises TimeoutError: there was none for so many seconds."""
        while not self._replies:
            if self._error is not None:
                raise self._error
            await self._patience.wait(timeout)
        return self._replies.popleft()


class Patience:
    """Waits for news, for no longer than a limit. One timer does for all the waits of a connection: it is looked at when
    it rings, not set anew for each of the few milliseconds that a reply takes."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiter: asyncio.Future[None] | None = None
        self._until_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self, limit_s: float) -> None:
        """Returns after ``end``. :raises TimeoutError: it was not called for so many seconds."""
        self._until_s = self._loop.time() + limit_s
        self._waiter = self._loop.create_future()
        if self._timer is None or self._timer.when() > self._until_s:
            self._set()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def end(self) -> None:
        """There is news."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def close(self) -> None:
        """There will be none."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set(self) -> None:
        self.close()
        self._timer = self._loop.call_at(self._until_s, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return
        if self._loop.time() < self._until_s:
            self._set()
        else:
            self._waiter.set_exception(TimeoutError())
