"""A host that takes everything, or fails as it is told: for tests, and for the demonstration.

::

    sink = Sink("mta1")
    sink.reply("RCPT TO:<b@", "550 5.1.1 no such user", times=None)
    sink.hang_up(after="DATA")
    sink.down = True

A command is named by how its line begins; ``CONNECT`` is the greeting, ``.`` the end of a message. A hang-up takes
the place of the reply; after ``.`` the message has been kept. A sink needs no network: ``SinkDialer`` hands out
channels to it. ``qrunner.smtp.sinkserver`` puts it behind a port.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aiosmtplib.esmtp import parse_esmtp_extensions

from qrunner.config import HostConfig
from qrunner.smtp.board import Board, MemoryBoard
from qrunner.smtp.channel import BeforeDot, HostFailure, Lost
from qrunner.smtp.reply import Reply
from qrunner.smtp.wire import Offer

EXTENSIONS = ("8BITMIME", "SIZE 0", "DSN", "SMTPUTF8", "ENHANCEDSTATUSCODES")


@dataclass(frozen=True, slots=True)
class Received:
    """One message that a sink took: ``message`` as it was handed over, ``lines`` the MAIL and RCPT lines."""

    sender: str
    recipients: tuple[str, ...]
    message: bytes
    lines: tuple[str, ...] = ()


@dataclass(slots=True)
class _Rule:
    """What happens to the next ``times`` commands that begin so; no text: the connection ends."""

    command: str
    text: str | None
    times: int | None

    def takes(self, line: str) -> bool:
        if self.times == 0 or not line.upper().startswith(self.command.upper()):
            return False
        if self.times is not None:
            self.times -= 1
        return True


class Sink:
    """One host. Set ``down`` to have it refuse connections, and break those that there are."""

    def __init__(self, name: str = "sink", extensions: tuple[str, ...] = EXTENSIONS) -> None:
        self.name, self.extensions = name, extensions
        self.messages: list[Received] = []
        self.down = False
        self.connections = 0
        self._rules: list[_Rule] = []

    def reply(self, command: str, text: str, times: int | None = 1) -> None:
        """Answers the next ``times`` commands that begin so with this reply; None: all from now on.

        :raises ValueError: the text does not begin with a reply code.
        """
        if not (text[:3].isascii() and text[:3].isdigit()):
            raise ValueError(f"{text!r} is no reply")
        self._rules.append(_Rule(command, text, times))

    def hang_up(self, after: str = "DATA", times: int | None = 1) -> None:
        """Ends the connection instead of answering the next ``times`` commands that begin so."""
        self._rules.append(_Rule(after, None, times))

    def behave(self) -> None:
        """Forgets all that it was told to do wrong."""
        self._rules.clear()
        self.down = False

    def ruled(self, line: str, default: str) -> str | None:
        """The reply to a line: what was asked for, else the default; None: hang up."""
        for rule in self._rules:
            if rule.takes(line):
                return rule.text
        return default


@dataclass(slots=True)
class Talk:
    """The host's side of one session: lines in, replies out (RFC 5321 section 4.1.4)."""

    sink: Sink
    sender: str | None = None
    recipients: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    def greeting(self) -> str | None:
        """The first reply; None: hang up."""
        self.sink.connections += 1
        return self.sink.ruled("CONNECT", f"220 {self.sink.name} ESMTP")

    def answer(self, line: str) -> str | None:
        """The reply to a command, a line each of several; None: hang up."""
        text = self.sink.ruled(line, self._usual(line))
        if text is not None and text[0] == "2":
            self._heed(line)
        return text

    def _usual(self, line: str) -> str:
        verb = line.split(" ")[0].upper()
        if verb == "EHLO":
            return "\n".join(["250 " + self.sink.name, *("250 " + one for one in self.sink.extensions)])
        if verb in ("RCPT", "DATA") and self.sender is None:
            return "503 5.5.1 MAIL first"
        if verb == "DATA":
            return "354 go on" if self.recipients else "503 5.5.1 RCPT first"
        known = {"HELO": "250 hello", "QUIT": "221 2.0.0 bye", "MAIL": "250 2.1.0 ok", "RCPT": "250 2.1.5 ok"}
        known |= {"RSET": "250 2.0.0 ok", "NOOP": "250 2.0.0 ok"}
        return known.get(verb, "500 5.5.2 what?")

    def _heed(self, line: str) -> None:
        verb = line.split(" ")[0].upper()
        if verb in ("EHLO", "HELO", "RSET", "MAIL"):
            self.sender, self.recipients, self.lines = None, [], []
        if verb == "MAIL":
            self.sender = _path(line)
            self.lines = [line]
        elif verb == "RCPT":
            self.recipients.append(_path(line))
            self.lines.append(line)

    def end(self, message: bytes) -> str | None:
        """The reply to the end of a message; None: hang up. What is not refused is kept first."""
        text = self.sink.ruled(".", "250 2.0.0 taken")
        if text is None or text[0] == "2":
            kept = Received(self.sender or "", tuple(self.recipients), message, tuple(self.lines))
            self.sink.messages.append(kept)
        self.sender, self.recipients, self.lines = None, [], []
        return text


