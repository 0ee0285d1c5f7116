"""How long one message takes through LMTP, `in` and `out` to a host, on a site that is otherwise idle.

The peer is Mailman's poll: its runners look at their queues once a second, so that a hop takes half a second in the
mean, whatever the machine; that figure is its configuration's, not measured. A message is timed from the first byte of
its LMTP session to the moment at which the host has the end of it.

Options: `--quick`, `--runs N`, `--count N` (messages a run), `--directory DIR`, `--json`.
"""

from __future__ import annotations

import asyncio
import smtplib
import statistics
import sys
import tempfile
import threading
import time
from argparse import Namespace
from pathlib import Path

from rig.rounds import Claim, options, report
from rig.sinks import free_port, listens, until
from rig.sites import Place

MIDDLE = Claim("latency-p50", "one message through LMTP, in, out: median", "ms", at_most=0.01)
SLOW = Claim("latency-p99", "one message through LMTP, in, out: 99th of 100", "ms", at_most=0.04)
POLL_MS = 1_000.0  # two hops of half a second
SITE = """
[smtp.host]
host = "127.0.0.1"
port = {host}
[runner.door]
class = "lmtp"
listen = "127.0.0.1:{port}"
next = "in"
[runner.in]
class = "incoming"
next = "out"
[runner.out]
class = "outgoing"
smtp = "host"
"""


class Host:
    """Takes messages and notes when each has ended."""

    def __init__(self) -> None:
        self.port, self.arrived = free_port(), threading.Event()
        self.when_s = 0.0
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._run, daemon=True).start()
        until(lambda: listens(self.port), what="the host")

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", self.port))
        self._loop.run_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 here\r\n")
        while line := await reader.readline():
            if line.upper().startswith(b"DATA"):
                writer.write(b"354 go\r\n")
                await reader.readuntil(b"\r\n.\r\n")
                self.when_s = time.perf_counter()
                self.arrived.set()
            writer.write(b"250 ok\r\n")
        writer.close()


def main() -> int:
    """Measure and print."""
    asked = options(__doc__, runs=5, quick_runs=1, count=200, quick_count=100)
    found: dict[Claim, dict[str, list[float]]] = {
        claim: {"Mailman's poll": [], "qrunner": []} for claim in (MIDDLE, SLOW)
    }
    for _ in range(asked.runs):
        took_ms = sorted(one * 1e3 for one in measured(asked))
        for claim, figure in (
            (MIDDLE, statistics.median(took_ms)),
            (SLOW, took_ms[int(len(took_ms) * 0.99)]),
        ):
            found[claim]["Mailman's poll"].append(POLL_MS)
            found[claim]["qrunner"].append(figure)
    for claim, figures in found.items():
        report(claim, figures, peer="Mailman's poll", asked=asked)
    return 0


def measured(asked: Namespace) -> list[float]:
    """Seconds, of each message."""
    host, port, took_s = Host(), free_port(), []
    with tempfile.TemporaryDirectory(dir=asked.directory) as folder:
        place = Place(Path(folder))
        place.configure(SITE.format(host=host.port, port=port))
        with place.started():
            until(lambda: listens(port), what="the door")
            for number in range(asked.count + 5):
                host.arrived.clear()
                began_s = time.perf_counter()
                with smtplib.LMTP("127.0.0.1", port) as client:
                    client.sendmail(
                        "ann@a.example", ["bob@b.example"], b"Subject: hello\r\n\r\n" + b"x" * 4096
                    )
                    if not host.arrived.wait(30):
                        raise TimeoutError("a message did not arrive")
                if number >= 5:
                    took_s.append(host.when_s - began_s)
    return took_s


if __name__ == "__main__":
    sys.exit(main())
