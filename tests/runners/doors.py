"""A door of a site in this process, driven by its real engine, and clients that say to it whatever a test wants."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from qrunner.config import parse
from qrunner.engine.door import DoorEngine
from qrunner.loading import load_class
from qrunner.message import Entry
from qrunner.runners.lmtp import LmtpRunner
from qrunner.site import Site
from tests.driving import LIMIT_S, until
from tests.sites import ROOT, wait_for

SITE = """
[site]
hostname = "lists.example.org"
queue_dir = "../qfiles"
state_dir = "../var"
durability = "none"
min_free = "0"
[route.split]
rules = [{ recipient = "*@other.example", queue = "other" }, { queue = "in" }]
"""
DOOR = '[runner.door]\nclass = "lmtp"\nlisten = "127.0.0.1:0"\nnext = "in"\n'
UNIX = DOOR.replace("127.0.0.1:0", "unix:../var/door")


class Client:
    """A connection to the door."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def reply(self) -> str:
        """The next reply, its lines joined by LF; empty at the end of the connection."""
        lines: list[bytes] = []
        async with asyncio.timeout(LIMIT_S):
            while not lines or lines[-1][3:4] == b"-":
                lines.append(await self.reader.readline())
        assert not lines[-1] or lines[-1].endswith(b"\r\n")
        return b"".join(lines).decode("ascii").replace("\r\n", "\n").strip("\n")

    async def replies(self, count: int) -> list[str]:
        return [await self.reply() for _ in range(count)]

    async def say(self, line: str | bytes) -> str:
        """Says a line, and returns the reply."""
        await self.send((line.encode() if isinstance(line, str) else line) + b"\r\n")
        return await self.reply()

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def rest(self) -> str:
        """Everything until the door ends the connection."""
        async with asyncio.timeout(LIMIT_S):
            return (await self.reader.read()).decode("ascii")

    async def begin(self, *recipients: str, sender: str = "ann@a.example", hello: str = "LHLO") -> list[str]:
        """A transaction up to DATA, which is answered by 354; what was said to each recipient."""
        assert (await self.say(f"{hello} client.example")).startswith("250")
        assert (await self.say(f"MAIL FROM:<{sender}>")).startswith("250")
        said = [await self.say(f"RCPT TO:<{recipient}>") for recipient in recipients]
        assert (await self.say("DATA")).startswith("354")
        return said

    def close(self) -> None:
        self.writer.close()


@dataclass
class OpenDoor:
    """A door that listens."""

    site: Site
    engine: DoorEngine

    @property
    def runner(self) -> LmtpRunner:
        assert isinstance(self.engine.runner, LmtpRunner)
        return self.engine.runner

    async def connected(self) -> Client:
        """A connection whose greeting has not been read."""
        place = self.engine.config.settings["listen"]
        if place.path is not None:
            return Client(*await asyncio.open_unix_connection(str(place.path)))
        assert self.runner.listener is not None
        return Client(*await asyncio.open_connection("127.0.0.1", self.runner.listener.port))

    async def client(self) -> Client:
        """A connection that was greeted."""
        client = await self.connected()
        assert (await client.reply()).startswith("220 lists.example.org ")
        return client

    async def deliver(self, message: bytes, *recipients: str) -> list[str]:
        """One message as it stands on the wire, by a connection of its own; a reply for each recipient."""
        client = await self.client()
        await client.begin(*recipients)
        await client.send(message)
        found = await client.replies(len(recipients))
        await client.say("QUIT")
        client.close()
        return found

    def entries(self, queue: str = "in") -> list[Entry]:
        return list(self.site.entries(queue))

    def messages(self, queue: str = "in") -> list[bytes]:
        """The messages in a queue, without the line that the door has put above each."""
        return [without_trace(entry.message) for entry in self.entries(queue)]


def without_trace(message: bytes) -> bytes:
    """A message without its first header."""
    lines = message.split(b"\r\n")
    assert lines[0].startswith(b"Received: from ")
    begin = next(number for number, line in enumerate(lines) if number and not line.startswith(b"\t"))
    return b"\r\n".join(lines[begin:])


def make_site(folder: Path, text: str) -> Site:
    for name in ("etc", "qfiles", "var"):
        (folder / name).mkdir(exist_ok=True)
    site = Site(parse(text, folder / "etc" / "qrunner.toml"))
    site.spool.prepare(["in", "other", "out"])
    return site


@asynccontextmanager
async def open_door(
    folder: Path, keys: str = "", *, door: str = DOOR, site: str = SITE
) -> AsyncIterator[OpenDoor]:
    """A door with these keys, which is stopped at the end."""
    made = make_site(folder, site + door + keys)
    config = made.config.runners["door"]
    engine = DoorEngine(made, config, 0, load_class(config.class_name), log=logging.getLogger("qrunner.test"))
    run = asyncio.create_task(engine.run())
    try:
        await until(lambda: engine.state != "starting" or run.done(), "the door")
        if run.done():
            run.result()
        yield OpenDoor(made, engine)
    finally:
        engine.stop()
        if not run.done():
            await asyncio.wait_for(run, LIMIT_S)


def stuffed(message: bytes) -> bytes:
    """A message as a client puts it on the wire: lines end with CRLF, dots are doubled, and its end stands there."""
    assert message.endswith(b"\r\n") or not message
    text = message.replace(b"\r\n.", b"\r\n..")
    return (b"." if text.startswith(b".") else b"") + text + b".\r\n"


def kinds(replies: Sequence[str]) -> list[str]:
    """The codes and enhanced codes alone."""
    return [" ".join(reply.split(" ")[:2]) for reply in replies]


def door_process(
    folder: Path,
    keys: str = "",
    before: Callable[[], None] | None = None,
    *,
    door: str = UNIX,
    site: str = SITE,
) -> subprocess.Popen[bytes]:
    """A door in a process of its own; returns when it listens."""
    for name in ("etc", "qfiles", "qfiles/in", "var"):
        (folder / name).mkdir(mode=0o700, exist_ok=True)
    config = folder / "etc" / "qrunner.toml"
    config.write_text(site + door + keys)
    config.chmod(0o600)
    command = [sys.executable, "-c", "from qrunner.ctl import main; main()", "-c", config, "run", "door"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with open(folder / "err", "w") as err:
        started = subprocess.Popen(command, env=environment, stderr=err, preexec_fn=before)
    wait_for(lambda: "listening" in (folder / "err").read_text() or started.poll() is not None)
    assert started.poll() is None, (folder / "err").read_text()
    return started
