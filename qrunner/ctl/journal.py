"""How far an injection of a whole mbox or Maildir has come: a file that outlives whoever wrote it.

::

    state_dir/inject/<sha1 of the command>.journal    one line a batch, in the form of a history

A line is written once its batch is staged (``Staging`` of the switchboard), and is the batch's commit. The same
command finds the same journal and goes on from its last whole line; a line ``finished`` says that there is no more.

Guarantees: a line that was synced is read again; a line that a death has torn counts for nothing.

Not guaranteed: that two processes may write to one. Who injects has the door (``bulk``), and is alone.

Failures: ``QueueError``: the disk does not take a line.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha1
from pathlib import Path
from typing import Any

from qrunner.errors import QueueError
from qrunner.format import history_line, parse_history
from qrunner.switchboard.disk import Disk, append, make_directories

SUFFIX = ".journal"
KEPT_S = 30 * 86_400


def key_of(command: Mapping[str, Any]) -> str:
    """What names the journal of a command, of these parts."""
    return sha1(json.dumps(command, sort_keys=True).encode(), usedforsecurity=False).hexdigest()


@dataclass(slots=True)
class Journal:
    """One journal."""

    path: str
    disk: Disk
    batches: list[Mapping[str, Any]] = field(default_factory=list)
    finished: bool = False

    @classmethod
    def opened(cls, folder: Path, key: str, disk: Disk) -> Journal:
        """The journal of that key, made if it is not there. :raises QueueError: it can't be."""
        path = f"{folder}/{key}{SUFFIX}"
        try:
            make_directories([str(folder)], disk)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
            disk.sync_directory(str(folder))
            lines = _lines(Path(path))
        except OSError as error:
            raise QueueError(f"how far it comes can't be written down: {error}") from error
        return cls(path, disk, [line for line in lines if "parcel" in line], _is_finished(lines))

    @property
    def parcels(self) -> set[str]:
        """The parcels that are committed."""
        return {batch["parcel"] for batch in self.batches}

    @property
    def taken(self) -> int:
        """How many messages went in."""
        return sum(batch["taken"] for batch in self.batches)

    @property
    def refused(self) -> int:
        """How many did not."""
        return sum(batch["refused"] for batch in self.batches)

    def note(self, batch: Mapping[str, Any]) -> None:
        """Commits a batch. :raises QueueError: whether it is committed, only who opens the journal anew can tell."""
        self._append(batch)
        self.batches.append(batch)
        self.finished = False

    def finish(self, when: str) -> None:
        """There is no more."""
        if not self.finished:
            self._append({"finished": when, "batches": len(self.batches)})
            self.finished = True

    def clear(self) -> None:
        """Begins anew. :raises QueueError: it can't."""
        try:
            os.truncate(self.path, 0)
        except OSError as error:
            raise QueueError(f"what was injected before can't be forgotten: {error.strerror}") from error
        self.batches, self.finished = [], False

    def _append(self, record: Mapping[str, Any]) -> None:
        try:
            append(self.path, history_line(record), disk=self.disk)
        except OSError as error:
            raise QueueError(f"how far it came can't be written down: {error.strerror or error}") from error


def _lines(path: Path) -> Sequence[Mapping[str, Any]]:
    return parse_history(path.read_bytes())


def _is_finished(lines: Sequence[Mapping[str, Any]]) -> bool:
    return bool(lines) and "finished" in lines[-1]


def tidy(folder: Path, before_s: float) -> None:
    """Removes the journals of what was finished before a time (seconds since 1970)."""
    for path in folder.glob(f"*{SUFFIX}"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < before_s and _is_finished(_lines(path)):
                path.unlink()
