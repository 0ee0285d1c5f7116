"""Everything that can become of an entry, as a step that a process may die in: what was before it, and what is after.

A transition is *set up* (its claims taken, in the process that will die), then *made*, every change counted. All
start from ``parents`` entries p0, p1 … in the queue ``in``; the entries that a transition adds are c0, c1 …
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qrunner.message import Draft, Entry, Envelope
from qrunner.slices import WHOLE
from qrunner.switchboard import Add, Area, Claim, Hop, Lease, Move
from qrunner.switchboard.files import FilesSpool
from tests.crash.looking import Place

QUEUES = ("in", "out", "third")
PEOPLE = ("bob@example.net", "eve@example.net")
DAY_NS = 86_400 * 10**9

Step = Callable[[], object]
Places = Counter[Place]


@dataclass(frozen=True, slots=True)
class Transition:
    """One step.

    :param begin: sets it up and returns the step.
    :param before, after: where everything is, if the step is not made, and if it is.
    :param piecewise: it is several steps, each whole, and a death may come between them.
    :param check: what holds of an entry that was there before.
    """

    begin: Callable[[FilesSpool], Step]
    before: Places
    after: Places
    parents: int = 1
    piecewise: bool = False
    check: Callable[[Entry, bool], None] = lambda entry, made: None


def draft(tag: str) -> Draft:
    """A message to two people."""
    message = f"Subject: {tag}\n\n{'A line of text. ' * 40}\n".encode()
    return Draft(message, Envelope.of("ann@example.org", PEOPLE))


def at(queue: str, *tags: str, area: Area = "queue", later: bool = False) -> Places:
    """These messages in this place."""
    return Counter(Place(area, queue, tag, later) for tag in tags)


def claims_of(spool: FilesSpool) -> tuple[Lease, list[Claim]]:
    """All that is due in ``in``, in hand."""
    lease = spool.lease("in", WHOLE, "in", 0)
    lease.refresh()
    taken = [lease.claim(ref) for ref in lease.due(time.time_ns(), 100)]
    claims = [claim for claim in taken if claim is not None]
    assert len(claims) == len(taken) > 0
    return lease, sorted(claims, key=lambda claim: claim.entry.header("Subject") or "")


def committing(make: Callable[[list[Claim]], Hop]) -> Callable[[FilesSpool], Step]:
    """A commit of what is in hand."""

    def begin(spool: FilesSpool) -> Step:
        lease, claims = claims_of(spool)
        hop = make(claims)
        return lambda: lease.commit(hop)

    return begin


def moved(
    claim: Claim, queue: str, *what: str, area: Area = "queue", later: bool = False, tag: str = ""
) -> Move:
    """A claim's way on, with these lines of history, and with other content if it has a new ``tag``."""
    content = claim.entry.replace(message=f"Subject: {tag}\n\nchanged\n".encode()) if tag else None
    records = tuple({"what": one, "to": [PEOPLE[1]], "text": "a reply"} for one in what)
    return Move(claim, queue, time.time_ns() + (DAY_NS if later else 0), area, content, records)


def added(*queues: str) -> tuple[Add, ...]:
    """New entries."""
    return tuple(Add(draft(f"c{n}"), queue, time.time_ns()) for n, queue in enumerate(queues))


def noted(begin: Callable[[Lease, Claim], Step]) -> Callable[[FilesSpool], Step]:
    """Of an entry that has delivered to one of its recipients."""

    def setting_up(spool: FilesSpool) -> Step:
        lease, (claim,) = claims_of(spool)
        lease.note(claim, {"what": "delivered", "to": [PEOPLE[0]]})
        return begin(lease, claim)

    return setting_up


def owes_the_rest(entry: Entry, made: bool) -> None:
    assert entry.recipients == PEOPLE[1:]
    assert entry.attempts <= 1


def owes_the_rest_after_the_note(entry: Entry, made: bool) -> None:
    assert entry.recipients == PEOPLE[1:] or not made


def has_one_attempt(entry: Entry, made: bool) -> None:
    attempts = [line for line in entry.history if line["what"] == "attempt"]
    assert len(attempts) == 1 if made else len(attempts) <= 1, entry.history


def _merge(claims: list[Claim]) -> Hop:
    return Hop(finished=tuple(claims), added=added("out"))


def _defer(lease: Lease, claim: Claim) -> Step:
    hop = Hop(moved=(moved(claim, "in", "deferred", "attempt", later=True),))
    return lambda: lease.commit(hop)


def _shift(lies: Area, **where: object) -> Callable[[FilesSpool], Step]:
    """An operator's move of an entry that lies there."""

    def begin(spool: FilesSpool) -> Step:
        (ref,) = spool.peek("in")
        if lies != "queue":
            assert spool.shift(ref, area=lies)
            (ref,) = spool.peek("in", lies)
        return lambda: spool.shift(ref, record={"what": "release"}, **where)  # type: ignore[arg-type]

    return begin


def _conclude(lies: Area, *, report: bool = True) -> Callable[[FilesSpool], Step]:
    """An operator's end of an entry that lies there, with what follows from it."""

    def begin(spool: FilesSpool) -> Step:
        (ref,) = spool.peek("in")
        if lies != "queue":
            assert spool.shift(ref, area=lies)
            (ref,) = spool.peek("in", lies)
        return lambda: spool.conclude(ref, lambda entry: added("third") if report else ())

    return begin


