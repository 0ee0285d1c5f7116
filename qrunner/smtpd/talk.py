"""What is said over one connection, as LMTP or SMTP (RFC 2033, RFC 5321): bytes in, bytes out, no socket.

Guarantees: 250 for a message is said when ``answer`` was told so, and for nothing else. A message that the client did
not end is not given on. LMTP answers once for each recipient that was accepted, whatever became of the message. A
client that says nothing to the point in a hundred commands is sent away.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from qrunner.message import Draft, Recipient
from qrunner.smtpd import answers
from qrunner.smtpd.body import Body, has_longer_line
from qrunner.smtpd.grammar import Mail, Refusal, mail, rcpt
from qrunner.smtpd.terms import Keeper, Terms
from qrunner.smtpd.trace import protocol_name, received

LONGEST_COMMAND = 4096
STEP = 64 << 10
_POINTLESS = 100
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_BROWSERS = frozenset({b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"CONNECT"})
_OFFERED = ("PIPELINING", "8BITMIME", "SMTPUTF8", "DSN", "ENHANCEDSTATUSCODES")


class Talk:
    """One connection's. ``is_over``: what is in ``out`` is the last; ``is_interrupted``: the client may not know yet.

    :param peer: the client's IP address; empty: a socket of this machine.
    :param hold: asked whether so many bytes of a message may be held.
    """

    def __init__(self, terms: Terms, keeper: Keeper, peer: str, hold: Callable[[int], bool]) -> None:
        self._terms, self._keeper, self._peer, self._hold = terms, keeper, peer, hold
        self._commands: dict[bytes, Callable[[str], str]] = {
            b"MAIL": self._say_mail,
            b"RCPT": self._say_rcpt,
            b"RSET": self._say_rset,
            b"NOOP": lambda words: "250 2.0.0 ok",
            b"VRFY": lambda words: "252 2.0.0 send it, and see",
            b"HELP": lambda words: "214 2.0.0 see RFC 5321, and RFC 2033 for LMTP",
        }
        self.is_over = self.is_interrupted = False
        self.steps = 0
        self.out = bytearray()
        self._ahead = bytearray()
        self._is_skipping = self._is_stopping = self.is_taking = False
        self._pointless = self._came = 0
        self._hello, self._extended = "", False
        self._body: Body | None = None
        self._mail: Mail | None = None
        self._recipients: dict[str, Recipient] = {}
        self._answers_owed = 0
        self._reply(f"220 {terms.hostname} {'LMTP' if terms.is_lmtp else 'ESMTP'} qrunner")

    @property
    def backlog(self) -> int:
        """Bytes that were said and not yet looked at."""
        return len(self._ahead)

    # In and out

    def hear(self, data: bytes) -> Draft | None:
        """Goes on by what the client says. A message that has ended is returned: until ``answer`` nothing goes on."""
        self._ahead += data
        while not (self.is_over or self.is_taking):
            if self._body is not None:
                draft = self._read(self._body)
                if draft is not None or self._body is not None:
                    return draft
            elif self._is_stopping:
                self.stop()
            elif (line := self._line()) is not None:
                self._obey(line)
            else:
                return None
        return None

    def hear_later(self, data: bytes) -> None:
        """Keeps it for the next ``hear``."""
        self._ahead += data

    def answer(self, reply: str) -> None:
        """What became of the message that ``hear`` returned."""
        self.is_taking = False
        self._answer(reply)

    def stop(self) -> None:
        """Ends the talk, once a message that is under way has been answered."""
        self._is_stopping = True
        if self._body is None and not self.is_taking:
            self.end("421 4.3.2 the service stops: try again later", interrupts=False)

    def end(self, reply: str, *, interrupts: bool = True) -> None:
        """Ends it with these words.

        :param interrupts: the client may be in the middle of saying something.
        """
        if not self.is_over:
            self._reply(reply)
            self.is_over, self.is_interrupted = True, interrupts

    def _reply(self, text: str) -> None:
        self.out += answers.line(text) + b"\r\n"

    def _line(self) -> bytes | None:
        """The next command without its line end; None: it has not come yet."""
        ahead = self._ahead
        while (end := ahead.find(b"\n")) >= 0:
            line = bytes(ahead[: end + 1])
            del ahead[: end + 1]
            self.steps += 1
            is_long, self._is_skipping = self._is_skipping or len(line) > LONGEST_COMMAND, False
            if is_long:
                self._complain("500 5.5.2 the line is too long")
            elif not line.endswith(b"\r\n"):
                self._complain("500 5.5.2 a command ends with CRLF")
            else:
                return line[:-2]
            if self.is_over:
                return None
        if len(ahead) > LONGEST_COMMAND:
            self._is_skipping = True
            ahead.clear()
        return None

    # Commands

    def _obey(self, line: bytes) -> None:
        name, _, rest = line.partition(b" ")
        name = name.upper()
        if name == b"DATA":
            self._say_data(rest)
        elif name == b"QUIT":
            self.end("221 2.0.0 bye", interrupts=False)
        elif name in _BROWSERS or name.endswith(b":"):
            # Made to post to this port by somebody's page, with mail in what it posts.
            self.end("554 5.5.1 this is no web server")
        elif _CONTROL.search(line):
            self._complain("500 5.5.2 a command is plain text")
        else:
            self._carry_out(name, rest)

    def _carry_out(self, name: bytes, rest: bytes) -> None:
        try:
            words = rest.decode().strip(" ")
            if name in (b"LHLO", b"EHLO", b"HELO"):
                self._say_hello(name, words)
            elif command := self._commands.get(name):
                reply = command(words)
                if name == b"RCPT":
                    self._reply(reply)
                else:
                    self._complain(reply)
            else:
                self._complain("500 5.5.1 this command is not known here")
        except UnicodeDecodeError:
            self._complain("500 5.5.2 this is not UTF-8")
        except Refusal as refusal:
            self._complain(str(refusal))

    def _complain(self, reply: str) -> None:
        """Replies to what brought nobody any further by itself; after many of these it is enough."""
        self._pointless += 1
        if self._pointless > _POINTLESS:
            self.end("421 4.7.0 so many commands, and no message")
        else:
            self._reply(reply)

    def _say_hello(self, name: bytes, words: str) -> None:
        if (name == b"LHLO") != self._terms.is_lmtp:
            raise Refusal(f"500 5.5.1 {'LHLO' if self._terms.is_lmtp else 'EHLO'} is the hello here")
        if not words:
            raise Refusal("501 5.5.4 who are you?")
        self._forget()
        self._hello, self._extended = words, name != b"HELO"
        lines = [self._terms.hostname]
        if self._extended:
            lines += [*_OFFERED, f"SIZE {self._terms.max_size}"]
        for line in lines[:-1]:
            self._reply(f"250-{line}")
        self._complain(f"250 {lines[-1]}")

    def _say_mail(self, words: str) -> str:
        # Old clients of SMTP do without; it costs them their parameters.
        if not self._hello and self._terms.is_lmtp:
            raise Refusal("503 5.5.1 say hello first")
        if self._mail is not None:
            raise Refusal("503 5.5.1 one sender a message: RSET begins another")
        if why := self._keeper.closed():
            raise Refusal(f"451 4.3.2 {why}")
        said = mail(words, extended=self._extended)
        if said.size > self._terms.max_size:
            raise Refusal(self._too_large)
        self._mail = said
        return "250 2.1.0 ok"

    def _say_rcpt(self, words: str) -> str:
        if self._mail is None:
            raise Refusal("503 5.5.1 MAIL comes first")
        one = rcpt(words, extended=self._extended, utf8=self._mail.smtputf8)
        if self._answers_owed >= self._terms.max_recipients:
            return "452 4.5.3 so many recipients are enough: the rest in another message"
        if not self._keeper.accepts(one.address):
            reply = "550 5.1.1 nobody of this name here"
            self._tell_refused(reply, [one.address])
            return reply
        # Named twice, it is answered twice and gets one.
        self._recipients.setdefault(one.address, one)
        self._answers_owed += 1
        return "250 2.1.5 ok"

    def _say_rset(self, words: str) -> str:
        self._forget()
        return "250 2.0.0 ok"

    def _say_data(self, rest: bytes) -> None:
        if rest.strip():
            self._complain("501 5.5.4 DATA stands alone")
        elif self._mail is None or not self._recipients:
            self._complain("503 5.5.1 there is nobody to send it to")
        else:
            self._reply("354 end it with CRLF, dot, CRLF")
            self._body, self._came = Body(self._trace(self._mail), self._terms.max_size), 0

    def _forget(self) -> None:
        """Ends a transaction."""
        self._mail, self._recipients, self._answers_owed = None, {}, 0

    # The message

    @property
    def _too_large(self) -> str:
        return f"552 5.3.4 more than {self._terms.max_size} bytes"

    def _trace(self, said: Mail) -> bytes:
        return received(
            helo=self._hello,
            peer=self._peer,
            by=self._terms.hostname,
            protocol=protocol_name(is_lmtp=self._terms.is_lmtp, extended=self._extended, utf8=said.smtputf8),
            recipients=tuple(self._recipients),
            when=self._keeper.now(),
        )

    def _read(self, body: Body) -> Draft | None:
        """Reads on; the message, when it has ended and can be taken. Otherwise ``_body`` is None when it has ended."""
        self._came += len(self._ahead)
        rest = body.feed(self._ahead)
        self._ahead = bytearray(rest or b"")
        if self._came >= STEP:
            self._came, self.steps = 0, self.steps + 1
        if not body.is_dropped and not self._hold(body.held):
            body.drop()
        if rest is None:
            return None
        self._body, self.steps = None, self.steps + 1
        return self._ended(body)

    def _ended(self, body: Body) -> Draft | None:
        message = b"" if body.is_dropped else body.message()
        assert self._mail is not None
        if reply := self._unfit(body, message):
            self._hold(0)
            self.tell_refused(reply)
            self._answer(reply)
            return None
        self.is_taking = True
        return Draft(message, self._mail.envelope(tuple(self._recipients.values())))

    def _unfit(self, body: Body, message: bytes) -> str:
        """Why it can't be taken, whatever the keeper would say."""
        if body.is_too_large:
            return self._too_large
        if body.is_dropped:
            return answers.NO_ROOM
        if has_longer_line(message, self._terms.max_line):
            return f"554 5.6.0 a line is longer than {self._terms.max_line} bytes"
        return ""

    def _answer(self, reply: str) -> None:
        self.out += (answers.line(reply) + b"\r\n") * (self._answers_owed if self._terms.is_lmtp else 1)
        self._pointless = 0
        self._forget()

    def tell_refused(self, reply: str) -> None:
        """Has it written down that the message of now was not taken."""
        self._tell_refused(reply, self._recipients)

    def _tell_refused(self, reply: str, to: Iterable[str]) -> None:
        sender = self._mail.sender if self._mail else ""
        self._keeper.refused(reply, to=list(to), sender=sender, peer=self._peer or "local")
