"""What a site is told when an address is given up: a ``Bounce``, and of which kind it is.

The kinds answer one question, whether this counts against the address:

``address``   the address is not there, or takes no mail: no such user, no such domain, disabled, full
``policy``    somebody does not want this message, or our mail: spam, block lists, authentication, rates
``other``     all else: the network, the message's form, a loop

Guarantees: what reads like policy is never ``address``, whatever its code: a subscriber must not be removed because a
host took one message for spam.

Not guaranteed: that a host says what it means. Codes and words were read where hosts use them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from qrunner.fate import Failure
from qrunner.message import Entry

Kind = Literal["address", "policy", "other"]

# Subject and detail of enhanced status codes (RFC 3463, and the registry that RFC 5248 began), the class left out.
# 1.7 and 1.8 speak of the sender.
_ADDRESS = frozenset(
    {"1.0", "1.1", "1.2", "1.3", "1.4", "1.6", "1.10", "2.0", "2.1", "2.2", "4.4", "7.13", "7.17", "7.18"}
)
_STATUS = re.compile(r"[245]\.(\d{1,3}\.\d{1,3})\Z")

# What a host has to say comes first, and the patterns look more than once at each character.
_LONGEST = 1000

# An address may be called anything, and is quoted in most replies.
_QUOTED = re.compile(r"<[^<>\s]*>|\"[^\"@]*\"@\S+|[^\s<>@]+@[^\s<>]+")
_POLICY_WORDS = re.compile(
    r"spam|unsolicited|\bbulk\b|junk|virus|malware|phish|black ?-?list|block ?-?list|deny ?list|grey ?-?list|graylist"
    r"|dnsbl|rbl\b|reputation|\bdmarc\b|\bspf\b|\bdkim\b|polic(?:y|ies)|blocked|banned|abuse|prohibited"
    r"|rate.?limit|too many (?:connections|messages|recipients|emails)|content (?:rejected|refused|filter)"
    r"|(?:reverse|ptr).{0,12}dns|\bptr\b|not (?:allowed|authori[sz]ed|permitted) to send|authentication (?:failed|required)"
    r"|relay(?:ing)? (?:access )?(?:is )?(?:denied|not (?:allowed|permitted))|(?:un)?able to relay"
    r"|sender (?:address )?(?:rejected|denied|verif)",
    re.IGNORECASE,
)
_ADDRESS_WORDS = re.compile(
    r"(?:no such|unknown|invalid|non-?existent|unrouteable|bad|undeliverable|inactive|disabled|suspended|deactivated"
    r"|expired|closed|terminated) (?:local )?(?:e?-?mail )?(?:user|recipient|account|mailbox|address|alias|addressee)"
    r"|no (?:mailbox|user|account|recipient|person)\b.{0,40}\b(?:here|by that name|with that name|found)"
    r"|(?:user|recipient|account|mailbox|address|alias|addressee|person|domain|host)\b.{0,60}?"
    r"(?:\bunknown|not found|(?:does|do)(?: not|n't) exist|not exist|\bdisabled|\binactive|\bsuspended|\bdeactivated"
    r"|no longer|unavailable|is not (?:a )?(?:valid|known|active|local)|not (?:listed|recogni[sz]ed)|\binvalid"
    r"|\bclosed|\bterminated|\bexpired)"
    r"|not a (?:known|valid) (?:user|recipient|mailbox)|recipient address rejected|user doesn'?t have"
    r"|(?:over|exceeded|exceeds|exceeding|reached).{0,30}(?:quota|storage)|quota (?:exceeded|full)"
    r"|(?:mailbox|mail ?folder).{0,12}full|full mailbox|unknown (?:host|domain)|invalid final delivery userid"
    r"|does(?: not|n't) accept mail",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Bounce:
    """An address that a message will not reach.

    :param status: enhanced status code (RFC 3463). ``text``: the host's reply, or our own reason.
    :param sender: of the envelope; empty for the null sender.
    :param entry: as it was when it was given up.
    :param permanent: the address was refused; False: it was put off until the lifetime was over.
    :param score: of the runner ``bounce``: how often the address has bounced of late, this one included.
    :param over_threshold: whether the score has come to the runner's threshold.
    """

    address: str
    status: str
    kind: Kind
    text: str
    sender: str
    entry: Entry
    permanent: bool
    score: float = 0.0
    over_threshold: bool = False


def kind_of(status: str, text: str) -> Kind:
    """What a refusal speaks of.

    :param status: enhanced status code; one that is none is taken as unknown.
    """
    words = _QUOTED.sub(" ", text[:_LONGEST])
    if _POLICY_WORDS.search(words):
        return "policy"
    if _ADDRESS_WORDS.search(words):
        return "address"
    found = _STATUS.match(status)
    detail = found[1] if found else ""
    if detail in _ADDRESS:
        return "address"
    return "policy" if detail.startswith("7.") else "other"


def bounces(entry: Entry, failures: Iterable[Failure]) -> tuple[Bounce, ...]:
    """One for each recipient that was given up."""
    return tuple(
        Bounce(
            address=one.address,
            status=one.status,
            kind=kind_of(one.status, one.text),
            text=one.text,
            sender=entry.sender,
            entry=entry,
            permanent=not one.expired and not one.status.startswith("4"),
        )
        for one in failures
        if one.address
    )
