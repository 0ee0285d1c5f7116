"""One maildir, ten subscribers: a real Postfix delivers into it (virtual(8)), and the door that reads it and the fan-out
behind it are killed."""

from __future__ import annotations

import os
import pwd
import random
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from qrunner.clock import SystemClock
from qrunner.switchboard.files import FilesSpool
from tests.scenarios.installed import Installed, install, owner
from tests.scenarios.postfix import Postfix, folder_for_everyone, postfix, until

pytestmark = [pytest.mark.needs("postfix"), pytest.mark.timeout(300)]

LIMIT_S = 150.0
QUEUES = [f"subscriber{number}" for number in range(10)]
ADDRESS = "changes@lists.example.org"
CONFIG = """\
[site]
hostname   = "lists.example.org"
queue_dir  = "../qfiles"
state_dir  = "../var"
min_free   = "0"
durability = "{durability}"

[runner.changes]
class = "maildir"
path  = "../mail/changes"
next  = "news"

[runner.news]
class = "fanout"
concurrency = 8
max_crashes = 1000
subscribers = {{ {subscribers} }}
"""
RUNNERS = ("changes", "news")
MAIN = """\
virtual_mailbox_domains = lists.example.org
virtual_mailbox_base = {base}
virtual_mailbox_maps = static:changes/
virtual_mailbox_limit = 0
virtual_minimum_uid = 1
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
in_flow_delay = 0s
"""


def lay_out(made: Installed, durability: str) -> None:
    """A site whose maildir the mailer makes."""
    for name in ("etc", "qfiles", "var", "mail"):
        (made.site / name).mkdir(parents=True, mode=0o755)
    subscribers = ", ".join(f"{queue} = {{}}" for queue in QUEUES)
    made.config.write_text(CONFIG.format(subscribers=subscribers, durability=durability))
    for path in (made.site, *made.site.rglob("*")):
        shutil.chown(path, owner())


class Runners:
    """The door and the fan-out as processes, which die and are begun again."""

    def __init__(self, made: Installed) -> None:
        self.made = made
        box = made.site / "mail" / "changes"
        self.new, self.cur = box / "new", box / "cur"
        self.deaths = 0
        self.processes = {name: self._begun(name) for name in RUNNERS}

    def _begun(self, name: str) -> subprocess.Popen[bytes]:
        program = ["-P", "-c", "from qrunner.ctl import main; main()", "-c", str(self.made.config)]
        return subprocess.Popen(
            [self.made.python, *program, "run", name],
            env={**os.environ, "PYTHONPATH": str(self.made.root / "lib")},
            cwd="/",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def kill(self, dice: random.Random) -> None:
        """One of them dies, one time in four maybe before it has looked at anything, else in the middle of the work; and
        is begun again."""
        if dice.random() < 0.75:
            before = files_in(self.cur)
            until(lambda: files_in(self.cur) > before or not files_in(self.new), self.made.log)
            after_s = dice.uniform(0, 0.3)
        else:
            after_s = dice.uniform(0, 1.5)
        name = dice.choice(RUNNERS)
        process = self.processes[name]
        try:
            process.wait(after_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self.deaths += 1
        self.processes[name] = self._begun(name)

    def end(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()


@contextmanager
def ten_subscribers(durability: str) -> Iterator[tuple[Installed, Postfix]]:
    """A Postfix and the site whose maildir it writes to."""
    user = pwd.getpwnam(owner())
    with folder_for_everyone() as root:
        made = install(root)
        lay_out(made, durability)
        (root / "mta").mkdir()
        main = MAIN.format(base=made.site / "mail", uid=user.pw_uid, gid=user.pw_gid)
        with postfix(root / "mta", main=main) as mta:
            yield made, mta


def send(mta: Postfix, numbers: Sequence[int]) -> None:
    """Messages by one connection."""
    with mta.session() as session:
        for number in numbers:
            text = f"Subject: number {number}\r\nX-N: {number}\r\n\r\n{'text ' * (number % 500)}\r\n"
            mta.say(session, text.encode(), "ann@a.example", ADDRESS)


def arrived(made: Installed) -> dict[str, Counter[int]]:
    """The numbers of the messages in each subscriber's queue."""
    spool = FilesSpool(made.queue_dir, SystemClock())
    found: dict[str, Counter[int]] = {}
    for queue in QUEUES:
        messages = [spool.read(ref) for ref in spool.peek(queue)]
        assert all(one.recipients == (ADDRESS,) and one.sender == "ann@a.example" for one in messages)
        numbers = (re.search(rb"^X-N: (\d+)\r?$", one.message, re.MULTILINE) for one in messages)
        found[queue] = Counter(int(number[1]) for number in numbers if number)
    return found


def waiting(made: Installed) -> list[Path]:
    """What is staged, or has not been handed on yet."""
    places = (made.queue_dir / ".door", made.queue_dir / "news")
    return [path for place in places for path in place.rglob("*") if path.is_file()]


def files_in(directory: Path) -> int:
    return len(os.listdir(directory)) if directory.is_dir() else 0


@pytest.mark.parametrize(
    ("count", "durability", "deaths"),
    [
        (100, "none", 3),
        pytest.param(200, "none", 5, marks=pytest.mark.stress),
        pytest.param(2000, "full", 30, marks=pytest.mark.stress),
    ],
)
def test_each_of_ten_subscribers_has_every_message_once_whatever_is_killed(
    count: int, durability: str, deaths: int
) -> None:
    dice = random.Random(count)
    with ten_subscribers(durability) as (made, mta):
        box, runners = made.site / "mail" / "changes", Runners(made)
        try:
            with ThreadPoolExecutor(4) as threads:
                sent = [threads.submit(send, mta, range(start, count, 4)) for start in range(4)]
                while runners.deaths < deaths and files_in(box / "cur") < count:
                    runners.kill(dice)
                for one in sent:
                    one.result()
            mta.settle()
            until(lambda: not files_in(box / "new"), made.log, LIMIT_S)
            until(lambda: not waiting(made), made.log, LIMIT_S)
        finally:
            runners.end()
        assert runners.deaths > 0
        everything = Counter(range(count))
        for queue, numbers in arrived(made).items():
            assert numbers == everything, queue
        assert files_in(box / "cur") == count
        assert made.site.owner() == owner()
