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

_LINES = re.compile(rb"(?:[0-9]{3}(?:[ -][^\n]*|\r?)\n)*[^\n]*\Z")


class Attentive(SMTPProtocol):
    """aiosmtplib's protocol, which throws away what it did not ask for; this one remembers that there was some."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._unasked = self._ended = False
        self._group = Group()
        self._may_write = asyncio.Event()
        self._may_write.set()

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
        self._group.fail(SMTPServerDisconnected("Connection lost"))
        self._may_write.set()

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
        self._group = Group(len(commands))
        self.write(b"".join(command + b"\r\n" for command in commands))
        return self._group

    def _grouped(self, data: bytes) -> None:
        """What has come takes part of the group's replies with it, or all, or more than all."""
        self._buffer.extend(data)
        # A piece of a reply too many would make one of the next one and itself.
        self._unasked = self._unasked or not _LINES.match(self._buffer)
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
    """The replies to several commands, ``left`` of which are still to come."""

    def __init__(self, left: int = 0) -> None:
        self.left = left
        self._replies: deque[SMTPResponse] = deque()
        self._error: BaseException | None = None
        self._news = asyncio.Event()

    def add(self, response: SMTPResponse) -> None:
        self._replies.append(response)
        self.left -= 1
        self._news.set()

    def fail(self, error: BaseException) -> None:
        """There will be no more; those that came are given out first."""
        self._error = self._error or error
        self.left = 0
        self._news.set()

    async def next(self, timeout: float) -> SMTPResponse:  # noqa: ASYNC109 - as its neighbours
        """:raises TimeoutError: there was none for so many seconds."""
        while not self._replies:
            if self._error is not None:
                raise self._error
            self._news.clear()
            async with asyncio.timeout(timeout):
                await self._news.wait()
        return self._replies.popleft()
