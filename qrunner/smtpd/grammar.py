"""MAIL and RCPT, taken apart: paths (RFC 5321 section 4.1.2, RFC 6531) and parameters (RFC 1870, 3461, 6152).

Guarantees: an address that comes out of here has no control character, no blank and no angle bracket but within
quotes, so that it can stand in a command, a header or a line of a log; a parameter is one that was offered, and is
well formed.

Lenient where real mail is: dots may stand anywhere in a local part, and it may be of any length; an address may be
without a domain; a source route is dropped, as RFC 5321 appendix C wants it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from qrunner.message import Envelope, Recipient

_ATOM = r'[^\s\x00-\x1f\x7f-\x9f"<>()\[\]:;@\\,]+'
_QUOTED = r'"(?:[^"\\\x00-\x1f\x7f]|\\[^\x00-\x1f\x7f])*"'
_LABEL = r"[0-9A-Za-z_\x80-\U0010ffff](?:[-0-9A-Za-z_\x80-\U0010ffff]*[0-9A-Za-z_\x80-\U0010ffff])?"
_DOMAIN = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[!-Z^-~]+\])"
_ROUTE = rf"(?:@{_DOMAIN}(?:,@{_DOMAIN})*:)?"
_PATH = re.compile(rf"<(?:{_ROUTE}((?:{_ATOM}|{_QUOTED})(?:@{_DOMAIN})?))?>(?= |\Z)")
_FROM = re.compile(r"FROM: *", re.IGNORECASE)
_TO = re.compile(r"TO: *", re.IGNORECASE)

_PARAMETER = re.compile(r"([0-9A-Za-z][-0-9A-Za-z]*)(?:=([^=\s\x00-\x1f\x7f]+))?\Z")
_NUMBER = re.compile(r"[0-9]{1,20}\Z")
_XTEXT = r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})+"
_ENVID = re.compile(rf"{_XTEXT}\Z")
_ORCPT = re.compile(rf"[0-9A-Za-z-]+;{_XTEXT}\Z")
_ORCPT_UTF8 = re.compile(r"utf-8;[!-*,-<>-~\x80-\U0010ffff]+\Z", re.IGNORECASE)
_NOTIFY = frozenset({"SUCCESS", "FAILURE", "DELAY"})
_LONGEST_DOMAIN = 255
_LONGEST_ENVID, _LONGEST_ORCPT = 100, 500

Parameters = Mapping[str, str | None]


class Refusal(Exception):
    """It can't be taken as it was said; the text is the reply."""


@dataclass(frozen=True, slots=True)
class Mail:
    """What MAIL said. ``size`` 0: it did not say."""

    sender: str
    size: int = 0
    body: str = ""
    ret: str = ""
    envid: str = ""
    smtputf8: bool = False

    def envelope(self, recipients: tuple[Recipient, ...]) -> Envelope:
        """The envelope, with those to whom it goes."""
        return Envelope(self.sender, recipients, self.envid, self.ret, self.body, self.smtputf8)


def mail(argument: str, *, extended: bool = True) -> Mail:
    """What follows the word MAIL.

    :param extended: the client has asked for extensions; without, there are no parameters.
    :raises Refusal: with the reply.
    """
    sender, given = _taken_apart(argument, _FROM, "MAIL FROM:<address>", extended)
    utf8 = "SMTPUTF8" in given
    if not utf8 and not sender.isascii():
        raise Refusal("550 5.6.7 an address that is not ASCII wants SMTPUTF8")
    _no_other(given, "SIZE", "BODY", "RET", "ENVID", "SMTPUTF8")
    if given.get("SMTPUTF8") is not None:
        raise Refusal("501 5.5.4 SMTPUTF8 has no value")
    return Mail(
        sender,
        size=int(_fitting(given, "SIZE", _NUMBER) or 0),
        body=_one_of(given, "BODY", "7BIT", "8BITMIME"),
        ret=_one_of(given, "RET", "FULL", "HDRS"),
        envid=_fitting(given, "ENVID", _ENVID, _LONGEST_ENVID),
        smtputf8=utf8,
    )


def rcpt(argument: str, *, extended: bool = True, utf8: bool = False) -> Recipient:
    """What follows the word RCPT.

    :param utf8: MAIL said SMTPUTF8.
    :raises Refusal: with the reply.
    """
    address, given = _taken_apart(argument, _TO, "RCPT TO:<address>", extended)
    if not address:
        raise Refusal("501 5.1.3 nobody is named: RCPT TO:<address>")
    if not utf8 and not address.isascii():
        raise Refusal("553 5.6.7 an address that is not ASCII wants SMTPUTF8")
    _no_other(given, "NOTIFY", "ORCPT")
    return Recipient(address, _notify(given), _orcpt(given, utf8))


def _taken_apart(argument: str, word: re.Pattern[str], syntax: str, extended: bool) -> tuple[str, Parameters]:
    begin = word.match(argument)
    path = _PATH.match(argument, begin.end()) if begin else None
    if begin is None or path is None:
        raise Refusal(f"501 5.1.{7 if word is _FROM else 3} this is no address, expected {syntax}")
    address = path[1] or ""
    if not address.isprintable() or len(address.rpartition("@")[2].encode()) > _LONGEST_DOMAIN:
        raise Refusal(f"501 5.1.{7 if word is _FROM else 3} this is no address, expected {syntax}")
    given = _parameters(argument[path.end() :])
    if given and not extended:
        raise Refusal("555 5.5.4 parameters are for those who said EHLO")
    return address, given


def _parameters(text: str) -> Parameters:
    found: dict[str, str | None] = {}
    for word in text.split():
        match = _PARAMETER.match(word)
        if match is None or match[1].upper() in found:
            raise Refusal("501 5.5.4 a parameter is malformed, or stands there twice")
        found[match[1].upper()] = match[2]
    return found


def _no_other(given: Parameters, *offered: str) -> None:
    for name in given:
        if name not in offered:
            raise Refusal(f"555 5.5.4 the parameter {name[:40]} is not offered")


def _fitting(given: Parameters, name: str, form: re.Pattern[str], longest: int = 1000) -> str:
    """The value, empty if it is not given."""
    if name not in given:
        return ""
    value = given[name] or ""
    if len(value) > longest or not form.match(value):
        raise Refusal(f"501 5.5.4 the value of {name} is malformed")
    return value


def _one_of(given: Parameters, name: str, *known: str) -> str:
    if name not in given:
        return ""
    value = (given[name] or "").upper()
    if value not in known:
        raise Refusal(f"501 5.5.4 {name} is one of {' '.join(known)}")
    return value


def _notify(given: Parameters) -> str:
    """NEVER alone, or a list of the others, each once (RFC 3461 section 4.1)."""
    if "NOTIFY" not in given:
        return ""
    value = (given["NOTIFY"] or "").upper()
    named = value.split(",")
    if value != "NEVER" and not (_NOTIFY.issuperset(named) and len(set(named)) == len(named)):
        raise Refusal("501 5.5.4 NOTIFY is NEVER, or some of SUCCESS,FAILURE,DELAY")
    return value


def _orcpt(given: Parameters, utf8: bool) -> str:
    value = given.get("ORCPT") or ""
    if utf8 and _ORCPT_UTF8.match(value) and len(value) <= _LONGEST_ORCPT:
        return value
    return _fitting(given, "ORCPT", _ORCPT, _LONGEST_ORCPT)
