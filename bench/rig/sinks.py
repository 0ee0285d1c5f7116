"""smtp-sink: takes mail, throws it away, and counts."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

# It is looked at so often: it says a line for each message, and to wake up for each would take part in what is measured.
_LOOK_S = 0.01
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def free_port() -> int:
    """A port of the loopback that nobody has just now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def listens(port: int) -> bool:
    """Whether somebody answers there."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def until(condition: object, limit_s: float = 60.0, what: str = "it") -> None:
    """Waits for a condition. :raises TimeoutError: it did not come about."""
    end = time.monotonic() + limit_s
    while not condition():  # type: ignore[operator]
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not come about within {limit_s:g} s")
        time.sleep(0.01)


@dataclass
class Sink:
    """A running smtp-sink. ``taken``: messages so far; ``times``: pairs of a time and how many had come by then;
    ``began_s``: when the first connection since the last ``forget`` was there."""

    port: int
    process: subprocess.Popen[bytes]
    taken: int = 0
    times: list[tuple[float, int]] = field(default_factory=list)
    began_s: float | None = None
    _quiet: int = 0
    _has_ended: bool = False
    _news: threading.Condition = field(default_factory=threading.Condition)
    _tail: bytes = b""

    def forget(self) -> None:
        """Begins a new count, with a sink that is quiet."""
        with self._news:
            self._base = self.taken
            self.times.clear()
            self.began_s, self._quiet = None, self._open()

    _base: int = 0

    def wait(self, count: int, limit_s: float = 300.0) -> None:
        """Until so many have come since the last ``forget``."""
        end = time.monotonic() + limit_s
        with self._news:
            while self.taken - self._base < count:
                if self._has_ended:
                    raise EOFError("smtp-sink has ended")
                if time.monotonic() > end:
                    raise TimeoutError(
                        f"{self.taken - self._base} of {count} messages came within {limit_s:g} s"
                    )
                if self.began_s is None and self._open() > self._quiet:
                    self.began_s = time.monotonic()
                self._news.wait(0.2 if self.began_s else 0.01)

    def _open(self) -> int:
        """How many files it has open, connections among them: it counts a session when that has ended."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def rate(self, skip: float = 0.05) -> float:
        """Messages a second, from the first of them (but for a share at the beginning, while connections are made) to
        the last."""
        counts = [(when, count - self._base) for when, count in self.times]
        last_s, last = counts[-1]
        first_s, first = next(pair for pair in counts if pair[1] >= skip * last)
        return (last - first) / (last_s - first_s)

    def rate_from_connection(self) -> float:
        """Messages a second, from the first connection to the last of them: for messages that are few and large."""
        assert self.began_s is not None
        last_s, last = self.times[-1]
        return (last - self._base) / (last_s - self.began_s)

    def follow(self) -> None:
        """Reads what it says until it ends: in a thread, since a sink that nobody listens to stands still."""
        assert self.process.stdout is not None
        while data := os.read(self.process.stdout.fileno(), 1 << 16):
            with self._news:
                self._count(data)
                self._news.notify_all()
            time.sleep(_LOOK_S)
        with self._news:
            self._has_ended = True
            self._news.notify_all()

    def _count(self, data: bytes) -> None:
        *lines, self._tail = (self._tail + data).split(b"\r")
        found = [int(match[1]) for line in lines if (match := re.search(rb"mesg=(\d+)", line))]
        if found and found[-1] > self.taken:
            self.taken = found[-1]
            self.times.append((time.monotonic(), self.taken))


@contextmanager
def smtp_sink(*options: str) -> Iterator[Sink]:
    """Starts one on a port of its own, with more options of its command line."""
    port = free_port()
    program = shutil.which("smtp-sink", path=PATH)
    if program is None:
        raise FileNotFoundError("smtp-sink is not here; Debian: apt-get install postfix")
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    command = [program, *user, "-c", *options, f"127.0.0.1:{port}", "1000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        until(lambda: listens(port), what="smtp-sink")
        sink = Sink(port, process)
        threading.Thread(target=sink.follow, daemon=True).start()
        yield sink
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
