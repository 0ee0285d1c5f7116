"""A site under a real master whose messages can be counted: each has a number, and all end in ``done``, which no
runner serves.

``in`` passes on, rewrites, forks in two or defers, by the number; ``out`` passes on; ``pack`` makes one of up to three.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from qrunner.errors import CorruptEntry
from qrunner.master.watch import living_master
from qrunner.message import Entry
from qrunner.site import Site
from qrunner.switchboard import AREAS
from tests.sites import TinySite, wait_for

CONFIG = """\
[site]
hostname = "lists.example.org"
node = "a"
queue_dir = "../qfiles"
state_dir = "../var"
postmaster = "postmaster@lists.example.org"
report_queue = "reports"
python_path = ["../code"]
durability = "none"
min_free = "0"

[runner.in]
class = "flow:Enter"
concurrency = 8
slices = [{ weight = 70 }, { weight = 30 }]
max_crashes = 1000
options = { poison = "none" }

[runner.out]
class = "flow:Pass"
concurrency = 8
max_crashes = 1000
options = { to = "pack" }

[runner.pack]
class = "flow:Pack"
max_crashes = 1000
options = { to = "done" }
"""

CODE = '''\
"""Runners whose work can be counted afterwards."""

import asyncio
import os
import signal

from qrunner import BatchRunner, Runner, TemporaryFailure


class Enter(Runner):
    async def dispose(self, entry):
        if entry.header("X-N") == self.options["poison"]:
            os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep(0.02)
        kind = int(entry.header("X-N")) % 4
        if kind == 1:
            return entry.with_header("X-Seen", "1").forward("out")
        if kind == 2:
            return [entry.with_header("X-Part", part).forward("out") for part in "ab"]
        if kind == 3 and not entry.attempts:
            raise TemporaryFailure("not yet", delay=0.1)
        return entry.forward("out")


class Pass(Runner):
    async def dispose(self, entry):
        await asyncio.sleep(0.01)
        return entry.forward(self.options["to"])


class Pack(BatchRunner):
    def dispose_batch(self, entries):
        for start in range(0, len(entries), 3):
            group = entries[start : start + 3]
            packed = b"".join(entry.message + b"\\n" for entry in group)
            yield group, group[0].replace(message=packed).forward(self.options["to"])
'''

_NUMBER = re.compile(rb"^(?:X-Part: (\w)\n)?(?:X-Seen: 1\n)?X-N: (\d+)$", re.MULTILINE)
QUEUES = ("in", "out", "pack")


class CountedSite(TinySite):
    """The site."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.write(CONFIG)
        self.add_file("flow.py", CODE)
        (folder / "qfiles").mkdir(mode=0o700)
        self.site = Site.load(self.config)
        self.site.spool.prepare([*QUEUES, "done", "reports"])

    def put(self, *numbers: int) -> None:
        """Messages into ``in``."""
        for number in numbers:
            self.site.enqueue(
                "in", message=message(number), sender="a@example.org", recipients=["b@example.org"]
            )

    def begin(self) -> None:
        """Starts the master, whatever becomes of its runners."""
        self.start_ctl("start", "--wait", "0s").communicate(timeout=60)
        wait_for(lambda: living_master(self.run))

    def waiting(self) -> int:
        """How many files lie in the queues that are served, those on their way among them."""
        roots = [self.folder / "qfiles" / queue for queue in QUEUES]
        return sum(1 for root in roots for path in root.glob("*/*") if not path.name.startswith(".new."))

    def is_drained(self) -> bool:
        return not self.waiting()

    def drain(self, limit_s: float = 60.0) -> None:
        """Waits until everything has come to rest."""
        wait_for(self.is_drained, limit_s)

    def entries(self, queue: str, area: str = "queue") -> list[Entry]:
        """What lies there; AssertionError: it can't be read."""
        spool = self.site.spool
        return [spool.read(ref) for ref in spool.peek(queue, area)]  # type: ignore[arg-type]

    def aside(self) -> list[str]:
        """What was set aside, and why."""
        return [
            f"{area}/{queue}: {self._why(ref)}"
            for queue in (*QUEUES, "done")
            for area in AREAS[1:]
            for ref in self.site.spool.peek(queue, area)
        ]

    def _why(self, ref: object) -> object:
        try:
            return self.site.spool.read(ref).history[-1:]  # type: ignore[arg-type]
        except CorruptEntry as error:
            return error

    def arrived(self) -> Counter[str]:
        """The numbers in ``done``, those of the two parts of a fork with their letters."""
        numbers: Counter[str] = Counter()
        for entry in self.entries("done"):
            numbers.update(f"{n.decode()}{part.decode()}" for part, n in _NUMBER.findall(entry.message))
        return numbers


def message(number: int) -> bytes:
    """The message of that number."""
    return b"X-N: %d\nSubject: hello\n\nA line.\n" % number


def parts(number: int) -> list[str]:
    """What arrives of the message of that number."""
    return [f"{number}a", f"{number}b"] if number % 4 == 2 else [str(number)]


def expected(numbers: Iterable[int]) -> Counter[str]:
    """What arrives of these."""
    return Counter(part for number in numbers for part in parts(number))


@contextmanager
def counted_site(folder: Path) -> Iterator[CountedSite]:
    """A site, of which nothing lives when the block has ended."""
    site = CountedSite(folder)
    try:
        yield site
    finally:
        site.end()
