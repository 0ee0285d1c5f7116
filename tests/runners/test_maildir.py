"""The door `maildir`: one source, read once, for as many as want it."""

from __future__ import annotations

import asyncio
import gzip
import logging
import os
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from qrunner.config import parse
from qrunner.engine.door import DoorEngine
from qrunner.errors import LeaseHeld, PermanentFailure, TemporaryFailure
from qrunner.fate import Done, Fate
from qrunner.loading import load_class
from qrunner.message import Entry
from qrunner.runners.maildir import MaildirRunner
from qrunner.site import Site
from tests.documents import blocks
from tests.driving import LIMIT_S, until
from tests.runners.letters import Box

ROOT = Path(__file__).parents[2]
# Odd ones that people have sent; where they are not at hand, none.
SHARED = sorted((ROOT.parent / "shared" / "mail" / "patchew").glob("*.gz"))
CORPUS = sorted((ROOT / "tests" / "corpus").glob("*.eml"))
TOML = """
[site]
hostname = "lists.example.org"
queue_dir = "../qfiles"
state_dir = "../var"
durability = "none"
min_free = "0"
report_queue = "reports"
[route.main]
rules = [{{ recipient = "*@other.example", queue = "other" }}, {{ queue = "out" }}]
[runner.changes]
class = "maildir"
path = "../box"
poll_interval = "{poll}"
{keys}
"""


class Place:
    """A site with one maildir and a door that reads it."""

    def __init__(
        self, folder: Path, keys: str = 'next = "out"', *, box: Box | None = None, poll: str = "20s"
    ) -> None:
        for name in ("etc", "qfiles"):
            (folder / name).mkdir(parents=True)
        self.folder = folder
        self.box = box or Box(folder / "box")
        self.site = Site(parse(TOML.format(keys=keys, poll=poll), folder / "etc" / "qrunner.toml"))
        self.site.spool.prepare(["out", "other", "reports"])

    def engine(self) -> DoorEngine:
        runner_class = load_class("maildir")
        assert runner_class is MaildirRunner
        config = self.site.config.runners["changes"]
        return DoorEngine(self.site, config, 0, runner_class, log=logging.getLogger("qrunner.test"))

    def once(self) -> DoorEngine:
        """As `run changes --once`."""
        engine = self.engine()
        asyncio.run(asyncio.wait_for(engine.run(once=True), LIMIT_S))
        return engine

    def tell(self, story: Callable[[DoorEngine], Awaitable[None]]) -> None:
        """A story that is told while the door is open."""

        async def both() -> None:
            engine = self.engine()
            run = asyncio.create_task(engine.run())
            await until(lambda: engine.state != "starting" or run.done())
            try:
                await story(engine)
            finally:
                engine.stop()
                await asyncio.wait_for(run, LIMIT_S)

        asyncio.run(both())

    def entries(self, queue: str = "out") -> list[Entry]:
        return list(self.site.entries(queue))

    def shunted(self, queue: str = "out") -> list[Entry]:
        spool = self.site.spool
        return [spool.read(ref) for ref in spool.peek(queue, "shunt")]

    def staged(self) -> list[str]:
        return [str(path) for path in (self.folder / "qfiles" / ".door").rglob("*") if path.is_file()]


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(tmp_path, getattr(request, "param", 'next = "out"'))


