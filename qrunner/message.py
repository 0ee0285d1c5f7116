"""The values everything else passes on: the envelope, the entry, and where it goes next.

An *entry* is one message in one queue: the message's bytes, its envelope, metadata and history. Entries are
immutable; a handler that wants another content makes another entry, and what really differs is found by
comparing the two.

Not guaranteed: that a message parses. Bytes are kept as they came, and read only when asked for.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from qrunner.clock import to_datetime

if TYPE_CHECKING:
    from email.message import Message

EMPTY: Mapping[str, Any] = MappingProxyType({})
OURS = "qrunner."
SETTLED = frozenset({"delivered", "failed", "expired"})
RELAYED = "relayed"

_FIELD_NAME = re.compile(r"[!-9;-~]+\Z")
_USUAL_HEADERS = 1 << 16
_RECEIVED = re.compile(rb"^received[ \t]*:", re.IGNORECASE | re.MULTILINE)
_BREAKS = re.compile(r"[\r\n\0]")


@dataclass(frozen=True, slots=True)
class Recipient:
    """One RCPT of an envelope, with its delivery status parameters (RFC 3461 sections 4.1 and 4.2)."""

    address: str
    notify: str = ""
    orcpt: str = ""


@dataclass(frozen=True, slots=True)
class Envelope:
    """Sender and recipients as SMTP has them; never guessed from headers. An empty sender is the null sender."""

    sender: str
    recipients: tuple[Recipient, ...] = ()
    envid: str = ""
    ret: str = ""
    body: str = ""
    smtputf8: bool = False

    @classmethod
    def of(cls, sender: str, recipients: Iterable[str]) -> Envelope:
        """An envelope without parameters; an address named twice is kept once."""
        return cls(sender, tuple(Recipient(address) for address in dict.fromkeys(recipients)))

    @property
    def addresses(self) -> tuple[str, ...]:
        """The recipients' addresses, in order."""
        return tuple(recipient.address for recipient in self.recipients)

    def only(self, addresses: Iterable[str]) -> Envelope:
        """The same envelope for these addresses; one that it had keeps its parameters."""
        known = {recipient.address: recipient for recipient in self.recipients}
        kept = tuple(known.get(address, Recipient(address)) for address in dict.fromkeys(addresses))
        return dataclasses.replace(self, recipients=kept)


