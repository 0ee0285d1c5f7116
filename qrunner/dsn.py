"""What a bounce says: the fields of a delivery status notification (RFC 3464, RFC 6533), and, where there are none, the
words that stand near an address.

Guarantees: no message makes it fail, or take long: what strangers wrote is looked at only so far. What stands in a
returned message is not taken for the notification itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from email import message_from_bytes, message_from_string
from email.message import Message
from typing import Any

# A parser makes an object of each group of fields, and of empty lines groups; 100,000 of them cost it many seconds.
LOOKED_AT = 128 << 10
_EMPTY_LINES = re.compile(rb"\n(?:[ \t]*\r?\n){2,}")
_WORDS = 1000
_MOST = 200
_REPORTS = ("message/delivery-status", "message/global-delivery-status")
_ACTIONS = {
    "fail": "failed",
    "error": "failed",
    "delay": "delayed",
    "deliver": "delivered",
    "relay": "relayed",
}
_ACTIONS |= {"expand": "expanded"}

_STATUS = re.compile(r"\b([245]\.\d{1,3}\.\d{1,3})\b")
_REPLY = re.compile(r"(?:^|[\s:;(#<])([45])(\d\d)(?=[\s:;)#-]|$)")
_ADDRESS = re.compile(r"<([^<>]+@[^<>]+)>|(\"(?:[^\"\\]|\\.){1,64}\"@\S+|\S+)")
# RFC 6533 section 3: a character by its number, in a place that holds ASCII only.
_BY_NUMBER = re.compile(r"\\x\{([0-9A-Fa-f]{2,6})\}")
_BLANK = re.compile(r"\r?\n[ \t]*\r?\n")


@dataclass(frozen=True, slots=True)
class Notice:
    """What became of one recipient.

    :param address: the one that it was sent to, if the notification tells it; empty: none is named.
    :param action: ``failed delayed delivered relayed expanded``, or empty.
    :param status: enhanced status code (RFC 3463). ``text``: what the host said.
    """

    address: str
    action: str
    status: str
    text: str


def parsed(message: bytes) -> Message:
    """The beginning of a message, where all that a bounce has to say stands; an empty one if that can't be parsed."""
    try:
        return message_from_bytes(_EMPTY_LINES.sub(b"\n\n", message[:LOOKED_AT]))
    except Exception:  # a stranger's message, parts within parts without end among them
        return Message()


def without_returned(message: Message) -> Message:
    """The message, whose parts that are messages are empty now: a person may send on what came to himself."""
    for part in _own_parts(message):
        if part.get_content_type() in ("message/rfc822", "message/global"):
            part.set_payload([Message()])
    return message


def notices(message: Message) -> tuple[Notice, ...]:
    """What a delivery status notification says of each recipient; none: it is no such notification."""
    try:
        parts = [part for part in _own_parts(message) if part.get_content_type() in _REPORTS]
        blocks = [block for part in parts for block in _blocks(part)]
        return tuple(found for block in blocks[:_MOST] if (found := _notice(block)) is not None)
    except Exception:  # as above
        return ()


def text_of(message: Message) -> str:
    """The text for people: the first part that is one; empty: there is none."""
    try:
        for part in _own_parts(message):
            if part.get_content_maintype() == "text":
                payload = part.get_payload(decode=True)
                if isinstance(payload, bytes):
                    return payload.decode("utf-8", "replace")
    except Exception:  # as above
        return ""
    return ""


def words_near(text: str, address: str) -> str:
    """What a text says of an address: its line and the next few, on one line; without the address, the first words."""
    at = text.lower().find(address.lower()) if address else -1
    start = text.rfind("\n", 0, at) + 1 if at >= 0 else 0
    found = _BLANK.search(text, at + len(address)) if at >= 0 else None
    end = found.start() if found else len(text)
    # Where the address has a line of its own, what is said of it follows.
    if found and not text[start:end].replace(address, "").strip(" <>:\t\r\n"):
        after = _BLANK.search(text, found.end())
        end = after.start() if after else len(text)
    return " ".join(text[start:end].split())[:_WORDS]