def keys(text: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("place", [text], indirect=True)


def handler(function: Callable[[Entry], object], more: str = "") -> pytest.MarkDecorator:
    return keys(f'next = "out"\nhandlers = ["{__name__}:{function.__name__}"]\n{more}')


def refuse(entry: Entry) -> Entry:
    raise PermanentFailure("we do not want it", status="5.7.1")


def wait(entry: Entry) -> Entry:
    raise TemporaryFailure("not now", delay=0.3)


def bug(entry: Entry) -> Entry:
    raise KeyError("the reason")


def drop(entry: Entry) -> Fate:
    return Done("nobody needs it")


def tag(entry: Entry) -> Entry:
    return entry.with_header("X-Seen", "1")


def astray(entry: Entry) -> Fate:
    return entry.forward("nowhere")


# What is taken


def test_what_was_delivered_is_entered_once_and_lies_in_cur(place: Place) -> None:
    name = place.box.deliver(b"Subject: one\n\n1\n")
    place.once()
    place.once()
    (entry,) = place.entries()
    assert entry.message == (place.box.path / "cur" / f"{name}:2,").read_bytes()
    assert (entry.sender, entry.recipients) == ("ann@example.org", ("list@example.org",))
    assert entry.meta == {"source": "changes"}
    assert (place.box.new(), place.box.cur(), place.staged()) == ([], [f"{name}:2,"], [])


@keys('next = "out"\nrecipients = "list@example.org"')
def test_every_message_of_the_corpus_arrives_byte_for_byte(place: Place) -> None:
    for path in CORPUS:
        place.box.put(path.read_bytes())
    place.once()
    found = Counter(entry.message for entry in place.entries())
    for path in CORPUS:
        assert path.read_bytes() in found, path.name
    assert found == Counter(path.read_bytes() for path in CORPUS)


@keys('next = "out"\nrecipients = "list@example.org"')
def test_real_messages_arrive_byte_for_byte(place: Place) -> None:
    messages = [gzip.decompress(path.read_bytes()) for path in SHARED]
    for message in messages:
        place.box.put(message)
    place.once()
    assert sorted(entry.message for entry in place.entries()) == sorted(messages)


@keys('next = ["out", "other"]')
def test_each_queue_of_next_gets_every_message(place: Place) -> None:
    for number in range(100):
        place.box.deliver(b"Subject: %d\n\n" % number)
    place.once()
    subjects = {str(number) for number in range(100)}
    for queue in ("out", "other"):
        assert {entry.header("Subject") for entry in place.entries(queue)} == subjects
        assert len(place.entries(queue)) == 100


@keys('next = "main"')
def test_a_route_decides_by_the_envelope(place: Place) -> None:
    place.box.deliver(b"\n", to="list@other.example")
    place.once()
    assert [entry.recipients for entry in place.entries("other")] == [("list@other.example",)]


def test_messages_come_about_in_the_order_of_their_delivery(place: Place) -> None:
    for name in ("1700000010.b", "1700000009.c", "999999999.a"):
        place.box.deliver(b"Subject: %s\n\n" % name.encode(), name=name)
    place.once()
    order = sorted(place.entries(), key=lambda entry: entry.due_ns)
    assert [entry.header("Subject") for entry in order] == ["999999999.a", "1700000009.c", "1700000010.b"]


def test_hidden_files_and_those_in_tmp_and_cur_are_nobodys_new_mail(place: Place) -> None:
    for where in ("new/.hidden", "tmp/1.x", "cur/2.x:2,S"):
        (place.box.path / where).write_bytes(b"Delivered-To: a@b\n\n")
    place.once()
    assert place.entries() == []
    assert place.box.cur() == ["2.x:2,S"]


# The envelope


@keys('next = "out"\nsender = "us@example.org"\nrecipients = ["a@example.org", "b@example.org"]')
def test_what_no_delivery_has_written_the_configuration_says(place: Place) -> None:
    place.box.deliver(b"Subject: x\n\n", to="")
    place.once()
    (entry,) = place.entries()
    assert (entry.sender, entry.recipients) == ("us@example.org", ("a@example.org", "b@example.org"))


@keys('next = "out"\nsender = "us@example.org"\nrecipients = "a@example.org"')
def test_what_a_delivery_has_written_comes_first(place: Place) -> None:
    place.box.put(b"Return-Path: <>\nX-Original-To: c@example.org\nReceived: x\n\n")
    place.once()
    (entry,) = place.entries()
    assert (entry.sender, entry.recipients) == ("", ("c@example.org",))


def test_a_message_without_recipients_is_shunted_and_goes_on_once_released(place: Place) -> None:
    name = place.box.deliver(b"Subject: x\n\n", to="")
    place.once()
    (entry,) = place.shunted()
    assert "no recipients" in entry.history[-1]["reason"]
    assert place.box.cur() == [f"{name}:2,"]
    (ref,) = place.site.spool.peek("out", "shunt")
    assert place.site.spool.shift(ref)
    assert [one.id for one in place.entries()] == [entry.id]


# Handlers


@handler(tag)
def test_handlers_come_before_the_queue(place: Place) -> None:
    place.box.deliver(b"Subject: x\n\n")
    place.once()
    assert [entry.header("X-Seen") for entry in place.entries()] == ["1"]


@handler(drop)
def test_a_handler_may_finish_it(place: Place) -> None:
    place.box.deliver(b"Subject: x\n\n")
    place.once()
    assert (place.entries(), len(place.box.cur()), place.staged()) == ([], 1, [])


@handler(bug)
def test_what_a_handler_stumbles_over_is_shunted_with_the_traceback(place: Place) -> None:
    place.box.deliver(b"Subject: x\n\n")
    place.once()
    (entry,) = place.shunted()
    assert "KeyError: 'the reason'" in entry.history[-1]["reason"]
    assert "in bug" in entry.history[-1]["traceback"]
    assert len(place.box.cur()) == 1


@handler(astray)
def test_what_a_handler_sends_to_no_queue_is_shunted_alone(place: Place) -> None:
    place.box.deliver(b"Subject: x\n\n")
    place.once()
    (entry,) = place.shunted()
    assert "nowhere" in entry.history[-1]["reason"]


@handler(refuse)
def test_what_a_handler_refuses_is_reported(place: Place) -> None:
    place.box.deliver(b"Subject: x\n\n")
    place.once()
    (report,) = place.entries("reports")
    assert (report.sender, report.recipients) == ("", ("ann@example.org",))
    assert b"we do not want it" in report.message
    assert (place.entries(), place.shunted(), len(place.box.cur())) == ([], [], 1)


@handler(refuse, 'report = "none"')
def test_what_a_handler_refuses_is_gone_where_nobody_is_to_hear_of_it(place: Place) -> None:
    place.box.deliver(b"Subject: x\n\n")
    place.once()
    assert (place.entries("reports"), len(place.box.cur())) == ([], 1)


def test_what_a_handler_puts_off_stays_in_new_until_then(tmp_path: Path) -> None:
    place = Place(tmp_path, f'next = "out"\nhandlers = ["{__name__}:wait"]')
    place.box.deliver(b"Subject: x\n\n")
    place.once()
    assert (place.entries(), len(place.box.new()), place.staged()) == ([], 1, [])

    async def story(engine: DoorEngine) -> None:
        await until(lambda: engine.runner._becoming.waiting())  # type: ignore[attr-defined]
        engine.handlers.clear()
        await until(lambda: len(place.entries()) == 1)

    place.tell(story)


# Files that are no messages, or not yet


def test_what_is_no_file_or_can_not_be_read_is_left_alone_and_stops_nothing(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    new = place.box.path / "new"
    (new / "1.folder").mkdir()
    (new / "2.link").symlink_to("/etc/hostname")
    os.mkfifo(new / "3.fifo")
    place.box.deliver(b"Subject: x\n\n")
    with caplog.at_level("WARNING"):
        place.once()
    assert len(place.entries()) == 1
    assert place.box.new() == ["1.folder", "2.link", "3.fifo"]
    for name in place.box.new():
        assert sum(getattr(one, "fields", {}).get("file") == name for one in caplog.records) == 1


def test_a_file_that_is_being_written_is_left_alone_until_it_is_closed(place: Place) -> None:
    async def story(engine: DoorEngine) -> None:
        with (place.box.path / "new" / "1700000000.direct").open("wb") as file:
            file.write(b"Delivered-To: a@b\n\nfirst half, ")
            file.flush()
            place.box.deliver(b"Subject: another\n\n")
            await until(lambda: len(place.entries()) == 1)
            file.write(b"second half\n")
        await until(lambda: len(place.entries()) == 2)

    place.tell(story)
    assert sum(entry.message.endswith(b"first half, second half\n") for entry in place.entries()) == 1
    assert place.box.new() == []


@pytest.mark.parametrize("link", [False, True])
def test_what_is_delivered_while_it_runs_is_heard_of_long_before_the_poll(place: Place, link: bool) -> None:
    async def story(engine: DoorEngine) -> None:
        for number in range(5):
            place.box.deliver(b"Subject: x\n\n", link=link)
            await until(lambda number=number: len(place.entries()) == number + 1)  # type: ignore[misc]

    place.tell(story)


def test_a_name_as_long_as_a_name_can_be_is_taken(place: Place) -> None:
    place.box.deliver(b"Subject: x\n\n", name="1" + "x" * 254)
    place.box.deliver(b"Subject: y\n\n", name=os.fsdecode(b"2\xff\n.odd"))
    place.once()
    assert len(place.entries()) == 2
    assert (place.box.new(), len(place.box.cur())) == ([], 2)


def test_nothing_in_cur_is_overwritten(place: Place) -> None:
    name = place.box.deliver(b"Subject: x\n\n")
    (place.box.path / "cur" / f"{name}:2,").write_bytes(b"somebody's")
    place.once()
    assert len(place.entries()) == 1
    assert len(place.box.cur()) == 2
    assert (place.box.path / "cur" / f"{name}:2,").read_bytes() == b"somebody's"


# One reader


def test_a_maildir_has_one_reader_and_the_other_says_who(tmp_path: Path) -> None:
    one = Place(tmp_path / "one")
    two = Place(tmp_path / "two", box=one.box)
    two.site.config.runners["changes"].settings["path"]
    (two.folder / "box").symlink_to(one.box.path)

    async def story(first: DoorEngine) -> None:
        second = two.engine()
        run = asyncio.create_task(second.run())
        try:
            await until(lambda: second.state == "waiting")
            assert "runner changes" in second.reason
            assert str(one.site.config.path) in second.reason
            one.box.deliver(b"Subject: x\n\n")
            await until(lambda: len(one.entries()) == 1)
        finally:
            second.stop()
            await asyncio.wait_for(run, LIMIT_S)

    one.tell(story)
    assert two.entries() == []
    two.box.deliver(b"Subject: y\n\n")
    two.once()
    assert len(two.entries()) == 1


def test_run_once_says_that_somebody_else_reads_it(tmp_path: Path) -> None:
    one = Place(tmp_path / "one")

    async def story(first: DoorEngine) -> None:
        await until(lambda: (one.box.path / "qrunner.lock").exists())
        with pytest.raises(LeaseHeld, match="is read by runner changes"):
            await one.engine().run(once=True)

    one.tell(story)


# Trouble


def test_a_maildir_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    place = Place(tmp_path)
    away = place.folder / "away"
    place.box.path.rename(away)

    async def story(engine: DoorEngine) -> None:
        await until(lambda: engine.state == "waiting")
        assert "box" in engine.reason
        away.rename(place.box.path)
        place.box.deliver(b"Subject: x\n\n")
        await until(lambda: engine.state == "running" and len(place.entries()) == 1)

    place.tell(story)


def test_a_maildir_that_is_replaced_is_read_in_its_new_place(tmp_path: Path) -> None:
    place = Place(tmp_path, poll="100ms")

    async def story(engine: DoorEngine) -> None:
        place.box.deliver(b"Subject: x\n\n")
        await until(lambda: len(place.entries()) == 1)
        place.box.path.rename(place.folder / "old")
        place.box = Box(place.folder / "box")
        place.box.deliver(b"Subject: y\n\n")
        await until(lambda: len(place.entries()) == 2)

    place.tell(story)


def test_a_queue_that_takes_nothing_makes_it_wait_with_the_mail_in_new(place: Place) -> None:
    queue = place.folder / "qfiles" / "out"

    async def story(engine: DoorEngine) -> None:
        await until(lambda: (place.box.path / "qrunner.lock").exists())
        queue.rename(place.folder / "away")
        place.box.deliver(b"Subject: x\n\n")
        await until(lambda: engine.state == "waiting")
        assert "no queue out" in engine.reason
        assert len(place.box.new()) == 1
        (place.folder / "away").rename(queue)
        await until(lambda: engine.state == "running" and len(place.entries()) == 1)

    place.tell(story)


def test_while_it_is_suspended_nothing_is_taken(place: Place) -> None:
    place.site.suspensions.suspend(("runner", "changes"), reason="works")

    async def story(engine: DoorEngine) -> None:
        assert engine.state == "suspended"
        place.box.deliver(b"Subject: x\n\n")
        await engine.clock.wait(asyncio.Event(), 0.2)
        assert len(place.box.new()) == 1
        place.site.suspensions.resume(("runner", "changes"))
        await until(lambda: len(place.entries()) == 1)

    place.tell(story)


def test_a_stop_in_the_middle_leaves_nothing_staged(place: Place) -> None:
    for number in range(300):
        place.box.deliver(b"Subject: %d\n\n" % number)

    async def story(engine: DoorEngine) -> None:
        await until(lambda: place.box.cur())

    place.tell(story)
    assert place.staged() == []
    assert len(place.entries()) == len(place.box.cur())
    place.once()
    assert {entry.header("Subject") for entry in place.entries()} == {str(number) for number in range(300)}
    assert len(place.entries()) == 300


# Poison


def die(entry: Entry) -> None:
    """Kills the process, if it is told to."""
    if entry.header("Subject") == "poison":
        os.kill(os.getpid(), signal.SIGKILL)


def lives_of(place: Place) -> list[int]:
    """Runs the door in processes until one lives; how each ended."""
    codes: list[int] = []
    while not codes or codes[-1] != 0:
        pid = os.fork()
        if not pid:
            try:
                place.once()
            finally:
                os._exit(0)
        codes.append(os.waitpid(pid, 0)[1])
        assert len(codes) < 9
    return codes


@handler(die)
def test_a_message_whose_handler_kills_the_door_is_shunted_and_the_others_are_not(place: Place) -> None:
    for number in range(40):
        place.box.deliver(b"Subject: %s\n\n" % (b"poison" if number == 17 else b"%d" % number))
    assert lives_of(place) == [signal.SIGKILL] * 3 + [0]
    assert len(place.entries()) == 39
    (entry,) = place.shunted()
    assert entry.header("Subject") == "poison"
    assert "died again and again" in entry.history[-1]["reason"]


# A class of the site's own


def test_the_class_of_the_how_to_reads_a_maildir(place: Place) -> None:
    (block,) = [one for one in blocks("docs/HOWTO.md") if "title=mysite/doors.py" in one.words]
    names: dict[str, Any] = {"__name__": "mysite.doors"}
    exec(compile(block.text, "mysite/doors.py", "exec"), names)
    place.box.deliver(b"X-Builder: linux\n\n")
    place.box.deliver(b"Subject: another\n\n")
    config = place.site.config.runners["changes"]
    engine = DoorEngine(place.site, config, 0, names["Changes"], log=logging.getLogger("qrunner.test"))
    asyncio.run(asyncio.wait_for(engine.run(once=True), LIMIT_S))
    assert sorted(str(dict(entry.meta)) for entry in place.entries()) == [
        "{'builder': 'yes', 'source': 'changes'}",
        "{'source': 'changes'}",
    ]
