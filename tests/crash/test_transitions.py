"""A process dies at every call of every transition, however fast the next runner is: nothing lost, nothing twice.

Guarantees shown: G1, G2, G4, and that a death is written down once. The deaths of a machine are not shown here.
"""

from __future__ import annotations

from collections import Counter

import pytest

from tests.crash.calls import points
from tests.crash.dying import Stage
from tests.crash.transitions import TRANSITIONS, Places, Transition, recovering, taking_the_range

# It makes so many calls that fewer of them than of others are for the light tests.
LONG = "one to twenty"


def is_whole(transition: Transition, places: Places) -> bool:
    """Whether what there is, is a state that a death may leave."""
    if transition.piecewise:
        return places <= transition.after
    return places in (transition.before, transition.after)


def judge(transition: Transition, stage: Stage, *, returned: bool, before: Places | None = None) -> Places:
    """What lies there is whole; the next owner comes, and everything is where it was at the death."""
    places = stage.places(stage.look())
    assert places == before if before is not None else is_whole(transition, places)
    assert not returned or places == transition.after
    sight = stage.recover()
    assert stage.places(sight) == places
    for entry in sight.entries:
        if not (entry.header("Subject") or "").startswith("c"):
            transition.check(entry, places == transition.after and returned)
        lines = [(line["t"], line["what"]) for line in entry.history]
        assert len(lines) == len(set(lines)), "a line was repeated"
        assert sum(what == "crash" for _, what in lines) <= 1, "blamed twice for one death"
    stage.empty(sight)
    return places


@pytest.mark.parametrize(
    ("every", "eager"),
    [
        pytest.param(1, False, marks=pytest.mark.stress),
        pytest.param(1, True, marks=pytest.mark.stress),
        (3, True),
    ],
    ids=["the next runner is slow", "the next runner is fast", "the next runner is fast, some"],
)
@pytest.mark.parametrize("name", TRANSITIONS)
def test_a_death_at_any_call_neither_loses_nor_doubles(
    stage: Stage, name: str, every: int, eager: bool
) -> None:
    transition = TRANSITIONS[name]
    stage.fill(transition)
    clean = stage.die_in(transition.begin)
    judge(transition, stage, returned=True)
    for point in points(clean.calls, every * 3 if every > 1 and name == LONG else every):
        stage.fill(transition)
        death = stage.die_in(transition.begin, point, eager=eager)
        # Of two entries that lie in one directory, it is synced once: such a run is over before its last point.
        assert death.returned is (point is None or len(death.calls) <= point.at)
        judge(transition, stage, returned=death.returned)
    stage.sweep()


@pytest.mark.parametrize(
    "name",
    [
        "claim",
        "hop with other content",
        pytest.param("one to three", marks=pytest.mark.stress),
        pytest.param("deferred with a report", marks=pytest.mark.stress),
        pytest.param("three to one", marks=pytest.mark.stress),
        pytest.param("other content with a report", marks=pytest.mark.stress),
        pytest.param("three held at once", marks=pytest.mark.stress),
        pytest.param("defer", marks=pytest.mark.stress),
        pytest.param("an operator's end with a report, in hold", marks=pytest.mark.stress),
        pytest.param("an operator's end with a report, in queue", marks=pytest.mark.stress),
    ],
)
def test_a_death_at_any_call_of_a_recovery_neither_loses_nor_doubles(stage: Stage, name: str) -> None:
    transition = TRANSITIONS[name]
    stage.fill(transition)
    clean = stage.die_in(transition.begin)
    judge(transition, stage, returned=True)
    tried: set[tuple[str, ...]] = set()
    for first in points(clean.calls):
        stage.fill(transition)
        returned = stage.die_in(transition.begin, first).returned
        recovery = stage.die_in(recovering, eager=True).calls
        judge(transition, stage, returned=returned)
        # One of those deaths after which there is the same to do.
        for second in [] if recovery in tried else points(recovery):
            stage.fill(transition)
            returned = stage.die_in(transition.begin, first).returned
            places = stage.places(stage.look())
            stage.die_in(recovering, second, eager=True)
            judge(transition, stage, returned=returned, before=places)
        tried.add(recovery)
    stage.sweep()


def test_a_death_at_any_call_that_takes_a_range_leaves_nothing_behind(stage: Stage) -> None:
    stage.recover()
    nothing = Transition(taking_the_range, Counter(), Counter(), parents=0)
    for point in points(stage.die_in(taking_the_range).calls):
        assert stage.die_in(taking_the_range, point).returned is (point is None)
        judge(nothing, stage, returned=False)
    stage.sweep()
