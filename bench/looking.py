"""Looking at a million entries that wait: `qrunner-ctl status` and `list --older 1h`, and Postfix's `postqueue -p`.

As many on both sides, deferred, small and for one recipient, none of which has been tried: so neither has a reason to
read out, which would cost Postfix another file a message. All of ours arrived a day ago, so `list` has all of them to
print. Ours is a site under its master, whose runner knows of them; of Postfix the queue manager is not running. The files
are laid down as copies, not by mail; they are in memory as far as it reaches. What is printed goes to `/dev/null`. Wants
root, as Postfix does.

Options: `--quick` (fifty thousand), `--runs N`, `--count N`, `--directory DIR`, `--json`.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from rig.crowds import lay_down
from rig.peers import ENVIRONMENT, feed, postfix
from rig.rounds import Claim, in_turns, options, report
from rig.sites import Place

CLAIM = Claim("looking", "looking at {count} deferred", "ms", at_most=1.0)
DAY_NS = 86_400 * 10**9
SITE = """
[smtp.sink]
host = "127.0.0.1"
port = 9
[runner.backoff]
class = "outgoing"
smtp = "sink"
"""


def main() -> int:
    """Measure and print."""
    asked = options(__doc__, runs=3, quick_runs=1, count=1_000_000, quick_count=20_000)
    with (
        tempfile.TemporaryDirectory(dir=asked.directory) as ours,
        tempfile.TemporaryDirectory(dir=asked.directory) as theirs,
    ):
        place = Place(Path(ours))
        place.configure(SITE)
        now_ns = time.time_ns()
        queue = place.root / "qfiles" / "backoff"
        lay_down(queue, asked.count, now_ns + DAY_NS, arrival_ns=now_ns - DAY_NS)
        Path(theirs).chmod(0o755)
        with place.started(), postfix(Path(theirs), 9, delivers=False) as mta:
            feed(mta.port, 1, size=100)
            mta.copies(asked.count - 1)
            ways = {
                "postqueue -p": ["postqueue", "-c", f"{theirs}/etc", "-p"],
                "qrunner-ctl status": place.command("status"),
                "qrunner-ctl list --older 1h": place.command("list", "--older", "1h"),
            }
            check(ways, asked.count)
            found = in_turns({name: partial(run, words) for name, words in ways.items()}, asked.runs, warm=0)
    work = CLAIM.work.format(count=f"{asked.count:,}")
    named = Claim(CLAIM.name, work, CLAIM.unit, at_most=CLAIM.at_most)
    return report(named, found, peer="postqueue -p", asked=asked)


def run(command: Sequence[str]) -> None:
    """To its end."""
    subprocess.run(command, stdout=subprocess.DEVNULL, env=ENVIRONMENT, check=True)


def check(ways: Mapping[str, Sequence[str]], count: int) -> None:
    """Each is called once, to see that it shows all of them. :raises ValueError: it does not."""
    shown = (rf"\bin {count} Requests", rf"^backoff +{count} +0 +{count} ", None)
    for (name, words), pattern in zip(ways.items(), shown, strict=True):
        with tempfile.TemporaryFile("w+") as file:
            subprocess.run(words, stdout=file, env=ENVIRONMENT, check=True)
            file.seek(0)
            lines = list(file) if pattern is not None else [f"{sum(1 for _ in file) - 1}"]
            if not any(re.search(pattern or rf"^{count}$", line) for line in lines):
                raise ValueError(f"{name} does not show {count} messages")


if __name__ == "__main__":
    sys.exit(main())