def _path(line: str) -> str:
    """What stands between the angle brackets; a quoted local part may hold one."""
    inside, quoted = "", False
    for character in line[line.find("<") + 1 :]:
        if character == ">" and not quoted:
            break
        quoted ^= character == '"' and not inside.endswith("\\")
        inside += character
    return inside


class SinkChannel:
    """A connection to a sink in this process."""

    def __init__(self, sink: Sink) -> None:
        self.offer = Offer()
        self._sink, self._talk, self._open = sink, Talk(sink), True

    @property
    def is_clean(self) -> bool:
        return self._open and not self._sink.down

    @property
    def has_surplus(self) -> bool:
        return False

    def close(self) -> None:
        self._open = False

    def greet(self) -> None:
        """:raises HostFailure: the greeting or EHLO is refused."""
        self._expect(self._talk.greeting(), "greeting")
        reply = self._expect(self._talk.answer("EHLO test"), "EHLO")
        self.offer = Offer.of(parse_esmtp_extensions(reply.text)[0])

    def _expect(self, text: str | None, what: str) -> Reply:
        if text is None:
            raise HostFailure(f"{what}: the connection was lost")
        reply = _reply(text)
        if not reply.is_success:
            raise HostFailure(f"{what}: {reply}", slow=reply.is_closing or not reply.is_permanent)
        return reply

    def _heard(self, text: str | None, what: str) -> Reply:
        if text is None or not self.is_clean:
            self._open = False
            raise Lost(f"lost after {what}")
        return _reply(text)

    async def command(self, line: bytes) -> Reply:
        if not self.is_clean:
            raise Lost("the host closed the connection")
        said = line.decode("utf-8", "surrogateescape")
        return self._heard(self._talk.answer(said), said.split(" ")[0])

    async def commands(self, lines: Sequence[bytes]) -> Sequence[Reply]:
        replies: list[Reply] = []
        for line in lines:
            try:
                replies.append(await self.command(line))
            except Lost as error:
                raise Lost(str(error), replies) from error
        return replies

    async def body(self, message: bytes, before_dot: BeforeDot) -> Reply:
        try:
            before_dot()
            return self._heard(self._talk.end(message), "the end of the message")
        except BaseException:
            self._open = False
            raise

    async def quit(self) -> None:
        self._open = False


def _reply(text: str) -> Reply:
    return Reply(int(text[:3]), "\n".join(line[4:] for line in text.split("\n")))


class SinkDialer:
    """Dials sinks instead of hosts, by the name of the host in the configuration."""

    def __init__(self, sinks: Mapping[str, Sink]) -> None:
        self._sinks = sinks
        self._board = MemoryBoard()

    def board(self, folder: Path) -> Board:
        return MemoryBoard(self._board)

    def finder(self) -> None:
        """A sink that plays a host of mode ``mx`` takes the mail of every domain."""

    async def dial(self, host: HostConfig, at: Sequence[str] = ()) -> SinkChannel:
        sink = self._sinks[host.name]
        if sink.down:
            raise HostFailure(f"connect to {host.name}: refused")
        channel = SinkChannel(sink)
        channel.greet()
        return channel
