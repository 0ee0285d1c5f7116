"""Ways of doing the same thing, measured in turns; their medians, and how they compare with the peer's."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

_WARM = 3
_ROUNDS = 15


@dataclass(frozen=True)
class Claim:
    """What a benchmark is to show.

    :param unit: of the figures. ``at_least``, ``at_most``: the ratio to the peer that is to be reached. ``below``: where
        the figure itself is to be below something. ``curve``, ``at``: of several claims, each with another load, the
        curve that they make and where on it this one is.
    """

    name: str
    work: str
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    below: float | None = None
    curve: str = ""
    at: float = 0.0

    def is_met(self, ratio: float) -> bool:
        """Whether the ratio is what was to be reached."""
        if self.at_least is not None:
            return ratio >= self.at_least
        return self.at_most is None or ratio <= self.at_most


def options(
    text: str | None,
    *,
    runs: int,
    quick_runs: int,
    count: int = 0,
    quick_count: int = 0,
    writes: bool = False,
) -> argparse.Namespace:
    """The command line that all benchmarks have.

    :param writes: it has a page of its own to keep.
    """
    parser = argparse.ArgumentParser(description=(text or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a rough figure, in seconds")
    parser.add_argument("--runs", type=int)
    parser.add_argument("--count", type=int)
    parser.add_argument("--directory", help="on the file system to measure; default: a temporary one")
    parser.add_argument("--json", action="store_true")
    if writes:
        parser.add_argument("--write", action="store_true", help="keep the figures in docs/")
    asked = parser.parse_args()
    asked.runs = asked.runs or (quick_runs if asked.quick else runs)
    asked.count = asked.count or (quick_count if asked.quick else count)
    return asked


def is_a_bound(way: Mapping[str, Any]) -> bool:
    """Whether it is no program, but what one could reach at most: nothing is to be reached by that."""
    return str(way["name"]).endswith(" alone")


def in_turns(
    ways: Mapping[str, Callable[[], object]], runs: int, *, warm: int = _WARM
) -> dict[str, list[float]]:
    """Milliseconds of each call of each way. The ways take turns, so that what else the machine does falls on all.

    :param warm: calls of each that are made before those that count.
    """
    took_ms: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(-warm, runs):
        for name, way in ways.items():
            began_s = time.perf_counter()
            way()
            if run >= 0:
                took_ms[name].append((time.perf_counter() - began_s) * 1e3)
    return took_ms


def report(
    claim: Claim, found: Mapping[str, Sequence[float]], *, peer: str, asked: argparse.Namespace
) -> int:
    """Prints the medians, and each way's ratio to the peer: the median of the ratios of its rounds. Always 0.

    With `--json`, one document on a line of its own.
    """
    ways = [_way(name, figures, found[peer]) for name, figures in found.items()]
    if asked.json:
        print(json.dumps({"claim": asdict(claim), "peer": peer, "count": asked.count, "ways": ways}))
        return 0
    width = max(map(len, found))
    print(f"{claim.work} ({claim.unit})")
    for way in ways:
        span = f"{way['from']:.1f}..{way['to']:.1f}"
        print(f"  {way['name']:{width}}  {way['median']:10.1f}   {span:>20}   {way['ratio']:6.2f} x")
    return 0


def _way(name: str, figures: Sequence[float], peer: Sequence[float]) -> dict[str, Any]:
    # Of many short calls the medians are compared; of a few long rounds, each with the peer's of the same minute.
    rounds = [ours / theirs for ours, theirs in zip(figures, peer, strict=True)]
    many = len(figures) > _ROUNDS
    ratio = statistics.median(figures) / statistics.median(peer) if many else statistics.median(rounds)
    tenths = statistics.quantiles(figures, n=10) if many else [min(figures), max(figures)]
    return {
        "name": name,
        "median": statistics.median(figures),
        "from": tenths[0],
        "to": tenths[-1],
        "ratio": ratio,
    }
