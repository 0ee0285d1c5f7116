"""Where things lie under ``qfiles/``.

::

    QUEUE/<two digits>/<due>+<sha1>[.claimant]    an entry; QUEUE/ itself is looked at too
    QUEUE/.hops/                                  compound commits on their way
    {hold,shunt,bad}/QUEUE/…                      set aside; the folder keeps where an entry came from
    .door/DOOR/                                   what a door has staged, and nobody has published yet
    .lease/QUEUE/…, .lease/.door/DOOR/…           who owns which range, and which door
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from qrunner.format import parse_name
from qrunner.slices import WHOLE, Range, prefixes
from qrunner.switchboard import Area, Ref
from qrunner.switchboard.disk import Disk, make_directories

ASIDE: tuple[Area, ...] = ("hold", "shunt", "bad")


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths of a spool, as strings: they are made for every entry."""

    root: str

    def queue(self, queue: str) -> str:
        """A queue's own directory."""
        return f"{self.root}/{queue}"

    def place(self, queue: str, id: str) -> str:
        """The directory of an entry in its queue."""
        return f"{self.root}/{queue}/{id[:2]}"

    def aside(self, area: Area, queue: str) -> str:
        """Where entries of a queue are set aside."""
        return f"{self.root}/{area}/{queue}"

    def destination(self, area: Area, queue: str, id: str) -> str:
        """The directory for an entry in a queue or aside."""
        return self.place(queue, id) if area == "queue" else self.aside(area, queue)

    def hops(self, queue: str) -> str:
        """Compound commits of a queue that are on their way."""
        return f"{self.root}/{queue}/.hops"

    def leases(self, queue: str) -> Path:
        """The leases of a queue's ranges."""
        return Path(self.root, ".lease", queue)

    def door(self, door: str) -> str:
        """What a door has staged."""
        return f"{self.root}/.door/{door}"

    def door_leases(self, door: str) -> Path:
        """Who has the door."""
        return Path(self.root, ".lease", ".door", door)

    def directories(self, queue: str, area: Area = "queue", part: Range = WHOLE) -> list[str]:
        """Every directory in which entries of this range can lie."""
        if area != "queue":
            return [self.aside(area, queue)]
        return [self.queue(queue), *(f"{self.root}/{queue}/{digits}" for digits in prefixes(part))]

    def queues(self) -> tuple[str, ...]:
        """The queues that are there, by the directories of their leases."""
        try:
            with os.scandir(f"{self.root}/.lease") as found:
                names = [one.name for one in found if one.is_dir(follow_symlinks=False)]
                return tuple(sorted(name for name in names if not name.startswith(".")))
        except FileNotFoundError:
            return ()

    def prepare(self, queues: Iterable[str], disk: Disk) -> None:
        """Makes the directories of these queues, durably."""
        for queue in queues:
            wanted = [
                *self.directories(queue),
                self.hops(queue),
                *(self.aside(area, queue) for area in ASIDE),
            ]
            make_directories(wanted, disk)
            # Last, since it is what makes the queue known.
            make_directories([str(self.leases(queue))], disk)


def ref_of(area: Area, queue: str, directory: str, name: str) -> Ref | None:
    """The entry that a file's name says; None: a stranger's."""
    plain, _, rest = name.partition(".")
    parsed = parse_name(plain if area != "queue" else name)
    if parsed is None:
        return None
    active = area == "queue" and bool(rest)
    return Ref(queue, parsed.id, parsed.due_ns, area, active, f"{directory}/{name}")
