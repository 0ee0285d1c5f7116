"""Curves as one picture: a small plot for each, both axes by factors, a line for each way of doing it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

Line = Sequence[tuple[float, float]]

_WIDE, _HIGH, _LEFT, _TOP, _GAP = 230, 190, 64, 52, 92
_COLOURS = ("#888888", "#4a7db5", "#c0702a", "#3a8a4a")


def curves(found: Sequence[Mapping[str, Any]]) -> str:
    """An SVG document of the claims that are points of a curve."""
    plots: dict[str, dict[str, list[tuple[float, float]]]] = {}
    units: dict[str, str] = {}
    for document in found:
        claim = document["claim"]
        if not claim.get("curve"):
            continue
        name = claim["curve"]
        units[name] = claim["unit"]
        for way in document["ways"]:
            plots.setdefault(name, {}).setdefault(way["name"], []).append((claim["at"], way["median"]))
    titles = {name: f"{unit} by {name}" for name, unit in units.items()}
    return plotted([(titles[name], lines) for name, lines in plots.items()])


def plotted(plots: Sequence[tuple[str, Mapping[str, Line]]]) -> str:
    """An SVG document; each plot has a title and named lines of points that are greater than 0."""
    width, height = _LEFT + len(plots) * (_WIDE + _GAP), _TOP + _HIGH + 60
    text = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for number, (title, lines) in enumerate(plots):
        text += _plot(_LEFT + number * (_WIDE + _GAP), title, lines)
    return "\n".join([*text, "</svg>", ""])


def _plot(left: int, title: str, lines: Mapping[str, Line]) -> list[str]:
    points = [point for line in lines.values() for point in line]
    xs, ys = sorted({x for x, _ in points}), [y for _, y in points]
    low, high = 10 ** math.floor(math.log10(min(ys))), 10 ** math.ceil(math.log10(max(ys) * 1.001))

    def x_at(x: float) -> float:
        return left + _WIDE * _share(x, xs[0], xs[-1])

    def y_at(y: float) -> float:
        return _TOP + _HIGH * (1 - _share(y, low, high))

    text = [f'<text x="{left}" y="18" font-weight="bold">{escape(title)}</text>']
    text.append(f'<rect x="{left}" y="{_TOP}" width="{_WIDE}" height="{_HIGH}" fill="none" stroke="#bbb"/>')
    text += [
        f'<text x="{x_at(x):.0f}" y="{_TOP + _HIGH + 16}" text-anchor="middle">{_short(x)}</text>' for x in xs
    ]
    step = low
    while step <= high:
        y = y_at(step)
        text.append(f'<line x1="{left}" y1="{y:.0f}" x2="{left + _WIDE}" y2="{y:.0f}" stroke="#eee"/>')
        text.append(f'<text x="{left - 6}" y="{y + 4:.0f}" text-anchor="end">{_short(step)}</text>')
        step *= 10
    for number, (name, line) in enumerate(lines.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        path = " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in sorted(line))
        text.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        text += [f'<circle cx="{x_at(x):.1f}" cy="{y_at(y):.1f}" r="3" fill="{colour}"/>' for x, y in line]
        text.append(f'<text x="{left + number * 110}" y="38" fill="{colour}">{escape(name)}</text>')
    return text


def _share(value: float, low: float, high: float) -> float:
    return math.log(value / low) / math.log(high / low) if high > low else 0.5


def _short(value: float) -> str:
    for size, letter in ((1 << 20, "M"), (1 << 10, "K")):
        if value >= size and value % size == 0:
            return f"{value / size:g} {letter}"
    return f"{value:,g}" if value >= 0.01 else f"{value:.0e}"
