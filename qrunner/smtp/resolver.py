"""Questions to the domain name system, on dnspython: what there is, that there is nothing, or that nobody knows.

Answers are kept for as long as they say, at most a day; that there is nothing, at most an hour. A question that
is under way is not asked a second time, and a name that nobody could answer for is not asked about again for half a
minute.

Guarantees: nothing is raised for what a name server says or fails to say; trouble is a value. Trouble of a name is
told from trouble of our own name servers: these are then asked for the root, which every one that works knows.

Not guaranteed: that answers are genuine. DNSSEC is left to the name servers.

Configuration: ``/etc/resolv.conf``, read again after trouble.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import dns.asyncresolver
import dns.exception
import dns.name
import dns.rcode
import dns.resolver

KEPT_S = 86_400.0
NOTHING_KEPT_S = 3_600.0
TIMEOUT_S = 10.0
_ROOT_TIMEOUT_S = 3.0
_ROOT_KEPT_S = 10.0
_NAMES_KEPT = 20_000

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a name has of one kind, and how it is called after all aliases. ``exists`` False: there is no such name."""

    name: dns.name.Name
    records: tuple[Any, ...] = ()
    exists: bool = True


@dataclass(frozen=True, slots=True)
class Trouble:
    """Nobody could say.

    :param ours: our own name servers can't be reached, or know nothing at all: it says nothing about the name.
    """

    text: str
    ours: bool


class Resolver:
    """Asks name servers.

    :param nameservers: addresses; None: those of ``/etc/resolv.conf``.
    :param timeout_s: of one question, with all repeats. ``trouble_s``: for how long trouble is believed.
    """

    def __init__(
        self,
        nameservers: Sequence[str] | None = None,
        *,
        port: int = 53,
        timeout_s: float = TIMEOUT_S,
        trouble_s: float = 30.0,
    ) -> None:
        self._nameservers, self._port = nameservers, port
        self._timeout_s, self._trouble_s = timeout_s, trouble_s
        self._cache = _Cache(_NAMES_KEPT)
        self._client: dns.asyncresolver.Resolver | None = None
        self._flights: dict[Hashable, asyncio.Task[Any]] = {}
        self._troubles: dict[Hashable, tuple[float, Trouble]] = {}
        self._root: tuple[float, bool] = (0.0, False)

    async def ask(self, name: dns.name.Name, kind: str) -> Answer | Trouble:
        """The records of a kind (``MX``, ``A``, ``AAAA``) that an absolute name has."""
        key = (name, kind)
        until_s, trouble = self._troubles.get(key, (0.0, None))
        if trouble is not None and until_s > time.monotonic():
            return trouble
        self._troubles.pop(key, None)
        return await self._once(key, self._ask(name, kind))

    async def _once(self, key: Hashable, question: Coroutine[Any, Any, T]) -> T:
        """One flight at a time; who gives up waiting does not end it for the others."""
        flight: asyncio.Task[T] | None = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = asyncio.get_running_loop().create_task(question)
            flight.add_done_callback(lambda _: self._flights.pop(key, None))
        else:
            question.close()
        return await asyncio.shield(flight)

    async def _ask(self, name: dns.name.Name, kind: str) -> Answer | Trouble:
        try:
            found = await self._resolver().resolve(
                name, kind, raise_on_no_answer=False, search=False, lifetime=self._timeout_s
            )
            return Answer(found.canonical_name, tuple(found))
        except dns.resolver.NXDOMAIN:
            return Answer(name, exists=False)
        except (dns.exception.DNSException, OSError, ValueError) as error:
            return await self._troubled(name, kind, error)

    async def _troubled(self, name: dns.name.Name, kind: str, error: Exception) -> Trouble:
        ours = not await self._once("root", self._knows_root())
        text = f"look-up of {name.to_text(omit_final_dot=True)} ({kind}): {_words(error)}"
        trouble = Trouble(f"our name servers give no answers: {text}" if ours else text, ours)
        now_s = time.monotonic()
        for key in [key for key, (until_s, _) in self._troubles.items() if until_s <= now_s]:
            del self._troubles[key]
        self._troubles[name, kind] = (now_s + self._trouble_s, trouble)
        if ours:
            self._client = None
        return trouble

    async def _knows_root(self) -> bool:
        """Whether our name servers answer at all. One that has lost the world but not us says SERVFAIL to everything,
        as it does for a single domain that is broken."""
        until_s, knows = self._root
        if until_s <= time.monotonic():
            knows = await self._asked_root()
            self._root = (time.monotonic() + min(_ROOT_KEPT_S, self._trouble_s), knows)
        return knows

    async def _asked_root(self) -> bool:
        try:
            client = self._made()
            await client.resolve(
                dns.name.root,
                "SOA",
                raise_on_no_answer=False,
                search=False,
                lifetime=min(_ROOT_TIMEOUT_S, self._timeout_s),
            )
        except dns.resolver.NXDOMAIN:
            return True
        except (dns.exception.DNSException, OSError, ValueError):
            return False
        return True

    def _resolver(self) -> dns.asyncresolver.Resolver:
        if self._client is None:
            client = self._made()
            client.cache = self._cache
            self._client = client
        return self._client

    def _made(self) -> dns.asyncresolver.Resolver:
        """:raises dns.resolver.NoResolverConfiguration: there is no name server."""
        client = dns.asyncresolver.Resolver(configure=self._nameservers is None)
        if self._nameservers is not None:
            client.nameservers = list(self._nameservers)
            client.port = self._port
        return client


class _Cache(dns.resolver.LRUCache):
    """Believes nobody for longer than is good."""

    def put(self, key: dns.resolver.CacheKey, value: dns.resolver.Answer) -> None:
        kept_s = KEPT_S if value.rrset is not None else NOTHING_KEPT_S
        value.expiration = min(value.expiration, time.time() + kept_s)
        super().put(key, value)


def _words(error: Exception) -> str:
    """What happened, in few words; the first error of each server is enough."""
    errors = getattr(error, "kwargs", {}).get("errors")
    if not errors:
        return str(error) or type(error).__name__
    said = dict.fromkeys(_rcode(response) or str(problem) for *_, problem, response in errors)
    return "; ".join(said)


def _rcode(response: Any) -> str:
    return dns.rcode.to_text(response.rcode()) if response is not None else ""
