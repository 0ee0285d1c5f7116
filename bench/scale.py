"""What one machine carries: a model whose costs are measured here, checked against what it was not fitted to.

``rig/fitting`` measures what a message costs at the door, at a hop, at a delivery, and what the disk takes to sync.
``rig/model`` simulates a site of these. Two figures that were not fitted, the rate of relaying and that of four slices,
are measured and predicted; they are what is printed, the measurement being the peer. What strangers took of the processor
meanwhile is taken off the cores of the model.

Options: `--quick`, `--runs N`, `--count N`, `--directory DIR`, `--json`, `--write` (the figures in `docs/SCALE.md`).
"""

from __future__ import annotations

import datetime
import statistics
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

from rig.about import machine
from rig.fitting import Spent, drained, measured, relayed
from rig.model import Costs, Load, Machine, carries, waits
from rig.plotting import plotted
from rig.rounds import Claim, options, report

RELAY = Claim("scale-relay", "the model: rate of relaying", "messages/s")
SLICES = Claim("scale-slices", "the model: drain with four slices", "messages/s")
MEASURED, MODEL = "measured", "model"
DOCS = Path(__file__).resolve().parent.parent / "docs"
BEGIN, END = "<!-- figures: written by `bench/scale.py --write` -->", "<!-- end of figures -->"
_LATE = 0.5
SHARES = (0.5, 0.8, 0.9, 0.95)
CORES = (2, 4, 8, 16)
LOADS = {
    "4 KB, one recipient, one hop": Load(),
    "the same, three hops": Load(hops=3),
    "the same, two doors and two `in`": Load(doors=2, hop_slices=2),
    "the same, four doors and four `in`": Load(doors=4, hop_slices=4),
    "64 KB": Load(kilobytes=64),
    "50 recipients": Load(recipients=50),
    "hosts answer after 100 ms": Load(host_s=0.1),
    "hosts answer after 2 s": Load(host_s=2.0),
}
Found = dict[Claim, dict[str, list[float]]]


def main() -> int:
    """Measure, check, print; and write."""
    asked = options(__doc__, runs=3, quick_runs=1, count=4_000, quick_count=600, writes=True)
    costs = measured(asked.directory, asked.count)
    found: Found = {RELAY: {MEASURED: [], MODEL: []}, SLICES: {MEASURED: [], MODEL: []}}
    for _ in range(asked.runs):
        check(asked, costs, found)
    for claim, figures in found.items():
        report(claim, figures, peer=MEASURED, asked=asked)
    text = page(costs, found, asked)
    if not asked.json:
        print(text)
    if asked.write:
        write(text, costs)
    return 0


def check(asked: Namespace, costs: Costs, found: Found) -> None:
    """Measures what was not fitted, and predicts it."""
    relay = relayed(asked.directory, asked.count)
    _note(found[RELAY], relay, Machine(costs, _here(relay, slices=1)).fed(10, asked.count).rate())
    # Four processes take a second or two to begin, and the last of them is to be there when it counts.
    count = max(2 * asked.count, 4_000)
    four = drained(asked.directory, count, slices=4, concurrency=5, skip=_LATE)
    load = _here(four, slices=4, concurrency=5)
    _note(found[SLICES], four, Machine(costs, load).drained(count).rate(_LATE))


def _here(spent: Spent, slices: int, concurrency: int = 20) -> Load:
    return Load(cores=spent.cores, slices=slices, concurrency=concurrency, is_here=True)


def _note(figures: dict[str, list[float]], spent: Spent, predicted: float) -> None:
    figures[MEASURED].append(spent.rate)
    figures[MODEL].append(predicted)


def page(costs: Costs, found: Found, asked: Namespace) -> str:
    """The figures, as Markdown."""
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    about = f"Measured {date} on {machine()}{', roughly' if asked.quick else ''}."
    parts = (_costs(costs), _checks(found), _loads(costs), _waits(costs), _directory(costs))
    return "\n\n".join((about, *parts))


def _costs(costs: Costs) -> str:
    rows = {
        "accept a message at the door": costs.accept,
        "a hop, unchanged": costs.hop,
        "deliver to one recipient": costs.deliver,
        "each further recipient": costs.recipient,
        "each KB of the message": costs.kilobyte,
        "each time that a slice wakes": costs.wake,
        "look at a name in a directory": costs.name,
        "the start of a process": costs.begin,
    }
    lines = [f"| {name} | {_micro(cost_s)} µs of a core |" for name, cost_s in rows.items()]
    lines.append(f"| a write of the journal | {costs.commit * 1e6:,.0f} µs |")
    lines.append(f"| each message in it | {costs.member * 1e6:,.0f} µs |")
    return "\n".join(["**What things cost**", "", "| | |", "|---|---|", *lines])


def _micro(cost_s: float) -> str:
    return f"{cost_s * 1e6:,.0f}" if cost_s > 1e-5 else f"{cost_s * 1e6:.1f}"


def _checks(found: Found) -> str:
    head = "| not fitted | measured | model | error |\n|---|---|---|---|"
    lines = [head]
    for claim, figures in found.items():
        error = statistics.median(m / r - 1 for m, r in zip(figures[MODEL], figures[MEASURED], strict=True))
        both = " | ".join(f"{statistics.median(figures[name]):,.0f}" for name in (MEASURED, MODEL))
        lines.append(f"| {claim.work.removeprefix('the model: ')} (messages/s) | {both} | {error:+.0%} |")
    return "\n".join(["**The check**", "", *lines])


def _loads(costs: Costs) -> str:
    names = " | ".join(f"{cores} cores" for cores in CORES)
    lines = [f"| messages/s | {names} |", "|---|" + "---|" * len(CORES)]
    for name, load in LOADS.items():
        cells = []
        for cores in CORES:
            here = replace(load, cores=float(cores), slices=cores)
            cells.append(f"{carries(costs, here):,.0f}, then {here.bottleneck(costs)[0]}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(["**What one machine carries, and what is full first**", "", *lines])


def _waits(costs: Costs) -> str:
    lines = ["| load | half within | 99 of 100 within |", "|---|---|---|"]
    for share, half_s, slow_s in waits(costs, Load(), SHARES):
        lines.append(f"| {share:.0%} of it | {half_s * 1e3:,.0f} ms | {slow_s * 1e3:,.0f} ms |")
    return "\n".join(["**How long a message takes, on two cores**", "", *lines])


def _directory(costs: Costs) -> str:
    counts = (10_000, 100_000, 1_000_000, 10_000_000)
    lines = ["| waiting in one queue | looked through in |", "|---|---|"]
    lines += [f"| {count:,} | {count * costs.name:,.1f} s |" for count in counts]
    return "\n".join(["**One directory, whole**", "", *lines])


def write(text: str, costs: Costs) -> None:
    """Keeps the figures, and draws how waiting grows."""
    document = DOCS / "SCALE.md"
    before, _, rest = document.read_text().partition(BEGIN)
    document.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.partition(END)[2]}")
    lines: dict[str, list[tuple[float, float]]] = {}
    for share, half_s, slow_s in waits(costs, Load(), (0.2, *SHARES)):
        lines.setdefault("half", []).append((share * 100, half_s * 1e3))
        lines.setdefault("99 of 100", []).append((share * 100, slow_s * 1e3))
    (DOCS / "scale.svg").write_text(plotted([("ms until delivered, by load in %", lines)]))


if __name__ == "__main__":
    sys.exit(main())
