"""The look-up of a domain's mail hosts: from the part behind the ``@`` to hosts in the order to try them in.

RFC 5321 section 5.1: MX records by preference, equal ones in any order, aliases followed; a domain that has no MX
is its own host; if we are one of the hosts, only better ones are left. RFC 7505: a domain that says it takes no mail
is believed. An address in brackets is a host by itself.

Guarantees: what is found has at least one address, and no address of this machine or of a private network unless
``allow_private``; a host's name is made of letters, digits, ``. - _``. Nothing is raised: where there is no host,
``Nowhere`` says why, and whether that may change.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
import re
import socket
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby, zip_longest

import dns.exception
import dns.name

from qrunner.config import HostConfig
from qrunner.smtp.resolver import Answer, Resolver, Trouble

# More than anybody has in earnest: who lists hundreds wants to keep us busy.
HOSTS_MAX = 20
ADDRESSES_MAX = 5

_HOST_NAME = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*\Z")
# Where the two standards for international domains disagree about the owner (RFC 5894 section 7.2).
_DEVIANT = re.compile("[\u00df\u03c2\u200c\u200d]")


@dataclass(frozen=True, slots=True)
class MailHost:
    """A host that takes mail for a domain. ``name`` of an address literal: the literal."""

    name: str
    preference: int = 0
    addresses: tuple[str, ...] = ()

    @property
    def peer(self) -> str:
        """What its certificate should name."""
        return self.addresses[0] if self.name.startswith("[") else self.name


@dataclass(frozen=True, slots=True)
class Nowhere:
    """There is no host, for good (``status`` of class 5) or for now.

    :param counts: whether it says anything about the domain; trouble of our own name servers does not.
    """

    text: str
    status: str
    counts: bool = True

    @property
    def is_permanent(self) -> bool:
        """Whether another look is no use."""
        return self.status.startswith("5")


@dataclass(frozen=True, slots=True)
class _Looked:
    """A host whose addresses were looked up; ``addresses`` are those that may be connected to."""

    host: MailHost
    trouble: Trouble | None = None
    private: bool = False
    us: bool = False


class Finder:
    """Finds the hosts of domains.

    :param hostname: our own name, by which we know ourselves among the hosts.
    """

    def __init__(self, hostname: str, resolver: Resolver, dice: random.Random | None = None) -> None:
        self._own_name = hostname.lower().rstrip(".")
        self._resolver, self._dice = resolver, dice or random.Random()

    async def find(
        self, domain: str, config: HostConfig, before: Collection[str] = ()
    ) -> tuple[MailHost, ...] | Nowhere:
        """The hosts of a domain, the one to try first at the head.

        :param config: whose ``family``, ``source_address`` and ``allow_private`` hold.
        :param before: hosts that were spoken to before: first among their equals, since one that puts mail off wants
            to see it again.
        """
        if domain.startswith("["):
            return self._literal(domain, config)
        name = absolute(domain)
        if name is None:
            return Nowhere(f"{domain or 'nothing'} is no name that a domain can have", "5.1.2")
        answer = await self._resolver.ask(name, "MX")
        if isinstance(answer, Trouble):
            return Nowhere(answer.text, "4.4.3", counts=not answer.ours)
        listed = _listed(domain, answer)
        if isinstance(listed, Nowhere):
            return listed
        ranked = ranked_hosts(listed, self._dice, before)[:HOSTS_MAX]
        looked = await asyncio.gather(*(self._look(host, config) for host in ranked))
        return _usable(domain, looked, implicit=not answer.records)

    def _literal(self, domain: str, config: HostConfig) -> tuple[MailHost, ...] | Nowhere:
        """RFC 5321 section 4.1.3."""
        address = literal_address(domain)
        if address is None:
            return Nowhere(f"{domain} is no address of a host", "5.1.2")
        if socket_family(address) not in _families(config):
            return Nowhere(f"{domain}: this system sends mail over {config.family} only", "5.4.4")
        name = f"[IPv6:{address}]" if ":" in address else f"[{address}]"
        return _usable(domain, [self._admitted(MailHost(name, 0, (address,)), config)])

    async def _look(self, host: MailHost, config: HostConfig) -> _Looked:
        name = dns.name.from_text(host.name)
        answers = await asyncio.gather(*(self._resolver.ask(name, kind) for kind in _kinds(config)))
        addresses = [
            self._shuffled(str(record.address) for record in answer.records)
            for answer in answers
            if isinstance(answer, Answer)
        ]
        # One family after the other in turns: a network that carries only one of them costs one attempt.
        mixed = [one for one in chain.from_iterable(zip_longest(*addresses)) if one is not None]
        trouble = next((answer for answer in answers if isinstance(answer, Trouble)), None)
        return replace(self._admitted(replace(host, addresses=tuple(mixed)), config), trouble=trouble)

    def _shuffled(self, addresses: Iterable[str]) -> list[str]:
        found = list(addresses)
        self._dice.shuffle(found)
        return found

    def _admitted(self, host: MailHost, config: HostConfig) -> _Looked:
        """Which of its addresses may be connected to, and whether it is us."""
        private = config.allow_private
        kept = tuple(one for one in host.addresses if private or is_public(one))
        us = host.name == self._own_name or any(
            is_ours(one) for one in host.addresses if not _bare(one).is_loopback
        )
        return _Looked(
            replace(host, addresses=kept[:ADDRESSES_MAX]), private=bool(host.addresses) and not kept, us=us
        )


def _listed(domain: str, answer: Answer) -> list[MailHost] | Nowhere:
    """The hosts that a domain names, or itself."""
    if not answer.exists:
        return Nowhere(f"there is no domain {domain}", "5.1.2")
    if not answer.records:
        itself = _plain(answer.name)
        return [MailHost(itself)] if itself else Nowhere(f"{domain} has no mail host", "5.1.2")
    named = [one for one in answer.records if one.exchange != dns.name.root]
    if not named:
        return Nowhere(f"556 5.1.10 {domain} takes no mail (null MX)", "5.1.10")
    hosts = [MailHost(plain, int(one.preference)) for one in named if (plain := _plain(one.exchange))]
    return hosts or Nowhere(f"{domain} has no mail host with a name that a host can have", "5.4.4")


def ranked_hosts(
    hosts: Iterable[MailHost], dice: random.Random, before: Collection[str] = ()
) -> list[MailHost]:
    """By preference, the lowest first; equals in random order, but those of ``before`` first among their own. A host
    that is named twice stands where it is wanted most."""
    best: dict[str, MailHost] = {}
    for host in hosts:
        if host.name not in best or host.preference < best[host.name].preference:
            best[host.name] = host
    return sorted(best.values(), key=lambda host: (host.preference, host.name not in before, dice.random()))


def better_than_us(hosts: Sequence[_Looked]) -> list[_Looked]:
    """Those that may be tried by one of them: what is of our own preference or worse would only send it back."""
    ours = min((one.host.preference for one in hosts if one.us), default=None)
    return [one for one in hosts if ours is None or one.host.preference < ours]


def _usable(
    domain: str, looked: Sequence[_Looked], *, implicit: bool = False
) -> tuple[MailHost, ...] | Nowhere:
    better = better_than_us(looked)
    usable = tuple(one.host for one in better if one.host.addresses)
    if usable:
        return usable
    troubles = [one.trouble for one in better if one.trouble is not None]
    if troubles:
        return Nowhere(troubles[0].text, "4.4.3", counts=not all(trouble.ours for trouble in troubles))
    if len(better) < len(looked):
        return Nowhere(f"mail for {domain} would come back to this host", "5.4.6")
    names = ", ".join(one.host.name for one in looked[:3])
    if any(one.private for one in looked):
        text = f"the mail hosts of {domain} ({names}) have only addresses that are not public"
        return Nowhere(text, "5.4.4")
    if implicit:
        return Nowhere(f"{domain} has neither a mail host nor an address", "5.1.2")
    return Nowhere(f"the mail hosts of {domain} ({names}) have no address", "5.4.4")


def equals(hosts: Iterable[MailHost]) -> list[list[MailHost]]:
    """The hosts in groups of the same preference."""
    return [list(group) for _, group in groupby(hosts, key=lambda host: host.preference)]


def domain_of(address: str) -> str:
    """What stands behind the last ``@``, in small letters; nothing, where there is none."""
    return address.rpartition("@")[2].lower() if "@" in address else ""


def absolute(domain: str) -> dns.name.Name | None:
    """A domain as a name of the DNS, or None: it can't be one."""
    if (
        not domain
        or _DEVIANT.search(domain)
        or (domain.isascii() and not _HOST_NAME.match(_undotted(domain)))
    ):
        return None
    try:
        name = dns.name.from_text(domain)
    except (dns.exception.DNSException, UnicodeError):
        return None
    return name if _plain(name) else None


