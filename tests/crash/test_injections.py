"""A process that injects an mbox or a Maildir dies at every call; the same command again brings each message once."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from qrunner.config import parse
from qrunner.ctl import bulk
from qrunner.ctl.letters import Box, Maildir, MboxFile
from qrunner.ctl.orders import Order
from qrunner.site import Site
from qrunner.switchboard.files import FilesSpool
from tests.crash.calls import Point, points, slow_or_fast, some_or_all
from tests.crash.dying import Consumer, Stage
from tests.crash.transitions import Step

CONFIG = '[site]\nhostname = "x.example"\nqueue_dir = "{}"\nstate_dir = "{}"\n[runner.out]\nclass = "m:C"\n'
ORDER = Order("me@x.example", "out", None, ("b@y.example",), {}, False, False, 0)
TAGS = [f"c{number}" for number in range(7)]


@dataclass
class Story:
    """Seven messages in a box, of which each batch takes three; ``more`` makes it grow."""

    stage: Stage
    folder: Path
    box: Callable[[], Box]
    more: Callable[[], None]

    def begin(self, spool: FilesSpool) -> Step:
        config = parse(
            CONFIG.format(self.stage.root, self.folder / "var"), self.folder / "etc" / "qrunner.toml"
        )
        site = Site(config, spool=spool)

        def step() -> None:
            stop = bulk.Stop()
            with bulk.door(site, "me", stop) as staging:
                log = logging.getLogger("qrunner.test")
                assert bulk.Bulk(site, ORDER, "me", log, staging, stop).inject(self.box())

        return step

    def arrived(self) -> Counter[str]:
        spool = self.stage.spool()
        waiting = Counter(spool.read(ref).header("Subject") or "" for ref in spool.peek("out"))
        return waiting + Counter(
            place.tag for place in Consumer(self.stage.root, self.stage.log).seen().elements()
        )

    def afresh(self) -> None:
        self.stage.clear()
        shutil.rmtree(self.folder / "var", ignore_errors=True)


def message(tag: str) -> bytes:
    return f"Subject: {tag}\n\n{'A line of text. ' * 20}\n".encode()


def of_mbox(stage: Stage, folder: Path) -> Story:
    path = folder / "box"

    def add(*tags: str) -> None:
        with open(path, "ab") as file:
            for tag in tags:
                file.write(b"From a@x.example Mon Jan  1 00:00:00 2024\n" + message(tag) + b"\n")

    add(*TAGS)
    return Story(stage, folder, lambda: MboxFile(str(path)), lambda: add("new"))


def of_maildir(stage: Stage, folder: Path) -> Story:
    for name in ("new", "cur", "tmp"):
        (folder / "dir" / name).mkdir(parents=True)
    for number, tag in enumerate(TAGS):
        place = f"new/{number}.x" if number % 2 else f"cur/{number}.x:2,S"
        (folder / "dir" / place).write_bytes(message(tag))

    # What comes later may have a name that stands before the others, and a message that was read gets another one.
    def more() -> None:
        (folder / "dir/new/0.earlier").write_bytes(message("new"))
        (folder / "dir/new/1.x").rename(folder / "dir/cur/1.x:2,RS")

    return Story(stage, folder, lambda: Maildir(str(folder / "dir")), more)


@pytest.fixture(params=[of_mbox, of_maildir])
def story(
    request: pytest.FixtureRequest, stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Story:
    monkeypatch.setattr(bulk, "_BATCH", 3)
    made: Story = request.param(stage, tmp_path)
    return made


ONCE = Counter(TAGS)


@some_or_all(13)
@slow_or_fast()
def test_a_death_at_any_call_and_the_same_command_again_bring_each_message_once(
    story: Story, eager: bool, every: int
) -> None:
    clean = story.stage.die_in(story.begin)
    assert (clean.returned, story.arrived()) == (True, ONCE)
    assert len(clean.calls) > 30
    for point in points(clean.calls, every):
        story.afresh()
        story.stage.die_in(story.begin, point, eager=eager)
        assert story.arrived() <= ONCE
        assert story.stage.die_in(story.begin, eager=eager).returned
        assert story.arrived() == ONCE, point
    # Also after the last call, when all of it had been done, whoever has taken it.
    assert story.stage.die_in(story.begin).returned
    assert story.arrived() == ONCE


@pytest.mark.timeout(240)
@pytest.mark.parametrize("stride", [71, pytest.param(10, marks=pytest.mark.stress)])
def test_a_death_at_any_call_of_the_second_run_too_brings_each_message_once(
    story: Story, stride: int
) -> None:
    clean = story.stage.die_in(story.begin)
    for first in points(clean.calls)[::stride]:
        story.afresh()
        story.stage.die_in(story.begin, first)
        for second in points(story.stage.die_in(story.begin).calls)[:: stride // 2 or 1]:
            story.afresh()
            story.stage.die_in(story.begin, first)
            story.stage.die_in(story.begin, second, eager=True)
            assert story.stage.die_in(story.begin).returned
            assert story.arrived() == ONCE, (first, second)


def test_what_has_come_since_goes_in_and_nothing_twice(story: Story) -> None:
    for dies in (Point(40), None):
        story.afresh()
        story.stage.die_in(story.begin, dies)
    story.more()
    assert story.stage.die_in(story.begin).returned
    assert story.arrived() == ONCE + Counter(["new"])


def test_nothing_is_left_of_all_the_deaths(story: Story) -> None:
    for number in range(0, 60, 5):
        story.stage.die_in(story.begin, Point(number))
    assert story.stage.die_in(story.begin).returned
    hidden = [path for path in (story.stage.root / ".door").rglob("*") if path.is_file()]
    assert hidden == []
    assert len(list((story.folder / "var/inject").iterdir())) == 1
