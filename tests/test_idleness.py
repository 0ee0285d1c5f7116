"""Runners that work only while the machine is otherwise idle."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from qrunner import BatchRunner, Done, Entry, Fate, Requeue, Runner, TemporaryFailure
from qrunner.config import ConfigErrors, WhenIdle, parse
from qrunner.engine.choice import driver_for
from qrunner.engine.door import DoorEngine
from qrunner.engine.idleness import Idleness, too_busy
from qrunner.engine.loop import Engine
from qrunner.pressure import Load
from qrunner.runner import Door
from qrunner.site import Site
from qrunner.testing import FakeSite
from tests.driving import Bench, make_bench, running, until

BUSY, IDLE = Load(80.0, 99.0), Load(0.0, 1.0)


class Machine:
    """What a site is told of the machine."""

    def __init__(self, bench: Bench) -> None:
        self.load: Load | None = BUSY
        bench.site.pressure = lambda: self.load


@pytest.fixture(autouse=True)
def short_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("loop.LOOK_S", "loop._IDLE_LOOK_S", "door.LOOK_S"):
        monkeypatch.setattr(f"qrunner.engine.{place}", 0.02)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    (tmp_path / "var").mkdir()
    return make_bench(tmp_path, "only_when_idle = true")


@pytest.fixture
def machine(bench: Bench) -> Machine:
    return Machine(bench)


class Onward(Runner):
    async def dispose(self, entry: Entry) -> Fate:
        return entry.forward("out")


class OneByOne(BatchRunner):
    def dispose_batch(self, entries: Sequence[Entry]) -> Iterator[tuple[Sequence[Entry], Fate]]:
        for entry in entries:
            yield [entry], entry.forward("out")


class Gate(Door):
    async def serve(self, stopping: asyncio.Event) -> None:
        await stopping.wait()


@pytest.mark.parametrize("runner_class", [Onward, OneByOne])
def test_nothing_is_begun_while_others_need_the_machine_and_all_of_it_afterwards(
    bench: Bench, machine: Machine, runner_class: type[Runner]
) -> None:
    bench.put(3)
    engine = bench.engine(runner_class)

    async def story() -> None:
        await until(lambda: engine.patient, "the wait")
        assert (engine.state, engine.in_hand) == ("waiting", 0)
        assert engine.reason == (
            "until the machine is idle: programs wait for a CPU 80.0 % of the time, more than 10 %"
        )
        since_ns = engine.since_ns
        machine.load = Load(None, 75.0)
        await until(lambda: "75.0 %" in engine.reason, "the new figure")
        assert (engine.since_ns, bench.where()) == (since_ns, {"in": 3})
        machine.load = IDLE
        await until(lambda: bench.where() == {"out": 3}, "all that has waited")
        assert (engine.state, engine.patient, engine.reason) == ("running", False, "")

    running(engine, story)
    assert [entry.attempts for entry in bench.entries("out")] == [0, 0, 0]


def test_what_is_in_hand_is_finished(bench: Bench, machine: Machine) -> None:
    go = asyncio.Event()

    class Slow(Runner):
        async def dispose(self, entry: Entry) -> Fate:
            await go.wait()
            return entry.forward("out")

    machine.load = IDLE
    bench.put(2)
    engine = bench.engine(Slow)

    async def story() -> None:
        await until(lambda: engine.in_hand == 1, "one in hand")
        machine.load = BUSY
        await until(lambda: engine.patient, "the wait")
        go.set()
        await until(lambda: bench.where() == {"in": 1, "out": 1} and not engine.in_hand, "the one in hand")

    running(engine, story)
    assert bench.where() == {"in": 1, "out": 1}


def test_a_batch_stops_between_two_pairs(bench: Bench, machine: Machine) -> None:
    class Burdens(BatchRunner):
        def dispose_batch(self, entries: Sequence[Entry]) -> Iterator[tuple[Sequence[Entry], Fate]]:
            yield entries[:1], entries[0].forward("out")
            machine.load = BUSY
            yield entries[1:2], entries[1].forward("out")
            yield entries[2:], Done()

    machine.load = IDLE
    bench.put(3)
    engine = bench.engine(Burdens)

    async def story() -> None:
        await until(lambda: engine.patient, "the wait")

    running(engine, story)
    assert bench.where() == {"in": 1, "out": 2}


def test_a_runner_with_nothing_to_do_waits_for_nothing(bench: Bench, machine: Machine) -> None:
    bench.put(1, delay=3600)
    engine = bench.engine(Onward)

    async def story() -> None:
        await until(lambda: engine.state == "running", "its start")
        bench.put(1)
        await until(lambda: engine.patient, "the wait")

    running(engine, story)
    assert bench.where() == {"in": 2}


def test_once_waits_for_an_idle_time_and_ends_when_nothing_is_due(bench: Bench, machine: Machine) -> None:
    bench.put(1)
    bench.put(1, delay=3600)
    engine = bench.engine(Onward)

    async def story() -> None:
        run = asyncio.create_task(engine.run(once=True))
        await until(lambda: engine.patient, "the wait")
        assert not run.done()
        machine.load = IDLE
        await asyncio.wait_for(run, 20)

    asyncio.run(story())
    assert bench.where() == {"in": 1, "out": 1}


def test_a_stop_ends_the_wait(bench: Bench, machine: Machine) -> None:
    bench.put(1)
    engine = bench.engine(Onward)

    async def story() -> None:
        await until(lambda: engine.patient, "the wait")

    running(engine, story)
    assert (engine.state, bench.where()) == ("stopped", {"in": 1})


def test_an_operators_word_goes_before(bench: Bench, machine: Machine) -> None:
    bench.put(1)
    engine = bench.engine(Onward)

    async def story() -> None:
        await until(lambda: engine.patient, "the wait")
        bench.site.suspensions.suspend(("runner", "in"))
        await until(lambda: engine.state == "suspended", "the suspension")
        assert not engine.patient
        bench.site.suspensions.resume(("runner", "in"))
        await until(lambda: engine.patient, "the wait")

    running(engine, story)


def test_waiting_does_not_spin(bench: Bench, machine: Machine) -> None:
    asked = 0

    def load() -> Load:
        nonlocal asked
        asked += 1
        return BUSY

    bench.site.pressure = load
    bench.put(5)
    engine = bench.engine(Onward)

    async def story() -> None:
        await until(lambda: engine.patient, "the wait")
        before = asked
        for _ in range(50):
            await asyncio.sleep(0)
        assert asked - before <= 2

    running(engine, story)


def test_the_log_does_not_repeat_what_comes_and_goes(
    bench: Bench, machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    engine = bench.engine(Onward)

    def waits() -> bool:
        # One that comes while the machine is being looked at may still go by what was seen before.
        if "in" not in bench.where():
            bench.put(1)
        return engine.patient

    async def story() -> None:
        for _ in range(3):
            machine.load = BUSY
            await until(waits, "the wait")
            machine.load = IDLE
            await until(lambda: "in" not in bench.where() and not engine.in_hand, "its end")

    with caplog.at_level(logging.INFO):
        running(engine, story)
    assert sum("until the machine is idle" in one.getMessage() for one in caplog.records) == 1


def test_a_door_is_closed_while_others_need_the_machine(tmp_path: Path) -> None:
    (tmp_path / "qfiles").mkdir()
    text = '[site]\nqueue_dir = "../qfiles"\n[runner.gate]\nclass = "lmtp"\nlisten = "127.0.0.1:0"\nnext = "in"\n'
    site = Site(
        parse(text + "only_when_idle = true", tmp_path / "etc" / "qrunner.toml"), pressure=lambda: load
    )
    load = BUSY
    engine = driver_for(site, site.config.runners["gate"], 0, Gate, log=logging.getLogger("qrunner.test"))
    assert isinstance(engine, DoorEngine)

    async def story() -> None:
        nonlocal load
        run = asyncio.create_task(engine.run())
        await until(lambda: engine.patient, "the wait")
        assert "not idle: programs wait" in str(engine.suspension)
        load = IDLE
        await until(lambda: engine.state == "running", "its opening")
        assert engine.suspension is None
        engine.stop()
        await asyncio.wait_for(run, 20)

    asyncio.run(story())


# Queues

QUEUES = """
[runner.in]
class = "incoming"
next = "out"
[runner.out]
class = "outgoing"
smtp = []
[runner.off]
class = "incoming"
enabled = false
next = "out"
[runner.late]
class = "m:C"
only_when_idle = true
[runner.bounces]
class = "m:C"
only_when_idle = {when}
[balance.mtas]
members = {{ in = 1, inner = 1 }}
[route.inner]
rules = [{{ recipient = "a@*", queue = "out" }}, {{ queue = "in" }}]
"""


@pytest.mark.parametrize(
    ("when", "queues"),
    [
        ("true", ("in", "out")),
        ("{ pressure = 30 }", ("in", "out")),
        ('{ queues = ["off", "late"] }', ("off", "late")),
        ('{ queues = "mtas" }', ("in", "out")),
        ("false", ()),
    ],
)
def test_the_queues_that_must_be_empty(when: str, queues: tuple[str, ...]) -> None:
    text = QUEUES.format(when=when).replace("smtp = []", 'smtp = "mta"\n[smtp.mta]\nhost = "h"\n[runner.x]')
    text = text.replace("[runner.x]", "")
    config = parse(text, Path("/nowhere/etc/qrunner.toml"))
    assert config.watched(config.runners["bounces"]) == queues


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("one", "one", "runner.one.only_when_idle: waits until its own queue"),
        ("two", "one", "each waits until the next has nothing to do"),
        ("both", "one", "each waits until the next has nothing to do"),
    ],
)
def test_runners_that_would_wait_for_each_other_for_ever_are_an_error(a: str, b: str, expected: str) -> None:
    text = f"""
