"""What a runner may decide about an entry. A fate is a value: nothing happens before it is returned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qrunner.message import Forward

__all__ = ["Done", "Failure", "Fate", "Forward", "Hold", "Later", "Requeue", "Settled"]


@dataclass(frozen=True, slots=True)
class Done:
    """Finished, nothing follows. The reason is logged."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Requeue:
    """Stays where it is for ``delay`` seconds (at least 0.1); no failure: costs no attempt and no lifetime."""

    delay: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Hold:
    """To ``hold``, until an operator releases it."""

    reason: str


Fate = Forward | Sequence[Forward] | Done | Requeue | Hold


@dataclass(frozen=True, slots=True)
class Failure:
    """One recipient that will never be reached: a line of the report (RFC 3464 section 2.3).

    :param action: ``failed``; ``text`` is the remote's reply or our own reason, ``host`` the remote's name.
    """

    address: str
    status: str
    text: str
    host: str = ""
    expired: bool = False


@dataclass(frozen=True, slots=True)
class Later:
    """The owed rest of an entry waits.

    :param delay_s: seconds; None: the runner's schedule.
    :param counts: whether this was an attempt, which may also end the entry's lifetime.
    :param queue: where it waits; None: where it is.
    :param of: what single recipients met, if not all met the same. Only these can come to the end of their lifetime
        by this attempt, each with words of its own.
    """

    text: str
    status: str = "4.0.0"
    delay_s: float | None = None
    counts: bool = True
    queue: str | None = None
    host: str = ""
    of: tuple[Failure, ...] = ()


@dataclass(frozen=True, slots=True)
class Settled:
    """What a delivery left behind, for runners that have outcomes per recipient.

    One commit: ``failures`` are reported, ``records`` go into the history, and the rest waits as ``later``
    says; with ``later`` None the entry is finished.
    """

    failures: tuple[Failure, ...] = ()
    later: Later | None = None
    records: tuple[Mapping[str, Any], ...] = ()
    reason: str = ""

    @property
    def is_end(self) -> bool:
        """Whether all went well, and nothing is left to be written down."""
        return self.later is None and not self.failures and not self.records