@dataclass(frozen=True, slots=True)
class Draft:
    """An entry that is not yet in any queue: it has no id before a switchboard takes it."""

    message: bytes
    envelope: Envelope
    meta: Mapping[str, Any] = field(default_factory=lambda: EMPTY)
    parents: tuple[str, ...] = ()
    arrival_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One message in one queue.

    ``id`` is its name for life; ``recipients`` are those still owed; times are aware datetimes in UTC.
    """

    id: str
    queue: str
    envelope: Envelope
    message: bytes = field(repr=False)
    recipients: tuple[str, ...]
    meta: Mapping[str, Any]
    arrival_ns: int
    due_ns: int
    history: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)
    parents: tuple[str, ...] = ()

    @property
    def sender(self) -> str:
        """The envelope's sender; empty for the null sender."""
        return self.envelope.sender

    @property
    def size(self) -> int:
        """The message's length in bytes."""
        return len(self.message)

    @property
    def arrival(self) -> datetime:
        """When it was accepted."""
        return to_datetime(self.arrival_ns)

    @property
    def due(self) -> datetime:
        """When it is next to be looked at."""
        return to_datetime(self.due_ns)

    @property
    def attempts(self) -> int:
        """How many attempts failed in this queue."""
        return _attempts(self.queue, self.history)

    def parsed(self) -> Message:
        """The message parsed anew at each call; the ``compat32`` policy reads anything."""
        from email import message_from_bytes

        return message_from_bytes(self.message)

    def header(self, name: str) -> str | None:
        """The first header of that name, unfolded and decoded, or None. Never raises."""
        raw = _first_header(self.message, name)
        return None if raw is None else _decoded(raw)

    def replace(
        self,
        *,
        message: bytes | None = None,
        sender: str | None = None,
        recipients: Iterable[str] | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> Entry:
        """The entry with other content.

        :param recipients: replaces those still owed.
        :param meta: is laid over what there is; a key whose value is None is removed.
        :raises ValueError: a key begins with ``qrunner.``, or a value is not JSON.
        :raises TypeError: an argument is of the wrong type.
        """
        envelope, owed = self.envelope, self.recipients
        if message is not None and not isinstance(message, bytes):
            raise TypeError(f"message must be bytes, not {type(message).__name__}")
        if sender is not None:
            if not isinstance(sender, str):
                raise TypeError(f"sender must be a str, not {type(sender).__name__}")
            envelope = dataclasses.replace(envelope, sender=sender)
        if recipients is not None:
            owed = checked_addresses(recipients)
            envelope = envelope.only(owed)
        return dataclasses.replace(
            self,
            message=self.message if message is None else message,
            envelope=envelope,
            recipients=owed,
            meta=self.meta if meta is None else laid_over(self.meta, meta),
        )

    def with_header(self, name: str, value: str) -> Entry:
        """The entry with one header line on top, in the message's own line ending.

        :raises ValueError: the name is no field name (RFC 5322 section 3.6.8), or the value has CR, LF or NUL.
        """
        if not _FIELD_NAME.match(name):
            raise ValueError(f"{name!r} can't be a header's name")
        if _BREAKS.search(value):
            raise ValueError(f"the value of {name} must not have CR, LF or NUL: {value!r}")
        first = self.message[: self.message.find(b"\n") + 1]
        ending = b"\r\n" if first.endswith(b"\r\n") else b"\n"
        line = f"{name}: {value}".encode("utf-8", "surrogateescape") + ending
        return dataclasses.replace(self, message=line + self.message)

    def forward(self, queue: str, *, delay: float = 0) -> Forward:
        """The fate of going on to ``queue``, due after ``delay`` seconds."""
        return Forward(self, queue, delay)

    def same_content(self, other: Entry) -> bool:
        """Whether message, envelope, owed recipients and metadata are equal."""
        return (
            self.message == other.message
            and self.envelope == other.envelope
            and self.recipients == other.recipients
            and self.meta == other.meta
        )


class Glance(NamedTuple):
    """What there is to be seen of an entry without its message; each as ``Entry`` has it."""

    id: str
    queue: str
    sender: str
    recipients: tuple[str, ...]
    meta: Mapping[str, Any]
    arrival_ns: int
    due_ns: int
    size: int
    history: tuple[Mapping[str, Any], ...] = ()

    @property
    def attempts(self) -> int:
        """How many attempts failed in this queue."""
        return _attempts(self.queue, self.history)


def _attempts(queue: str, history: Iterable[Mapping[str, Any]]) -> int:
    if not history:
        return 0
    return sum(1 for line in history if line.get("what") == "attempt" and line.get("queue", queue) == queue)


@dataclass(frozen=True, slots=True)
class Forward:
    """On to a queue, real or virtual; of several, each gets an id of its own and names its parent."""

    entry: Entry
    queue: str
    delay_s: float = 0.0


def checked_addresses(addresses: Iterable[str]) -> tuple[str, ...]:
    """The addresses, each once.

    :raises TypeError: one string stands where several belong, or something is no string.
    """
    if isinstance(addresses, (str, bytes)):
        raise TypeError("recipients must be several addresses, not one string")
    found = tuple(dict.fromkeys(addresses))
    for address in found:
        if not isinstance(address, str):
            raise TypeError(f"a recipient must be a str, not {type(address).__name__}")
    return found


def checked_meta(meta: Mapping[str, Any]) -> Mapping[str, Any]:
    """A read-only copy of a site's metadata.

    :raises ValueError: a key is ours or no string, or a value is not JSON.
    """
    if not meta:
        return EMPTY
    for key in meta:
        if not isinstance(key, str) or key.startswith(OURS):
            raise ValueError(f"metadata key {key!r}: keys are strings, and {OURS}* are reserved")
    try:
        # A copy to the bottom, and what reading it back will make of it: a list that its maker goes on changing is
        # none of ours, and a tuple is a list.
        return MappingProxyType(json.loads(json.dumps(dict(meta), allow_nan=False)))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"metadata must be JSON: {error}") from None