[runner.one]
class = "m:C"
only_when_idle = {{ queues = ["{a}"] }}
[runner.two]
class = "m:C"
only_when_idle = {{ queues = ["{b}"] }}
[balance.both]
members = {{ two = 1, three = 1 }}
"""
    with pytest.raises(ConfigErrors) as found:
        parse(text, Path("/nowhere/etc/qrunner.toml"))
    assert expected in str(found.value)


@pytest.mark.parametrize("pressure", [-1, 101, '"10"', "true"])
def test_pressure_is_a_percentage(pressure: object) -> None:
    with pytest.raises(ConfigErrors, match="from 0 to 100"):
        parse(
            f'[runner.one]\nclass = "m:C"\nonly_when_idle = {{ pressure = {pressure} }}',
            Path("/nowhere/q.toml"),
        )


@pytest.mark.parametrize(
    ("load", "pressure", "idle"),
    [
        (None, 100, False),
        (Load(10.0, 40.0), 10, True),
        (Load(10.1, 0.0), 10, False),
        (Load(0.0, 41.0), 10, False),
        (Load(None, 39.0), 10, True),
        (Load(None, 50.0), 10, False),
        (Load(60.0, 60.0), 60, True),
        (Load(100.0, 100.0), 100, True),
    ],
)
def test_when_the_cpus_are_idle(load: Load | None, pressure: float, idle: bool) -> None:
    assert (too_busy(load, WhenIdle(pressure)) == "") is idle


def test_looking_at_long_queues_costs_a_twentieth_of_the_time(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, 'only_when_idle = { queues = ["out"] }')
    Machine(bench).load = IDLE
    now_s, spent_s, looks = 0.0, 0.0, 0

    def has_work(queue: str, now_ns: int) -> bool:
        nonlocal spent_s, looks
        spent_s += 0.5
        looks += 1
        return False

    bench.site.spool.has_work = has_work  # type: ignore[method-assign]
    config = bench.site.config.runners["in"]
    idleness = Idleness(bench.site, config, monotonic_s=lambda: now_s, cost_s=lambda: spent_s)

    async def story() -> None:
        nonlocal now_s
        assert await idleness.why_not() == ""
        now_s += 9.9
        await idleness.why_not()
        assert looks == 1
        now_s += 0.2
        await idleness.why_not()
        assert looks == 2

    asyncio.run(story())


def test_a_queue_that_can_not_be_looked_at_is_not_taken_for_empty(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, 'only_when_idle = { queues = ["out"] }')
    Machine(bench).load = IDLE

    def has_work(queue: str, now_ns: int) -> bool:
        raise OSError(5, "input/output error")

    bench.site.spool.has_work = has_work  # type: ignore[method-assign]
    assert "out" in asyncio.run(Idleness(bench.site, bench.site.config.runners["in"]).why_not())


# A whole site

SITE = f"""
[runner.in]
class = "{__name__}:Slowly"
retry = {{ first = "5m" }}
[runner.bounces]
class = "{__name__}:Late"
only_when_idle = {{ queues = ["in"] }}
retry = {{ first = "1h", lifetime = "2d", jitter = 0 }}
report = "none"
[runner.other]
class = "{__name__}:Late"
only_when_idle = true
"""


class Slowly(Runner):
    async def dispose(self, entry: Entry) -> Fate:
        if entry.header("X-Wait"):
            return Requeue(600)
        return Done()


class Late(Runner):
    async def dispose(self, entry: Entry) -> Fate:
        if entry.header("X-Fail"):
            raise TemporaryFailure("later")
        return Done()


def engine_of(site: FakeSite, name: str) -> Engine:
    return next(one for one in site.engines if one.config.name == name)


def test_a_site_can_be_tested_under_pressure() -> None:
    with FakeSite(SITE) as site:
        site.pressure = 50
        site.enqueue("bounces")
        site.enqueue("other")
        site.enqueue("in")
        site.run_until_idle()
        assert [len(site.entries(queue)) for queue in ("in", "bounces", "other")] == [0, 1, 1]
        assert engine_of(site, "bounces").state == "waiting"
        site.pressure = 10
        site.run_until_idle()
        assert [len(site.entries(queue)) for queue in ("bounces", "other")] == [0, 0]


def test_mail_that_is_put_off_does_not_stand_in_the_way_and_mail_that_is_due_does() -> None:
    with FakeSite(SITE) as site:
        site.enqueue("in", message=b"X-Wait: 1\n\n")
        site.enqueue("bounces")
        site.run_until_idle()
        assert (len(site.entries("in")), len(site.entries("bounces"))) == (1, 0)
        engine_of(site, "in")._is_suspended = lambda: True  # type: ignore[method-assign]
        site.enqueue("in")
        site.enqueue("bounces")
        site.run_until_idle()
        assert len(site.entries("bounces")) == 1
        assert engine_of(site, "bounces").reason == "until the machine is idle: the queue in has work to do"


def test_waiting_for_an_idle_time_costs_no_lifetime() -> None:
    with FakeSite(SITE) as site:
        site.pressure = 50
        site.enqueue("bounces", message=b"X-Fail: 1\n\n")
        site.run_until_idle()
        for hours in range(3):
            # Three days too busy, an attempt, and three days too busy again.
            site.clock.advance("3d")
            site.pressure = 0
            site.run_until_idle()
            (entry,) = site.entries("bounces")
            assert entry.attempts == hours + 1
            site.pressure = 50
            site.clock.advance("1h")
            site.run_until_idle()
        site.pressure = 0
        for _ in range(60):
            site.run_until_idle()
            site.clock.advance("1h")
        assert site.entries("bounces") == []
