"""The switchboard in memory: a dict under a lock, for tests and for trying things out.

An entry is kept as the very bytes that a file of it would have (``qrunner.format``), so what JSON makes of
metadata, or a checksum of a damaged message, is the same here as on disk.

Guarantees: those of the contract, for as long as the process lives. Everything happens under one lock.

Not guaranteed: that anything outlives the process. Its death is played: ``MemoryLease.abandon`` leaves what a
killed runner would leave.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import os
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qrunner.clock import Clock
from qrunner.errors import CorruptEntry, LeaseHeld, QueueError
from qrunner.format import (
    Name,
    Sealed,
    crash_marks,
    due_within,
    history_line,
    open_file,
    reseal,
    seal,
    unanswered,
)
from qrunner.message import Draft, Entry, Glance, relayed
from qrunner.schedule import due_after
from qrunner.slices import Range
from qrunner.switchboard import Add, Area, Claim, Counts, Holder, Hop, Move, Recovered, Ref, counted
from qrunner.switchboard.index import DueIndex, key_of, parts_of
from qrunner.switchboard.poison import ambiguous_line, crash_mark, is_poison, shunt_line


@dataclass(eq=False, slots=True)
class _Kept:
    """One entry: where it is, its bytes, and whose hand it is in (``token`` is that of the claim)."""

    id: str
    queue: str
    due_ns: int
    data: bytes
    area: Area = "queue"
    owner: MemoryLease | None = None
    token: str = ""

    def is_at(self, ref: Ref) -> bool:
        return (self.queue, self.area, self.due_ns) == (ref.queue, ref.area, ref.due_ns)

    def ref(self) -> Ref:
        return Ref(self.queue, self.id, self.due_ns, self.area, self.owner is not None, self.token)

    def entry(self) -> Entry:
        return open_file(self.queue, Name(self.due_ns, self.id), self.data).entry

    def append(self, now_ns: int, *records: Mapping[str, Any]) -> None:
        # Sealed first, joined last: a record that is no JSON leaves the bytes as they were.
        lines = b"".join(history_line({"t": now_ns, **record}) for record in records)
        if lines:
            self.data += (b"" if self.data.endswith(b"\n") else b"\n") + lines


class MemorySpool:
    """All queues of a site, in this process.

    :param clock: says what is due, and when something happened.
    """

    def __init__(self, clock: Clock, *, node: str = "memory", site: str = "test") -> None:
        self.clock, self.node, self.site = clock, node, site
        self.boot = os.urandom(8).hex()
        self._lock = threading.RLock()
        self._queues: set[str] = set()
        self._kept: dict[str, _Kept] = {}
        self._leases: list[MemoryLease] = []
        # Every lease counts as a process of its own, so that one can be explained and another not.
        self._pids, self._tokens = itertools.count(1), itertools.count(1)
        self._explained: set[tuple[str, int]] = set()
        self._died_looking: list[MemoryLease] = []
        self._staged: dict[str, dict[str, list[tuple[Sealed, Add]]]] = {}
        self._doors: dict[str, MemoryStaging] = {}

    def prepare(self, queues: Sequence[str]) -> None:
        """Makes queues."""
        with self._lock:
            self._queues.update(queues)

    def enqueue(self, queue: str, draft: Draft, *, delay_s: float = 0.0) -> str:
        """Accepts an entry; its id.

        :raises QueueError: there is no such queue.
        """
        return self.enqueue_all([Add(draft, queue, due_after(self.clock.now_ns(), delay_s))])[0]

    def enqueue_all(self, adds: Sequence[Add]) -> tuple[str, ...]:
        """Accepts several entries, all or none; their ids.

        :raises QueueError: there is no such queue.
        """
        now = self.clock.now_ns()
        sealed = [seal(add.draft, now, records=add.records) for add in adds]
        with self._lock:
            for add in adds:
                self._expect(add.queue)
            for one, add in zip(sealed, adds, strict=True):
                self._lay_down(one, add)
        return tuple(one.id for one in sealed)

    def queues(self) -> tuple[str, ...]:
        """The names of the queues, sorted."""
        with self._lock:
            return tuple(sorted(self._queues))

    def peek(self, queue: str, area: Area = "queue") -> Iterator[Ref]:
        """What is there now, oldest due first."""
        with self._lock:
            refs = [kept.ref() for kept in self._kept.values() if (kept.queue, kept.area) == (queue, area)]
        return iter(sorted(refs, key=lambda ref: (ref.due_ns, ref.id)))

    def counts(self, queue: str, now_ns: int, area: Area = "queue") -> Counts:
        """What ``peek`` shows, counted."""
        return counted(self.peek(queue, area), now_ns)

    def has_work(self, queue: str, now_ns: int) -> bool:
        """Whether anything in it is due by then, or in somebody's hand."""
        return any(ref.active or ref.due_ns <= now_ns for ref in self.peek(queue))

    def read(self, ref: Ref) -> Entry:
        """The entry behind a ref. :raises CorruptEntry: it is none. :raises FileNotFoundError: it has moved."""
        with self._lock:
            return self._at(ref).entry()

    def glance(self, ref: Ref) -> Glance:
        """The entry behind a ref, without its message. Raises as ``read``."""
        one = self.read(ref)
        return Glance(
            one.id,
            one.queue,
            one.sender,
            one.recipients,
            one.meta,
            one.arrival_ns,
            one.due_ns,
            one.size,
            one.history,
        )

    def content(self, ref: Ref) -> bytes:
        """Its bytes, as a file would have them. :raises FileNotFoundError: it has moved."""
        with self._lock:
            return self._at(ref).data

    def shift(
        self,
        ref: Ref,
        *,
        queue: str | None = None,
        area: Area = "queue",
        due_ns: int | None = None,
        record: Mapping[str, Any] | None = None,
    ) -> bool:
        """Moves what nobody has in hand; False: it has gone or is in hand.

        :raises QueueError: there is no such queue.
        """
        with self._lock:
            self._expect(queue or ref.queue)
            kept = self._idle(ref)
            if kept is None:
                return False
            kept.append(self.clock.now_ns(), *([record] if record else []))
            self._place(kept, queue or ref.queue, area, ref.due_ns if due_ns is None else due_ns)
            return True

    def remove(self, ref: Ref) -> bool:
        """Ends an entry that nobody has in hand; False: it has gone or is in hand."""
        with self._lock:
            kept = self._idle(ref)
            if kept is not None:
                del self._kept[kept.id]
            return kept is not None

    def conclude(self, ref: Ref, follow: Callable[[Entry], Sequence[Add]]) -> tuple[str, ...] | None:
        """Ends an entry that nobody has in hand, with what follows from it; None: it has gone or is in hand."""
        with self._lock:
            kept = self._idle(ref)
            if kept is None:
                return None
            adds = follow(kept.entry())
            sealed = [seal(add.draft, self.clock.now_ns(), records=add.records) for add in adds]
            for add in adds:
                self._expect(add.queue)
            del self._kept[kept.id]
            for one, add in zip(sealed, adds, strict=True):
                self._lay_down(one, add)
            return tuple(one.id for one in sealed)

    def lease(
        self, queue: str, range: Range, runner: str, slice: int, *, max_crashes: int = 3
    ) -> MemoryLease:
        """Takes a range. :raises LeaseHeld: a live one overlaps; the message names its holder."""
        with self._lock:
            self.prepare([queue])
            for other in self._leases:
                if other.queue == queue and other.range.overlaps(range):
                    raise LeaseHeld(f"the range {range} is taken: {other.holder} owns {other.range}")
            pid, nonce, now = next(self._pids), os.urandom(8).hex(), self.clock.now_ns()
            holder = Holder(self.node, pid, self.boot, nonce, runner, slice, self.site, now, range)
            lease = MemoryLease(self, queue, range, holder, max_crashes)
            self._leases.append(lease)
            return lease

    def holders(self, queue: str) -> Sequence[Holder]:
        """The live holders of a queue's ranges."""
        with self._lock:
            return tuple(lease.holder for lease in self._leases if lease.queue == queue)

    def staging(self, door: str, runner: str = "") -> MemoryStaging:
        """Takes a door. :raises LeaseHeld: somebody has it."""
        with self._lock:
            if (other := self._doors.get(door)) is not None:
                raise LeaseHeld(f"the door {door} is taken: {other.runner}")
            self._staged.setdefault(door, {})
            self._doors[door] = staging = MemoryStaging(self, door, runner or door)
            return staging

    def explain(self, node: str, pid: int) -> None:
        """What this process had in hand is not to blame for its death."""
        with self._lock:
            self._explained.add((node, pid))

    def _expect(self, queue: str) -> None:
        if queue not in self._queues:
            raise QueueError(f"there is no queue {queue}")

    def _at(self, ref: Ref) -> _Kept:
        kept = self._kept.get(ref.id)
        if kept is None or not kept.is_at(ref):
            raise FileNotFoundError(f"{ref.id} is not in {ref.area} {ref.queue} any more")
        return kept

    def _idle(self, ref: Ref) -> _Kept | None:
        kept = self._kept.get(ref.id)
        return kept if kept is not None and kept.is_at(ref) and kept.owner is None else None

    def _in_hand(self, claim: Claim, lease: MemoryLease) -> _Kept:
        kept = self._kept.get(claim.entry.id)
        if kept is None or kept.owner is not lease or kept.token != claim.token:
            raise FileNotFoundError(f"{claim.entry.id} is not in hand")
        return kept

    def _lay_down(self, sealed: Sealed, add: Add) -> None:
        kept = _Kept(sealed.id, add.queue, add.due_ns, b"".join(sealed.parts))
        self._kept[sealed.id] = kept
        self._place(kept, add.queue, add.area, add.due_ns)

    def _place(self, kept: _Kept, queue: str, area: Area, due_ns: int) -> None:
        kept.queue, kept.area, kept.due_ns = queue, area, due_within(due_ns)
        kept.owner, kept.token = None, ""
        for lease in self._leases:
            if area == "queue" and lease.queue == queue and lease.range.owns(kept.id):
                lease.arrived(kept.due_ns, kept.id)

    def _give_up(self, lease: MemoryLease) -> None:
        if lease in self._leases:
            self._leases.remove(lease)

    def _apply(self, hop: Hop, lease: MemoryLease) -> tuple[str, ...]:
        now = self.clock.now_ns()
        finished = [self._in_hand(claim, lease) for claim in hop.finished]
        moved = [self._moved(move, self._in_hand(move.claim, lease)) for move in hop.moved]
        added = [(seal(add.draft, now, records=add.records), add) for add in hop.added]
        for queue in (*(move.queue for move in hop.moved), *(add.queue for add in hop.added)):
            self._expect(queue)
        # Whatever can fail has been done by now, on copies; the rest can't, and nobody looks before it is over.
        for kept in finished:
            del self._kept[kept.id]
        for kept, move in zip(moved, hop.moved, strict=True):
            self._kept[kept.id] = kept
            self._place(kept, move.queue, move.area, move.due_ns)
        for sealed, add in added:
            self._lay_down(sealed, add)
        return tuple(sealed.id for sealed, _ in added)

    def _moved(self, move: Move, kept: _Kept) -> _Kept:
        after = dataclasses.replace(kept)
        if move.content is not None and move.rewrites:
            now = move.claim.entry
            content = dataclasses.replace(
                move.content, id=now.id, arrival_ns=now.arrival_ns, parents=now.parents, history=now.history
            )
            after.data = b"".join(reseal(content, [{"t": self.clock.now_ns(), "what": "rewrite"}]).parts)
        after.append(self.clock.now_ns(), *move.records)
        return after

    def _recover(self, lease: MemoryLease) -> Recovered:
        found = Recovered(looked=any(not self._is_blameless(one) for one in self._died_looking))
        self._died_looking.clear()
        left = [kept for kept in self._kept.values() if self._was_left(kept, lease)]
        for kept in left:
            self._take_back(kept, lease, found)
        return found

    def _was_left(self, kept: _Kept, lease: MemoryLease) -> bool:
        if kept.queue != lease.queue or not lease.range.owns(kept.id):
            return False
        return kept.owner is not None and kept.owner not in self._leases

    def _take_back(self, kept: _Kept, lease: MemoryLease, found: Recovered) -> None:
        claimant = kept.owner
        assert claimant is not None
        try:
            entry = kept.entry()
        except CorruptEntry:
            self._place(kept, kept.queue, "bad", kept.due_ns)
            found.bad.append(kept.id)
            return
        if entry.envelope.recipients and not entry.recipients and not relayed(entry.history):
            del self._kept[kept.id]
            found.finished.append(kept.id)
            return
        now, lines = self.clock.now_ns(), []
        if (mark := unanswered(entry.history)) is not None:
            lines.append(ambiguous_line(mark, now))
        area: Area = "queue"
        if not self._is_blameless(claimant):
            lines.append(crash_mark(kept.queue, claimant.died_with == 1, now))
            if is_poison(kept.queue, (*entry.history, *lines), lease.max_crashes):
                area = "shunt"
                lines.append(shunt_line(now))
                found.shunted.append(kept.id)
            else:
                found.suspects.add(kept.id)
        kept.append(now, *lines)
        self._place(kept, kept.queue, area, kept.due_ns)

    def _is_blameless(self, claimant: MemoryLease) -> bool:
        holder = claimant.holder
        announced = claimant.announced or (holder.node, holder.pid) in self._explained
        return announced or holder.boot != self.boot


