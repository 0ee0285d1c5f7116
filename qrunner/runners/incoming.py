"""``incoming``: the site's handlers, then on to ``next``.

*Configuration*: ``handlers``, and ``next``, a queue or a list of them, each of which gets the entry. Without
``next``, a handler has to name the fate.
"""

from __future__ import annotations

from qrunner.fate import Fate
from qrunner.message import Entry
from qrunner.runner import Runner


class IncomingRunner(Runner):
    """Passes on what the handlers left."""

    async def dispose(self, entry: Entry) -> Fate:
        """To every queue of ``next``."""
        return [entry.forward(queue) for queue in self.desk.config.next]
