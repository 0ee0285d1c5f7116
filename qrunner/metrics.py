"""What one runner process counts, and the small file in which it tells the others.

The file is the runner's heartbeat: `status` and the master read from it that the runner lives and what it has done.

Guarantees: a reader sees a whole state, the old or the new one; a file that is none is read as no state at all.

Not guaranteed: that a state outlives the power. It describes a process that does not either.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_BUCKET_NS = 5_000_000_000
_BUCKETS = 12  # together one minute


class Rate:
    """How many events the last minute had, in twelve counters of five seconds each.

    :param now_ns: monotonic time in nanoseconds.
    """

    def __init__(self, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._now_ns = now_ns
        self._counts = [0] * _BUCKETS
        self._turn = now_ns() // _BUCKET_NS

    def add(self, count: int = 1) -> None:
        """So many events happened just now."""
        self._advance()
        self._counts[self._turn % _BUCKETS] += count

    def last_minute(self) -> int:
        """Events of the last 55 to 60 seconds."""
        self._advance()
        return sum(self._counts)

    def _advance(self) -> None:
        turn = self._now_ns() // _BUCKET_NS
        for passed in range(max(self._turn + 1, turn - _BUCKETS + 1), turn + 1):
            self._counts[passed % _BUCKETS] = 0
        self._turn = max(self._turn, turn)


class Counters:
    """Entries that one runner process has met their fate, and those of them whose fate was a failure."""

    def __init__(self, now_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self.processed = 0
        self.failed = 0
        self._rate = Rate(now_ns)

    def count(self, *, failed: bool = False) -> None:
        """One more entry is done with, for good or for now."""
        self.processed += 1
        self.failed += failed
        self._rate.add()

    def as_state(self) -> dict[str, int]:
        """The fields of `status --json` of the same names."""
        return {"processed": self.processed, "failed": self.failed, "rate_1m": self._rate.last_minute()}


@functools.cache
def boot_id() -> str:
    """Which boot of this machine it is; times of the monotonic clock compare within one only."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()
    except OSError:
        return ""


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Replace the state in `path`, stamped with the time and this process's id.

    Raises OSError when there is no room; the state of before then stays, and nothing beside it.
    """
    stamp = {"pid": os.getpid(), "beat_ns": time.monotonic_ns(), "boot": boot_id()}
    data = json.dumps({**state, **stamp}, separators=(",", ":")).encode() + b"\n"
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        _write(scratch, data)
        os.replace(scratch, path)
    except OSError:
        with contextlib.suppress(OSError):
            scratch.unlink()
        raise


def _write(path: Path, data: bytes) -> None:
    with open(
        os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600), "wb"
    ) as file:
        file.write(data)


def read_state(path: Path) -> dict[str, Any] | None:
    """The state in `path`; None where there is none, or something else stands there."""
    try:
        state = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) else None


def age_s(state: Mapping[str, Any]) -> float | None:
    """Seconds since the state was written, whatever was done to the clock; None if it is from before a reboot."""
    beat_ns = state.get("beat_ns")
    if state.get("boot") != boot_id() or not isinstance(beat_ns, int):
        return None
    return max(0.0, (time.monotonic_ns() - beat_ns) / 1e9)