class MemoryLease:
    """The right to claim in one range of a queue of a ``MemorySpool``."""

    def __init__(
        self, spool: MemorySpool, queue: str, range: Range, holder: Holder, max_crashes: int
    ) -> None:
        self.queue, self.range, self.holder, self.max_crashes = queue, range, holder, max_crashes
        self.announced, self.died_with, self.looks = False, 0, False
        self._spool, self._index = spool, DueIndex()
        self._bell: Callable[[], None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def refresh(self) -> Recovered:
        """Takes back what dead claimants left in the range, and learns anew what is ready."""
        with self._spool._lock:
            found = self._spool._recover(self)
            refs = (kept.ref() for kept in self._spool._kept.values())
            ready = [ref for ref in refs if (ref.queue, ref.area, ref.active) == (self.queue, "queue", False)]
            self._index.replace(key_of(ref.due_ns, ref.id) for ref in ready if self.range.owns(ref.id))
            return found

    def due(self, now_ns: int, limit: int) -> Sequence[Ref]:
        """Up to ``limit`` entries due by now, oldest first; each once until ``refresh`` or ``renew``."""
        refs: list[Ref] = []
        with self._spool._lock:
            while len(refs) < limit and (keys := self._index.take(now_ns, limit - len(refs))):
                refs.extend(self._ready(keys, now_ns))
        return refs

    def renew(self, ref: Ref, due_ns: int | None = None) -> None:
        """Gives a ref back, to be had from ``due`` at its time or at ``due_ns``."""
        self._index.add(key_of(ref.due_ns if due_ns is None else max(due_ns, 0), ref.id))

    def next_due_ns(self, after_ns: int = -1) -> int | None:
        """When the earliest entry that ``due`` has not given, and that is due after ``after_ns``, is due; None: none."""
        return self._index.next_due_ns(after_ns)

    def peek(self, now_ns: int) -> Sequence[Ref]:
        """All entries due by now that ``due`` would give, oldest first."""
        with self._spool._lock:
            return self._ready(self._index.peek(now_ns), now_ns)

    def read(self, ref: Ref) -> Entry | None:
        """The entry without claiming it; None: it has gone, or was set aside as ``bad``."""
        with self._spool._lock:
            kept = self._mine(ref)
            return self._whole(kept) if kept else None

    def looking(self, on: bool) -> None:
        """What is due is shown to somebody now, or no longer."""
        self.looks = on

    def claim(self, ref: Ref) -> Claim | None:
        """Takes an entry in hand; None: somebody was faster, or it was set aside as ``bad``."""
        with self._spool._lock:
            kept = self._mine(ref)
            entry = self._whole(kept) if kept else None
            if kept is None or entry is None:
                return None
            kept.owner, kept.token = self, str(next(self._spool._tokens))
            return Claim(entry, kept.token, suspect=bool(crash_marks(self.queue, entry.history)))

    def note(self, claim: Claim, record: Mapping[str, Any], *, sync: bool = False) -> None:
        """Adds a line to the history of an entry in hand. :raises FileNotFoundError: it is not in hand."""
        with self._spool._lock:
            kept = self._spool._in_hand(claim, self)
            kept.append(self._spool.clock.now_ns(), record)
            claim.entry = kept.entry()

    def commit(self, hop: Hop) -> tuple[str, ...]:
        """Does all of it, once; the ids of what was added.

        :raises FileNotFoundError: a claim is not in hand. :raises QueueError: there is no such queue.
        """
        with self._spool._lock:
            return self._spool._apply(hop, self)

    def put_back(self, claim: Claim) -> None:
        """As if it had not been claimed."""
        with self._spool._lock:
            kept = self._spool._in_hand(claim, self)
            self._spool._place(kept, kept.queue, kept.area, kept.due_ns)

    @property
    def stale(self) -> bool:
        """Never: nothing comes here without a word."""
        return False

    def subscribe(self, bell: Callable[[], None] | None) -> bool:
        """``bell`` is called in the event loop that runs now, whenever something may have come. True."""
        with self._spool._lock:
            self._bell, self._loop = bell, asyncio.get_running_loop() if bell else None
        return True

    def stopping(self) -> None:
        """A death from here on is nobody's fault."""
        self.announced = True

    def release(self) -> None:
        """Gives the range up; what is still in hand goes to the next owner, unblamed."""
        self.stopping()
        self.abandon()

    def abandon(self) -> None:
        """As if the process had been killed: the range is free, and what is in hand stays so until the next owner
        looks."""
        with self._spool._lock:
            if self in self._spool._leases:
                self.died_with = sum(kept.owner is self for kept in self._spool._kept.values())
                if self.looks:
                    self._spool._died_looking.append(self)
            self._spool._give_up(self)
            self._bell = self._loop = None

    def arrived(self, due_ns: int, id: str) -> None:
        """Something has come into the range."""
        self._index.add(key_of(due_ns, id))
        if self._bell is not None and self._loop is not None:
            # A loop that has been closed meanwhile has nobody left to wake.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._bell)

    def _ready(self, keys: Sequence[bytes], now_ns: int) -> list[Ref]:
        # The index may be stale: an operator may have moved an entry, or made it due later.
        found = (self._spool._kept.get(parts_of(key)[1]) for key in keys)
        refs = dict.fromkeys(kept.ref() for kept in found if kept is not None and kept.due_ns <= now_ns)
        return [ref for ref in refs if self._mine(ref) is not None]

    def _mine(self, ref: Ref) -> _Kept | None:
        """What the ref stands for, if this lease may claim it."""
        if self not in self._spool._leases or (ref.queue, ref.area) != (self.queue, "queue"):
            return None
        return self._spool._idle(ref) if self.range.owns(ref.id) else None

    def _whole(self, kept: _Kept) -> Entry | None:
        try:
            return kept.entry()
        except CorruptEntry:
            self._spool._place(kept, kept.queue, "bad", kept.due_ns)
            return None


class MemoryStaging:
    """A door of a ``MemorySpool``, until it is released."""

    def __init__(self, spool: MemorySpool, door: str, runner: str) -> None:
        self.door, self.runner = door, runner
        self._spool = spool
        self._kept = spool._staged[door]

    def staged(self) -> Sequence[str]:
        """The keys that are neither published nor dropped."""
        with self._spool._lock:
            return tuple(self._kept)

    def stage(self, batch: Mapping[str, Sequence[Add]]) -> Mapping[str, tuple[str, ...]]:
        """Keeps the entries of these keys; their ids. :raises QueueError: there is no such queue."""
        now = self._spool.clock.now_ns()
        with self._spool._lock:
            for add in (add for adds in batch.values() for add in adds):
                self._spool._expect(add.queue)
            laid = {
                key: [(seal(add.draft, now, records=add.records), add) for add in adds]
                for key, adds in batch.items()
            }
            self._kept |= laid
        return {key: tuple(sealed.id for sealed, _ in ones) for key, ones in laid.items()}

    def publish(self, keys: Collection[str]) -> None:
        """Hands the entries of these keys to their queues."""
        with self._spool._lock:
            for key in keys:
                for sealed, add in self._kept.pop(key, ()):
                    self._spool._lay_down(sealed, add)

    def drop(self, keys: Collection[str]) -> None:
        """Forgets the entries of these keys."""
        with self._spool._lock:
            for key in keys:
                self._kept.pop(key, None)

    def release(self) -> None:
        """Lets another have the door; what is staged stays."""
        with self._spool._lock:
            if self._spool._doors.get(self.door) is self:
                del self._spool._doors[self.door]
