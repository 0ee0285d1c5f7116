"""Sinks behind real ports: an SMTP server that keeps what it is given, for demonstrations and tests.

``python -m qrunner.smtp.sinkserver 127.0.0.1:2501 …`` listens on each of these and writes one JSON line for every
message: ``{"sink", "sender", "recipients", "size", "message"}``, the message in latin-1, so that no byte is lost.

Not guaranteed: speed, durability, or any resistance to the rest of the internet.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from types import TracebackType

from qrunner.smtp import wire
from qrunner.smtp.sink import Received, Sink, Talk

LINE_MAX = 64 << 10
Told = Callable[[Sink, Received], None]


class SinkServer:
    """One sink on one port; ``async with`` it. Port 0 takes a free one."""

    def __init__(self, sink: Sink, host: str = "127.0.0.1", port: int = 0, told: Told | None = None) -> None:
        self.sink, self.host, self.port = sink, host, port
        self._told = told
        self._talks: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> SinkServer:
        self._server = await asyncio.start_server(self._serve, self.host, self.port, limit=LINE_MAX)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Stops listening and breaks every connection, as a host that goes down."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._talks):
            writer.transport.abort()
        if self._server is not None:
            await self._server.wait_closed()
        self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._talks.add(writer)
        try:
            await self._converse(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            pass  # a client that leaves or raves ends its own session
        finally:
            self._talks.discard(writer)
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = Talk(self.sink)
        if self.sink.down or not await _say(writer, talk.greeting()):
            return
        while line := await reader.readline():
            said = line.rstrip(b"\r\n").decode("utf-8", "surrogateescape")
            text = talk.answer(said)
            if not await _say(writer, text):
                return
            verb = said.split(" ")[0].upper()
            if verb == "QUIT":
                return
            if verb == "DATA" and (text or "").startswith("3") and not await self._take(talk, reader, writer):
                return

    async def _take(self, talk: Talk, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """A message up to its end; whether the session goes on."""
        lines: list[bytes] = []
        while (line := await _line(reader)) != wire.END:
            lines.append(line)
        if writer.transport.is_closing():
            # Broken while this was on its way in: who can't answer has taken nothing.
            return False
        before = len(self.sink.messages)
        text = talk.end(wire.unstuffed(b"".join(lines)))
        if self._told is not None and len(self.sink.messages) > before:
            self._told(self.sink, self.sink.messages[-1])
        return await _say(writer, text)


async def _line(reader: asyncio.StreamReader) -> bytes:
    """A line of any length, which ends with CRLF and nothing else (RFC 5321 section 2.3.8)."""
    parts: list[bytes] = []
    while True:
        try:
            return b"".join([*parts, await reader.readuntil(b"\r\n")])
        except asyncio.LimitOverrunError as error:
            parts.append(await reader.readexactly(error.consumed))


async def _say(writer: asyncio.StreamWriter, text: str | None) -> bool:
    """Sends a reply; whether there was one."""
    if text is None:
        return False
    lines = text.split("\n")
    marked = [line[:3] + "-" + line[4:] for line in lines[:-1]] + lines[-1:]
    writer.write("".join(line + "\r\n" for line in marked).encode())
    await writer.drain()
    return True


def _told(sink: Sink, received: Received) -> None:
    line = {
        "sink": sink.name,
        "sender": received.sender,
        "recipients": received.recipients,
        "size": len(received.message),
        "message": received.message.decode("latin-1"),
    }
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
    # What was told need not be kept.
    sink.messages.clear()


async def serve(places: list[str]) -> None:
    """Listens at each ``HOST:PORT`` until cancelled."""
    async with asyncio.TaskGroup() as group:
        for place in places:
            host, _, port = place.rpartition(":")
            group.create_task(_serve_one(SinkServer(Sink(place), host or "127.0.0.1", int(port), _told)))


async def _serve_one(server: SinkServer) -> None:
    async with server:
        await asyncio.Event().wait()


def main() -> int:
    """The program."""
    if len(sys.argv) < 2:
        sys.stderr.write("usage: python -m qrunner.smtp.sinkserver HOST:PORT...\n")
        return 2
    try:
        asyncio.run(serve(sys.argv[1:]))
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
