"""Curves as one picture: a small plot for each, both axes by factors, a line for each way of doing it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

Line = Sequence[tuple[float, float]]

_WIDE, _HIGH, _LEFT, _TOP, _GAP = 230, 190, 64, 52, 92
# Labels that are nearer to each other could not be read.
_APART = 28.0
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


@dataclass(frozen=True)
class _Frame:
    """Where in the picture a plot is, and what of the world it shows."""

    left: int
    xs: Sequence[float]
    low: float
    high: float

    @classmethod
    def around(cls, left: int, points: Sequence[tuple[float, float]]) -> _Frame:
        ys = [y for _, y in points]
        low, high = (10 ** whole(math.log10(y)) for whole, y in ((math.floor, min(ys)), (math.ceil, max(ys))))
        return cls(left, sorted({x for x, _ in points}), low, high if high > low else low * 10)

    def x(self, value: float) -> float:
        return self.left + _WIDE * _share(value, self.xs[0], self.xs[-1])

    def y(self, value: float) -> float:
        return _TOP + _HIGH * (1 - _share(value, self.low, self.high))


def _plot(left: int, title: str, lines: Mapping[str, Line]) -> list[str]:
    frame = _Frame.around(left, [point for line in lines.values() for point in line])
    text = [f'<text x="{left}" y="18" font-weight="bold">{escape(title)}</text>', *_axes(frame)]
    for number, (name, line) in enumerate(lines.items()):
        text += _line(frame, sorted(line), _COLOURS[number % len(_COLOURS)])
        place = f'x="{left + number * 110}" y="38" fill="{_COLOURS[number % len(_COLOURS)]}"'
        text.append(f"<text {place}>{escape(name)}</text>")
    return text


def _axes(frame: _Frame) -> list[str]:
    left, below = frame.left, _TOP + _HIGH + 16
    text = [f'<rect x="{left}" y="{_TOP}" width="{_WIDE}" height="{_HIGH}" fill="none" stroke="#bbb"/>']
    labelled = -_APART
    for x in frame.xs:
        if frame.x(x) - labelled >= _APART:
            labelled = frame.x(x)
            text.append(f'<text x="{labelled:.0f}" y="{below}" text-anchor="middle">{_short(x)}</text>')
    step = frame.low
    while step <= frame.high:
        y = frame.y(step)
        text.append(f'<line x1="{left}" y1="{y:.0f}" x2="{left + _WIDE}" y2="{y:.0f}" stroke="#eee"/>')
        text.append(f'<text x="{left - 6}" y="{y + 4:.0f}" text-anchor="end">{_short(step)}</text>')
        step *= 10
    return text


def _line(frame: _Frame, line: Line, colour: str) -> list[str]:
    path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in line)
    dots = [f'<circle cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3" fill="{colour}"/>' for x, y in line]
    return [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>', *dots]


def _share(value: float, low: float, high: float) -> float:
    return math.log(value / low) / math.log(high / low) if high > low else 0.5


def _short(value: float) -> str:
    for size, letter in ((1 << 20, "M"), (1 << 10, "K")):
        if value >= size and value % size == 0:
            return f"{value / size:g} {letter}"
    return f"{value:,g}" if value >= 0.01 else f"{value:.0e}"
