"""The contract of a switchboard: where entries live, and how they change hands.

A *spool* holds all queues of a site on one backend. Anybody may enqueue, look, and move what nobody has in
hand. Only who holds the *lease* of a range of a queue may claim in it, so no entry is ever locked.

Guarantees, of every backend (``qrunner.testing.SwitchboardContract`` is their suite):

* ``enqueue`` returns when the entry is durable, or raises and the caller still has it.
* at every instant an entry is in exactly one place; ``commit`` happens wholly or not at all, and once.
* two live leases of one queue never overlap.

Not guaranteed: order. Entries come out about in the order in which they are due.

Failures: ``OSError`` for what waiting can mend (a full disk), ``QueueError`` for what it can't.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

from qrunner.message import Draft, Entry, Glance
from qrunner.slices import Range

Area = Literal["queue", "hold", "shunt", "bad"]
AREAS: tuple[Area, ...] = ("queue", "hold", "shunt", "bad")


class Ref(NamedTuple):
    """An entry as seen from outside, unopened. ``token`` is the backend's own.

    A tuple, since a queue may be a million of them.
    """

    queue: str
    id: str
    due_ns: int
    area: Area = "queue"
    active: bool = False
    token: str = ""


@dataclass(frozen=True, slots=True)
class Counts:
    """How many entries there are: due and not yet due, and in somebody's hand; which is foremost, and when the next of
    those not yet due will be."""

    ready: int = 0
    deferred: int = 0
    active: int = 0
    first: Ref | None = None
    next_due_ns: int | None = None

    @property
    def depth(self) -> int:
        """All of them."""
        return self.ready + self.deferred + self.active

    def __add__(self, other: Counts) -> Counts:
        firsts = [one.first for one in (self, other) if one.first is not None]
        nexts = [one.next_due_ns for one in (self, other) if one.next_due_ns is not None]
        return Counts(
            self.ready + other.ready,
            self.deferred + other.deferred,
            self.active + other.active,
            min(firsts, key=lambda ref: (ref.due_ns, ref.id), default=None),
            min(nexts, default=None),
        )


def counted(refs: Iterable[Ref], now_ns: int) -> Counts:
    """The refs, counted one by one."""
    total = Counts()
    for ref in refs:
        if ref.active:
            total += Counts(active=1, first=ref)
        elif ref.due_ns <= now_ns:
            total += Counts(ready=1, first=ref)
        else:
            total += Counts(deferred=1, first=ref, next_due_ns=ref.due_ns)
    return total


@dataclass(frozen=True, slots=True)
class Holder:
    """Who owns a range, for people to read."""

    node: str
    pid: int
    boot: str
    nonce: str
    runner: str
    slice: int
    site: str = ""
    since_ns: int = 0
    range: Range | None = None

    def __str__(self) -> str:
        place = f" of {self.site}" if self.site else ""
        return f"runner {self.runner}[{self.slice}]{place}, process {self.pid} on {self.node}"


@dataclass(eq=False, slots=True)
class Claim:
    """An entry in our hand. Notes that are written while it is add to its ``entry``'s history."""

    entry: Entry
    token: str
    suspect: bool = False


@dataclass(frozen=True, slots=True)
class Move:
    """A claimed entry goes to a queue (its own, to wait there) or aside.

    :param content: what it becomes; None, or equal content, leaves it as it is.
    :param records: lines for its history, written with the move.
    """

    claim: Claim
    queue: str
    due_ns: int
    area: Area = "queue"
    content: Entry | None = None
    records: tuple[Mapping[str, Any], ...] = ()

    @property
    def rewrites(self) -> bool:
        """Whether the entry's content changes."""
        return self.content is not None and not self.content.same_content(self.claim.entry)


