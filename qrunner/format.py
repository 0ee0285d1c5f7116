"""The file of an entry, version 1: its name, its head, its history.

::

    qrunner 1 00000143 000000004096 <sha1>\\n    version, lengths of JSON and message, checksum of both
    {"nonce":…,"arrival":…,"sender":…,…}\\n      one line of JSON
    <the message's bytes as they came>
    <crc32> {"t":…,"what":…}\\n                  the history, appended to for life

Guarantees: a file that was cut, altered or overwritten is told from a whole one; a history line that is not
whole is skipped wherever it stands. ``qrunner/inject.py`` writes the same format by itself.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha1
from types import MappingProxyType
from typing import Any
from zlib import crc32

from qrunner.errors import CorruptEntry
from qrunner.message import Draft, Entry, Envelope, Glance, Recipient, still_owed, unsettled

VERSION = 1
HEAD_SIZE = 73
LAST_DUE_NS = 2**63 - 1
_PROVED = 32
_PIECE, _HASHED_AT_ONCE = 2047, 1 << 14
_LONGEST_JSON = 99_999_999
_ANSWERS = frozenset({"delivered", "failed", "deferred", "ambiguous", "attempt", "expired", "rewrite"})
_HEAD = re.compile(rb"qrunner ([0-9]{1,4}) ([0-9]{8}) ([0-9]{12}) ([0-9a-f]{40})\n\Z")
READY_LENGTH, _ID_LENGTH = 61, 40
_DIGITS = b"0123456789abcdef"
_NAME = re.compile(r"([0-9]{20})\+([0-9a-f]{40})(?:\.(.+))?\Z", re.DOTALL)
_decode = json.JSONDecoder().raw_decode
_encode = json.JSONEncoder(separators=(",", ":")).encode
_CLAIMANT = re.compile(r"([0-9]+),([0-9a-f]+),([0-9]+),([0-9a-f]+),([^/,]+)\Z")


@dataclass(frozen=True, slots=True)
class Claimant:
    """In whose hand an entry is: process, its nonce, the nth claim of it, the boot and the machine."""

    pid: int
    nonce: str
    serial: int
    boot: str
    node: str

    def __str__(self) -> str:
        return f"{self.pid},{self.nonce},{self.serial},{self.boot},{self.node}"


@dataclass(frozen=True, slots=True)
class Name:
    """A file's name taken apart: when it is due, which entry it is, in whose hand."""

    due_ns: int
    id: str
    claimant: Claimant | None = None

    def __str__(self) -> str:
        return ready_name(self.due_ns, self.id) + (f".{self.claimant}" if self.claimant else "")


def due_within(due_ns: int) -> int:
    """The nearest due time that a name can have: one past the last would make the entry a stranger."""
    return min(max(due_ns, 0), LAST_DUE_NS)


def ready_name(due_ns: int, id: str) -> str:
    """The name of an entry that nobody has in hand; a time that no name can hold becomes the nearest that can."""
    return f"{due_within(due_ns):020d}+{id}"


def parse_name(text: str) -> Name | None:
    """The name taken apart, or None: a stranger."""
    found = _NAME.match(text)
    if not found:
        return None
    due, id, suffix = found.groups()
    if int(due) > LAST_DUE_NS:
        return None
    if suffix is None:
        return Name(int(due), id)
    who = _CLAIMANT.match(suffix)
    if not who:
        return None
    return Name(int(due), id, Claimant(int(who[1]), who[2], int(who[3]), who[4], who[5]))


