"""Doors: what brings mail in from outside, and owns no queue."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from qrunner.config import parse
from qrunner.engine.door import DoorEngine
from qrunner.errors import PermanentFailure, QRunnerError, QueueError, TemporaryFailure
from qrunner.fate import Done, Fate, Hold, Requeue
from qrunner.message import Draft, Entry, Envelope
from qrunner.runner import Door
from qrunner.site import Site
from tests.driving import LIMIT_S, until

TOML = """
[site]
queue_dir = "../qfiles"
state_dir = "../var"
min_free = "0"
[route.main]
rules = [{{ recipient = "*@b", queue = "other" }}, {{ queue = "out" }}]
[runner.gate]
class = "lmtp"
listen = "127.0.0.1:0"
{keys}
"""


class Gate(Door):
    """Does what a test says."""

    async def serve(self, stopping: asyncio.Event) -> None:
        await stopping.wait()


class Closing(Door):
    async def serve(self, stopping: asyncio.Event) -> None:
        return


class Broken(Door):
    async def start(self) -> None:
        raise OSError("the address is in use")


def refuse(entry: Entry) -> Entry:
    raise PermanentFailure("we do not want it", status="5.7.1")


def wait(entry: Entry) -> Entry:
    raise TemporaryFailure("not now")


def bug(entry: Entry) -> Entry:
    raise KeyError("x")


def drop(entry: Entry) -> Fate:
    return Done("nobody needs it")


def tag(entry: Entry) -> Entry:
    return entry.with_header("X-Seen", "1")


def turn(entry: Entry) -> Fate:
    return [entry.forward("other"), entry.forward("out", delay=60)]


def hold(entry: Entry) -> Fate:
    return Hold("a person looks")


def requeue(entry: Entry) -> Fate:
    return Requeue(60, "at night")


def nonsense(entry: Entry) -> object:
    return 7


DRAFT = Draft(b"Subject: hi\n\nhello\n", Envelope.of("s@x", ["r@a", "r@b"]), {"list": "dev"})


class Place:
    """A site with one door, which runs while a story is told."""

    def __init__(self, folder: Path, keys: str) -> None:
        (folder / "qfiles").mkdir()
        self.site = Site(parse(TOML.format(keys=keys), folder / "etc" / "qrunner.toml"))
        self.site.spool.prepare(["out", "other"])

    def engine(self, kind: type[Door] = Gate) -> DoorEngine:
        config = self.site.config.runners["gate"]
        return DoorEngine(self.site, config, 0, kind, log=logging.getLogger("qrunner.test"))

    def tell(self, story: Callable[[DoorEngine], Awaitable[None]], kind: type[Door] = Gate) -> DoorEngine:
        async def both() -> DoorEngine:
            engine = self.engine(kind)
            run = asyncio.create_task(engine.run())
            await until(lambda: engine.state != "starting" or run.done())
            try:
                await story(engine)
            finally:
                engine.stop()
                await asyncio.wait_for(run, LIMIT_S)
            return engine

        return asyncio.run(both())

    def take(self, draft: Draft = DRAFT) -> tuple[str, ...]:
        found: list[tuple[str, ...]] = []

        async def story(engine: DoorEngine) -> None:
            found.append(await engine.take(draft))

        self.tell(story)
        return found[0]

    def entries(self, queue: str) -> list[Entry]:
        return list(self.site.entries(queue))


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(tmp_path, getattr(request, "param", 'next = "out"'))


def handler(function: Callable[[Entry], object]) -> pytest.MarkDecorator:
    keys = f'next = "out"\nhandlers = ["{__name__}:{function.__name__}"]'
    return pytest.mark.parametrize("place", [keys], indirect=True)


def test_what_is_taken_goes_to_the_next_queue_and_names_its_door(place: Place) -> None:
    ids = place.take()
    (entry,) = place.entries("out")
    assert ids == (entry.id,)
    assert entry.message == DRAFT.message
    assert entry.recipients == ("r@a", "r@b")
    assert entry.meta == {"list": "dev", "source": "gate"}


@pytest.mark.parametrize("place", ['next = ["out", "other"]'], indirect=True)
def test_what_goes_to_two_queues_is_two_entries(place: Place) -> None:
    ids = place.take()
    assert sorted(ids) == sorted(one.id for queue in ("out", "other") for one in place.entries(queue))
    assert len(set(ids)) == 2


@pytest.mark.parametrize("place", ['next = "main"'], indirect=True)
def test_a_route_splits_what_is_taken(place: Place) -> None:
    place.take()
    assert [one.recipients for one in place.entries("out")] == [("r@a",)]
    assert [one.recipients for one in place.entries("other")] == [("r@b",)]


@handler(tag)
def test_handlers_come_first(place: Place) -> None:
    place.take()
    assert place.entries("out")[0].header("X-Seen") == "1"


@handler(turn)
def test_a_handler_may_choose_the_queues(place: Place) -> None:
    place.take()
    (now,), (later,) = place.entries("other"), place.entries("out")
    assert (later.due - now.due).total_seconds() == pytest.approx(60)


@handler(drop)
def test_a_handler_may_finish_it(place: Place) -> None:
    assert place.take() == ()
    assert not place.entries("out")


@pytest.mark.parametrize("place", [f'next = "main"\nhandlers = ["{__name__}:hold"]'], indirect=True)
def test_a_handler_may_hold_it(place: Place) -> None:
    (id,) = place.take()
    spool = place.site.spool
    (ref,) = [ref for queue in ("out", "other") for ref in spool.peek(queue, "hold")]
    entry = spool.read(ref)
    assert (entry.id, entry.recipients, entry.meta["source"]) == (id, ("r@a", "r@b"), "gate")
    assert [line["reason"] for line in entry.history] == ["a person looks"]
    assert not place.entries("out")


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        (f'next = "out"\nhandlers = ["{__name__}:refuse"]', PermanentFailure),
        (f'next = "out"\nhandlers = ["{__name__}:wait"]', TemporaryFailure),
        (f'next = "out"\nhandlers = ["{__name__}:bug"]', QueueError),
        (f'next = "out"\nhandlers = ["{__name__}:nonsense"]', QueueError),
        (f'next = "out"\nhandlers = ["{__name__}:requeue"]', TemporaryFailure),
    ],
    indirect=["place"],
)
def test_what_is_refused_is_the_callers_still(place: Place, expected: type[Exception]) -> None:
    with pytest.raises(expected):
        place.take()
    assert not place.entries("out")


def test_a_door_that_cannot_write_says_why_and_opens_again(place: Place) -> None:
    async def story(engine: DoorEngine) -> None:
        away = place.site.spool.layout.root + "/out"  # type: ignore[attr-defined]
        Path(away).rename(away + "-away")
        with pytest.raises(QueueError):
            await engine.take(DRAFT)
        assert engine.state == "waiting"
        assert "no queue out" in engine.reason
        Path(away + "-away").rename(away)
        await engine.take(DRAFT)
        assert engine.state == "running"

    place.tell(story)


def test_a_suspended_door_says_so(place: Place) -> None:
    place.site.suspensions.suspend(("runner", "gate"), reason="works")

    async def story(engine: DoorEngine) -> None:
        assert engine.state == "suspended"
        assert engine.runner.suspension is not None  # type: ignore[attr-defined]
        place.site.suspensions.resume(("runner", "gate"))
        await until(lambda: engine.state == "running")

    place.tell(story)


def test_a_door_that_closes_by_itself_has_failed(place: Place) -> None:
    engine = None

    async def story() -> None:
        nonlocal engine
        engine = place.engine(Closing)
        await asyncio.wait_for(engine.run(), LIMIT_S)

    with pytest.raises(QRunnerError, match="closed by itself"):
        asyncio.run(story())
    assert engine is not None
    assert engine.state == "failed"


def test_a_door_that_cannot_open_does_not_come_up(place: Place) -> None:
    async def story() -> None:
        await place.engine(Broken).run()

    with pytest.raises(OSError, match="in use"):
        asyncio.run(story())
