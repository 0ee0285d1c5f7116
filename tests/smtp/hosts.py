"""Hosts for the tests: one whose every byte a test writes, and Postfix's smtp-sink."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from qrunner.config import HostConfig
from qrunner.message import Envelope
from qrunner.smtp.channel import Channel
from qrunner.smtp.reply import Outcome
from qrunner.smtp.session import Delivery, Session

MESSAGE = b"Subject: x\n\n.hello\nworld"

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def config(port: int, **more: object) -> HostConfig:
    limits = {
        "greeting_timeout_s": 5.0,
        "command_timeout_s": 5.0,
        "data_timeout_s": 5.0,
        "final_timeout_s": 5.0,
    }
    return HostConfig(**{"name": "h", "host": "127.0.0.1", "port": port, "tls": "none", **limits, **more})  # type: ignore[arg-type]


@asynccontextmanager
async def scripted(script: Script) -> AsyncIterator[int]:
    """A server that does what the script says; its port."""
    talks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        talks.add(task)
        try:
            await script(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            talks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(talks):
            task.cancel()
        await asyncio.gather(*talks, return_exceptions=True)


def saying(replies: Sequence[bytes | None], heard: list[bytes] | None = None) -> Script:
    """Greets, then answers line by line; None hangs up; after 354 the next reply answers the message's end."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hi\r\n")
        in_data = False
        for reply in replies:
            line = await reader.readuntil(b"\r\n.\r\n" if in_data else b"\r\n")
            if heard is not None:
                heard.append(line)
            if reply is None:
                return
            in_data = reply.startswith(b"354")
            writer.write(reply)
        await reader.read()

    return script


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@asynccontextmanager
async def smtp_sink(*options: str, dump: Path | None = None, port: int = 0) -> AsyncIterator[int]:
    """Postfix's smtp-sink with these faults; its port. ``dump``: a folder for the messages that it takes."""
    program = shutil.which("smtp-sink", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    assert program is not None
    port = port or free_port()
    command = [program, *options]
    if os.getuid() == 0:
        command[1:1] = ["-u", "nobody"]
    if dump is not None:
        command += ["-d", f"{dump}/%M."]
    process = await asyncio.create_subprocess_exec(*command, f"127.0.0.1:{port}", "100")
    try:
        await _listening(port)
        yield port
    finally:
        process.terminate()
        await process.wait()


async def _listening(port: int) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.01)
            else:
                writer.close()
                return


class Notes:
    """A witness that remembers."""

    def __init__(self) -> None:
        self.marked: list[list[str]] = []
        self.told: list[Outcome] = []
        self.refuses: OSError | None = None

    def sending(self, addresses: Sequence[str]) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.marked.append(list(addresses))

    def settled(self, outcomes: Sequence[Outcome]) -> None:
        self.told += outcomes

    @property
    def behind(self) -> bool:
        return False

    async def catch_up(self) -> None:
        """There is nothing to do."""


async def deliver(
    channel: Channel, *to: str, notes: Notes | None = None, sender: str = "s@example.org", **more: object
) -> Delivery:
    """One delivery over a channel."""
    envelope = Envelope.of(sender, to)
    options = {key: more.pop(key) for key in ("max_recipients", "reused") if key in more}
    session = Session(channel, notes or Notes(), **options)  # type: ignore[arg-type]
    return await session.deliver(envelope, envelope.recipients, more.pop("message", MESSAGE))  # type: ignore[arg-type]


def kinds(delivery: Delivery) -> dict[str, str]:
    return {address: outcome.kind for address, outcome in delivery.outcomes.items()}
