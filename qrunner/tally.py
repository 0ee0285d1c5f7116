"""How often somebody was told of something: at most once an hour, and the rest is counted.

::

    var/report/XX.json     what was last told of the keys whose sha1 begins with XX, and how often it was left out
    var/report/XX.lock     held for a read and a rename

Guarantees: all processes of the machine count together. Who asks again in the name of the same message is answered as
before, so that nothing is lost when a process dies between the answer and what it did with it.

Not guaranteed: that counts survive a power loss, or are kept for longer than a week.

Failures: what can't be written, on a full disk or beneath a lock that its holder does not give back, is kept in memory
by each process for as long.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

PAUSE_NS = 3_600 * 10**9
_KEPT_NS = 7 * 24 * PAUSE_NS
_MEMORY_KEPT = 10_000
_PATIENCE_S = 1.0
_POLL_S = 0.001


@dataclass(frozen=True, slots=True)
class Told:
    """What is known of one key: when it was last told, for which message, how many were left out since, and how many
    before, which was part of the telling."""

    at_ns: int
    id: str
    left_out: int = 0
    before: int = 0

    @classmethod
    def of_json(cls, value: object) -> Told | None:
        """From a file; None: it is none."""
        if not (isinstance(value, list) and len(value) == 4 and isinstance(value[1], str)):
            return None
        at_ns, id, left_out, before = value
        numbers = (at_ns, left_out, before)
        return cls(at_ns, id, left_out, before) if all(isinstance(n, int) for n in numbers) else None

    def as_json(self) -> list[Any]:
        """For a file."""
        return [self.at_ns, self.id, self.left_out, self.before]

    def is_kept(self, now_ns: int) -> bool:
        """Whether it may still matter."""
        return abs(now_ns - self.at_ns) < (_KEPT_NS if self.left_out else PAUSE_NS)


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether it may be told now. ``left_out``: how many were not, since the last that was."""

    may: bool
    left_out: int


def asked(told: Told | None, id: str, now_ns: int) -> tuple[Told, Answer]:
    """The answer, and what is known from then on. A clock that was set back makes nobody wait for longer."""
    if told is None:
        return Told(now_ns, id), Answer(True, 0)
    if abs(now_ns - told.at_ns) >= PAUSE_NS:
        return Told(now_ns, id, 0, told.left_out), Answer(True, told.left_out)
    if told.id == id:
        return told, Answer(True, told.before)
    more = Told(told.at_ns, told.id, told.left_out + 1, told.before)
    return more, Answer(False, more.left_out)


class Tally(Protocol):
    """Who was told of what."""

    def ask(self, keys: Iterable[str], id: str, now_ns: int) -> Mapping[str, Answer]:
        """Whether it may be told now, for each of the keys, in the name of the message of this id."""
        ...


class MemoryTally:
    """The tally of a single process."""

    def __init__(self) -> None:
        self._told: dict[str, Told] = {}

    def ask(self, keys: Iterable[str], id: str, now_ns: int) -> Mapping[str, Answer]:
        if len(self._told) > _MEMORY_KEPT:
            self._told = {key: one for key, one in self._told.items() if one.is_kept(now_ns)}
        return _ask(self._told, keys, id, now_ns)


class FileTally:
    """The tally in a folder, which is made when it is needed; the folder above must be there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._unwritten = MemoryTally()

    def ask(self, keys: Iterable[str], id: str, now_ns: int) -> Mapping[str, Answer]:
        answers: dict[str, Answer] = {}
        for shard, those in _shards(keys).items():
            try:
                answers |= self._in_shard(shard, those, id, now_ns)
            except (OSError, Timeout):
                answers |= self._unwritten.ask(those, id, now_ns)
        return answers

    def _in_shard(self, shard: str, keys: Sequence[str], id: str, now_ns: int) -> Mapping[str, Answer]:
        if not self._folder.is_dir():
            self._folder.mkdir(mode=0o700, exist_ok=True)
        lock = FileLock(
            self._folder / f"{shard}.lock", mode=0o600, thread_local=False, fallback_to_soft=False
        )
        with lock.acquire(timeout=_PATIENCE_S, poll_interval=_POLL_S):
            path = self._folder / f"{shard}.json"
            told = _read(path)
            answers = _ask(told, keys, id, now_ns)
            self._write(path, {key: one for key, one in told.items() if one.is_kept(now_ns)})
        return answers

    def _write(self, path: Path, told: Mapping[str, Told]) -> None:
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            json.dump({key: one.as_json() for key, one in told.items()}, file, separators=(",", ":"))
        temporary.replace(path)

    def left_out(self) -> Iterator[tuple[str, int]]:
        """The keys of which something was left out since they were last told, and how often. Changes nothing."""
        for path in sorted(self._folder.glob("??.json")):
            with contextlib.suppress(OSError):
                yield from ((key, one.left_out) for key, one in _read(path).items() if one.left_out)


def _ask(told: dict[str, Told], keys: Iterable[str], id: str, now_ns: int) -> Mapping[str, Answer]:
    answers: dict[str, Answer] = {}
    for key in dict.fromkeys(keys):
        told[key], answers[key] = asked(told.get(key), id, now_ns)
    return answers


def _shards(keys: Iterable[str]) -> Mapping[str, list[str]]:
    shards: dict[str, list[str]] = {}
    for key in keys:
        digest = sha1(key.encode("utf-8", "surrogateescape"), usedforsecurity=False).hexdigest()
        shards.setdefault(digest[:2], []).append(key)
    return shards


def _read(path: Path) -> dict[str, Told]:
    """What the file says; a torn or foreign one says nothing."""
    try:
        value = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    pairs = value.items() if isinstance(value, dict) else ()
    return {key: told for key, one in pairs if (told := Told.of_json(one)) is not None}
