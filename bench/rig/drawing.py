"""The results as one picture: a bar for each way, as long as its ratio to the peer, and a mark where it is to be.

Points of a curve are left to ``plotting``.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from rig.rounds import is_a_bound

_LINE, _LEFT, _WIDE, _TOP = 26, 380, 420, 34


def drawing(found: Sequence[dict[str, Any]]) -> str:
    """An SVG document."""
    bars = [
        (document["claim"], way)
        for document in found
        for way in document["ways"]
        if way["name"] != document["peer"] and not document["claim"].get("curve")
    ]
    most = max([1.0, *(_goal(claim) or 0 for claim, _ in bars), *(way["ratio"] for _, way in bars)]) * 1.05
    height = _TOP + _LINE * len(bars) + 10
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDE + 80}" height="{height}" '
        'font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
        '<text x="10" y="18">qrunner beside its peer (1 = the same); a mark: what is to be reached</text>',
    ]
    for number, (claim, way) in enumerate(bars):
        lines += _bar(claim, way, _TOP + number * _LINE, _WIDE / most)
    x = _LEFT + _WIDE / most
    lines.append(f'<line x1="{x:.1f}" y1="{_TOP - 6}" x2="{x:.1f}" y2="{height - 6}" stroke="#888"/>')
    return "\n".join([*lines, "</svg>", ""])


def _goal(claim: dict[str, Any]) -> float | None:
    goal = claim["at_least"] if claim["at_least"] is not None else claim["at_most"]
    return None if goal is None else float(goal)


def _bar(claim: dict[str, Any], way: dict[str, Any], y: int, scale: float) -> list[str]:
    width, goal = way["ratio"] * scale, _goal(claim)
    named = f"{claim['work']}, {way['name']}" if way["name"] != "qrunner" else claim["work"]
    lines = [
        f'<text x="{_LEFT - 8}" y="{y + 14}" text-anchor="end">{escape(named)}</text>',
        f'<rect x="{_LEFT}" y="{y + 2}" width="{width:.1f}" height="16" fill="#4a7db5"/>',
        f'<text x="{_LEFT + width + 6:.1f}" y="{y + 14}">{way["ratio"]:.2f} ×</text>',
    ]
    if goal is not None and not is_a_bound(way):
        x = _LEFT + goal * scale
        lines.append(
            f'<line x1="{x:.1f}" y1="{y}" x2="{x:.1f}" y2="{y + 20}" stroke="#c33" stroke-width="3"/>'
        )
    return lines