@dataclass(frozen=True, slots=True)
class Add:
    """A new entry. Its id is made by the backend, and returned.

    :param area: aside, for what a person is to look at.
    :param records: lines that its history begins with.
    """

    draft: Draft
    queue: str
    due_ns: int
    area: Area = "queue"
    records: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Hop:
    """One commit: claims that end, claims that move, entries that begin."""

    finished: tuple[Claim, ...] = ()
    moved: tuple[Move, ...] = ()
    added: tuple[Add, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether one operation does it all, so that nothing has to be synced."""
        if self.added or len(self.finished) + len(self.moved) > 1:
            return False
        return not any(move.rewrites for move in self.moved)


@dataclass(slots=True)
class Recovered:
    """What a look through the range found: entries put back after a death (suspects of it), and moved on.

    ``looked``: somebody died while he looked at what was due (``looking``), so any of that may have done it.
    """

    suspects: set[str] = field(default_factory=set)
    looked: bool = False
    rolled: int = 0
    shunted: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)


class Lease(Protocol):
    """The right to claim in one range of one queue, for as long as it is held."""

    queue: str
    range: Range
    holder: Holder

    def refresh(self) -> Recovered:
        """Looks through the whole range: finishes what died half done, puts back what its claimant left, learns
        what is ready. At start, at every poll, and when the backend has lost count. May take seconds; any thread."""
        ...

    def due(self, now_ns: int, limit: int) -> Sequence[Ref]:
        """Up to ``limit`` entries due by now, oldest first. They are not given again until ``refresh``, or ``renew``."""
        ...

    def renew(self, ref: Ref, due_ns: int | None = None) -> None:
        """Gives a ref back to be had from ``due`` again, at its time or at ``due_ns``."""
        ...

    def next_due_ns(self, after_ns: int = -1) -> int | None:
        """When the earliest known entry that ``due`` has not given, and that is due after ``after_ns``, is due;
        None: nothing waits."""
        ...

    def peek(self, now_ns: int) -> Sequence[Ref]:
        """All entries due by now, oldest first, looked at only: ``due`` will still give them."""
        ...

    def read(self, ref: Ref) -> Entry | None:
        """The entry without claiming it; None: it has gone, or was set aside as ``bad``."""
        ...

    def looking(self, on: bool) -> None:
        """Writes down that what is due is shown to somebody now, or no longer, without being claimed. ``OSError``: it
        could not be written."""
        ...

    def claim(self, ref: Ref) -> Claim | None:
        """Takes an entry in hand; None: somebody was faster, or it is no whole entry and was set aside in ``bad``."""
        ...

    def note(self, claim: Claim, record: Mapping[str, Any], *, sync: bool = False) -> None:
        """Adds a line to the history of an entry in hand; ``OSError``: it is not there."""
        ...

    def commit(self, hop: Hop) -> tuple[str, ...]:
        """Does all of it, once, and returns the ids of what was added. ``OSError``: nothing was done, the claims
        are still in hand. What fails after the point of no return is finished later, by us or by the next owner."""
        ...

    def put_back(self, claim: Claim) -> None:
        """As if it had not been claimed."""
        ...

    @property
    def stale(self) -> bool:
        """Whether the backend has lost count of what came, so that only ``refresh`` tells."""
        ...

    def subscribe(self, bell: Callable[[], None] | None) -> bool:
        """``bell`` is called in the running event loop whenever something may have come; None ends it.

        False: there is no bell here, and only ``refresh`` tells. To miss nothing, subscribe before the first refresh.
        """
        ...

    def stopping(self) -> None:
        """Writes down that we are about to stop: a death from here on is nobody's fault."""
        ...

    def release(self) -> None:
        """Gives the range up. What is still in hand is recovered by the next owner, unblamed."""
        ...


class Staging(Protocol):
    """Where a door keeps new entries until what it took them from says that they are its own.

    For mail that stays outside until a commit of the outside's own kind: a file that is moved, a mark in a journal.
    The door stages, commits there, and publishes. A key names what was taken; it is any text. Methods are called from
    any thread; those that meet a key at the same time are its caller's concern.

    Guarantees: what ``stage`` returns from is durable and in no queue. ``publish`` happens wholly, once it has begun,
    and once, whoever has to finish it. What a dead process staged is in ``staged`` of its successor: it knows by the
    key whether the outside had committed.
    """

    door: str

    def staged(self) -> Sequence[str]:
        """The keys that are neither published nor dropped."""
        ...

    def stage(self, batch: Mapping[str, Sequence[Add]]) -> Mapping[str, tuple[str, ...]]:
        """Makes the entries of these keys durable; their ids. Anything that was staged under one of the keys is dropped.

        :raises QueueError: none is staged: no space, or a queue that is not there.
        """
        ...

    def publish(self, keys: Collection[str]) -> None:
        """Hands the entries of these keys to their queues. A key that is not staged is left out.

        :raises OSError: not all of it is done; it can be called again.
        """
        ...

    def drop(self, keys: Collection[str]) -> None:
        """Takes the entries of these keys away, for good; of what has begun to be published, nothing. A key that is not
        staged is left out.

        :raises OSError: not all of it is done; it can be called again.
        """
        ...

    def release(self) -> None:
        """Lets another process have the door. What is staged stays."""
        ...


class Spool(Protocol):
    """All queues of a site."""

    def prepare(self, queues: Sequence[str]) -> None:
        """Makes the queues that are not there yet, durably."""
        ...

    def enqueue(self, queue: str, draft: Draft, *, delay_s: float = 0.0) -> str:
        """Accepts an entry; its id. Any thread; concurrent calls share their syncs.

        :raises QueueError: it is not accepted, for lack of space or of the queue: the caller still has it.
        """
        ...

    def enqueue_all(self, adds: Sequence[Add]) -> tuple[str, ...]:
        """``enqueue`` of several that belong together: all are accepted, or none. Their ids, in order."""
        ...

    def queues(self) -> tuple[str, ...]:
        """The names of the queues that are there."""
        ...

    def peek(self, queue: str, area: Area = "queue") -> Iterator[Ref]:
        """What is in a queue, or set aside from it; oldest due first. Needs no lease."""
        ...

    def counts(self, queue: str, now_ns: int, area: Area = "queue") -> Counts:
        """``peek``, counted; much cheaper where very many wait."""
        ...

    def has_work(self, queue: str, now_ns: int) -> bool:
        """Whether anything in a queue is due by then, or in somebody's hand; False of one that is not there."""
        ...

    def read(self, ref: Ref) -> Entry:
        """The entry behind a ref. :raises CorruptEntry: it is none. :raises FileNotFoundError: it has moved."""
        ...

    def glance(self, ref: Ref) -> Glance:
        """What there is to be seen of it without its message, whose bytes are not proved. Raises as ``read``."""
        ...

    def content(self, ref: Ref) -> bytes:
        """The raw bytes the backend keeps of it (for ``bad``, whatever they are)."""
        ...

    def shift(
        self,
        ref: Ref,
        *,
        queue: str | None = None,
        area: Area = "queue",
        due_ns: int | None = None,
        record: Mapping[str, Any] | None = None,
    ) -> bool:
        """An operator's move of what nobody has in hand; False: it has gone or is in hand.

        :raises QueueError: the destination has one of that name.
        """
        ...

    def remove(self, ref: Ref) -> bool:
        """An operator's end of an entry; False: it has gone or is in hand."""
        ...

    def conclude(self, ref: Ref, follow: Callable[[Entry], Sequence[Add]]) -> tuple[str, ...] | None:
        """An operator's end of an entry, in a queue or set aside, in one commit with the entries that follow from it;
        their ids, or None: it has gone or is in hand.

        :param follow: given the entry as it is once nobody else can have it.
        :raises CorruptEntry: it is none, and stays. OSError, QueueError: nothing was done.
        """
        ...

    def lease(self, queue: str, range: Range, runner: str, slice: int, *, max_crashes: int = 3) -> Lease:
        """Takes a range. :raises LeaseHeld: a live one overlaps; the message names its holder."""
        ...

    def holders(self, queue: str) -> Sequence[Holder]:
        """The live holders of a queue's ranges."""
        ...

    def staging(self, door: str, runner: str = "") -> Staging:
        """Takes a door, once what its last holder had begun to publish is published.

        :param door: a name as of a queue.
        :param runner: who takes it, for people.
        :raises LeaseHeld: a live process has it; the message names it. OSError, QueueError: not now.
        """
        ...

    def explain(self, node: str, pid: int) -> None:
        """Writes down that we are about to kill this process: what it had in hand is not to blame."""
        ...
