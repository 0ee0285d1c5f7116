"""What one destination that hangs takes from the others: `mode = "mx"`, one runner, 200 destinations.

Two runs in turns: all destinations are well; one of them accepts connections and then says nothing, to the greeting or
to the end of the message. Measured is the rate at which the *others* get their mail, and what is printed is its ratio
to that of the peer, the run in which all are well. With hosts that answer at once the runner's processor is what limits
the rate; with hosts that take their time it is the number of deliveries under way, and that is what a host that hangs
uses up. So both are measured.

Options: `--quick`, `--rounds N`, `--destinations N`, `--hanging N`, `--each N` (messages to each destination),
`--latency MS` (of each reply; may be given twice).
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from manyhosts import HANGS, Hosts, many_hosts

from qrunner.config import parse
from qrunner.engine.loop import Engine
from qrunner.loading import load_class
from qrunner.site import Site
from qrunner.smtp.client import SmtpDialer
from qrunner.smtp.mx import Finder
from qrunner.smtp.resolver import Resolver

HOSTNAME = "bench.example.org"
SITE = f"""
[site]
hostname = "{HOSTNAME}"
queue_dir = "q"
state_dir = "var"
postmaster = "postmaster@{HOSTNAME}"
durability = "none"
min_free = "0"
[smtp.direct]
mode = "mx"
port = PORT
allow_private = true
tls = "none"
[runner.out]
class = "outgoing"
smtp = "direct"
"""
MESSAGE = b"Subject: a benchmark\n\n" + (b"x" * 71 + b"\n") * 50
LIMIT_S = 400.0


def main() -> int:
    """Measure and print."""
    asked = options()
    for latency_ms in asked.latency:
        print(f"{asked.destinations} destinations, {latency_ms:g} ms a reply, {asked.each} messages to each")
        print(f"{'':36}  others/s       ratio")
        rates: dict[str, list[float]] = {way: [] for way in ("", *HANGS)}
        for _ in range(asked.rounds):
            for way, found in rates.items():
                found.append(rate(asked, latency_ms / 1e3, way))
        for way, found in rates.items():
            beside = [one / well for one, well in zip(found, rates[""], strict=True)]
            name = f"{asked.hanging} silent after the {way}" if way == "message" else "all are well"
            name = f"{asked.hanging} silent from the start" if way == "greeting" else name
            spread = f"{min(beside):.2f}..{max(beside):.2f}"
            print(f"{name:36}  {statistics.median(found):8.0f}  {statistics.median(beside):10.2f}   {spread}")
    return 0


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="One destination that hangs.")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--destinations", type=int, default=200)
    parser.add_argument("--hanging", type=int, default=1)
    parser.add_argument("--each", type=int)
    parser.add_argument("--latency", type=float, action="append")
    asked = parser.parse_args()
    asked.rounds = asked.rounds or (1 if asked.quick else 5)
    asked.each = asked.each or (6 if asked.quick else 20)
    asked.latency = asked.latency or [0.0, 25.0]
    return asked


def rate(asked: argparse.Namespace, latency_s: float, hangs: str) -> float:
    """Messages a second that those who never hang were given, until they had all of them."""
    others = (asked.destinations - asked.hanging) * asked.each
    with (
        many_hosts(asked.destinations, latency_s=latency_s, hangs=hangs, hanging=asked.hanging) as hosts,
        tempfile.TemporaryDirectory() as folder,
        running(Path(folder), hosts, asked) as began_s,
    ):
        # Where nobody hangs, those of the first destinations are among them, and count as well.
        count = others if hangs else asked.destinations * asked.each
        taken = sorted(hosts.times(count, LIMIT_S))
    return count / (taken[count - 1] - began_s)


@contextmanager
def running(folder: Path, hosts: Hosts, asked: argparse.Namespace) -> Iterator[float]:
    """A runner in a process of its own, with all of the mail in its queue; since when."""
    site = a_site(folder, hosts.port)
    for _ in range(asked.each):
        for number in range(asked.destinations):
            site.enqueue(
                "out", message=MESSAGE, sender="s@bench.example", recipients=[f"r@d{number}.example"]
            )
    process = multiprocessing.get_context("spawn").Process(
        target=_run, args=(folder, hosts.port, hosts.name_server), daemon=True
    )
    process.start()
    try:
        yield time.monotonic()
    finally:
        process.kill()
        process.join()


def a_site(folder: Path, port: int, name_server: int | None = None) -> Site:
    """The site in this folder."""
    folder.joinpath("q").mkdir(mode=0o700, exist_ok=True)
    config = parse(SITE.replace("PORT", str(port)), folder / "qrunner.toml")
    resolver = Resolver(["127.0.0.1"], port=name_server) if name_server is not None else None
    dialer = SmtpDialer(HOSTNAME, Finder(HOSTNAME, resolver)) if resolver is not None else None
    site = Site(config, dialer=dialer)
    site.spool.prepare(config.queues())
    return site


def _run(folder: Path, port: int, name_server: int) -> None:
    site = a_site(folder, port, name_server)
    runner = site.config.runners["out"]
    log = logging.getLogger("qrunner.out")
    log.setLevel(logging.CRITICAL)
    asyncio.run(Engine(site, runner, 0, load_class(runner.class_name), log=log).run())


if __name__ == "__main__":
    sys.exit(main())
