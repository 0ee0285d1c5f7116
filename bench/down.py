"""What mail costs whose hosts are down: processor time of the runners.

10,000 messages wait while their host refuses connections; while two hosts do, each in the other's `on_down`; while a
host turns every connection away with 421. Measured is the processor time of all runners together, from when everything
has been looked at once until after the next probes. The peer is a runner that spins: it takes all of a processor, 100 %.
Beside them, two runners that have nothing to do.

Options: `--quick` (a tenth of the messages, a sixth of the time), `--runs N`, `--count N` (messages), `--directory DIR`,
`--json`.
"""

from __future__ import annotations

import socket
import socketserver
import sys
import tempfile
import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rig.rounds import Claim, options, report
from rig.runners import Cost, Plan, Running, running

HOST = '[smtp.NAME]\nhost = "127.0.0.1"\nport = PORT\nprobe_after = "AFTER"\n'
ALONE = '[runner.out]\nclass = "outgoing"\nsmtp = "a"\n'
EACH_OTHER = """
[runner.out]
class = "outgoing"
smtp = "a"
on_down = ["out-b"]
[runner.out-b]
class = "outgoing"
smtp = "b"
on_down = ["out"]
"""
MESSAGE = b"Subject: a benchmark\n\nx\n"
PEER = "a runner that spins"
LIMIT_S = 300.0


def main() -> int:
    """Measure and print."""
    asked = options(__doc__, runs=1, quick_runs=1, count=10_000, quick_count=1_000)
    with refusing() as down, turning_away() as busy:
        ways = {
            "two runners, nothing to do": (0, EACH_OTHER, (down, down)),
            "a host is down": (asked.count, ALONE, (down,)),
            "two are, each in the other's on_down": (asked.count, EACH_OTHER, (down, down)),
            "a host says 421 to every connection": (asked.count, ALONE, (busy,)),
        }
        found: dict[str, list[float]] = {PEER: [], **{way: [] for way in ways}}
        for _ in range(asked.runs):
            found[PEER].append(100.0)
            for way, (messages, runners, ports) in ways.items():
                found[way].append(measured(runners, ports, messages, asked))
    claim = Claim(
        "down", f"{asked.count} messages wait for hosts that are down", "% of a processor", at_most=0.15
    )
    return report(claim, found, peer=PEER, asked=asked)


def measured(runners: str, ports: tuple[int, ...], messages: int, asked: Namespace) -> float:
    """Of all runners together, in %."""
    seconds, probe_after = (20.0, "10s") if asked.quick else (120.0, "1m")
    hosts = [
        HOST.replace("NAME", name).replace("PORT", str(port)).replace("AFTER", probe_after)
        for name, port in zip("ab", ports, strict=False)
    ]
    with tempfile.TemporaryDirectory(dir=asked.directory) as folder, ExitStack() as stack:
        plan = Plan(Path(folder), "".join(hosts) + runners)
        site = plan.site()
        for number in range(messages):
            site.enqueue("out", message=MESSAGE, sender="s@x.example", recipients=[f"r{number}@x.example"])
        those = [stack.enter_context(running(plan, name)) for name in site.config.runners]
        settle(those, messages)
        before = total(those)
        time.sleep(seconds)
        return 100 * (total(those) - before).cpu_s / seconds


def settle(those: list[Running], messages: int) -> None:
    """Until each message has been looked at once, by its first runner."""
    end_s = time.monotonic() + LIMIT_S
    while those[0].cost().looks < messages:
        if time.monotonic() > end_s:
            raise TimeoutError(f"not looked at within {LIMIT_S:g} s")
        time.sleep(0.1)


def total(those: list[Running]) -> Cost:
    """What they have cost so far."""
    costs = [one.cost() for one in those]
    return Cost(sum(one.cpu_s for one in costs), sum(one.looks for one in costs))


@contextmanager
def refusing() -> Iterator[int]:
    """A port at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield int(taken.getsockname()[1])


@contextmanager
def turning_away() -> Iterator[int]:
    """A port at which a host says 421 to everybody."""

    class Talk(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(b"421 4.3.2 not now\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Talk) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield int(server.server_address[1])
        server.shutdown()


if __name__ == "__main__":
    sys.exit(main())
