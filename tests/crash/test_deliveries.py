"""Death in the middle of a delivery: between any two replies of the host, and at each change of a file.

A process delivers one message in two transactions to a host that this one plays, and is killed. Whose reply was written
down is never sent the message again; of the others only those that the history calls in doubt may have it already.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from qrunner.clock import Clock, SystemClock
from qrunner.config import parse
from qrunner.engine.loop import Engine
from qrunner.message import Entry
from qrunner.runners.outgoing import OutgoingRunner
from qrunner.site import Site
from qrunner.smtp.notes import in_doubt
from qrunner.testing.clock import FakeClock
from tests.crash.calls import Calls, Point, before_or_within, some_or_all

LOG = logging.getLogger("qrunner.out")
TO = ("a@x", "b@x", "c@x", "d@x")
TOML = """
[site]
hostname = "lists.example.org"
queue_dir = "qfiles"
state_dir = "var"
postmaster = "pm@lists.example.org"
report_queue = "reports"
min_free = "0"
retry = {{ first = "5m", jitter = 0 }}
[smtp.mta]
host = "127.0.0.1"
port = {port}
max_recipients = 2
[runner.out]
class = "outgoing"
smtp = "mta"
"""
SMALL = b"Subject: hello\n\nworld\n"
# Longer than what lies between two sockets.
LARGE = SMALL + b"x" * 70 * 150_000 + b"\n"
LIMIT_S = 30.0


OFFERS = {"one by one": b"250-hi\r\n250 SIZE\r\n", "together": b"250-hi\r\n250-PIPELINING\r\n250 SIZE\r\n"}


@dataclass
class Host:
    """Takes what it is given, but puts the first ``c@x`` off; kills the client at a moment, counted from 0.

    Each reply has three moments: before it, in the middle of it, after it; and each message one, before it is read.
    """

    pid: int = 0
    moment: int = -1
    moments: int = 0
    taken: Counter[str] = field(default_factory=Counter)
    grey: bool = True
    offer = OFFERS["one by one"]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._talk(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # it has died
        finally:
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to: list[str] = []
        await self._say(writer, b"220 hi\r\n")
        while line := await reader.readline():
            verb = line[:4].upper()
            if verb == b"RCPT":
                to.append(line.decode().partition("<")[2].partition(">")[0])
                is_grey = self.grey and to[-1] == "c@x"
                if is_grey:
                    to.pop()
                    self.grey = False
                await self._say(writer, b"451 4.7.1 later\r\n" if is_grey else b"250 ok\r\n")
            elif verb == b"DATA":
                await self._say(writer, b"354 go\r\n")
                self._moment()
                await reader.readuntil(b"\r\n.\r\n")
                self.taken.update(to)
                to = []
                await self._say(writer, b"250 2.0.0 taken\r\n")
            else:
                await self._say(writer, self.offer if verb == b"EHLO" else b"250 ok\r\n")

    async def _say(self, writer: asyncio.StreamWriter, reply: bytes) -> None:
        self._moment()
        for part in (reply[: len(reply) // 2], reply[len(reply) // 2 :]):
            writer.write(part)
            await writer.drain()
            self._moment()

    def _moment(self) -> None:
        if self.moments == self.moment and self.pid:
            os.kill(self.pid, signal.SIGKILL)
            raise ConnectionResetError("it is dead")
        self.moments += 1


@dataclass
class Scene:
    """A site with one message, and the port of its host."""

    folder: Path
    listener: socket.socket
    message: bytes = SMALL

    def site(self, clock: Clock) -> Site:
        text = TOML.format(port=self.listener.getsockname()[1])
        return Site(parse(text, self.folder / "qrunner.toml"), clock=clock)

    def begin(self) -> None:
        self.site(SystemClock()).enqueue("out", message=self.message, sender="s@x", recipients=TO)

    def die(self, host: Host, point: Point | None = None) -> bool:
        """Whether the process was killed before it had delivered."""
        pid = os.fork()
        if not pid:
            self._deliver(point)
        host.pid = pid
        asyncio.run(self._play(host, pid))
        host.pid = 0
        _, status = os.waitpid(pid, 0)
        assert status in (0, signal.SIGKILL)
        return status != 0

    def _deliver(self, point: Point | None) -> None:
        """The life of the process that is killed."""
        try:
            site = self.site(SystemClock())
            engine = Engine(site, site.config.runners["out"], 0, OutgoingRunner, log=LOG)
            calls = Calls(point)
            with calls.watched():
                calls.armed = point is not None
                asyncio.run(engine.run(once=True))
                calls.armed = False
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        os._exit(1)

    async def _play(self, host: Host, pid: int) -> None:
        """Until the process has ended."""
        ended = asyncio.Event()
        descriptor = os.pidfd_open(pid)
        asyncio.get_running_loop().add_reader(descriptor, ended.set)
        server = await asyncio.start_server(host.serve, sock=self.listener.dup(), limit=64 << 20)
        async with asyncio.timeout(LIMIT_S):
            await ended.wait()
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
        server.close()

    def entry(self) -> Entry | None:
        """What is left of the message."""
        spool = self.site(SystemClock()).spool
        found = [spool.read(ref) for ref in spool.peek("out")]
        assert len(found) <= 1
        return found[0] if found else None

    async def finish(self, host: Host) -> None:
        """The next process, to the end of it all."""
        clock = FakeClock(datetime.now(UTC))
        site = self.site(clock)
        engine = Engine(site, site.config.runners["out"], 0, OutgoingRunner, log=LOG)
        server = await asyncio.start_server(host.serve, sock=self.listener.dup(), limit=64 << 20)
        async with asyncio.timeout(LIMIT_S):
            await engine.open()
            for _ in range(10):
                await engine.step()
                if not list(site.spool.peek("out")):
                    break
                clock.advance("10m")
            await engine.close()
        server.close()


@pytest.fixture
def scene() -> Iterator[Scene]:
    memory = Path("/dev/shm")
    where = memory if os.access(memory, os.W_OK) else None
    with TemporaryDirectory(dir=where) as folder, socket.create_server(("127.0.0.1", 0)) as listener:
        # A reply in two parts would wait for the client's acknowledgement. What is accepted inherits it.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        (Path(folder) / "qfiles").mkdir(mode=0o700)
        one = Scene(Path(folder), listener)
        site = one.site(SystemClock())
        site.spool.prepare(["out", "reports"])
        yield one


@pytest.fixture(params=OFFERS.values(), ids=OFFERS)
def offer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Host, "offer", request.param)


def play(scene: Scene, moment: int = -1, point: Point | None = None) -> bool:
    """One delivery with a death in it; False: it came to its end before that."""
    host = Host(moment=moment)
    scene.begin()
    died = scene.die(host, point)
    before = Counter(host.taken)
    entry = scene.entry()
    told = (
        {to for line in entry.history if line["what"] == "delivered" for to in line["to"]}
        if entry
        else set(TO)
    )
    doubted = set((in_doubt(entry) or ("", ()))[1]) if entry else set()
    for to in TO:
        if to in told:
            assert before[to] == 1, (moment, point, to, entry)
        elif to not in doubted:
            assert before[to] == 0, (moment, point, to, entry)
    asyncio.run(scene.finish(host))
    again = host.taken - before
    assert again == Counter(set(TO) - told), (moment, point, entry)
    assert scene.entry() is None
    assert not list(scene.site(SystemClock()).spool.peek("reports"))
    return died


@some_or_all(3)
@pytest.mark.usefixtures("offer")
def test_death_between_any_two_replies(scene: Scene, every: int) -> None:
    moment = 0
    while play(scene, moment):
        moment += every
    assert moment > 30


@pytest.mark.usefixtures("offer")
def test_death_in_a_message_that_is_on_its_way(scene: Scene) -> None:
    scene.message = LARGE
    # Up to the DATA of the first transaction there are the greeting and five replies.
    assert play(scene, 6 * 3)


@some_or_all(3)
@before_or_within()
def test_death_at_each_change_of_a_file(scene: Scene, torn: bool, every: int) -> None:
    at = 0
    while play(scene, point=Point(at, torn)):
        at += every
    assert at > 10
