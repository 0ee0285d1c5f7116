"""What one destination that hangs takes from the others: `mode = "mx"`, one runner, 200 destinations.

Three ways in turns: all destinations are well, which is the peer; one of them accepts connections and says nothing at
all; one says nothing once it has a message. Measured is the rate at which the *others* get their mail. With hosts that
answer at once the runner's processor is what limits the rate; with hosts that take 25 ms for each reply it is the number
of deliveries under way, and that is what a host that hangs uses up. So both are measured.

Options: `--quick`, `--runs N`, `--count N` (messages to each destination), `--directory DIR`, `--json`.
"""

from __future__ import annotations

import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path

from rig.hosts import many_hosts
from rig.rounds import Claim, options, report
from rig.runners import Plan, running

DESTINATIONS = 200
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
    asked = options(__doc__, runs=5, quick_runs=1, count=20, quick_count=6)
    for latency_ms in (0, 25):
        found: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(asked.runs):
            for way, rates in found.items():
                rates.append(rate(asked, latency_ms / 1e3, WAYS[way]))
        work = f"one of {DESTINATIONS} destinations hangs, {latency_ms} ms a reply"
        claim = Claim(f"hanging-{latency_ms}ms", work, "messages/s to the others", at_least=0.9)
        report(claim, found, peer=WELL, asked=asked)
    return 0


def rate(asked: Namespace, latency_s: float, hangs: str) -> float:
    """Messages a second that those who never hang were given, until they had all of them."""
    # Where nobody hangs, the first destination is like the others, and counts as well.
    count = (DESTINATIONS - bool(hangs)) * asked.count
    with (
        many_hosts(DESTINATIONS, latency_s=latency_s, hangs=hangs, hanging=1) as hosts,
        tempfile.TemporaryDirectory(dir=asked.directory) as folder,
    ):
        plan = Plan(Path(folder), SITE.replace("PORT", str(hosts.port)), hosts.name_server)
        site = plan.site()
        for number in range(asked.count * DESTINATIONS):
            to = [f"r@d{number % DESTINATIONS}.example"]
            site.enqueue("out", message=MESSAGE, sender="s@bench.example", recipients=to)
        with running(plan, "out"):
            began_s = time.monotonic()
            taken = sorted(hosts.times(count, LIMIT_S))
    return count / (taken[count - 1] - began_s)


if __name__ == "__main__":
    sys.exit(main())
