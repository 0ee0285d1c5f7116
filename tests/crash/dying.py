"""A process that makes one transition and dies at a chosen call of it; and what its successor does.

The process is a fork of this one, so that it costs milliseconds and every call can have its own.
"""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import ANY

from qrunner.clock import SystemClock
from qrunner.slices import WHOLE
from qrunner.switchboard import Recovered
from qrunner.switchboard.files import FilesSpool
from qrunner.switchboard.layout import ASIDE
from tests.crash.calls import REAL, Calls, Point
from tests.crash.looking import Place, Sight, look
from tests.crash.transitions import QUEUES, Places, Step, Transition, draft

DESTINATIONS = ("out", "third")
DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Death:
    """How a process ended: whether its step was made to the end, and the changes that it made on the way."""

    returned: bool
    calls: tuple[str, ...]


class Consumer:
    """The next runner, as fast as can be: finishes whatever is in its queues the moment it looks."""

    def __init__(self, root: Path, log: Path) -> None:
        self.root, self.log = str(root), log

    def look_at(self, directories: set[str]) -> None:
        """Finishes what is ready in these."""
        for directory in directories:
            queue = os.path.relpath(directory, self.root).split("/")[0]
            if queue in DESTINATIONS:
                for name in REAL["listdir"](directory):
                    if not name.startswith("."):
                        self._finish(queue, f"{directory}/{name}")

    def _finish(self, queue: str, path: str) -> None:
        subject = Path(path).read_bytes().partition(b"Subject: ")[2].partition(b"\n")[0]
        fd = REAL["open"](self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        REAL["write"](fd, f"{queue} {subject.decode()}\n".encode())
        os.close(fd)
        REAL["unlink"](path)

    def seen(self) -> Places:
        """What has been finished."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return Places(Place("queue", *line.split()) for line in lines)


@dataclass(slots=True)
class Stage:
    """A spool on which one transition after another is made, each from an empty start."""

    root: Path
    log: Path
    touched: set[str] = field(default_factory=set)

    @classmethod
    def built(cls, folder: Path) -> Stage:
        stage = cls(folder / "qfiles", folder / "finished")
        stage.spool(durable=False).prepare(QUEUES)
        return stage

    def spool(self, *, durable: bool = True) -> FilesSpool:
        return FilesSpool(self.root, SystemClock(), node="a", durable=durable, site="test")

    def fill(self, transition: Transition) -> None:
        """What is there before the transition."""
        spool = self.spool(durable=False)
        with Calls(touched=self.touched).watched():
            for number in range(transition.parents):
                spool.enqueue("in", draft(f"p{number}"))

    def die_in(
        self, begin: Callable[[FilesSpool], Step], point: Point | None = None, *, eager: bool = False
    ) -> Death:
        """Lets a process make the step and die there; without a point, right after its end.

        :param eager: the next runners look for work at every moment of it.
        """
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            self._live(begin, point, eager, writer)
        os.close(writer)
        with open(reader, "rb") as pipe:
            said = pipe.read().decode()
        _, status = os.waitpid(pid, 0)
        assert status == signal.SIGKILL, said
        *calls, last = said.split("\n")
        self.touched.update(call[1:] for call in calls if call.startswith("/"))
        return Death(last == "returned", tuple(call for call in calls if not call.startswith("/")))

    def _live(
        self, begin: Callable[[FilesSpool], Step], point: Point | None, eager: bool, writer: int
    ) -> None:
        consumer = Consumer(self.root, self.log)
        calls = Calls(point)

        def tell(*lines: str) -> None:
            REAL["write"](writer, "".join(f"{line}\n" for line in lines).encode())

        def between() -> None:
            tell(calls.names[-1], *(f"/{directory}" for directory in calls.touched))
            if eager:
                consumer.look_at(calls.touched)

        calls.between = between
        try:
            with calls.watched():
                step = begin(self.spool())
                calls.armed = True
                step()
                calls.armed = False
            tell(*(f"/{directory}" for directory in calls.touched))
            if eager:
                consumer.look_at(calls.touched)
            REAL["write"](writer, b"returned")
            os.kill(os.getpid(), signal.SIGKILL)
        except BaseException:
            REAL["write"](writer, traceback.format_exc().encode())
        os._exit(1)

    def look(self) -> Sight:
        """What is there, in all the places where something has come to be."""
        queues = (f"{self.root}/{queue}{part}" for queue in QUEUES for part in ("", "/.hops"))
        asides = (f"{self.root}/{area}/{queue}" for area in ASIDE for queue in QUEUES)
        touched = (directory for directory in self.touched if "/.lease" not in directory)
        return look(self.root, {*queues, *asides, *touched})

    def places(self, sight: Sight) -> Places:
        """Where everything is; what was finished by the next runners, where they finished it."""
        return sight.places + Consumer(self.root, self.log).seen()

    def recover(self) -> Sight:
        """What the next owner of ``in`` does before anything else."""
        lease = self.spool(durable=False).lease("in", WHOLE, "in", 0)
        with Calls(touched=self.touched).watched():
            lease.refresh()
        lease.release()
        sight = self.look()
        assert (sight.claimed, sight.hops) == ([], [])
        return sight

    def empty(self, sight: Sight) -> None:
        """Takes the entries away, for the next round."""
        for path in sight.files:
            os.unlink(path)
        self.log.unlink(missing_ok=True)
        self.touched.clear()

    def sweep(self) -> None:
        """A day later nothing is left of all the deaths, anywhere."""
        day_ago = time.time() - DAY_S - 60
        for path in look(self.root).hidden:
            os.utime(path, (day_ago, day_ago))
        lease = self.spool(durable=False).lease("in", WHOLE, "in", 0)
        assert lease.refresh() == Recovered()
        assert look(self.root) == Sight()
        kinds = Counter(name.rpartition(".")[2] for name in os.listdir(self.root / ".lease" / "in"))
        # That of the registry is the other one.
        assert (kinds.pop("lock"), kinds.pop("json"), kinds.pop("explained")) == (2, 1, ANY)
        assert not kinds
        lease.release()

    def clear(self) -> None:
        """Takes everything away but the directories."""
        for directory, _, names in os.walk(self.root):
            for name in names:
                os.unlink(f"{directory}/{name}")
        self.log.unlink(missing_ok=True)
        self.touched.clear()
