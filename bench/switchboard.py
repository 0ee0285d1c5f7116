"""Messages of 4 KB enqueued durably, by one and by sixteen at a time; then claimed, read, verified and finished.

The peer is the Switchboard of Mailman 3, which syncs the file and no directory; qrunner syncs both. Each runs in a
process of its own, in turns, on the same disk. Mailman is installed from PyPI into an environment of its own, once.
Beside them stands what the system calls of each take by themselves, from Python with nothing around them: the most that
such a program can reach.

Options: `--quick`, `--runs N`, `--count N`, `--directory DIR` (on the file system to measure), `--json`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from rig import mailman_peer
from rig.rounds import Claim, options, report

ALONE = Claim("enqueue-1", "enqueue, one at a time", "messages/s", at_least=1.0)
TOGETHER = Claim("enqueue-16", "enqueue, sixteen at a time", "messages/s", at_least=2.0)
FINISH = Claim("finish", "claim, read, verify, finish", "messages/s", at_least=1.5)
WORKERS = {
    "Mailman": ("mailman_worker.py",),
    "qrunner": ("qrunner_worker.py",),
    "qrunner's calls alone": ("calls_worker.py",),
    "Mailman's calls alone": ("calls_worker.py", "file"),
}


def main() -> int:
    """Measure and print."""
    asked = options(__doc__, runs=5, quick_runs=1, count=10_000, quick_count=1_500)
    mailman = mailman_peer.python()
    found: dict[Claim, dict[str, list[float]]] = {
        claim: {name: [] for name in WORKERS} for claim in (ALONE, TOGETHER, FINISH)
    }
    for _ in range(asked.runs):
        for threads, claim in ((1, ALONE), (16, TOGETHER)):
            for name, (worker, *more) in WORKERS.items():
                python = mailman if name == "Mailman" else sys.executable
                with tempfile.TemporaryDirectory(dir=asked.directory) as folder:
                    figures = mailman_peer.worked(
                        python, worker, Path(folder, "queue"), asked.count, threads, *more
                    )
                found[claim][name].append(figures["enqueue"])
                if threads == 1:
                    found[FINISH][name].append(figures["finish"])
    for claim, figures_of in found.items():
        report(claim, figures_of, peer="Mailman", asked=asked)
    return 0


if __name__ == "__main__":
    sys.exit(main())
