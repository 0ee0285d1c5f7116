"""The envelope that a final delivery wrote on top of a message: ``Return-Path``, ``Delivered-To``, ``X-Original-To``.

Guarantees: a recipient is only taken from above the first ``Received`` line, where the host that delivered the
message has written it. What stands below came with the message, and its sender may have made it up.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from qrunner.message import header_block

_FIELD = re.compile(rb"([^\s:]+)[ \t]*:((?:[^\n]|\n[ \t])*)(?:\n|\Z)")
_ADDRESS = re.compile(r'(?:"(?:[^"\\]|\\.)*"|[^\s"<>,;:()\[\]@]+)(?:@[^\s"<>,;()@]+)?')
_LONGEST = 1000


@dataclass(frozen=True, slots=True)
class Delivered:
    """What stands there. ``sender``: empty is the null sender, None says nothing."""

    sender: str | None = None
    recipients: tuple[str, ...] = ()


def envelope_of(message: bytes) -> Delivered:
    """The envelope on top: the first ``Return-Path``, and ``Delivered-To``, or else ``X-Original-To``."""
    sender: str | None = None
    found: dict[bytes, str] = {}
    is_ours = True
    for name, value in _fields(message):
        address = _address(value)
        if name == b"received":
            is_ours = False
        elif name == b"return-path" and sender is None:
            sender = address
        elif is_ours and address and name in (b"delivered-to", b"x-original-to"):
            found.setdefault(name, address)
    recipient = found.get(b"delivered-to") or found.get(b"x-original-to")
    return Delivered(sender, (recipient,) if recipient else ())


def _fields(message: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Names in lower case, and values as they stand. A line that is no field, such as an mbox's, is left out."""
    for field in re.finditer(rb"[^\n]*(?:\n[ \t][^\n]*)*(?:\n|\Z)", header_block(message)):
        if (match := _FIELD.match(field[0])) is not None:
            yield match[1].lower(), match[2]


def _address(value: bytes) -> str | None:
    """The address in a value; empty for ``<>``; None if there is something else."""
    text = re.sub(r"\r?\n(?=[ \t])", "", value.decode("utf-8", "surrogateescape")).strip()
    if text.startswith("<") and text.endswith(">"):
        text = text[1:-1].strip()
        if not text:
            return ""
    whole = len(text) <= _LONGEST and _ADDRESS.fullmatch(text) and text.isprintable()
    return text if whole or _is_odd(text) else None


def _is_odd(text: str) -> bool:
    """An address of bytes that are no UTF-8, which is none to print, but one to deliver to."""
    plain = re.sub("[\udc80-\udcff]", "x", text)
    return len(text) <= _LONGEST and plain != text and plain.isprintable() and bool(_ADDRESS.fullmatch(plain))
