"""``fanout``: each message to every subscriber that wants it, in one commit.

*Configuration*: ``subscribers``, a table of queues, each with a match; an empty one wants everything. A match on
``meta = { source = "NAME" }`` is for what the door NAME took in, so that the table is a map from sources to
subscribers, of any number to any number.

A subscriber is a queue, and it is there whether or not a runner works on it: what it wants waits. It gets the whole
message with all its recipients, also where its match asks for one of them; a route behind it splits.

Guarantees: every subscriber gets a message once, or, if the commit fails, none does and it is tried again. What nobody
wants is finished, with that as its reason.
"""

from __future__ import annotations

from collections.abc import Sequence

from qrunner.fate import Done, Fate
from qrunner.match import Match
from qrunner.message import Entry
from qrunner.runner import Runner

NOBODY = "no subscriber wants it"


class FanoutRunner(Runner):
    """Copies each entry. A site's class may choose by itself: ``subscribers``."""

    async def dispose(self, entry: Entry) -> Fate:
        """A copy to each of ``subscribers``."""
        queues = list(dict.fromkeys(self.subscribers(entry)))
        return [entry.forward(queue) for queue in queues] if queues else Done(NOBODY)

    def subscribers(self, entry: Entry) -> Sequence[str]:
        """The queues that get it, each once: those of the configuration whose match fits."""
        known = self.desk.config.settings.get("subscribers", ())
        return [queue for queue, match in known if fits(match, entry)]


def fits(match: Match, entry: Entry) -> bool:
    """Whether a subscriber wants an entry: one of the recipients is enough."""
    if not any(match.fits_recipient(address) for address in entry.recipients or [""]):
        return False
    return match.fits_message(sender=entry.sender, header=entry.header, meta=entry.meta)
