"""Ways of doing the same thing, measured in turns; their medians, and how they compare with the peer's."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Claim:
    """What a benchmark is to show.

    :param unit: of the figures. ``at_least``, ``at_most``: the ratio to the peer that is to be reached.
    """

    name: str
    work: str
    unit: str
    at_least: float | None = None
    at_most: float | None = None

    def is_met(self, ratio: float) -> bool:
        """Whether the ratio is what was to be reached."""
        if self.at_least is not None:
            return ratio >= self.at_least
        return self.at_most is None or ratio <= self.at_most


def options(
    text: str | None, *, runs: int, quick_runs: int, count: int = 0, quick_count: int = 0
) -> argparse.Namespace:
    """The command line that all benchmarks have."""
    parser = argparse.ArgumentParser(description=(text or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a rough figure, in seconds")
    parser.add_argument("--runs", type=int)
    parser.add_argument("--count", type=int)
    parser.add_argument("--directory", help="on the file system to measure; default: a temporary one")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    asked.runs = asked.runs or (quick_runs if asked.quick else runs)
    asked.count = asked.count or (quick_count if asked.quick else count)
    return asked


def report(
    claim: Claim, found: Mapping[str, Sequence[float]], *, peer: str, asked: argparse.Namespace
) -> int:
    """Prints the medians, and each way's ratio to the peer: the median of the ratios of its rounds. Always 0.

    With `--json`, one document on a line of its own.
    """
    ways = [_way(name, figures, found[peer]) for name, figures in found.items()]
    if asked.json:
        print(
            json.dumps({"claim": asdict(claim), "peer": peer, "count": asked.count, "ways": ways}, indent=2)
        )
        return 0
    width = max(map(len, found))
    print(f"{claim.work} ({claim.unit})")
    for way in ways:
        low, high = min(way["figures"]), max(way["figures"])  # type: ignore[type-var]
        print(
            f"  {way['name']:{width}}  {way['median']:12.1f}   {low:.1f}..{high:.1f}   {way['ratio']:6.2f} x"
        )
    return 0


def _way(name: str, figures: Sequence[float], peer: Sequence[float]) -> dict[str, object]:
    rounds = [ours / theirs for ours, theirs in zip(figures, peer, strict=True)]
    return {
        "name": name,
        "median": statistics.median(figures),
        "figures": list(figures),
        "ratio": statistics.median(rounds),
    }