def status_in(text: str) -> str:
    """The enhanced status code that a reply has, or the one that stands for its reply code; empty: it has neither."""
    found = [status for status in _STATUS.findall(text[:_WORDS]) if status[0] != "2"]
    if found:
        return str(found[0])
    reply = _REPLY.search(text[:_WORDS])
    return f"{reply[1]}.0.0" if reply else ""


def is_from_a_daemon(message: Message) -> bool:
    """Whether its headers say that a mail system wrote it, and not for a person who is away (RFC 3834)."""
    if _field(message, "auto-submitted").lower().startswith("auto-replied"):
        return False
    sender = _field(message, "from").lower()
    return any(word in sender for word in ("mailer-daemon", "postmaster", "mail delivery", "mdaemon"))


def _own_parts(message: Message) -> Iterator[Message]:
    """Its parts, but for what is inside of a message that it returns."""
    waiting = [message]
    while waiting:
        part = waiting.pop(0)
        yield part
        if part.get_content_maintype() == "multipart":
            inner = part.get_payload()
            waiting[:0] = (
                [one for one in inner if isinstance(one, Message)] if isinstance(inner, list) else []
            )


def _blocks(part: Message) -> list[Message]:
    """The groups of fields, the first of which is about the message (RFC 3464 section 2.1)."""
    inner: Any = part.get_payload()
    encoding = str(part.get("content-transfer-encoding", "")).lower().strip()
    if encoding in ("base64", "quoted-printable"):
        # No parser expects that, and some write it.
        body = part.as_bytes().partition(b"\n\n")[2]
        coded = message_from_string(f"Content-Transfer-Encoding: {encoding}\n\n{body.decode('latin-1')}")
        decoded = coded.get_payload(decode=True)
        return _split(decoded.decode("utf-8", "surrogateescape") if isinstance(decoded, bytes) else "")
    if not isinstance(inner, list):
        return _split(str(inner))
    blocks: list[Message] = []
    for one in inner:
        # Of the type that the parser does not know, it takes all groups but the first for a body.
        whole = one.get_payload() in ("", [], None)
        blocks += [one] if whole else _split(one.as_bytes().decode("utf-8", "surrogateescape"))
    return blocks


def _split(text: str) -> list[Message]:
    return [
        message_from_string(one.lstrip("\r\n")) for one in _BLANK.split(text, _MOST)[:_MOST] if one.strip()
    ]


def _field(block: Message, name: str) -> str:
    """A field's value, unfolded; bytes that are no ASCII are taken for UTF-8 (RFC 6533)."""
    for key, value in block.raw_items():
        if key.lower() == name:
            text = str(value)[: 2 * _WORDS].encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            return " ".join(text.split())
    return ""


def _notice(block: Message) -> Notice | None:
    final, action = _field(block, "final-recipient"), _field(block, "action").lower()
    original, said = _field(block, "original-recipient"), _field(block, "status")
    if not (final or original or action):
        return None
    address = _address(original) or _address(final) or _address(_field(block, "x-actual-recipient"))
    kind, _, text = _field(block, "diagnostic-code").partition(";")
    text = (text if "@" not in kind and " " not in kind.strip() and text else f"{kind} {text}").strip()
    found = _STATUS.search(said)
    status = found[1] if found else ""
    # "5.0.0" says no more than "no"; the host's own words may.
    if not status or status.endswith(".0.0"):
        status = status_in(text) or status
    named = next((full for short, full in _ACTIONS.items() if action.startswith(short)), "")
    if not action and status:
        named = {"5": "failed", "4": "delayed"}.get(status[0], "")
    return Notice(address, named, status, text[:_WORDS])


def _address(field: str) -> str:
    """The address of ``rfc822; ann@example.net``, or of what is written in its stead."""
    kind, semicolon, rest = field.partition(";")
    text = (rest if semicolon else kind).strip()
    if semicolon and kind.strip().lower() in ("utf-8", "unitext"):
        text = _BY_NUMBER.sub(lambda found: _character(found[1]), text)
    found = _ADDRESS.match(text)
    address = (found[1] or found[2]) if found else ""
    return address if "@" in address.strip("@") else ""


def _character(digits: str) -> str:
    number = int(digits, 16)
    return chr(number) if number <= 0x10FFFF and not 0xD800 <= number <= 0xDFFF else ""
