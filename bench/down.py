"""What mail costs whose hosts are down: processor time of the runners, beside runners that have nothing to do.

10,000 messages wait while their host refuses connections; while two hosts do, each in the other's `on_down`; while a
host turns every connection away with 421. Measured is the processor time of all runners together, from when
everything has been looked at once until after the next probes, and how many entries they look at. A runner that spins
takes all of a processor, 100 %.

Options: `--quick` (a tenth of the messages, a sixth of the time), `--seconds N`, `--messages N`, `--probe-after N`.
"""

from __future__ import annotations

import argparse
import socket
import socketserver
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from runnerprocess import Cost, Plan, Running, running

HOST = '[smtp.NAME]\nhost = "127.0.0.1"\nport = PORT\nprobe_after = "AFTERs"\n'
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
IDLE = "two runners, nothing to do"
LIMIT_S = 300.0


def main() -> int:
    """Measure and print."""
    asked = options()
    count, seconds = asked.messages, asked.seconds
    print(f"{count} messages, over {seconds:g} s")
    print(f"{'':44}  processor   looks/s")
    with refusing() as down, turning_away() as busy:
        ways = {
            IDLE: (0, EACH_OTHER, (down, down)),
            "a host is down": (count, ALONE, (down,)),
            "two are down, each in the other's on_down": (count, EACH_OTHER, (down, down)),
            "a host turns all connections away (421)": (count, ALONE, (busy,)),
        }
        for way, (messages, runners, ports) in ways.items():
            cost = measured(runners, ports, messages, asked)
            print(f"{way:44}  {cost.cpu_s / seconds:8.1%}   {cost.looks / seconds:8.1f}", flush=True)
    return 0


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Mail whose hosts are down.")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--messages", type=int)
    parser.add_argument("--probe-after", type=int)
    asked = parser.parse_args()
    asked.messages = asked.messages or (1_000 if asked.quick else 10_000)
    asked.seconds = asked.seconds or (20.0 if asked.quick else 120.0)
    asked.probe_after = asked.probe_after or (10 if asked.quick else 60)
    return asked


def host(name: str, port: int, asked: argparse.Namespace) -> str:
    """Its section."""
    return HOST.replace("NAME", name).replace("PORT", str(port)).replace("AFTER", str(asked.probe_after))


def measured(runners: str, ports: tuple[int, ...], messages: int, asked: argparse.Namespace) -> Cost:
    """Of all runners together."""
    hosts = [host(name, port, asked) for name, port in zip("ab", ports, strict=False)]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        plan = Plan(Path(folder), "".join(hosts) + runners)
        site = plan.site()
        for number in range(messages):
            site.enqueue("out", message=MESSAGE, sender="s@x.example", recipients=[f"r{number}@x.example"])
        those = [stack.enter_context(running(plan, name)) for name in site.config.runners]
        settle(those, messages)
        before = total(those)
        time.sleep(asked.seconds)
        return total(those) - before


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
