"""The ``Received:`` line that a server puts on top of what it takes (RFC 5321 section 4.4)."""

from __future__ import annotations

import re
from datetime import datetime
from email.utils import format_datetime

_ODD = re.compile(r"[^-0-9A-Za-z._:\[\]]")
_LONGEST_NAME, _LONGEST_ADDRESS = 255, 320


def received(
    *, helo: str, peer: str, by: str, protocol: str, recipients: tuple[str, ...], when: datetime
) -> bytes:
    """The line, folded, with CRLF.

    :param helo: what the client calls itself; whatever could not stand there is shown as ``?``.
    :param peer: its IP address; empty: a socket of this machine.
    :param protocol: as registered (RFC 3848): ``LMTP``, ``ESMTP``, ``UTF8SMTP``.
    :param recipients: one is named. Of several none is, lest each learn of the others.
    """
    place = f"[{_ODD.sub('?', _literal(peer))}]" if peer else "local"
    lines = [f"Received: from {_ODD.sub('?', helo)[:_LONGEST_NAME] or 'unknown'} ({place})"]
    lines.append(f"\tby {by} (qrunner) with {protocol}")
    if len(recipients) == 1 and len(recipients[0]) <= _LONGEST_ADDRESS:
        lines.append(f"\tfor <{recipients[0]}>")
    return ("\r\n".join(lines) + f";\r\n\t{format_datetime(when)}\r\n").encode()


def _literal(peer: str) -> str:
    """An IPv6 address has a tag before it (RFC 5321 section 4.1.3)."""
    return f"IPv6:{peer}" if ":" in peer else peer


def protocol_name(*, is_lmtp: bool, extended: bool, utf8: bool) -> str:
    """What stands behind ``with`` (RFC 3848, RFC 6531 section 4.3)."""
    if is_lmtp:
        return "UTF8LMTP" if utf8 else "LMTP"
    if not extended:
        return "SMTP"
    return "UTF8SMTP" if utf8 else "ESMTP"
