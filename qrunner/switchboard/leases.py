"""Leases of ranges, beside the mail they guard: ``qfiles/.lease/QUEUE/``.

A lease is two files: ``<nonce>.lock``, locked for life by the process that owns the range, and
``<nonce>.json``, which says who that is. Taking one holds the queue's ``registry.lock`` for a moment.

Guarantees: two live leases of one queue never overlap, whatever configuration, state directory or machine their
owners were started from; a lease ends with its process.

Not guaranteed: more than the file system's locks keep. On a network file system that is what its server says.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from filelock import BaseFileLock, FileLock

from qrunner.errors import CorruptEntry, LeaseHeld
from qrunner.slices import Range
from qrunner.switchboard import Holder
from qrunner.switchboard.disk import HIDDEN, write_all
from qrunner.switchboard.reading import read_path

_REGISTRY_S = 30.0
_LONGEST = 1 << 16
HAND = ".hand"
LOOKING = ".looking"
_NONCE = re.compile(r"[0-9a-z]{1,64}")


@dataclass(slots=True)
class HeldLease:
    """A lease of ours; the lock is kept referenced, since a lost reference would free it."""

    directory: Path
    holder: Holder
    lock: BaseFileLock

    def stopping(self) -> None:
        """A death from here on is nobody's fault."""
        mark_explained(self.directory, self.holder.nonce)

    def release(self) -> None:
        """Gives the range up; what is still claimed under our nonce is recovered unblamed."""
        self.stopping()
        self.lock.release()


def take(directory: Path, holder: Holder) -> HeldLease:
    """Registers ``holder`` for its range.

    :raises LeaseHeld: a live lease overlaps.
    """
    assert holder.range is not None
    with registry(directory):
        for other in read_all(directory):
            if not is_live(directory, other.nonce):
                forget(directory, other.nonce)
            elif other.range is not None and other.range.overlaps(holder.range):
                raise LeaseHeld(f"the range {holder.range} is taken: {other} owns {other.range}")
        _tidy(directory)
        mine = lock(directory / f"{holder.nonce}.lock", 0)
        mine.acquire()
        try:
            _write(directory, holder)
        except OSError:
            mine.release()
            forget(directory, holder.nonce)
            raise
    return HeldLease(directory, holder, mine)


def registry(directory: Path) -> BaseFileLock:
    """The lock under which leases are taken and committed hops of the dead rolled forward; for a moment only."""
    return lock(directory / "registry.lock", _REGISTRY_S)


def live_holders(directory: Path) -> list[Holder]:
    """Who owns ranges of this queue now."""
    return [holder for holder in read_all(directory) if is_live(directory, holder.nonce)]


def read_all(directory: Path) -> list[Holder]:
    """Every lease file, live or left over; what can't be read is no lease."""
    found = []
    for name in sorted(os.listdir(directory)):
        if name.endswith(".json"):
            with contextlib.suppress(
                OSError, ValueError, LookupError, TypeError, CorruptEntry, RecursionError
            ):
                found.append(_parse(json.loads(read_path(str(directory / name), _LONGEST))))
    return found


def is_live(directory: Path, nonce: str) -> bool:
    """Whether the process that took this lease still holds it. Asking changes nothing, and two may ask at once."""
    try:
        fd = os.open(directory / f"{nonce}.lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        # Shared, so that whoever only asks is never taken for the owner; the owner's own lock is exclusive.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def mark_explained(directory: Path, nonce: str) -> None:
    """Whoever holds this lease may now die without blame for what it has in hand."""
    with contextlib.suppress(OSError):
        os.close(os.open(directory / f"{nonce}.explained", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))


def is_explained(directory: Path, nonce: str) -> bool:
    """Whether its death was announced, or it was an operator's hand: that has killed nobody."""
    return any((directory / f"{nonce}{suffix}").exists() for suffix in (".explained", HAND))


def mark_looking(directory: Path, nonce: str, on: bool) -> None:
    """Whoever holds this lease shows around what it has not claimed, or has stopped to. :raises OSError: not written."""
    path = directory / f"{nonce}{LOOKING}"
    if on:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    else:
        path.unlink(missing_ok=True)


def lookers(directory: Path) -> list[str]:
    """The nonces of those who look, or died doing so."""
    return [name.removesuffix(LOOKING) for name in os.listdir(directory) if name.endswith(LOOKING)]


def sweep(directory: Path, before_s: float) -> None:
    """Removes announcements of deaths (seconds since 1970) that no claim can be left from."""
    for path in directory.glob("*.explained"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < before_s:
                path.unlink()


def forget(directory: Path, nonce: str) -> None:
    """Removes what is left of a lease."""
    # Its announcement stays: what it had in hand may lie in ranges that others take over later.
    for suffix in ("json", "lock"):
        with contextlib.suppress(OSError):
            os.unlink(directory / f"{nonce}.{suffix}")


def _tidy(directory: Path) -> None:
    """Removes what processes left that died taking a lease, or forgetting one; with the registry's lock in hand."""
    names = set(os.listdir(directory))
    for name in names:
        nonce = name.removesuffix(".lock")
        half = nonce not in (name, "registry") and f"{nonce}.json" not in names
        if name.startswith(HIDDEN) or (half and not is_live(directory, nonce)):
            with contextlib.suppress(OSError):
                os.unlink(directory / name)


def lock(path: Path, timeout_s: float) -> BaseFileLock:
    """A lock that is not taken yet; it ends with its process."""
    return FileLock(path, timeout=timeout_s, mode=0o600, thread_local=False, fallback_to_soft=False)


def _write(directory: Path, holder: Holder) -> None:
    fields = dataclasses.asdict(holder)
    fields["range"] = None if holder.range is None else [f"{holder.range.lo:040x}", f"{holder.range.hi:040x}"]
    temporary = directory / f"{HIDDEN}{holder.nonce}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        try:
            write_all(fd, [json.dumps(fields).encode()])
        finally:
            os.close(fd)
        temporary.replace(directory / f"{holder.nonce}.json")
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _parse(fields: dict[str, object]) -> Holder:
    bounds = fields["range"]
    if not isinstance(bounds, list):
        raise TypeError("a lease without a range")
    # It becomes a part of names beside this one.
    if not isinstance(nonce := fields["nonce"], str) or not _NONCE.fullmatch(nonce):
        raise ValueError("a lease without a nonce")
    values = {**fields, "range": Range(int(bounds[0], 16), int(bounds[1], 16))}
    return Holder(**values)  # type: ignore[arg-type]
