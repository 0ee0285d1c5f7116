"""Recipients from a message's own headers, as ``sendmail -t`` takes them.

``To``, ``Cc`` and ``Bcc`` name them; in a message that was sent on by hand it is the topmost block of ``Resent-`` fields
(RFC 5322 section 3.6.6), and not those of its first sending. Every ``Bcc`` and ``Resent-Bcc`` is then removed, and
nothing else is touched: the bytes that are left are those that came.
"""

from __future__ import annotations

import re
from email import policy

from qrunner.errors import PermanentFailure
from qrunner.message import header_block

_FIELD = re.compile(rb"[^\n]*(?:\n[ \t][^\n]*)*(?:\n|\Z)")
_NAMED = (b"to", b"cc", b"bcc")
_HIDDEN = (b"bcc", b"resent-bcc")
_RESENT = b"resent-"


def header_fields(message: bytes) -> list[bytes]:
    """The fields of the header as they stand, each with its continuation lines and line ends."""
    if message.startswith((b"\n", b"\r\n")):
        return []
    return [field for field in _FIELD.findall(header_block(message)) if field]


def name_of(field: bytes) -> bytes:
    """A field's name in lower case; empty if the line is no field."""
    name, colon, _ = field.partition(b":")
    name = name.rstrip(b" \t")
    return name.lower() if colon and name and not re.search(rb"[\s]", name) else b""


def text_of_field(field: bytes) -> str:
    """A field's value, unfolded."""
    value = field.partition(b":")[2]
    return re.sub(rb"\r?\n(?=[ \t])", b"", value).strip().decode("utf-8", "surrogateescape")


def taken_from_headers(message: bytes) -> tuple[list[str], bytes]:
    """The recipients that the headers name, and the message without those that nobody is to see.

    :raises PermanentFailure: a field of addresses can't be read.
    """
    fields = header_fields(message)
    resent = _topmost_resent(fields)
    prefix, chosen = (_RESENT, resent) if resent else (b"", fields)
    names = {prefix + name for name in _NAMED}
    recipients = [address for field in chosen if name_of(field) in names for address in addresses(field)]
    body = message[sum(map(len, fields)) :]
    return recipients, b"".join(field for field in fields if name_of(field) not in _HIDDEN) + body


def _topmost_resent(fields: list[bytes]) -> list[bytes]:
    """The fields of the latest sending-on: they stand together, and a name that comes again begins an older block."""
    block: dict[bytes, bytes] = {}
    for field in fields:
        name = name_of(field)
        if name.startswith(_RESENT):
            if name in block:
                break
            block[name] = field
        elif block:
            break
    return list(block.values())


def addresses(field: bytes) -> list[str]:
    """The addresses in a field, groups opened (RFC 5322 section 3.4). :raises PermanentFailure: it can't be read."""
    name = field.partition(b":")[0].decode("ascii", "replace")
    text = text_of_field(field)
    try:
        # The header is read as it came: an encoded word never hides a comma, a decoded one may.
        found = [address.addr_spec for address in policy.SMTP.header_factory("To", text).addresses]
    except Exception as error:  # the parser raises IndexError, AttributeError and others on odd input
        raise PermanentFailure(f"the addresses in {name} can't be read: {text!r}") from error
    if "<>" in found:
        raise PermanentFailure(f"{name} has an empty address: {text!r}")
    return found
