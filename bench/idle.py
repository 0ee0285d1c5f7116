"""Twelve idle runners: what processor time they take, and how much memory each has.

The peers are half of a hundredth of a core, and Mailman's runner of about 80 MB (its own figure, not measured here).

Options: `--quick`, `--runs N`, `--count N` (seconds a run), `--directory DIR`, `--json`.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from rig.crowds import cpu_s, pss_mb
from rig.rounds import Claim, options, report
from rig.sites import Place

CPU = Claim("idle-cpu", "twelve idle runners and their master: processor time", "% of a core", at_most=1.0)
MEMORY = Claim("idle-memory", "an idle runner: memory (PSS)", "MB", at_most=35 / 80)
SITE = '[smtp.host]\nhost = "127.0.0.1"\nport = 9\n' + "".join(
    f'[runner.out-{letter}]\nclass = "outgoing"\nsmtp = "host"\n' for letter in "abcdefghijkl"
)


def main() -> int:
    """Measure and print."""
    asked = options(__doc__, runs=3, quick_runs=1, count=60, quick_count=5)
    found: dict[Claim, dict[str, list[float]]] = {
        CPU: {"half a percent": [], "qrunner": []},
        MEMORY: {"Mailman": [], "qrunner": []},
    }
    with tempfile.TemporaryDirectory(dir=asked.directory) as folder:
        place = Place(Path(folder))
        place.configure(SITE)
        with place.started():
            state = json.loads(place.ctl("status", "--json"))
            runners = [one["pid"] for one in state["runners"]]
            time.sleep(3)
            for _ in range(asked.runs):
                before_s, began_s = cpu_s([*runners, state["master"]["pid"]]), time.monotonic()
                time.sleep(asked.count)
                used_s = cpu_s([*runners, state["master"]["pid"]]) - before_s
                found[CPU]["half a percent"].append(0.5)
                found[CPU]["qrunner"].append(max(100 * used_s / (time.monotonic() - began_s), 1e-6))
                found[MEMORY]["Mailman"].append(80.0)
                found[MEMORY]["qrunner"].append(statistics.mean(map(pss_mb, runners)))
    report(CPU, found[CPU], peer="half a percent", asked=asked)
    report(MEMORY, found[MEMORY], peer="Mailman", asked=asked)
    return 0


if __name__ == "__main__":
    sys.exit(main())