def laid_over(meta: Mapping[str, Any], changes: Mapping[str, Any]) -> Mapping[str, Any]:
    """``meta`` with the changes of a site's code: None removes a key."""
    checked = checked_meta({key: value for key, value in changes.items() if value is not None})
    dropped = [key for key, value in changes.items() if value is None]
    if any(key.startswith(OURS) for key in dropped):
        raise ValueError(f"metadata keys {OURS}* are reserved")
    merged = {key: value for key, value in meta.items() if key not in dropped}
    return MappingProxyType({**merged, **checked})


def still_owed(envelope: Envelope, history: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The recipients that no line of the history has settled; lines before the last rewrite do not count."""
    return unsettled(envelope.addresses, history)


def unsettled(addresses: Iterable[str], history: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """``still_owed`` of these addresses."""
    if not history:
        return tuple(dict.fromkeys(addresses))
    settled: set[str] = set()
    for line in history:
        what = line.get("what")
        if what == "rewrite":
            settled.clear()
        elif what in SETTLED:
            settled.update(to for to in line.get("to", ()) if isinstance(to, str))
    return tuple(dict.fromkeys(a for a in addresses if a not in settled))


def noted(entry: Entry, history: tuple[Mapping[str, Any], ...], owed: tuple[str, ...]) -> Entry:
    """The entry with this history, owed to these. Each delivery makes some: ``dataclasses.replace`` takes three times
    as long."""
    return Entry(
        entry.id,
        entry.queue,
        entry.envelope,
        entry.message,
        owed,
        entry.meta,
        entry.arrival_ns,
        entry.due_ns,
        history,
        entry.parents,
    )


def relayed(history: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Who got it over a host that reports no success, though the sender wants to hear of it and has not been told; each
    with the line that says so."""
    untold: dict[str, Mapping[str, Any]] = {}
    for line in history:
        addresses = [to for to in line.get("to", ()) if isinstance(to, str)]
        if line.get("what") == "delivered" and line.get("relayed"):
            untold.update(dict.fromkeys(addresses, line))
        elif line.get("what") == RELAYED:
            for address in addresses:
                untold.pop(address, None)
    return untold


def notifies(notify: str, keyword: str) -> bool:
    """Whether a recipient's NOTIFY has this keyword (RFC 3461 section 4.1)."""
    return keyword in notify.upper().replace(" ", "").split(",")


def header_block(message: bytes) -> bytes:
    """The message's headers, up to the empty line (RFC 5322 section 2.1), whatever ends its lines."""
    if message.startswith((b"\n", b"\r\n")):
        return b""
    # In the rest as well only if they are that long: it would cost passes over all of a large message.
    end = _empty_line(message, _USUAL_HEADERS)
    if end < 0 and len(message) > _USUAL_HEADERS:
        end = _empty_line(message, len(message))
    return message[: end + 1] if end >= 0 else message


def _empty_line(message: bytes, limit: int) -> int:
    """Where the line before the first empty one ends, within so many bytes; -1: there is none."""
    end = message.find(b"\n\n", 0, limit)
    other = message.find(b"\n\r\n", 0, end + 2 if end >= 0 else limit)
    return other if other >= 0 else end


def received_count(message: bytes) -> int:
    """How many hosts have passed it on, as their ``Received:`` lines say (RFC 5321 section 6.3)."""
    return len(_RECEIVED.findall(header_block(message)))


def _first_header(message: bytes, name: str) -> bytes | None:
    pattern = rb"^" + re.escape(name.encode("utf-8", "replace")) + rb"[ \t]*:(.*(?:\r?\n[ \t].*)*)"
    found = re.search(pattern, header_block(message), re.IGNORECASE | re.MULTILINE)
    return found.group(1) if found else None


def _decoded(raw: bytes) -> str:
    text = re.sub(r"\r?\n(?=[ \t])", "", raw.decode("utf-8", "replace")).strip()
    # What an encoded word hides may be a line end, or half a character: neither can stand in a header again.
    return _BREAKS.sub(" ", _words(text)).encode("utf-8", "replace").decode()


def _words(text: str) -> str:
    from email.header import decode_header, make_header

    try:
        return str(make_header(decode_header(text)))
    except Exception:  # unknown charsets and broken base64 come in more kinds than can be listed
        return text
