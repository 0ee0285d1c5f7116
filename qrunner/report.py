"""The report that tells a sender what became of a message: outcomes in, an RFC 3464 message out.

A pure function: the caller brings the time and says to whom the report goes. It is laid out by hand, byte for
byte, since the messages reported on are the odd ones.

Guarantees: no byte of the original makes it fail, or reaches a header of the report as it is. The envelope
sender is the null sender (RFC 3464 section 2), so that no report is ever answered by another.
Not guaranteed: that a recipient's name in the report is the one that the sender knows, unless the MTA passed
ORCPT on.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from hashlib import sha1
from typing import Literal

from qrunner.fate import Failure
from qrunner.message import Draft, Entry, Envelope, Recipient, header_block, notifies

Action = Literal["failed", "delayed", "relayed"]

RETURNED_MAX = 64 << 10
EXPIRED_STATUS = "4.4.7"
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_HEXCHAR = re.compile(r"\+([0-9A-F]{2})")
_STATUS = re.compile(r"[245]\.\d{1,3}\.\d{1,3}\Z")

_SUBJECT: Mapping[Action, str] = {
    "failed": "Undelivered mail returned to sender",
    "delayed": "Delayed mail (still being tried)",
    "relayed": "Mail passed on (its delivery can't be confirmed)",
}
_OPENING: Mapping[Action, str] = {
    "failed": "could not be delivered to:",
    "delayed": "could not yet be delivered to:",
    "relayed": "was passed on for these, to a host that reports no success:",
}
_CLOSING: Mapping[Action, str] = {
    "failed": "It was given up for these recipients and will not be tried again.",
    "delayed": "It will be tried again; you need not send it again.",
    "relayed": "You may hear of it again if it fails there.",
}


@dataclass(frozen=True, slots=True)
class About:
    """What a report says beside the failures.

    :param hostname: ours, for Reporting-MTA and Message-ID.
    :param now_ns: nanoseconds since 1970, for the date.
    :param retry_until_ns: of a delay, when it will be given up.
    :param left_out: of an address, how many failures were not reported since the last one that was.
    """

    hostname: str
    now_ns: int
    action: Action = "failed"
    retry_until_ns: int | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)


def wanted(entry: Entry, failures: Iterable[Failure], action: Action = "failed") -> tuple[Failure, ...]:
    """Those of the failures that the sender of the entry wants to hear of (RFC 3461 section 4.1).

    None of them for the null sender. A recipient without NOTIFY is reported, but not if all went well.
    """
    if not entry.sender:
        return ()
    keyword = {"failed": "FAILURE", "delayed": "DELAY", "relayed": "SUCCESS"}[action]
    asked = {recipient.address: recipient.notify for recipient in entry.envelope.recipients}
    by_default = action != "relayed"
    found = ((one, asked.get(one.address, "")) for one in failures)
    return tuple(one for one, notify in found if (notifies(notify, keyword) if notify else by_default))


def is_last_word(entry: Entry, postmaster: str) -> bool:
    """Whether the entry is a report to the postmaster, from here or from another process of ours: by its envelope, or,
    where an alias has changed that, by its headers. A failure of it is told nobody, or reports would go in circles."""
    if entry.sender:
        return False
    to = postmaster.lower()
    if [address.lower() for address in entry.envelope.addresses] == [to]:
        return True
    is_automatic = (entry.header("auto-submitted") or "no").lower() != "no"
    return is_automatic and (entry.header("to") or "").lower() == to


def audience(
    entry: Entry,
    failures: Iterable[Failure],
    *,
    report: str,
    postmaster: str,
    action: Action = "failed",
) -> tuple[str, tuple[Failure, ...]]:
    """Who is to hear of failures of one attempt, and of which of them; of none: nobody.

    :param report: ``sender``, ``postmaster`` or ``none``, as configured. The postmaster hears of every failure,
        whatever NOTIFY says. What the null sender has sent is mostly a report itself: if that fails the postmaster
        hears of it, unless it was for him.
    """
    told = tuple(failures)
    if action == "relayed" and (report != "sender" or not entry.sender):
        return "", ()
    if report == "none" or (not entry.sender and (action == "delayed" or is_last_word(entry, postmaster))):
        return "", ()
    if not entry.sender or report == "postmaster":
        return postmaster, tuple(
            one for one in told if entry.sender or one.address.lower() != postmaster.lower()
        )
    return entry.sender, wanted(entry, told, action)


def build(entry: Entry, failures: Iterable[Failure], to: str, about: About) -> Draft:
    """The report as an entry to be, addressed to ``to``.

    The same arguments give the same bytes. It returns the original's headers, or, where the sender asked for it
    (RET=FULL) and it is no longer than 64 KB, the whole original.
    """
    told = tuple(failures)
    parts = [
        _for_people(entry, told, to, about),
        _for_programs(entry, told, about),
        _returned(entry, whole=about.action == "failed"),
    ]
    key = b"\n".join([entry.id.encode(), b"%d" % about.now_ns, *parts])
    boundary = _boundary(key, parts)
    head = _head(entry, to, about, boundary, sha1(key, usedforsecurity=False).hexdigest()[:16])
    fence = b"\n--" + boundary
    message = head + b"".join(fence + b"\n" + part for part in parts) + fence + b"--\n"
    envelope = replace(Envelope.of("", [to]), smtputf8=not to.isascii())
    if not message.isascii():
        envelope = replace(envelope, body="8BITMIME")
    return Draft(message, envelope, parents=(entry.id,))


def _head(entry: Entry, to: str, about: About, boundary: bytes, token: str) -> bytes:
    host, now_ns = _ascii(about.hostname), about.now_ns
    subject = _SUBJECT[about.action] if to == entry.sender else "For the postmaster: undelivered mail"
    lines = [
        f"From: Mail Delivery System <MAILER-DAEMON@{host}>",
        f"To: {_clean(to)}",
        f"Subject: {subject}",
        f"Date: {formatdate(now_ns // 10**9)}",
        f"Message-ID: <{now_ns // 10**6}.{token}@{host}>",
        "Auto-Submitted: auto-replied",
        "MIME-Version: 1.0",
        "Content-Type: multipart/report; report-type=delivery-status;",
        f'\tboundary="{boundary.decode()}"',
        "",
        "This is a delivery status report in MIME format (RFC 3464).",
        "",
    ]
    return "\n".join(lines).encode("utf-8", "replace")


def _boundary(key: bytes, parts: list[bytes]) -> bytes:
    """One that stands nowhere in the parts."""
    while True:
        key = sha1(key, usedforsecurity=False).hexdigest().encode()
        boundary = b"report-" + key[:24]
        if not any(boundary in part for part in parts):
            return boundary


def _for_people(entry: Entry, failures: tuple[Failure, ...], to: str, about: About) -> bytes:
    whose = "Your message" if to == entry.sender else f"A message from <{_clean(entry.sender)}>"
    lines = [
        f"This is the mail system at {_clean(about.hostname)}.",
        "",
        f"{whose} {_OPENING[about.action]}",
        "",
    ]
    for failure in failures:
        where = f" (from {_clean(failure.host)})" if failure.host else ""
        # No line longer than SMTP allows (RFC 5321 section 4.5.3.1.6), whatever a host said.
        said = textwrap.wrap(f"{_clean(failure.text)[:2000]}{where}", 72, break_on_hyphens=False)
        lines += [f"  {_clean(failure.address)}", *(f"      {line}" for line in said)]
        if failure.expired:
            lines.append("      It was tried for as long as this system tries.")
        if left_out := about.left_out.get(failure.address, 0):
            lines.append(
                f"      Since the last report on this address {left_out} more like it were left out."
            )
        lines.append("")
    text = "\n".join([*lines, _CLOSING[about.action], ""]).encode("utf-8", "replace")
    return _part("text/plain; charset=utf-8", text)


def _for_programs(entry: Entry, failures: tuple[Failure, ...], about: About) -> bytes:
    fields = [f"Reporting-MTA: dns; {_ascii(about.hostname)}"]
    if entry.envelope.envid:
        fields.append(f"Original-Envelope-Id: {_ascii(_xtext(entry.envelope.envid))}")
    fields.append(f"Arrival-Date: {formatdate(entry.arrival_ns // 10**9)}")
    known = {recipient.address: recipient for recipient in entry.envelope.recipients}
    nobody = Recipient("")
    groups = [fields, *(_per_recipient(one, known.get(one.address, nobody), about) for one in failures)]
    text = "\n\n".join("\n".join(map(_folded, group)) for group in groups) + "\n"
    return _part("message/delivery-status", text.encode("ascii", "replace"))


def _per_recipient(failure: Failure, recipient: Recipient, about: About) -> list[str]:
    """The fields of one recipient (RFC 3464 section 2.3), in its order."""
    fields = [f"Original-Recipient: {_original(recipient.orcpt)}"] if recipient.orcpt else []
    fields += [
        f"Final-Recipient: {_typed(failure.address)}",
        f"Action: {about.action}",
        f"Status: {_status(failure, about.action)}",
    ]
    if failure.host:
        fields += [f"Remote-MTA: dns; {_ascii(failure.host)}"]
    kind = "smtp" if failure.host and failure.text[:1] in tuple("2345") else "X-qrunner"
    fields.append(f"Diagnostic-Code: {kind}; {_ascii(failure.text)[:4000]}")
    if about.retry_until_ns is not None:
        fields.append(f"Will-Retry-Until: {formatdate(about.retry_until_ns // 10**9)}")
    left_out = about.left_out.get(failure.address, 0)
    return [*fields, f"X-qrunner-Left-Out: {left_out}"] if left_out else fields


def _status(failure: Failure, action: Action) -> str:
    """A failed recipient has a status of class 5, unless its time ran out (RFC 3463 section 3.5)."""
    if action == "relayed":
        return failure.status if failure.status.startswith("2.") else "2.0.0"
    if _STATUS.match(failure.status) and (action == "delayed" or not failure.status.startswith("2")):
        return failure.status
    return EXPIRED_STATUS if failure.expired or action == "delayed" else "5.0.0"


def _original(orcpt: str) -> str:
    """ORCPT as it came, ``type;xtext``, in the form of a field (RFC 3461 section 5.2.3)."""
    kind, separator, address = orcpt.partition(";")
    if not separator:
        return _typed(_xtext(orcpt))
    return f"{_ascii(kind)}; {_ascii(_xtext(address))}"


def _typed(address: str) -> str:
    """An address with its type; one that is not ASCII as in RFC 6533 section 3."""
    if address.isascii():
        return f"rfc822; {_ascii(address)}"
    return "utf-8; " + "".join(c if c.isascii() else f"\\x{{{ord(c):X}}}" for c in _clean(address))


def _xtext(text: str) -> str:
    """xtext decoded (RFC 3461 section 4); what is none stays as it is."""
    return _HEXCHAR.sub(lambda found: chr(int(found[1], 16)), text)


def _returned(entry: Entry, *, whole: bool) -> bytes:
    """The last part: the original's headers, or all of it; of what has not failed never (RFC 3461 section 4.3)."""
    if whole and entry.envelope.ret.upper() == "FULL" and len(entry.message) <= RETURNED_MAX:
        return _part("message/rfc822", _lines(entry.message))
    head = header_block(entry.message)
    if len(head) > RETURNED_MAX:
        head = head[: head.rfind(b"\n", 0, RETURNED_MAX) + 1 or RETURNED_MAX]
    return _part("text/rfc822-headers", _lines(head))


def _lines(original: bytes) -> bytes:
    """The original with one kind of line ending, that of the report."""
    return re.sub(rb"\r\n?", b"\n", original).replace(b"\0", b"")


def _part(kind: str, content: bytes) -> bytes:
    encoding = "" if content.isascii() else "Content-Transfer-Encoding: 8bit\n"
    return f"Content-Type: {kind}\n{encoding}\n".encode() + content


def _clean(text: str) -> str:
    """On one line, nothing that a terminal or a parser would obey."""
    return _CONTROLS.sub(" ", text).strip()


def _ascii(text: str) -> str:
    return _clean(text).encode("ascii", "backslashreplace").decode()


def _folded(field: str) -> str:
    """A field of lines short enough for any MTA (RFC 5322 section 2.1.1), broken at spaces where there are some."""
    lines = []
    while len(field) > 900:
        cut = field.rfind(" ", 400, 900)
        cut = cut if cut > 0 else 900
        lines.append(field[:cut])
        field = field[cut:].lstrip(" ")
    return "\n ".join([*lines, field])
