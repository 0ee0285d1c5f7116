"""What lies in a spool's directory, read by an eye of its own: which message is where, a committed hop taken as done."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from qrunner.format import Name, open_file, parse_history, parse_name
from qrunner.message import Entry

HOUR_NS = 3600 * 10**9


@dataclass(frozen=True, slots=True)
class Place:
    """Where a message is, and whether it has to wait there. ``tag`` is its subject."""

    area: str
    queue: str
    tag: str
    later: bool = False


@dataclass(slots=True)
class Sight:
    """All there is under a spool's directory."""

    places: Counter[Place] = field(default_factory=Counter)
    entries: list[Entry] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    claimed: list[str] = field(default_factory=list)
    hops: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _File:
    entry: Entry
    place: Place
    name: Name


def look(root: Path, directories: Iterable[str] | None = None) -> Sight:
    """Reads what lies in these directories (in all, without a word); AssertionError: an entry is in two places, or a
    file is none of ours."""
    sight, files, intents = Sight(), dict[str, _File](), list[str]()
    for directory in every_directory(root) if directories is None else directories:
        for one in os.scandir(directory):
            name, path = one.name, one.path
            if one.is_dir():
                continue
            if name.startswith(".new."):
                sight.hidden.append(path)
            elif directory.endswith("/.hops"):
                sight.hops.append(path)
                if name.endswith(".intent"):
                    intents.append(path)
            else:
                files[path] = _read(root, path)
                sight.files.append(path)
                if files[path].name.claimant is not None:
                    sight.claimed.append(path)
    for intent in intents:
        _roll(root, intent, files)
    ids = Counter(file.entry.id for file in files.values())
    assert not [id for id, count in ids.items() if count > 1], f"in two places: {files}"
    sight.places = Counter(file.place for file in files.values())
    sight.entries = [file.entry for file in files.values()]
    return sight


def every_directory(root: Path) -> list[str]:
    """All in which an entry, or a part of a hop, may lie."""
    return [directory for directory, _, _ in os.walk(root) if "/.lease" not in directory]


def _read(root: Path, path: str) -> _File:
    area, queue = _where(root, path)
    name = parse_name(os.path.basename(path))
    assert name is not None, f"a file that no transition makes: {path}"
    opened = open_file(queue, name, Path(path).read_bytes())
    hop = opened.hop
    if hop is not None and (hop["claim"], hop["from"]) == (os.path.basename(path), queue):
        return _File(opened.entry, _place(hop["area"], hop["to"], opened.entry, hop["due"]), name)
    return _File(opened.entry, _place(area, queue, opened.entry, name.due_ns), name)


def _where(root: Path, path: str) -> tuple[str, str]:
    first, second, *_ = os.path.relpath(path, root).split("/")
    return (first, second) if first in ("hold", "shunt", "bad") else ("queue", first)


def _place(area: str, queue: str, entry: Entry, due_ns: int) -> Place:
    return Place(area, queue, entry.header("Subject") or "", due_ns > time.time_ns() + HOUR_NS)


def _roll(root: Path, intent: str, files: dict[str, _File]) -> None:
    """Takes a committed intent as done, in ``files``."""
    head, *steps = parse_history(Path(intent).read_bytes())
    assert head["steps"] == len(steps), f"an intent that is not whole: {intent}"
    for step in steps:
        if "parent" in step:
            file = files.pop(f"{root}/{step['parent']}", None)
            if file is not None and "queue" in step:
                place = _place(step["area"], step["queue"], file.entry, step["due"])
                files[f"to be {file.entry.id}"] = _File(file.entry, place, file.name)
    for step in steps:
        if "child" in step:
            path = os.path.join(os.path.dirname(intent), step["child"])
            if os.path.exists(path):
                name = Name(step["due"], step["id"])
                entry = open_file(step["queue"], name, Path(path).read_bytes()).entry
                files[path] = _File(entry, _place(step["area"], step["queue"], entry, step["due"]), name)
