"""What one connection did for one entry, and who is told of it meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from qrunner.smtp.reply import Kind, Outcome


class Witness(Protocol):
    """Writes down what must be known after a crash."""

    def sending(self, addresses: Sequence[str]) -> None:
        """The end of a message to these is about to be sent. What this raises keeps it from being sent."""
        ...

    def settled(self, outcomes: Sequence[Outcome]) -> None:
        """What became of them."""
        ...

    @property
    def behind(self) -> bool:
        """Whether something of that could not be written down yet."""
        ...

    async def catch_up(self) -> None:
        """Returns when all of it is written down."""
        ...


@dataclass(slots=True)
class Delivery:
    """What one connection did for an entry.

    ``lost``: the connection ended inside a transaction. ``slower``: the host said 421. ``stale``: it had ended
    before the first word, so nothing was tried at all. ``put_off``: those for whom nothing was tried, since a further
    message to this host must wait for ``put_off_s`` seconds; they alone have no outcome. ``moved``: its replies to several
    commands at once did not fit.
    """

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    lost: bool = False
    slower: bool = False
    stale: bool = False
    moved: bool = False
    put_off: tuple[str, ...] = ()
    put_off_s: float = 0.0

    def of_kind(self, *kinds: Kind) -> list[Outcome]:
        """The outcomes of these kinds, in the order in which they came."""
        return [outcome for outcome in self.outcomes.values() if outcome.kind in kinds]

    def words(self) -> str:
        """The last bad news."""
        return next((one.text for one in reversed(self.outcomes.values()) if one.kind != "delivered"), "")
