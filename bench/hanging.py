"""What one destination that hangs takes from the others: `mode = "mx"`, one runner, 200 destinations.

Runs in turns: all destinations are well; one of them accepts connections and says nothing at all; one says nothing once
it has a message. Measured is the rate at which the *others* get their mail, and what is printed is its ratio to that of
the peer, the run in which all are well. With hosts that answer at once the runner's processor is what limits the rate;
with hosts that take their time it is the number of deliveries under way, and that is what a host that hangs uses up. So
both are measured.

Options: `--quick`, `--rounds N`, `--destinations N`, `--hanging N`, `--each N` (messages to each destination),
`--latency MS` (of each reply; may be given twice).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

from manyhosts import many_hosts
from runnerprocess import Plan, running

SITE = """
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
WELL = "all are well"
WAYS = {WELL: "", "silent from the start": "greeting", "silent after the message": "message"}
LIMIT_S = 400.0


def main() -> int:
    """Measure and print."""
    asked = options()
    for latency_ms in asked.latency:
        print(
            f"{asked.destinations} destinations, {latency_ms:g} ms a reply, {asked.each} messages to each; "
            f"of {asked.hanging} that hang:"
        )
        print(f"{'':26}  others/s   ratio   lowest..highest")
        rates: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(asked.rounds):
            for way, found in rates.items():
                found.append(rate(asked, latency_ms / 1e3, WAYS[way]))
        for way, found in rates.items():
            beside = [one / well for one, well in zip(found, rates[WELL], strict=True)]
            middle, ratio = statistics.median(found), statistics.median(beside)
            print(f"{way:26}  {middle:8.0f}   {ratio:5.2f}   {min(beside):.2f}..{max(beside):.2f}")
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
    # Where nobody hangs, the first destinations are like the others, and count as well.
    count = (asked.destinations - (asked.hanging if hangs else 0)) * asked.each
    with (
        many_hosts(asked.destinations, latency_s=latency_s, hangs=hangs, hanging=asked.hanging) as hosts,
        tempfile.TemporaryDirectory() as folder,
    ):
        plan = Plan(Path(folder), SITE.replace("PORT", str(hosts.port)), hosts.name_server)
        fill(plan, asked)
        with running(plan, "out"):
            began_s = time.monotonic()
            taken = sorted(hosts.times(count, LIMIT_S))
    return count / (taken[count - 1] - began_s)


def fill(plan: Plan, asked: argparse.Namespace) -> None:
    """All of the mail, one destination after the other."""
    site = plan.site()
    for _ in range(asked.each):
        for number in range(asked.destinations):
            site.enqueue(
                "out", message=MESSAGE, sender="s@bench.example", recipients=[f"r@d{number}.example"]
            )


if __name__ == "__main__":
    sys.exit(main())