def _undotted(domain: str) -> str:
    return domain[:-1].lower() if domain.endswith(".") else domain.lower()


def _plain(name: dns.name.Name) -> str:
    """A host's name as text; nothing, if it is none: a name in the DNS may hold any byte, a slash too."""
    text = name.to_text(omit_final_dot=True).lower()
    return text if _HOST_NAME.match(text) else ""


def literal_address(domain: str) -> str | None:
    """The address of ``[192.0.2.1]`` or ``[IPv6:2001:db8::1]``, in its shortest form."""
    inside = domain[1:-1] if domain.endswith("]") else ""
    tag, colon, rest = inside.partition(":")
    try:
        if colon and tag.lower() == "ipv6":
            return None if "%" in rest else str(ipaddress.IPv6Address(rest))
        return str(ipaddress.IPv4Address(inside))
    except ValueError:
        return None


def is_public(address: str) -> bool:
    """Whether anybody may have it: not loopback, private, link-local, multicast or reserved."""
    found = _bare(address)
    return found.is_global and not (found.is_multicast or found.is_reserved)


def _bare(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address; one of IPv4 in the clothes of IPv6 is what it is."""
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        return found.ipv4_mapped or found.sixtofour or found
    return found


def is_ours(address: str) -> bool:
    """Whether one of this machine's interfaces has it: what goes there would leave from there. Nothing is sent."""
    try:
        with socket.socket(socket_family(address), socket.SOCK_DGRAM) as one:
            one.connect((address, 9))
            return str(one.getsockname()[0]) == address
    except OSError:
        return False


def socket_family(address: str) -> socket.AddressFamily:
    """The family of an address."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _kinds(config: HostConfig) -> list[str]:
    families = _families(config)
    return [kind for kind, family in (("AAAA", socket.AF_INET6), ("A", socket.AF_INET)) if family in families]


def _families(config: HostConfig) -> set[socket.AddressFamily]:
    """Those that are wanted; from a source address only its own can be reached."""
    wanted = {"ipv4": {socket.AF_INET}, "ipv6": {socket.AF_INET6}}.get(config.family)
    if config.source_address is not None:
        own = {socket_family(config.source_address)}
        return own if wanted is None else own & wanted
    return wanted or {socket.AF_INET, socket.AF_INET6}
