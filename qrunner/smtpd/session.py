"""One connection of a client: its transport, its time, and what it says (``talk``).

Replies to commands that came together go out together. What has ended is taken although the client leaves, for it may
have left after the end of its message; one that closed only its own half is still answered.

Guarantees: a client that does not say something whole, a command or 64 KiB of a message, within ``idle_timeout``, is
sent away; one that does not read is not listened to.

Not guaranteed: that a client whose connection breaks learns what became of its last message (RFC 1047).
"""

from __future__ import annotations

import asyncio
import logging

from qrunner.log import event
from qrunner.message import Draft
from qrunner.smtpd import answers
from qrunner.smtpd.room import Room
from qrunner.smtpd.talk import STEP, Talk
from qrunner.smtpd.terms import Keeper, Terms

_LINGER_S = 2.0


class Session(asyncio.BufferedProtocol):
    """One of them; in ``room`` from when it is made until it ends."""

    def __init__(self, terms: Terms, keeper: Keeper, room: Room, log: logging.Logger) -> None:
        self._terms, self._keeper, self._room, self._log = terms, keeper, room, log
        self._loop = asyncio.get_running_loop()
        self._has_eof = self._is_choked = self._is_deaf = self._is_unwanted = False
        self._transport: asyncio.Transport | None = None
        self._steps, self._deadline_s = 0, 0.0
        self._timer: asyncio.TimerHandle | None = None
        room.enter(self)

    # What the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self._is_unwanted:
            transport.abort()
        name = transport.get_extra_info("peername")
        self._peer = str(name[0]) if isinstance(name, tuple) else ""
        self._talk = Talk(self._terms, self._keeper, self._peer, self._hold)
        self._deadline_s = self._loop.time() + self._terms.idle_timeout_s
        self._timer = self._loop.call_at(self._deadline_s, self._look_at_the_time)
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        self._talk.is_over = True
        if self._timer is not None:
            self._timer.cancel()
        if not self._talk.is_taking:
            self._room.free(self)
        self._room.leave(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """One for all sessions: what was read is looked at before anything else is read. To be given a new piece of
        memory for each read costs more than the read."""
        return self._room.buffer

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(self._room.buffer[:nbytes])
        if self._talk.is_over:
            return
        if self._is_choked or self._talk.is_taking:
            self._talk.hear_later(data)
            self._listen()
        else:
            self._go_on(data)

    def eof_received(self) -> bool:
        """It has nothing more to say, and may still listen."""
        self._has_eof = True
        self._flush()
        return True

    def pause_writing(self) -> None:
        self._is_choked = True
        self._listen()

    def resume_writing(self) -> None:
        self._is_choked = False
        self._go_on(b"")

    # What the room calls

    def stop(self) -> None:
        """Ends it, once a message that is under way has been answered."""
        if self._transport is None:
            self._is_unwanted = True
        else:
            self._talk.stop()
            self._flush()

    def abort(self) -> None:
        """Ends it at once."""
        self._is_unwanted = True
        if self._transport is not None:
            self._transport.abort()

    # Its way

    def _go_on(self, data: bytes) -> None:
        try:
            draft = self._talk.hear(data)
        except Exception as error:
            event(self._log, "session failed", level=logging.ERROR, peer=self._peer, exc=error)
            self._talk.end("421 4.3.0 this went wrong here: try again later")
            draft = None
        if self._talk.steps != self._steps:
            self._steps = self._talk.steps
            self._deadline_s = self._loop.time() + self._terms.idle_timeout_s
        if draft is not None:
            self._room.finish(self._hand_in(draft))
        self._flush()

    def _flush(self) -> None:
        """Says what is to be said, and ends what is at its end."""
        talk, transport = self._talk, self._transport
        assert transport is not None
        if talk.out:
            transport.write(bytes(talk.out))
            talk.out.clear()
        if talk.is_over or (self._has_eof and not talk.is_taking and not self._is_choked):
            talk.is_over = True
            self._leave(transport)
        else:
            self._listen()

    def _leave(self, transport: asyncio.Transport) -> None:
        """Closes. While the client still talks that would be a reset, in which our last words are lost; so its words
        are let go by for a moment."""
        if transport.is_closing():
            return
        if self._talk.is_interrupted and not self._has_eof:
            transport.write_eof()
        else:
            transport.close()
        if not transport.is_closing() or transport.get_write_buffer_size():
            self._loop.call_later(_LINGER_S, transport.abort)

    def _listen(self) -> None:
        """Reads on, unless it would be too much to keep."""
        is_deaf = self._is_choked or (self._talk.is_taking and self._talk.backlog > STEP)
        transport = self._transport
        if is_deaf != self._is_deaf and transport is not None and not transport.is_closing():
            self._is_deaf = is_deaf
            (transport.pause_reading if is_deaf else transport.resume_reading)()

    def _hold(self, size: int) -> bool:
        return self._room.hold(self, size)

    async def _hand_in(self, draft: Draft) -> None:
        """Has the message taken, and goes on."""
        try:
            reply = answers.taken(await self._keeper.take(draft, peer=self._peer or "local"))
        except Exception as error:
            reply = answers.not_taken(error)
            self._talk.tell_refused(f"{reply} ({error})")
        finally:
            self._room.free(self)
        self._deadline_s = self._loop.time() + self._terms.idle_timeout_s
        self._talk.answer(reply)
        self._go_on(b"")

    def _look_at_the_time(self) -> None:
        """The deadline is moved without touching the timer: it asks when it rings."""
        now_s = self._loop.time()
        if self._talk.is_taking:
            self._deadline_s = now_s + self._terms.idle_timeout_s
        if now_s < self._deadline_s:
            self._timer = self._loop.call_at(self._deadline_s, self._look_at_the_time)
            return
        self._talk.end("421 4.4.2 nothing whole came for too long")
        if self._is_choked:
            self.abort()
        else:
            self._flush()
