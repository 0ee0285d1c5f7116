"""The switchboard of files: an entry is one file, one inode, moved only by rename.

Guarantees: those of the contract, across the death of any process at any instruction, and across power loss on a
file system that keeps directory operations whole and in order (docs/INTERNALS.md has the argument).

Not guaranteed: more than the kernel's word that a sync is one.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qrunner.clock import Clock
from qrunner.config import is_queue_name
from qrunner.errors import LeaseHeld, QueueError
from qrunner.format import Claimant, Name, history_line, parse_name, ready_name, seal
from qrunner.message import Draft, Entry, Glance
from qrunner.schedule import due_after
from qrunner.slices import WHOLE, Range
from qrunner.switchboard import Add, Area, Counts, Holder, Ref, hands
from qrunner.switchboard.claims import FilesLease
from qrunner.switchboard.disk import Disk, Staged, append, make_directories
from qrunner.switchboard.hops import move
from qrunner.switchboard.layout import Layout
from qrunner.switchboard.leases import is_live, live_holders, mark_explained, take
from qrunner.switchboard.reading import glance_at_path, open_path, read_path
from qrunner.switchboard.staging import FilesStaging
from qrunner.switchboard.survey import Survey

# So long it is taken to be whose it was.
_OWNER_S = 1.0


def boot_id() -> str:
    """Names this boot of the machine: a claimant of another boot died with it."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().replace("-", "")[:12]


def _claimant(ref: Ref) -> Claimant | None:
    """In whose hand it is by its name; what is bad has names of its own."""
    name = parse_name(os.path.basename(ref.token)) if ref.area != "bad" else None
    return name.claimant if name is not None else None


