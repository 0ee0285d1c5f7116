"""Ways of doing the same thing, measured in turns, so that what else the machine does falls on all of them.

A way is a callable; one call is one measurement. Figures are medians: a mean would tell of the few calls that met
somebody else's fsync.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

Way = Callable[[], object]
WARM = 3


def measure(ways: Mapping[str, Way], runs: int) -> dict[str, dict[str, float]]:
    """Seconds a call of each way: median, tenth and ninetieth percentile."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(-WARM, runs):
        for name, way in ways.items():
            begin = time.perf_counter()
            way()
            if run >= 0:
                times[name].append(time.perf_counter() - begin)
    return {name: _summary(taken) for name, taken in times.items()}


def _summary(taken: list[float]) -> dict[str, float]:
    tenths = statistics.quantiles(taken, n=10)
    return {"median_s": statistics.median(taken), "p10_s": tenths[0], "p90_s": tenths[-1]}


def ratios(found: Mapping[str, Mapping[str, float]], peer: str) -> dict[str, float]:
    """Each way's median beside the peer's."""
    return {name: figures["median_s"] / found[peer]["median_s"] for name, figures in found.items()}


def table(found: Mapping[str, Mapping[str, float]], peer: str) -> str:
    """What a person reads."""
    width = max(map(len, found))
    lines = [f"{'':{width}}  median ms   10%..90%        ratio"]
    for name, beside in ratios(found, peer).items():
        median, low, high = (found[name][key] * 1e3 for key in ("median_s", "p10_s", "p90_s"))
        lines.append(f"{name:{width}}  {median:9.2f}   {low:5.2f}..{high:<5.2f}   {beside:8.2f}")
    return "\n".join(lines)


def document(found: Mapping[str, Mapping[str, float]], peer: str) -> dict[str, Any]:
    """What a program reads (`--json`)."""
    beside = ratios(found, peer)
    return {"peer": peer, "ways": [{"name": name, **found[name], "ratio": beside[name]} for name in found]}
