"""A table of the file, read by a table of keys: what is unknown, missing or wrong is noted, and the reading goes on."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qrunner.config.lines import Lines
from qrunner.config.lines import Path as KeyPath
from qrunner.config.problems import Problem

# Given a raw value and where it stands, the converted one, or Wrong. A reader of many values notes what is wrong
# with some of them, and returns the others.
Read = Callable[[Any, "Spot"], Any]


class Wrong(ValueError):
    """A value that can't be used; the text says what is wrong and what was expected."""


_BARE = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(slots=True)
class Reading:
    """One file being read: what is wrong so far, and which queues and hosts were named where."""

    file: Path
    folder: Path
    lines: Lines
    problems: list[Problem] = field(default_factory=list)
    queues: list[tuple[Spot, str]] = field(default_factory=list)
    hosts: list[tuple[Spot, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Spot:
    """A place in the file, by its keys."""

    reading: Reading
    path: KeyPath = ()

    def at(self, *more: str | int) -> Spot:
        return Spot(self.reading, (*self.path, *more))

    def wrong(self, text: str) -> None:
        """Notes a problem here; ``text`` says what is wrong and what was expected."""
        reading = self.reading
        reading.problems.append(Problem(reading.file, reading.lines.line(self.path), self.key, text))

    @property
    def key(self) -> str:
        """As a person would write it: ``runner.out.slices[1].weight``."""
        parts = (f"[{part}]" if isinstance(part, int) else f".{_name(part)}" for part in self.path)
        return "".join(parts).removeprefix(".")


def _name(part: str) -> str:
    return part if _BARE.fullmatch(part) else json.dumps(part)


@dataclass(frozen=True, slots=True)
class Key:
    """How a key is read. ``field``: the name of its value, if that is not the key's."""

    read: Read
    default: Any = None
    field: str = ""
    required: str = ""  # what is expected, if the key may not be missing


Keys = Mapping[str, Key]


def read_table(data: Any, spot: Spot, keys: Keys) -> dict[str, Any]:
    """The values of a table, by field, with the defaults of what it leaves out or has wrong."""
    given = read_given(data, spot, keys)
    for name, key in keys.items():
        if key.required and isinstance(data, dict) and name not in data:
            spot.at(name).wrong(f"is missing, expected {key.required}")
    return {key.field or name: key.default for name, key in keys.items()} | given


def read_given(data: Any, spot: Spot, keys: Keys) -> dict[str, Any]:
    """Only the values that stand in the table, and are right."""
    if not isinstance(data, dict):
        spot.wrong(
            f"{shown(data)} is not a table, expected one with keys such as {', '.join(list(keys)[:3])}"
        )
        return {}
    for name in data:
        if name not in keys:
            spot.at(name).wrong(f"unknown key, {nearest(name, keys)}")
    pairs = ((keys[name], name, value) for name, value in data.items() if name in keys)
    values = ((key.field or name, attempt(key.read, value, spot.at(name))) for key, name, value in pairs)
    return {name: value for name, value in values if value is not None}


def attempt(read: Read, value: Any, spot: Spot) -> Any:
    """The value, or None if it is wrong, which is noted then."""
    try:
        return read(value, spot)
    except Wrong as wrong:
        spot.wrong(str(wrong))
        return None


def tables(data: Any, spot: Spot) -> dict[str, Any]:
    """The named tables of a section: ``[runner.in]``, ``[runner.out]`` …"""
    if isinstance(data, dict):
        return data
    spot.wrong(f"{shown(data)} is not a table, expected sections such as [{spot.key}.NAME]")
    return {}


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name most like this one, put as advice."""
    names = sorted(known)
    if not names:
        return "expected none"
    best = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.0)[0]
    if difflib.SequenceMatcher(None, name.lower(), best).ratio() >= 0.6:
        return f'did you mean "{best}"?'
    return f'expected one of: {", ".join(names)}; the nearest is "{best}"'


def shown(value: Any) -> str:
    """A raw value as it may stand in a message: short, on one line, spelled as in TOML."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, int) and abs(value) > 2**64:
        return "so large a number"  # which Python may refuse to spell out
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, (str, bool)) else str(value)
    return text if len(text) <= 80 else text[:76] + ' …"'
