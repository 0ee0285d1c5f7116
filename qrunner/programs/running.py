"""Running programs: the runner's end of the warden.

Guarantees: a program runs only after ``go``; ``ended`` returns when nothing is left of it. What a program prints is
taken in as fast as it comes, and kept within bounds.

Failures: ``OSError`` for what keeps any program from being started, a lack of processes or descriptors.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from qrunner.programs import warden
from qrunner.programs.output import Output

_ANSWER_S = 30.0
_LAST_WORDS_S = 1.0
_END_S = 2.0
_NO_EXEC = 0x8  # MFD_NOEXEC_SEAL, which the os module does not know yet


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be run.

    :param whole: bytes of its output up to which all of that is kept.
    """

    arguments: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    stdin: bytes
    whole: int = 0


@dataclass(frozen=True, slots=True)
class Process:
    """A process, by more than a number that another may have one day: ``started`` in ticks since the boot."""

    pid: int
    started: int


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended, and what it printed.

    ``program`` is its name. One of ``exit``, ``signal`` and ``error`` is not None: its exit code, the signal that it died of, or the errno of what
    kept it from being started. If none is, its keeper was killed: nobody knows how it ended.
    """

    program: str
    out: Output
    err: Output
    exit: int | None = None
    signal: int | None = None
    error: int | None = None

    @property
    def is_unknown(self) -> bool:
        """Whether nobody knows how it ended."""
        return self.exit is None and self.signal is None and self.error is None

    @property
    def code(self) -> int | None:
        """Its exit code, as a shell has it: of a program that died of a signal, 128 and the signal's number."""
        return self.exit if self.signal is None else 128 + self.signal


class Wardens:
    """The warden of one runner; another, if it has died.

    :param kept: descriptors that stay open for as long as anything of it lives, such as a lock's.
    """

    def __init__(self, *kept: int) -> None:
        self._kept = kept
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None

    def start(self) -> None:
        """Begins it. :raises OSError: it can't be."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            argv = [sys.executable, "-I", "-S", warden.__file__, str(theirs.fileno()), str(os.getpid())]
            try:
                self._process = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno(), *self._kept],
                    start_new_session=True,
                    env={},
                )
            except BaseException:
                ours.close()
                raise
        # It only takes orders from it, and the loop must never wait for one that does not.
        ours.setblocking(False)
        self._channel = ours

    def close(self) -> None:
        """Ends it. Programs that still run are their keepers'."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        if self._process is not None:
            try:
                self._process.wait(_END_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    async def begin(self, order: Order) -> Running:
        """A program that waits for its ``go``. :raises OSError: it can't be had."""
        with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
            stdin = _readable(order.stdin)
            theirs.callback(os.close, stdin)
            out, their_out = _pipe(ours, theirs)
            err, their_err = _pipe(ours, theirs)
            line, their_line = socket.socketpair()
            ours.enter_context(line)
            theirs.enter_context(their_line)
            self._send([stdin, their_out, their_err, their_line.fileno()])
            theirs.close()
            running = Running(order)
            await running.open(line, out, err)
            ours.pop_all()
            return running

    def _send(self, fds: Sequence[int]) -> None:
        for _ in range(2):
            if self._channel is None:
                self.start()
            assert self._channel is not None
            try:
                socket.send_fds(self._channel, [b"+"], fds)
                return
            except ConnectionError:
                self.close()
        raise OSError(errno.ECHILD, "the warden of programs does not live")


class Running:
    """One program, from before its start until nothing of it is left."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self.out, self.err = Output(order.whole), Output()
        self.keeper = self.program = Process(0, 0)
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter
        self._closing: list[Callable[[], object]] = []
        self._said: Mapping[str, Any] | None = None

    async def open(self, line: socket.socket, out: IO[bytes], err: IO[bytes]) -> None:
        """Tells the keeper what to run, and hears who will. What is given is ours from here on.

        :raises OSError: there is no keeper.
        """
        loop = asyncio.get_running_loop()
        try:
            self._reader, self._writer = await asyncio.open_connection(sock=line)
            self._closing.append(self._writer.close)
            for output, pipe in ((self.out, out), (self.err, err)):
                transport, _ = await loop.connect_read_pipe(lambda output=output: output, pipe)  # type: ignore[misc]
                self._closing.append(transport.close)
            self._writer.write(_request(self._order))
            async with asyncio.timeout(_ANSWER_S):
                said = await self._answer()
            if "keeper" not in said:
                raise OSError(code := int(said.get("error") or errno.ECHILD), os.strerror(code))
        except TimeoutError:
            self.close()
            raise OSError(errno.ETIMEDOUT, "the warden of programs does not answer") from None
        except BaseException:
            self.close()
            raise
        self.keeper, self.program = Process(*said["keeper"]), Process(*said["program"])

    def go(self) -> None:
        """Lets it run."""
        self._writer.write(b"g")

    async def ended(self) -> Ended:
        """How it ended, once nothing of it is left. May be cancelled and called again."""
        if self._said is None:
            self._said = await self._answer()
        # All who could print are dead, unless one has handed its output to somebody who was there before it.
        await asyncio.wait([self.out.ended, self.err.ended], timeout=_LAST_WORDS_S)
        self.close()
        name = os.path.basename(self._order.arguments[0])
        return Ended(name, self.out, self.err, **self._said)

    def terminate(self) -> None:
        """Asks it to end: SIGTERM to its process group."""
        self._writer.write(b"t")

    def kill(self) -> None:
        """Kills all of it."""
        if self._writer.can_write_eof():
            self._writer.write_eof()

    def close(self) -> None:
        """Lets go of it; what still runs is killed."""
        for close in self._closing:
            close()
        self._closing = []

    async def _answer(self) -> Mapping[str, Any]:
        """What the keeper says next; nothing: it has gone without a word."""
        try:
            line = await self._reader.readline()
        except ConnectionError:
            line = b""
        return dict(json.loads(line)) if line.endswith(b"\n") else {}


def _request(order: Order) -> bytes:
    request = {"argv": list(order.arguments), "env": dict(order.environment), "cwd": str(order.folder)}
    return json.dumps(request).encode() + b"\n"


def _pipe(ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> tuple[IO[bytes], int]:
    reading, writing = os.pipe()
    theirs.callback(os.close, writing)
    return ours.enter_context(os.fdopen(reading, "rb", buffering=0)), writing


def _readable(data: bytes) -> int:
    """A descriptor to read these bytes from, as from a file; no disk has to have room for them."""
    try:
        fd = os.memfd_create("message", os.MFD_CLOEXEC | _NO_EXEC)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        fd = os.memfd_create("message")
    with open(fd, "wb") as file:
        file.write(data)
        file.flush()
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
