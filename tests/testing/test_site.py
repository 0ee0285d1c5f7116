"""A whole site in the test's own process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence

import pytest

from qrunner import BatchRunner, Done, Entry, Fate, PermanentFailure, Requeue, Runner, TemporaryFailure
from qrunner.config import ConfigErrors
from qrunner.errors import ConfigError, QueueError
from qrunner.testing import FakeClock, FakeSite

# What an installed qrunner has by its entry point.
pytest_plugins = ["qrunner.testing.plugin"]

Make = Callable[[str], FakeSite]

SITE = '[site]\nhostname = "lists.example.org"\npostmaster = "postmaster@lists.example.org"\n'
FLOW = (
    SITE
    + f"""
[smtp.mta1]
host = "mta1.example.org"
[smtp.mta2]
host = "mta2.example.org"

[runner.in]
class = "incoming"
handlers = ["{__name__}:tag"]
next = "out"

[runner.out]
class = "outgoing"
on_down = ["backoff"]
slices = [{{ weight = 2, smtp = "mta1" }}, {{ weight = 1, smtp = "mta2" }}]

[runner.backoff]
class = "outgoing"
smtp = ["mta1", "mta2"]
"""
)


def tag(entry: Entry) -> Entry:
    return entry.with_header("X-Seen", "1")


def one(kind: str, more: str = "") -> str:
    return SITE + f'[runner.in]\nclass = "{__name__}:{kind}"\n{more}\n'


class Circle(Runner):
    def dispose(self, entry: Entry) -> Fate:
        return entry.forward("in")


class Stuck(Runner):
    async def dispose(self, entry: Entry) -> Fate:
        await asyncio.Event().wait()
        return Done()


class Moody(Runner):
    moods: Iterator[Exception | Fate] = iter(())

    async def dispose(self, entry: Entry) -> Fate:
        mood = next(self.moods)
        if isinstance(mood, Exception):
            raise mood
        return mood


class Broken(Runner):
    async def start(self) -> None:
        raise RuntimeError("no table of users")


class Lazy(Runner):
    seen: list[str] = []  # noqa: RUF012

    async def start(self) -> None:
        self.seen.append("start")

    async def idle(self) -> None:
        self.seen.append("idle")

    async def cleanup(self) -> None:
        self.seen.append("cleanup")

    def dispose(self, entry: Entry) -> Fate:
        return Done()


class Pairs(BatchRunner):
    def dispose_batch(self, entries: Sequence[Entry]) -> Iterator[tuple[Sequence[Entry], Fate]]:
        for pair in zip(entries[::2], entries[1::2], strict=False):
            yield pair, pair[0].forward("out")


def test_mail_goes_from_in_to_its_host(fake_site: Make) -> None:
    site = fake_site(FLOW)
    ids = [site.enqueue(recipients=[f"{n}@example.net"]) for n in range(30)]
    site.run_until_idle()
    taken = [message for sink in site.sink.values() for message in sink.messages]
    assert sorted(message.recipients for message in taken) == sorted((f"{n}@example.net",) for n in range(30))
    assert all(message.message.startswith(b"X-Seen: 1\n") for message in taken)
    assert all(sink.messages for sink in site.sink.values())
    assert len(set(ids)) == 30
    assert [site.entries(queue) for queue in ("in", "out", "backoff", "shunt", "hold", "bad")] == [[]] * 6


def test_what_a_host_puts_off_waits_for_its_time(fake_site: Make) -> None:
    site = fake_site(FLOW)
    for sink in site.sink.values():
        sink.reply("RCPT", "451 4.7.1 later", times=1)
    site.enqueue("out")
    site.run_until_idle()
    (entry,) = site.entries("out")
    assert entry.attempts == 1
    assert entry.due > site.clock.now
    site.clock.advance("4h")
    site.run_until_idle()
    assert sum(len(sink.messages) for sink in site.sink.values()) == 1
    assert site.entries("out") == []


def test_the_share_of_a_host_that_is_down_arrives_through_backoff(fake_site: Make) -> None:
    site = fake_site(FLOW)
    site.sink["mta1"].down = True
    for n in range(20):
        site.enqueue(recipients=[f"{n}@example.net"])
    site.run_until_idle()
    site.clock.advance("10m")
    site.run_until_idle()
    assert len(site.sink["mta2"].messages) == 20
    assert site.sink["mta1"].messages == []


def test_a_permanent_failure_is_reported_to_the_sender(fake_site: Make) -> None:
    site = fake_site(one("Moody"))
    Moody.moods = iter([PermanentFailure("nobody of that name", status="5.1.1")])
    site.enqueue(sender="ann@example.org")
    site.run_until_idle()
    (report,) = site.entries("out")
    assert (report.sender, report.recipients) == ("", ("ann@example.org",))
    assert b"nobody of that name" in report.message


def test_a_temporary_failure_waits_as_long_as_it_says(fake_site: Make) -> None:
    site = fake_site(one("Moody"))
    Moody.moods = iter([TemporaryFailure("busy", delay=60), Done()])
    site.enqueue()
    site.run_until_idle()
    site.clock.advance(59)
    site.run_until_idle()
    assert [entry.attempts for entry in site.entries("in")] == [1]
    site.clock.advance(1)
    site.run_until_idle()
    assert site.entries("in") == []


def test_an_entry_that_goes_in_circles_is_named(fake_site: Make) -> None:
    site = fake_site(one("Circle"))
    id = site.enqueue()
    with pytest.raises(AssertionError, match=rf"still waiting: {id[:12]} .* to bob@example.net"):
        site.run_until_idle(limit_s=0.2)


def test_an_entry_that_a_runner_does_not_let_go_is_named(fake_site: Make) -> None:
    site = fake_site(one("Stuck"))
    id = site.enqueue()
    with pytest.raises(AssertionError, match=rf"{id[:12]} in the hands of runner in"):
        site.run_until_idle(limit_s=0.2)


def test_a_requeue_waits_for_the_clock(fake_site: Make) -> None:
    site = fake_site(one("Moody"))
    Moody.moods = iter([Requeue(30, "not yet"), Done()])
    site.enqueue()
    site.run_until_idle()
    assert len(site.entries("in")) == 1
    site.clock.advance("30s")
    site.run_until_idle()
    assert site.entries("in") == []


def test_a_batch_sees_what_is_due_and_leaves_what_it_does_not_name(fake_site: Make) -> None:
    site = fake_site(one("Pairs"))
    for _ in range(5):
        site.enqueue()
    site.run_until_idle()
    assert (len(site.entries("out")), len(site.entries("in"))) == (2, 1)
    assert [len(entry.parents) for entry in site.entries("out")] == [2, 2]
    site.enqueue()
    site.run_until_idle()
    assert (len(site.entries("out")), len(site.entries("in"))) == (3, 0)


def test_what_start_raises_is_raised(fake_site: Make) -> None:
    site = fake_site(one("Broken"))
    with pytest.raises(RuntimeError, match="no table of users"):
        site.run_until_idle()


def test_the_hooks_are_called() -> None:
    Lazy.seen.clear()
    with FakeSite(one("Lazy")) as site:
        site.enqueue()
        site.run_until_idle()
        assert Lazy.seen == ["start", "idle"]
        site.run_until_idle()
    assert Lazy.seen == ["start", "idle", "cleanup"]


def test_a_mistake_in_the_configuration_has_its_line() -> None:
    with pytest.raises(ConfigErrors, match=r":5: .*nxt.*next"):
        FakeSite(SITE + '[runner.in]\nnxt = "out"\nclass = "incoming"\n')


def test_a_class_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no 'Gaet'"):
        FakeSite(one("Gaet"))


def test_an_unknown_queue_is_refused(fake_site: Make) -> None:
    with pytest.raises(QueueError, match="nowhere"):
        fake_site(FLOW).enqueue("nowhere")


def test_an_asynchronous_test_has_a_site_too(fake_site: Make) -> None:
    async def test() -> int:
        site = fake_site(FLOW)
        site.enqueue()
        site.run_until_idle()
        return sum(len(sink.messages) for sink in site.sink.values())

    assert asyncio.run(test()) == 1


def test_the_clock_is_the_one_that_was_given(fake_site: Make, fake_clock: FakeClock) -> None:
    assert fake_site(FLOW).clock is fake_clock
