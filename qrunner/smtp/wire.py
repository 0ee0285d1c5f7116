"""What may be said to a host: commands and message bodies in the form of the wire.

Guarantees: no address and no parameter can end a command or add one; no message can end itself before its last
line (SMTP smuggling): on the wire every CR and LF is one half of a CRLF.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from qrunner.message import Envelope, Recipient

END = b".\r\n"
_PIECE = 60 << 10

# Quoted strings may hold anything but controls; outside of them nothing that could end the path (RFC 5321
# section 4.1.2). What is left to the host: whether such an address makes sense.
_PATH = re.compile(r'(?:"(?:[^"\\\x00-\x1f\x7f]|\\[^\x00-\x1f\x7f])*"|[^"<>\s\x00-\x1f\x7f])+\Z')
_NUMBER = re.compile(r"[0-9]{1,20}\Z")
_PARAMETER = re.compile(r"[!-~]+\Z")
_NOTIFY = re.compile(r"NEVER\Z|(?:SUCCESS|FAILURE|DELAY)(?:,(?:SUCCESS|FAILURE|DELAY)){0,2}\Z")


class Unsendable(Exception):
    """It can't be said to this host. ``status`` is the enhanced status code (RFC 3463) of the reason."""

    def __init__(self, text: str, status: str) -> None:
        super().__init__(text)
        self.text, self.status = text, status


def body(message: bytes) -> bytes:
    """The message as it stands between DATA and the last dot, which is not included (RFC 5321 section 4.5.2).

    CRLF and LF become CRLF, a bare CR a space, a missing last line end is added, leading dots are doubled.
    """
    return b"".join(pieces(message))


def pieces(message: bytes) -> Iterator[bytes]:
    """``body``, some lines at a time: what is in hand twice is a piece, however large the message is."""
    return (_stuffed(_by_the_line(part)) for part in _cut(message))


def size(message: bytes) -> int:
    """How long the message is on the wire: with every line end, without the doubled dots (RFC 1870 section 3)."""
    if b"\r" not in message:
        return len(message) + message.count(b"\n") + (2 if message and not message.endswith(b"\n") else 0)
    return sum(len(_by_the_line(part)) for part in _cut(message))


def _cut(message: bytes) -> Iterator[bytes]:
    """Whole lines; a longer piece than others is one line."""
    if len(message) <= _PIECE:
        return iter((message,) if message else ())
    return _parts(message)


def _parts(message: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(message):
        end = message.rfind(b"\n", start, start + _PIECE) + 1
        if not end:
            end = message.find(b"\n", start + _PIECE) + 1 or len(message)
        yield message[start:end]
        start = end


def _by_the_line(text: bytes) -> bytes:
    """Every line ends with CRLF, and nothing else has either."""
    # One byte at a time is looked for: looking for two costs several times as much.
    if b"\r" in text:
        plain = text.replace(b"\r", b"").replace(b"\n", b"\r\n")
        if plain != text:
            text = re.sub(rb"\r(?!\n)", b" ", text)
            plain = text.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    else:
        plain = text.replace(b"\n", b"\r\n")
    return plain if plain.endswith(b"\r\n") else plain + b"\r\n"


def _stuffed(lines: bytes) -> bytes:
    if b"." not in lines:
        return lines
    text = lines.replace(b"\r\n.", b"\r\n..")
    return b"." + text if text.startswith(b".") else text


def unstuffed(text: bytes) -> bytes:
    """The other way: the bytes between DATA and the last dot with their doubled dots taken away."""
    text = text.replace(b"\r\n..", b"\r\n.")
    return text[1:] if text.startswith(b".") else text


@dataclass(frozen=True, slots=True)
class Offer:
    """The extensions that a host offered: keyword, in capitals, and its parameter."""

    keywords: frozenset[str] = frozenset()
    size_max: int = 0

    @classmethod
    def of(cls, extensions: dict[str, str]) -> Offer:
        """From an EHLO reply taken apart. A SIZE that is no number is no limit, nor is one longer than RFC 1870 allows:
        Python refuses to read numbers of some thousand digits."""
        offered = {keyword.upper(): value.strip() for keyword, value in extensions.items()}
        size = offered.get("SIZE", "")
        return cls(frozenset(offered), int(size) if _NUMBER.match(size) else 0)

    def has(self, keyword: str) -> bool:
        return keyword in self.keywords


def mail_command(envelope: Envelope, offer: Offer, size: int, *, is_8bit: bool, utf8: bool) -> bytes:
    """MAIL, with the parameters that the host has offered to understand.

    :param size: of the message on the wire, in bytes (RFC 1870).
    :raises Unsendable: the sender can't be said, or the message is longer than the host takes.
    """
    line = b"MAIL FROM:<" + _path(envelope.sender, "5.1.7") + b">"
    if offer.has("SIZE"):
        if 0 < offer.size_max < size:
            raise Unsendable(f"{size} bytes are more than the {offer.size_max} that the host takes", "5.3.4")
        line += b" SIZE=%d" % size
    if offer.has("8BITMIME") and (is_8bit or envelope.body == "8BITMIME"):
        line += b" BODY=8BITMIME"
    if utf8:
        line += b" SMTPUTF8"
    if offer.has("DSN"):
        if envelope.ret in ("FULL", "HDRS"):
            line += b" RET=" + envelope.ret.encode()
        if _PARAMETER.match(envelope.envid):
            line += b" ENVID=" + envelope.envid.encode()
    return line


def rcpt_command(recipient: Recipient, offer: Offer) -> bytes:
    """RCPT, with NOTIFY and ORCPT where the host understands them (RFC 3461 section 4).

    :raises Unsendable: the address can't be said.
    """
    line = b"RCPT TO:<" + _path(recipient.address, "5.1.3") + b">"
    if offer.has("DSN"):
        if _NOTIFY.match(recipient.notify.upper()):
            line += b" NOTIFY=" + recipient.notify.upper().encode()
        if _PARAMETER.match(recipient.orcpt):
            line += b" ORCPT=" + recipient.orcpt.encode()
    return line


def _path(address: str, status: str) -> bytes:
    if not address and status == "5.1.7":
        return b""
    if not _PATH.match(address):
        raise Unsendable(f"{address!r} is no address that may be put on the wire", status)
    try:
        return address.encode()
    except UnicodeEncodeError:
        raise Unsendable(f"{address!r} is neither ASCII nor UTF-8", status) from None


def needs_utf8(envelope: Envelope, addresses: Collection[str]) -> bool:
    """Whether SMTPUTF8 must be asked for (RFC 6531): it came in with it, or an address is not ASCII."""
    if envelope.smtputf8 or not envelope.sender.isascii():
        return True
    return bool(addresses) and not "".join(addresses).isascii()
