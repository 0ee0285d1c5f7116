"""Variable envelope return paths: a sender that names the recipient, so that whatever comes back tells for whom.

``list-bounces@lists.example.org``, for ``ann@example.net`` and the delimiters ``+=``, becomes
``list-bounces+ann=example.net@lists.example.org``.

Guarantees: the result is an address if sender and recipient are; a local part that needs quotes has them (RFC 5321
section 4.1.2). The null sender stays null: there is nobody to come back to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

USUAL = "+="
KEY = "verp"

_WORDS = {"true": USUAL, "false": "", "": ""}
_DELIMITERS = re.compile(r"[-+=]{2}\Z")
# Atoms with single dots between them, of ASCII and beyond it (RFC 5322 section 3.2.3, RFC 6531 section 3.3); what is
# white space or a control character in any script goes into quotes.
_ATOM = r"[^\s\x00-\x1f\x7f-\x9f()<>\[\]:;@\\,.\"]+"
_DOMAIN = re.compile(r"[^\s@<>()\"+=]+\.[^\s@<>()\"+=]+\Z|\[[0-9A-Za-z.:]+\]\Z")
_DOT_ATOM = re.compile(rf"{_ATOM}(?:\.{_ATOM})*\Z")


def delimiters(value: object) -> str:
    """The two delimiters that a setting means: itself, or ``+=`` for true; empty for false.

    :raises ValueError: it means none.
    """
    if isinstance(value, bool):
        return USUAL if value else ""
    if isinstance(value, str):
        if value in _WORDS:
            return _WORDS[value]
        if _DELIMITERS.match(value):
            return value
    raise ValueError(f'{value!r} is not right for verp, expected true, false, or two of "-+="')


def wanted(setting: str, meta: Mapping[str, Any]) -> str:
    """The delimiters for an entry: what its metadata says under ``verp``, else the runner's.

    :raises ValueError: the metadata says nothing that could be meant.
    """
    return delimiters(meta[KEY]) if KEY in meta else setting


def sender_for(sender: str, recipient: str, pair: str) -> str:
    """The sender as this recipient gets it. ``pair`` is the two delimiters; empty: as it is."""
    if not sender or not pair:
        return sender
    local, domain = _split(sender)
    to_local, to_domain = _split(recipient)
    named = f"{local}{pair[0]}{to_local}{pair[1]}{to_domain}" if to_domain else f"{local}{pair[0]}{to_local}"
    return f"{_quoted(named)}@{domain}" if domain else _quoted(named)


def readings(address: str, pair: str) -> list[tuple[str, str]]:
    """The pairs of a sender and a recipient that ``sender_for`` may have made this address of, the one that is the likelier
    first; none: it is not such an address.

    The delimiters may stand in names, too. A ``+`` is rarely part of a sender's, so the first one is taken; of the
    others, the last.
    """
    local, domain = _split(address)
    named, found, to_domain = local.rpartition(pair[1])
    if not (domain and found and _DOMAIN.match(to_domain)):
        return []
    made = [
        (f"{_quoted(named[:at])}@{domain}", f"{_quoted(named[at + 1 :])}@{to_domain}")
        for at, character in enumerate(named)
        if character == pair[0] and 0 < at < len(named) - 1
    ]
    return made if pair[0] == "+" else made[::-1]


def _split(address: str) -> tuple[str, str]:
    """Local part, without its quotes, and domain."""
    local, at, domain = address.rpartition("@")
    if not at:
        local, domain = domain, ""
    if len(local) > 1 and local[0] == local[-1] == '"':
        local = re.sub(r"\\(.)", r"\1", local[1:-1])
    return local, domain


def _quoted(local: str) -> str:
    if _DOT_ATOM.match(local):
        return local
    escaped = re.sub(r'(["\\])', r"\\\1", local)
    return f'"{escaped}"'
