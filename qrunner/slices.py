"""Slices: weights made into ranges of the digest space.

An entry's id is a sha1, so a range of digests is a fair share of the entries.

Guarantees: ``cut`` covers the space once, without gap or overlap, for any number of weights of any sum; a range's
share is its weight's to within one digest of 2**160. Bounds are integers and half-open: a digest at a boundary
has one owner.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

DIGITS = 40
SPACE = 16**DIGITS


@dataclass(frozen=True, slots=True, order=True)
class Range:
    """The digests from ``lo`` up to, but not including, ``hi``. It may be empty."""

    lo: int
    hi: int

    def __post_init__(self) -> None:
        if not 0 <= self.lo <= self.hi <= SPACE:
            raise ValueError(f"no range of the digest space: {self.lo:#x} to {self.hi:#x}")

    def __contains__(self, digest: int) -> bool:
        return self.lo <= digest < self.hi

    def owns(self, id: str) -> bool:
        """Whether the entry of this id (40 hexadecimal digits) is in the range."""
        return int(id, 16) in self

    def overlaps(self, other: Range) -> bool:
        """Whether some digest is in both."""
        return max(self.lo, other.lo) < min(self.hi, other.hi)

    def __str__(self) -> str:
        """First and last digest of the range, both included, as a person compares them with ids."""
        return "empty" if self.lo == self.hi else f"{self.lo:0{DIGITS}x}-{self.hi - 1:0{DIGITS}x}"


WHOLE = Range(0, SPACE)


def cut(weights: Sequence[int]) -> tuple[Range, ...]:
    """One range a weight, in their order. ValueError without weights, or with one that is not positive."""
    if not weights or min(weights) < 1:
        raise ValueError(f"weights are positive integers, one at least: {list(weights)}")
    total = sum(weights)
    bounds = [SPACE * upto // total for upto in accumulate(weights, initial=0)]
    return tuple(map(Range, bounds, bounds[1:]))


def owner(ranges: Sequence[Range], id: str) -> int | None:
    """The index of the range that owns the id; None if none does. The ranges are in order, as from ``cut``."""
    digest = int(id, 16)
    index = bisect_right(ranges, digest, key=lambda one: one.lo) - 1
    return index if index >= 0 and digest in ranges[index] else None


def prefixes(part: Range, digits: int = 2) -> tuple[str, ...]:
    """The first hexadecimal digits that ids of this range can have: the sub-directories that it touches."""
    if part.lo == part.hi:
        return ()
    size: int = 16 ** (DIGITS - digits)
    return tuple(f"{number:0{digits}x}" for number in range(part.lo // size, (part.hi - 1) // size + 1))
