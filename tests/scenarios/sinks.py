"""Postfix's smtp-sink, several of them, and what each was given."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.scenarios.postfix import free_port, until

WHERE = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"

_RECEIVED = b"\nReceived: "


@dataclass(frozen=True)
class Got:
    """A message as a sink got it, line ends as LF."""

    sender: str
    recipients: tuple[str, ...]
    message: bytes


@dataclass(frozen=True)
class RealSink:
    """A smtp-sink that runs."""

    port: int
    dump: Path

    def count(self) -> int:
        """How many messages it has begun to take."""
        return len(os.listdir(self.dump))

    def messages(self) -> list[Got]:
        """All it has, without what it has only begun to write down."""
        dumps = [path.read_bytes() for path in self.dump.iterdir()]
        return [_read(dump) for dump in dumps if _RECEIVED in dump]


@contextmanager
def smtp_sinks(root: Path, count: int) -> Iterator[list[RealSink]]:
    """So many of them, each on a port of its own."""
    with ExitStack() as stack:
        yield [stack.enter_context(_smtp_sink(root / f"sink{number}")) for number in range(count)]


@contextmanager
def _smtp_sink(dump: Path) -> Iterator[RealSink]:
    program = shutil.which("smtp-sink", path=WHERE)
    assert program is not None
    sink = RealSink(free_port(), dump)
    dump.mkdir()
    dump.chmod(0o777)
    # Root is not taken for granted: it must be told whom to become.
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    command = [program, *user, "-d", f"{dump}/%M.", f"127.0.0.1:{sink.port}", "1000"]
    process = subprocess.Popen(command, start_new_session=True)
    try:
        until(lambda: _listens(sink.port), lambda: f"smtp-sink does not listen: {process.poll()}")
        yield sink
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _read(dump: bytes) -> Got:
    """What smtp-sink wrote: lines on the envelope, a Received of its own, the message, an empty line."""
    head, _, rest = dump.partition(_RECEIVED)
    fields = [line.decode("utf-8", "surrogateescape").partition(": ") for line in head.split(b"\n")]
    (sender,) = [_path(value) for name, _, value in fields if name == "X-Mail-Args"]
    recipients = tuple(_path(value) for name, _, value in fields if name == "X-Rcpt-Args")
    lines = rest.split(b"\n")
    begin = next(number for number, line in enumerate(lines) if number and not line.startswith(b"\t"))
    message = b"\n".join(lines[begin:])
    assert message.endswith(b"\n")
    return Got(sender, recipients, message[:-1])


def _path(arguments: str) -> str:
    """The address in `<address> PARAMETER=...`."""
    path, _, _ = arguments.rpartition(">")
    assert path.startswith("<")
    return path[1:]
