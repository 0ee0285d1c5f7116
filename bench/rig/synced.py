"""A runner for a site of the benchmarks: ``outgoing``, which also syncs what became of an entry before that ends.

The process that imports it has ``bench`` among its ``python_path``.
"""

from __future__ import annotations

from qrunner.fate import Fate, Settled
from qrunner.message import Entry
from qrunner.runners.outgoing import OutgoingRunner


class SyncedRunner(OutgoingRunner):
    """A loss of power repeats nothing that it has done: at the next start, who has it is in the file."""

    async def dispose(self, entry: Entry) -> Fate | Settled:  # type: ignore[override]
        """Delivers, and returns when the file with its outcomes is on stable storage."""
        fate = await super().dispose(entry)
        await self.desk.progress.note(entry, {"what": "synced"}, sync=True)
        return fate
