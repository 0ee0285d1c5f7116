"""Many SMTP hosts on loopback addresses of their own, in one process, and a name server that knows them.

Host N takes the mail of ``dN.example``. A host may hang: it accepts connections, and then says nothing, or takes the
message and does not answer. The others answer each command after ``latency_s``.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.dnsserver import DnsServer

_START_S = 20.0
_END = b"\r\n.\r\n"
_REPLIES = {b"EHLO": b"250-host\r\n250 SIZE\r\n", b"DATA": b"354 go on\r\n", b"QUIT": b"221 bye\r\n"}


@dataclass(frozen=True)
class Hosts:
    """They run. ``name_server`` is a port on 127.0.0.1, ``port`` that of all hosts."""

    port: int
    name_server: int
    _pipe: Connection

    def times(self, count: int, limit_s: float) -> list[float]:
        """When each message was taken, on the monotonic clock, once there are so many. TimeoutError: it takes longer."""
        self._pipe.send(count)
        if not self._pipe.poll(limit_s):
            raise TimeoutError(f"the hosts have not taken {count} messages within {limit_s:g} s")
        found: list[float] = self._pipe.recv()
        return found


@contextmanager
def many_hosts(count: int, *, latency_s: float = 0.0, hangs: str = "", hanging: int = 0) -> Iterator[Hosts]:
    """So many hosts, of which the first ``hanging`` hang at ``hangs``."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(
        target=_serve, args=(theirs, count, latency_s, hangs, hanging), daemon=True
    )
    process.start()
    try:
        if not ours.poll(_START_S):
            raise TimeoutError("the hosts do not listen")
        port, name_server = ours.recv()
        yield Hosts(port, name_server, ours)
    finally:
        process.kill()
        process.join()


def _serve(pipe: Connection, count: int, latency_s: float, hangs: str, hanging: int) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(_serve_all(pipe, count, latency_s, hangs, hanging))


class _Taken:
    """When each message was taken; says so, once there are as many as were asked for."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._times, self._wanted = pipe, list[float](), 0

    def add(self) -> None:
        self._times.append(time.monotonic())
        self._tell()

    def asked(self) -> None:
        self._wanted = self._pipe.recv()
        self._tell()

    def _tell(self) -> None:
        if self._wanted and len(self._times) >= self._wanted:
            self._wanted = 0
            self._pipe.send(self._times)


async def _serve_all(pipe: Connection, count: int, latency_s: float, hangs: str, hanging: int) -> None:
    loop, port, taken = asyncio.get_running_loop(), 0, _Taken(pipe)
    for number in range(count):
        talk = partial(_Talk, taken, latency_s, hangs if number < hanging else "")
        server = await loop.create_server(talk, _address(number), port, backlog=200)
        port = port or server.sockets[0].getsockname()[1]
    records = [f"d{n}.example. MX 10 mx{n}.example." for n in range(count)]
    records += [f"mx{n}.example. A {_address(n)}" for n in range(count)]
    async with DnsServer(*records, ttl=3600) as server:
        pipe.send((port, server.port))
        loop.add_reader(pipe.fileno(), taken.asked)
        await asyncio.Event().wait()


def _address(number: int) -> str:
    return f"127.0.{1 + number // 200}.{1 + number % 200}"


class _Talk(asyncio.Protocol):
    """One session, with as little work as can be: what is measured is the other side."""

    def __init__(self, taken: _Taken, latency_s: float, hangs: str) -> None:
        self._taken, self._latency_s, self._hangs = taken, latency_s, hangs
        self._heard, self._in_message = b"", False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self._hangs != "greeting":
            self._say(b"220 host\r\n")

    def data_received(self, data: bytes) -> None:
        self._heard += data
        while (end := _END if self._in_message else b"\r\n") in self._heard:
            heard, _, self._heard = self._heard.partition(end)
            self._hear(heard)

    def _hear(self, heard: bytes) -> None:
        if not self._in_message:
            verb = heard[:4].upper()
            self._in_message = verb == b"DATA"
            self._say(_REPLIES.get(verb, b"250 ok\r\n"))
            return
        self._in_message = False
        if self._hangs != "message":
            self._taken.add()
            self._say(b"250 taken\r\n")

    def _say(self, reply: bytes) -> None:
        if self._latency_s:
            asyncio.get_running_loop().call_later(self._latency_s, self._transport.write, reply)
        else:
            self._transport.write(reply)
