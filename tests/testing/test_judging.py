"""``make_entry`` and ``judge``: a test of a site's code in one line."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime

import pytest

from qrunner import BatchRunner, Done, Entry, Fate, Hold, Requeue, Runner, TemporaryFailure
from qrunner.testing import FakeClock, judge, make_entry


class Gate(Runner):
    async def dispose(self, entry: Entry) -> Fate:
        if entry.header("X-Spam") == "yes":
            return Done("spam")
        if entry.size > self.options["limit"]:
            return Hold("too big")
        return [entry.forward("archive"), entry.with_header("X-Seen", "1").forward("out")]


class Plain(Runner):
    async def start(self) -> None:
        self.word = "started"

    def dispose(self, entry: Entry) -> Fate:
        return Hold(self.word)


class Clockwatcher(Runner):
    def dispose(self, entry: Entry) -> Fate:
        return Requeue((self.clock.now_ns() - entry.arrival_ns) / 1e9)


class Digest(BatchRunner):
    def dispose_batch(self, entries: Sequence[Entry]) -> Iterator[tuple[Sequence[Entry], Fate]]:
        yield entries, entries[0].forward("digest")


class Later(BatchRunner):
    async def dispose_batch(self, entries: Sequence[Entry]) -> AsyncIterator[tuple[Sequence[Entry], Fate]]:
        for entry in entries:
            yield [entry], Done()


def tag(entry: Entry) -> Entry:
    return entry.with_header("X-Seen", "1")


async def refuse(entry: Entry) -> Fate:
    raise TemporaryFailure("come back", delay=5)


def test_a_fate_can_be_compared() -> None:
    assert judge(Gate, make_entry(headers={"X-Spam": "yes"})) == Done("spam")
    entry = make_entry()
    assert judge(Gate, entry, options={"limit": 10}) == Hold("too big")
    archived, sent = judge(Gate, entry, options={"limit": 1000})
    assert archived == entry.forward("archive")
    assert (sent.queue, sent.entry.header("X-Seen")) == ("out", "1")


def test_a_plain_dispose_is_judged_after_its_start() -> None:
    assert judge(Plain) == Hold("started")


def test_several_entries_have_several_fates() -> None:
    assert judge(Plain, make_entry(), make_entry()) == [Hold("started")] * 2


def test_a_handler_gives_what_it_returned() -> None:
    assert judge(tag, make_entry(b"A: 1\n")).message == b"X-Seen: 1\nA: 1\n"


def test_what_the_code_raises_is_raised_to_the_test() -> None:
    with pytest.raises(TemporaryFailure, match="come back"):
        judge(refuse)
    with pytest.raises(KeyError, match="limit"):
        judge(Gate)


def test_a_batch_gives_its_pairs() -> None:
    entries = [make_entry(), make_entry()]
    assert judge(Digest, *entries) == [(tuple(entries), entries[0].forward("digest"))]
    assert judge(Later, *entries) == [([entry], Done()) for entry in entries]


def test_the_clock_is_the_tests() -> None:
    clock = FakeClock()
    entry = make_entry()
    clock.advance("1h")
    assert judge(Clockwatcher, entry, clock=clock) == Requeue(3600)


def test_an_asynchronous_test_judges_too() -> None:
    async def test() -> object:
        return judge(Gate, make_entry(headers={"X-Spam": "yes"}))

    assert asyncio.run(test()) == Done("spam")


def test_an_entry_has_a_default_for_everything() -> None:
    entry = make_entry()
    assert re.fullmatch("[0-9a-f]{40}", entry.id)
    assert entry.id != make_entry().id
    assert (entry.queue, entry.attempts, entry.history, dict(entry.meta)) == ("in", 0, (), {})
    assert entry.header("Subject") == "hello"
    assert entry.recipients == ("bob@example.net",)
    assert entry.arrival == entry.due == FakeClock().now


def test_an_entry_is_what_was_asked_for() -> None:
    moment = datetime(2027, 3, 1, tzinfo=UTC)
    delivered = {"what": "delivered", "to": ["bob"]}
    entry = make_entry(
        b"body",
        sender="",
        recipients=["bob", "eve"],
        meta={"a": 1},
        queue="out",
        id="f" * 40,
        arrival=moment,
        attempts=3,
        history=[delivered],
        parents=["e" * 40],
    )
    assert (entry.message, entry.sender, entry.queue, entry.id) == (b"body", "", "out", "f" * 40)
    assert (entry.recipients, entry.envelope.addresses) == (("eve",), ("bob", "eve"))
    assert (entry.attempts, entry.arrival, entry.due, entry.parents) == (3, moment, moment, ("e" * 40,))


@pytest.mark.parametrize("wrong", [{"message": "text"}, {"recipients": "bob"}])
def test_an_entry_that_could_not_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(TypeError):
        make_entry(**wrong)  # type: ignore[arg-type]