class FilesSpool:
    """All queues of a site under one directory.

    :param root: ``queue_dir``.
    :param node: this machine's name among those that share the directory.
    :param durable: False leaves out the syncs, for tests.
    :param min_free: bytes that enqueueing leaves free, so that what empties the queue can still write.
    :param site: where the configuration is, for people who meet one of our leases.
    """

    def __init__(
        self,
        root: Path,
        clock: Clock,
        *,
        node: str = "localhost",
        durable: bool = True,
        min_free: int = 0,
        site: str = "",
        log: logging.Logger | None = None,
    ) -> None:
        self.layout = Layout(str(root))
        self.clock, self.node, self.min_free, self.site = clock, node, min_free, site
        self.disk = Disk(durable)
        self.log = log or logging.getLogger("qrunner.queue")
        self._owner, self._owner_asked_s = -1, 0.0

    def prepare(self, queues: Sequence[str]) -> None:
        self.layout.prepare(queues, self.disk)

    def queues(self) -> tuple[str, ...]:
        return self.layout.queues()

    def enqueue(self, queue: str, draft: Draft, *, delay_s: float = 0.0) -> str:
        return self.enqueue_all([Add(draft, queue, due_after(self.clock.now_ns(), delay_s))])[0]

    def enqueue_all(self, adds: Sequence[Add]) -> tuple[str, ...]:
        now = self.clock.now_ns()
        sealed = [seal(add.draft, now, records=add.records) for add in adds]
        staged: list[Staged] = []
        try:
            self.check(adds)
            for one, add in zip(sealed, adds, strict=True):
                directory = self.layout.destination(add.area, add.queue, one.id)
                staged.append(self.disk.stage(directory, ready_name(add.due_ns, one.id), one.parts))
            self.disk.publish(staged)
        except OSError as error:
            for file in staged:
                file.withdraw()
                file.close()
            raise self.refusal(adds, error) from error
        return tuple(one.id for one in sealed)

    def check(self, adds: Iterable[Add]) -> None:
        """:raises OSError, QueueError: nothing can be taken in, or not into these queues."""
        self._check_ours()
        # "in/../out" is a directory, and no queue.
        if not all(is_queue_name(add.queue) for add in adds):
            raise FileNotFoundError
        self._check_space()

    def refusal(self, adds: Iterable[Add], error: OSError) -> QueueError:
        """What is said of an error to whoever wanted these to be accepted."""
        names = ", ".join(dict.fromkeys(add.queue for add in adds))
        if isinstance(error, FileNotFoundError):
            known = ", ".join(self.queues()) or "none"
            return QueueError(f"there is no queue {names} in {self.layout.root}; the queues are: {known}")
        return QueueError(f"queue {names}: {error.strerror or error}")

    def _check_ours(self) -> None:
        """What another user leaves in a queue, root too, its owner could not read."""
        now_s, ours = time.monotonic(), os.geteuid()
        if ours == self._owner and now_s < self._owner_asked_s + _OWNER_S:
            return
        self._owner = os.stat(self.layout.root).st_uid
        if self._owner != ours:
            raise QueueError(f"{self.layout.root} belongs to uid {self._owner}, and this is uid {ours}")
        self._owner_asked_s = now_s

    def _check_space(self) -> None:
        if not self.min_free:
            return
        free = os.statvfs(self.layout.root)
        if free.f_bavail * free.f_frsize < self.min_free:
            raise QueueError(f"less than {self.min_free} bytes are free in {self.layout.root}")

    def peek(self, queue: str, area: Area = "queue") -> Iterator[Ref]:
        return self._survey(queue, area).refs()

    def counts(self, queue: str, now_ns: int, area: Area = "queue") -> Counts:
        return self._survey(queue, area).counts(now_ns)

    def has_work(self, queue: str, now_ns: int) -> bool:
        return self._survey(queue, "queue").has_work(now_ns)

    def _survey(self, queue: str, area: Area) -> Survey:
        return Survey(self.layout, queue, area, functools.partial(is_live, self.layout.leases(queue)))

    def read(self, ref: Ref) -> Entry:
        return open_path(ref.token, ref.queue, Name(ref.due_ns, ref.id)).entry

    def glance(self, ref: Ref) -> Glance:
        return glance_at_path(ref.token, ref.queue, ref.id, ref.due_ns)

    def content(self, ref: Ref) -> bytes:
        return read_path(ref.token)

    def shift(
        self,
        ref: Ref,
        *,
        queue: str | None = None,
        area: Area = "queue",
        due_ns: int | None = None,
        record: Mapping[str, Any] | None = None,
    ) -> bool:
        if not self._is_free(ref):
            return False
        goes_to = queue or ref.queue
        target = self.layout.destination(area, goes_to, ref.id)
        try:
            path = move(ref.token, target, ref.due_ns if due_ns is None else due_ns, ref.id)
        except FileNotFoundError:
            return False
        except NotADirectoryError:
            raise QueueError(f"there is no queue {goes_to!r} in {self.layout.root}") from None
        if record is not None:
            self._remember(path, record)
        self.disk.sync_directory(target)
        return True

    def _remember(self, path: str, record: Mapping[str, Any]) -> None:
        # The move is done; a line that can't follow it, because a runner was faster or the disk is full, is lost.
        try:
            append(path, history_line({"t": self.clock.now_ns(), **record}))
        except OSError as error:
            self.log.info("history line lost path=%s error=%s", path, error)

    def remove(self, ref: Ref) -> bool:
        if not self._is_free(ref):
            return False
        try:
            os.unlink(ref.token)
        except FileNotFoundError:
            return False
        return True

    def conclude(self, ref: Ref, follow: Callable[[Entry], Sequence[Add]]) -> tuple[str, ...] | None:
        self._check_ours()
        if not self._is_free(ref):
            return None
        mine = Claimant(os.getpid(), os.urandom(6).hex(), 1, boot_id(), self.node)
        return hands.conclude(self.layout, self.disk, mine, ref, follow, self.clock.now_ns())

    def _is_free(self, ref: Ref) -> bool:
        """Whether nobody has it in hand; what an operator's hand left of it that has died is settled before."""
        who = _claimant(ref)
        if ref.active or who is None:
            return not ref.active
        hands.settle(self.layout, self.disk, ref.queue)
        return not is_live(self.layout.leases(ref.queue), who.nonce)

    def lease(self, queue: str, range: Range, runner: str, slice: int, *, max_crashes: int = 3) -> FilesLease:
        self.prepare([queue])
        held = take(self.layout.leases(queue), self._holder(runner, slice, range))
        return FilesLease(self.layout, self.disk, self.clock, queue, held, max_crashes, self.log)

    def _holder(self, runner: str, slice: int, range: Range) -> Holder:
        return Holder(
            node=self.node,
            pid=os.getpid(),
            boot=boot_id(),
            nonce=os.urandom(6).hex(),
            runner=runner,
            slice=slice,
            site=self.site,
            since_ns=self.clock.now_ns(),
            range=range,
        )

    def holders(self, queue: str) -> Sequence[Holder]:
        directory = self.layout.leases(queue)
        return live_holders(directory) if directory.is_dir() else []

    def staging(self, door: str, runner: str = "") -> FilesStaging:
        if not is_queue_name(door):
            raise QueueError(f"{door!r} is no name for a door")
        self._check_ours()
        make_directories([self.layout.door(door), str(self.layout.door_leases(door))], self.disk)
        leases = self.layout.door_leases(door)
        try:
            held = take(leases, self._holder(runner or door, 0, WHOLE))
        except LeaseHeld:
            holders = ", ".join(map(str, live_holders(leases))) or "a process that has just ended"
            raise LeaseHeld(f"the door {door} is taken: {holders}") from None
        return FilesStaging(self, door, held)

    def explain(self, node: str, pid: int) -> None:
        for queue in self.queues():
            for holder in self.holders(queue):
                if (holder.node, holder.pid) == (node, pid):
                    mark_explained(self.layout.leases(queue), holder.nonce)
