"""A name server for the tests, on loopback, over UDP and TCP: it knows a handful of records, and fails as it is told.

It answers as a recursive one does: aliases are followed as far as it knows them.

::

    async with DnsServer("example.com. MX 10 mx.example.com.", "mx.example.com. A 127.0.0.2") as server:
        server.broken["example.com."] = SERVFAIL
"""

from __future__ import annotations

import asyncio
import struct
from types import TracebackType
from typing import cast

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

SERVFAIL, REFUSED = dns.rcode.SERVFAIL, dns.rcode.REFUSED
SILENT = None
UDP_MAX = 512
_SOA = "ns.invalid. nobody.invalid. 1 3600 600 86400 60"


class DnsServer:
    """One server on one port. ``broken``: an answer code, or SILENT, for a name and all below it."""

    def __init__(self, *records: str, host: str = "127.0.0.1", port: int = 0, ttl: int = 300) -> None:
        self.host, self.port, self.ttl = host, port, ttl
        self.queries: list[tuple[str, str]] = []
        self.over_tcp = 0
        self.broken: dict[str, dns.rcode.Rcode | None] = {}
        self.soa = True
        self._records: dict[tuple[dns.name.Name, dns.rdatatype.RdataType], dns.rrset.RRset] = {}
        self.add(f". SOA {_SOA}", *records)

    def add(self, *records: str) -> None:
        """Each ``NAME TYPE DATA``."""
        for record in records:
            name, kind, data = record.split(" ", 2)
            rrset = dns.rrset.from_text(name, self.ttl, "IN", kind, data)
            known = self._records.setdefault((rrset.name, rrset.rdtype), rrset)
            known.update(rrset)

    def remove(self, name: str, kind: str) -> None:
        del self._records[dns.name.from_text(name), dns.rdatatype.from_text(kind)]

    def asked(self, name: str, kind: str) -> int:
        """How often."""
        return self.queries.count((name, kind))

    async def __aenter__(self) -> DnsServer:
        loop = asyncio.get_running_loop()
        while True:
            self._tcp = await asyncio.start_server(self._serve, self.host, self.port)
            port = self._tcp.sockets[0].getsockname()[1]
            try:
                self._udp, _ = await loop.create_datagram_endpoint(
                    lambda: _Datagrams(self), local_addr=(self.host, port)
                )
                self.port = port
                return self
            except OSError:  # the port is free for the one and not for the other
                self._tcp.close()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._udp.close()
        self._tcp.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                (length,) = struct.unpack("!H", await reader.readexactly(2))
                answer = self.answer(await reader.readexactly(length))
                self.over_tcp += 1
                if answer is not None:
                    wire = answer.to_wire()
                    writer.write(struct.pack("!H", len(wire)) + wire)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def answer(self, wire: bytes) -> dns.message.Message | None:
        query = dns.message.from_wire(wire)
        question = query.question[0]
        self.queries.append((question.name.to_text(), dns.rdatatype.to_text(question.rdtype)))
        response = dns.message.make_response(query, recursion_available=True)
        for name, code in self.broken.items():
            if question.name.is_subdomain(dns.name.from_text(name)):
                if code is SILENT:
                    return None
                response.set_rcode(code)
                return response
        self._fill(response, question.name, question.rdtype)
        return response

    def _fill(
        self, response: dns.message.Message, name: dns.name.Name, kind: dns.rdatatype.RdataType
    ) -> None:
        for _ in range(8):
            alias = self._records.get((name, dns.rdatatype.CNAME))
            if alias is None:
                break
            response.answer.append(alias)
            name = alias[0].target
        if (name, kind) in self._records:
            response.answer.append(self._records[name, kind])
            return
        if not any(known.is_subdomain(name) for known, _ in self._records):
            response.set_rcode(dns.rcode.NXDOMAIN)
        if self.soa:
            response.authority.append(self._records[dns.name.root, dns.rdatatype.SOA])


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: DnsServer) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        answer = self._server.answer(data)
        if answer is None:
            return
        wire = answer.to_wire(max_size=65535)
        if len(wire) > UDP_MAX:
            answer.answer.clear()
            answer.flags |= dns.flags.TC
            wire = answer.to_wire()
        self._transport.sendto(wire, address)