def sorted_out(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Those that are ready names, in order, and the others: what ``parse_name`` would say, at a tenth of the cost."""
    ready = [name for name in names if len(name) == READY_LENGTH]
    others = [] if len(ready) == len(names) else [name for name in names if len(name) != READY_LENGTH]
    ready.sort()
    if not _are_ready(ready):
        others += [name for name in ready if parse_name(name) is None]
        ready = [name for name in ready if parse_name(name) is not None]
    return ready, others


def _are_ready(names: Sequence[str]) -> bool:
    """Of sorted names of the right length: all are looked at together, a column of digits at a time."""
    text = "".join(names)
    if not text.isascii() or not text:
        return not text
    plus = "+" * len(names)
    return (
        text[20::READY_LENGTH] == plus
        and text.encode().translate(None, _DIGITS) == plus.encode()
        and all(text[column::READY_LENGTH].isdigit() for column in range(20))
        and int(names[-1][:20]) <= LAST_DUE_NS
    )


def ids_begin(names: Sequence[str], digits: str) -> bool:
    """Whether the ids of all these ready names begin so."""
    text, first = "".join(names), READY_LENGTH - _ID_LENGTH
    return all(text[first + at :: READY_LENGTH] == digit * len(names) for at, digit in enumerate(digits))


@dataclass(frozen=True, slots=True)
class Sealed:
    """The bytes of a file to be, and the id they prove."""

    id: str
    head: bytes
    message: bytes
    tail: bytes = b""

    @property
    def parts(self) -> tuple[bytes, ...]:
        """What is written, in order."""
        return (self.head, self.message, self.tail) if self.tail else (self.head, self.message)


class Nonces:
    """Texts that nobody else has: of this process by what it drew when it began, and each by its number. To draw anew
    each time would be a system call, after which a thread has to get back in line."""

    def __init__(self) -> None:
        self._renew()
        os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._drawn, self._numbers = os.urandom(8).hex(), itertools.count()

    def next(self) -> str:
        return f"{self._drawn}{next(self._numbers):x}"


_nonces = Nonces()


def seal(
    draft: Draft, arrival_ns: int, nonce: str | None = None, records: Iterable[Mapping[str, Any]] = ()
) -> Sealed:
    """The file of a new entry; its id is the checksum of what was accepted.

    :param records: what its history begins with, at the time of its arrival here.
    :raises TypeError, ValueError: the envelope, the metadata or a record can't be written down.
    """
    fields = _fields(draft.envelope, draft.meta)
    fields = {"nonce": nonce or _nonces.next(), "arrival": draft.arrival_ns or arrival_ns, **fields}
    if draft.parents:
        fields["parents"] = list(draft.parents)
    digest, head = _head(fields, draft.message)
    return Sealed(
        digest, head, draft.message, _tail(draft.message, [{"t": arrival_ns, **r} for r in records])
    )


def reseal(
    entry: Entry, records: Iterable[Mapping[str, Any]], hop: Mapping[str, Any] | None = None
) -> Sealed:
    """The file of an entry whose content a handler changed: same id, its history and more, and where it is going."""
    envelope = entry.envelope.only(entry.recipients)
    fields: dict[str, Any] = {"id": entry.id, "arrival": entry.arrival_ns, **_fields(envelope, entry.meta)}
    if entry.parents:
        fields["parents"] = list(entry.parents)
    if hop:
        fields["hop"] = dict(hop)
    _, head = _head(fields, entry.message)
    return Sealed(entry.id, head, entry.message, _tail(entry.message, (*entry.history, *records)))


def _tail(message: bytes, records: Iterable[Mapping[str, Any]]) -> bytes:
    """The history behind a message; its first line begins on a line of its own."""
    lines = b"".join(map(history_line, records))
    gap = b"" if message.endswith(b"\n") or not message or not lines else b"\n"
    return gap + lines


def _fields(envelope: Envelope, meta: Mapping[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "sender": _text(envelope.sender),
        "recipients": [_rcpt(r) for r in envelope.recipients],
    }
    optional = {"meta": dict(meta), "envid": envelope.envid, "ret": envelope.ret, "body": envelope.body}
    fields.update((key, value) for key, value in optional.items() if value)
    if envelope.smtputf8:
        fields["smtputf8"] = True
    return fields


def _rcpt(recipient: Recipient) -> str | dict[str, str]:
    if not recipient.notify and not recipient.orcpt:
        return _text(recipient.address)
    parts = {"to": _text(recipient.address), "notify": recipient.notify, "orcpt": recipient.orcpt}
    return {key: value for key, value in parts.items() if value or key == "to"}


def _head(fields: Mapping[str, Any], message: bytes) -> tuple[str, bytes]:
    line = _json(fields) + b"\n"
    if len(line) > _LONGEST_JSON:
        raise ValueError(f"envelope and metadata are too long: {len(line)} bytes of {_LONGEST_JSON}")
    proved = b"qrunner %d %08d %012d " % (VERSION, len(line), len(message))
    digest = sha1(proved + line, usedforsecurity=False)
    if len(message) <= _HASHED_AT_ONCE:
        # Of larger pieces hashlib lets other threads go on meanwhile, and to get back in line takes longer than the hash.
        for start in range(0, len(message), _PIECE):
            digest.update(message[start : start + _PIECE])
    else:
        digest.update(message)
    return digest.hexdigest(), proved + digest.hexdigest().encode() + b"\n" + line


def _json(value: Mapping[str, Any]) -> bytes:
    return _encode(value).encode()


def _from_json(line: bytes) -> Any:
    """A line of ours read again. ``json.loads`` would ask first in which encoding it is."""
    text = line.decode()
    value, end = _decode(text)
    if text[end:].strip():
        raise ValueError("there is more on the line")
    return value


@dataclass(frozen=True, slots=True)
class Opened:
    """A whole file: the entry, the pending hop if a content change was on its way, and its digest."""

    entry: Entry
    hop: Mapping[str, Any] | None


def lengths(head: bytes, size: int) -> tuple[int, int, str]:
    """JSON length, message length and digest of a file whose first bytes are ``head``.

    :param size: of the file in bytes; lengths that do not fit it are a lie.
    :raises CorruptEntry: it says what is wrong.
    """
    if size < HEAD_SIZE:
        raise CorruptEntry(f"{size} bytes are too few for a header")
    found = _HEAD.match(head[:HEAD_SIZE])
    if not found:
        later = re.match(rb"qrunner ([0-9]{1,18}) ", head)
        if later and int(later[1]) != VERSION:
            raise CorruptEntry(f"format version {int(later[1])}; this program reads version {VERSION}")
        raise CorruptEntry("the header line is not ours")
    version, json_len, message_len = map(int, found.group(1, 2, 3))
    if version != VERSION:
        raise CorruptEntry(f"format version {version}; this program reads version {VERSION}")
    if HEAD_SIZE + json_len + message_len > size:
        raise CorruptEntry(f"cut short: {size} bytes of {HEAD_SIZE + json_len + message_len}")
    return json_len, message_len, found[4].decode()


def open_file(queue: str, name: Name, data: bytes) -> Opened:
    """The entry in a file's bytes.

    :raises CorruptEntry: it says what is wrong.
    """
    json_len, message_len, digest = lengths(data, len(data))
    body = HEAD_SIZE + json_len
    return _proved(
        queue, name, digest, data[:body], data[body : body + message_len], data[body + message_len :]
    )


def open_parts(queue: str, name: Name, head: bytes, message: bytes, tail: bytes) -> Opened:
    """``open_file`` of a file that was read as its header and JSON, its message and its history.

    :raises CorruptEntry: it says what is wrong.
    """
    json_len, message_len, digest = lengths(head, len(head) + len(message) + len(tail))
    if (len(head), len(message)) != (HEAD_SIZE + json_len, message_len):
        raise CorruptEntry("it changed while it was read")
    return _proved(queue, name, digest, head, message, tail)


def _proved(queue: str, name: Name, digest: str, head: bytes, message: bytes, tail: bytes) -> Opened:
    proof = sha1(head[:_PROVED] + head[HEAD_SIZE:], usedforsecurity=False)
    proof.update(message)
    if proof.hexdigest() != digest:
        raise CorruptEntry("the checksum does not fit the content")
    try:
        fields = _from_json(head[HEAD_SIZE:])
        opened = _opened(queue, name, fields, message, tail)
    except (ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise CorruptEntry(f"the envelope can't be read: {error!r}") from None
    if fields.get("id", digest) != name.id:
        raise CorruptEntry("the name is not that of the content")
    return opened


def glance_at(queue: str, id: str, due_ns: int, line: bytes, size: int, digest: str, tail: bytes) -> Glance:
    """The entry of a file as its header, its line of JSON and its history tell. Its checksum is not asked.

    :param size: of the message. ``digest``: as in the header.
    :raises CorruptEntry: it says what is wrong.
    """
    try:
        fields = _from_json(line)
        history = parse_history(tail) if tail else ()
        addresses = [
            item if isinstance(item, str) else _text(item["to"]) for item in _list(fields["recipients"])
        ]
        owed = unsettled(addresses, history)
        arrival_ns, meta = int(fields["arrival"]), dict(fields.get("meta", {}))
        glance = Glance(id, queue, _text(fields["sender"]), owed, meta, arrival_ns, due_ns, size, history)
    except (ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise CorruptEntry(f"the envelope can't be read: {error!r}") from None
    if fields.get("id", digest) != id:
        raise CorruptEntry("the name is not that of the content")
    return glance


def _opened(queue: str, name: Name, fields: Mapping[str, Any], message: bytes, tail: bytes) -> Opened:
    envelope = Envelope(
        sender=_text(fields["sender"]),
        recipients=tuple(_recipient(item) for item in _list(fields["recipients"])),
        envid=_text(fields.get("envid", "")),
        ret=_text(fields.get("ret", "")),
        body=_text(fields.get("body", "")),
        smtputf8=bool(fields.get("smtputf8", False)),
    )
    history = parse_history(tail)
    entry = Entry(
        id=name.id,
        queue=queue,
        envelope=envelope,
        message=message,
        recipients=still_owed(envelope, history),
        meta=MappingProxyType(dict(fields.get("meta", {}))),
        arrival_ns=int(fields["arrival"]),
        due_ns=name.due_ns,
        history=history,
        parents=tuple(_text(parent) for parent in fields.get("parents", ())),
    )
    hop = fields.get("hop")
    return Opened(entry, None if hop is None else dict(hop))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is no list")
    return value


def _recipient(item: Any) -> Recipient:
    if isinstance(item, str):
        return Recipient(item)
    return Recipient(_text(item["to"]), _text(item.get("notify", "")), _text(item.get("orcpt", "")))


def history_line(record: Mapping[str, Any]) -> bytes:
    """One line of history with its checksum."""
    line = _json(record)
    return b"%08x %s\n" % (crc32(line), line)


def parse_history(tail: bytes) -> tuple[Mapping[str, Any], ...]:
    """The whole lines of a history, oldest first. A line that stands there twice was repeated by a recovery: it
    counts once."""
    lines: dict[bytes, Mapping[str, Any]] = {}
    for line in tail.split(b"\n"):
        record = None if line in lines else _record(line)
        if record is not None:
            lines[line] = record
    return tuple(lines.values())


def unanswered(history: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The mark of a delivery whose reply was not written down (RFC 1047), if that is how the history ends."""
    mark: Mapping[str, Any] | None = None
    for line in history:
        what = line.get("what")
        if what == "sending":
            mark = line
        elif what in _ANSWERS:
            mark = None
    return mark


def crash_marks(queue: str, history: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The deaths in this queue that the entry was a suspect of since anything else became of it."""
    marks: list[Mapping[str, Any]] = []
    for line in history:
        if line.get("what") == "crash" and line.get("queue") == queue:
            marks.append(line)
        elif line.get("what") in ("attempt", "requeue", "release", "rewrite"):
            marks.clear()
    return marks


def _record(line: bytes) -> Mapping[str, Any] | None:
    if len(line) < 11 or line[8:9] != b" ":
        return None
    try:
        if int(line[:8], 16) != crc32(line[9:]):
            return None
        record = _from_json(line[9:])
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