def _remove(spool: FilesSpool) -> Step:
    (ref,) = spool.peek("in")
    return lambda: spool.remove(ref)


def _each(do: Callable[[Lease, Claim], object]) -> Callable[[FilesSpool], Step]:
    def begin(spool: FilesSpool) -> Step:
        lease, claims = claims_of(spool)
        return lambda: [do(lease, claim) for claim in claims]

    return begin


def _claim(spool: FilesSpool) -> Step:
    lease = spool.lease("in", WHOLE, "in", 0)
    lease.refresh()
    refs: Sequence[object] = lease.due(time.time_ns(), 100)
    return lambda: [lease.claim(ref) for ref in refs]  # type: ignore[arg-type]


def recovering(spool: FilesSpool) -> Step:
    """What the next owner of the range does before anything else."""
    lease = spool.lease("in", WHOLE, "in", 0)
    return lambda: lease.refresh()


def taking_the_range(spool: FilesSpool) -> Step:
    """The same, from its first look at who else is there."""
    return lambda: spool.lease("in", WHOLE, "in", 0).refresh()


P0, P3 = at("in", "p0"), at("in", "p0", "p1", "p2")
C0 = at("out", "c0")
HELD = at("in", "p0", area="hold")
ASIDE: tuple[Area, ...] = ("queue", "hold", "shunt")
TWENTY = ("out", "third") * 10
FORK = at("out", "c0") + at("third", "c1") + at("out", "c2")

TRANSITIONS = {
    "enqueue": Transition(lambda spool: lambda: spool.enqueue("out", draft("c0")), Counter(), C0, parents=0),
    "enqueue three": Transition(
        lambda spool: lambda: spool.enqueue_all(added("out", "third", "out")),
        Counter(),
        FORK,
        parents=0,
        piecewise=True,
    ),
    "claim": Transition(_claim, P3, P3, parents=3),
    "put back": Transition(_each(lambda lease, claim: lease.put_back(claim)), P3, P3, parents=3),
    "hop": Transition(committing(lambda c: Hop(moved=(moved(c[0], "out"),))), P0, at("out", "p0")),
    "hop of one half delivered": Transition(
        noted(lambda lease, claim: lambda: lease.commit(Hop(moved=(moved(claim, "out"),)))),
        P0,
        at("out", "p0"),
        check=owes_the_rest,
    ),
    "hop with other content": Transition(
        committing(lambda c: Hop(moved=(moved(c[0], "out", tag="new"),))), P0, at("out", "new")
    ),
    "stay with other content": Transition(
        committing(lambda c: Hop(moved=(moved(c[0], "in", "attempt", later=True, tag="new"),))),
        P0,
        at("in", "new", later=True),
        check=has_one_attempt,
    ),
    "one to three": Transition(
        committing(lambda c: Hop(finished=(c[0],), added=added("out", "third", "out"))), P0, FORK
    ),
    "one to twenty": Transition(
        committing(lambda c: Hop(finished=(c[0],), added=added(*TWENTY))),
        P0,
        at("out", *(f"c{n}" for n in range(0, 20, 2))) + at("third", *(f"c{n}" for n in range(1, 20, 2))),
    ),
    "three to one": Transition(committing(_merge), P3, C0, parents=3),
    "three to three": Transition(
        committing(lambda c: Hop(finished=tuple(c), added=added("out", "third", "out"))), P3, FORK, parents=3
    ),
    "finished with a report": Transition(
        committing(lambda c: Hop(finished=(c[0],), added=added("third"))), P0, at("third", "c0")
    ),
    "deferred with a report": Transition(
        committing(
            lambda c: Hop(moved=(moved(c[0], "in", "failed", "attempt", later=True),), added=added("third"))
        ),
        P0,
        at("in", "p0", later=True) + at("third", "c0"),
        check=has_one_attempt,
    ),
    "other content with a report": Transition(
        committing(lambda c: Hop(moved=(moved(c[0], "out", tag="new"),), added=added("third"))),
        P0,
        at("out", "new") + at("third", "c0"),
    ),
    "three held at once": Transition(
        committing(lambda c: Hop(moved=tuple(moved(one, "in", "hold", area="hold") for one in c))),
        P3,
        at("in", "p0", "p1", "p2", area="hold"),
        parents=3,
    ),
    "shunt": Transition(
        committing(lambda c: Hop(moved=(moved(c[0], "in", "shunt", area="shunt"),))),
        P0,
        at("in", "p0", area="shunt"),
    ),
    "defer": Transition(noted(_defer), P0, at("in", "p0", later=True), check=owes_the_rest),
    "finish": Transition(committing(lambda c: Hop(finished=(c[0],))), P0, Counter()),
    "note": Transition(
        _each(lambda lease, claim: lease.note(claim, {"what": "delivered", "to": [PEOPLE[0]]}, sync=True)),
        P0,
        P0,
        check=owes_the_rest_after_the_note,
    ),
    "an operator's requeue": Transition(_shift("queue", queue="out"), P0, at("out", "p0")),
    "an operator's release": Transition(_shift("hold", area="queue"), at("in", "p0", area="hold"), P0),
    "an operator's delete": Transition(_remove, P0, Counter()),
    **{
        f"an operator's end with a report, in {area}": Transition(
            _conclude(area), at("in", "p0", area=area), at("third", "c0")
        )
        for area in ASIDE
    },
    "an operator's end without one": Transition(_conclude("hold", report=False), HELD, Counter()),
}
