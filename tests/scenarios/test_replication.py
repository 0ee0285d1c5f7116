"""One source, replicated into a Maildir for each of several programs, as the how-to says; whatever is killed on the way."""

from __future__ import annotations

import random
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qrunner.config import load
from qrunner.master.plan import prepare
from qrunner.site import Site
from qrunner.testing import FakeSite
from tests.documents import blocks
from tests.mailstore.letters import read_maildir, read_mbox
from tests.sites import TinySite, tiny_site, wait_for

HEAD = """\
[site]
hostname = "lists.example.org"
node = "a"
queue_dir = "../qfiles"
state_dir = "../var"
postmaster = "postmaster@lists.example.org"
min_free = "0"
durability = "none"
"""


def shown(heading: str) -> str:
    """The configuration that the how-to shows below a heading."""
    text = (Path(__file__).parents[2] / "docs" / "HOWTO.md").read_text("utf-8")
    part = text.split(f"\n## {heading}\n", 1)[1]
    return next(block.text for block in blocks("docs/HOWTO.md") if block.text in part)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[TinySite]:
    with tiny_site(tmp_path) as made:
        text = shown("Replicate one Maildir into several for other programs")
        # What comes in, the test puts in by itself.
        news = re.sub(r"\[runner\.changes\].*?(?=\[runner\.news\])", "", text, flags=re.DOTALL)
        assert 'class = "maildir"' not in news.replace("  ", " ")
        for name in ("news", "linux", "mac"):
            news = news.replace(f"[runner.{name}]\n", f"[runner.{name}]\nmax_crashes = 1000\n")
        made.write(HEAD + news)
        yield made


class Reader(threading.Thread):
    """A program that takes away whatever is new, at once."""

    def __init__(self, maildir: Path) -> None:
        super().__init__()
        self.maildir, self.got, self.enough = maildir, Counter[bytes](), threading.Event()

    def run(self) -> None:
        while not self.enough.wait(0.001):
            for path in sorted((self.maildir / "new").glob("*")):
                self.got[path.read_bytes()] += 1
                path.unlink()


@contextmanager
def reading(maildir: Path) -> Iterator[Reader]:
    reader = Reader(maildir)
    reader.start()
    try:
        yield reader
    finally:
        reader.enough.set()
        reader.join()


@pytest.mark.parametrize("count", [80, pytest.param(2_000, marks=pytest.mark.stress)])
def test_every_program_gets_every_message_once_in_a_maildir_of_its_own(site: TinySite, count: int) -> None:
    prepare(load(site.config))
    loaded = Site.load(site.config)
    senders = ("ann@mac.example.org", "eve@linux.example.org")
    messages = [b"Subject: %d\n\n%s" % (number, b"a line\n" * 300) for number in range(count)]
    for number, message in enumerate(messages):
        loaded.enqueue("news", message=message, sender=senders[number % 2], recipients=["b@example.org"])
    site.ctl("start")
    spool, dice = loaded.spool, random.Random(count)

    def waiting() -> int:
        return sum(1 for queue in ("news", "linux", "mac") for _ in spool.peek(queue))

    with reading(site.folder / "mail" / "mac") as mac:
        for _ in range(6):
            before = waiting()
            wait_for(
                lambda before=before: waiting() in range(max(1, before - count // 8)) or not waiting(), 60
            )  # type: ignore[misc]
            site.kill(f"{dice.choice(['news', 'linux', 'mac'])}/0")
        wait_for(lambda: not waiting(), 120)
        site.ctl("stop")
        wait_for(lambda: not list((mac.maildir / "new").glob("*")))
    assert Counter(read_maildir(site.folder / "mail" / "linux")) == Counter(messages)
    assert mac.got == Counter(messages[::2])
    assert list((site.folder / "mail").glob("*/tmp/*")) == []


def test_the_class_that_the_how_to_shows_keeps_by_source(tmp_path: Path) -> None:
    (block,) = [one for one in blocks("docs/HOWTO.md") if one.title == "mysite/archive.py"]
    (tmp_path / "kept_by_source.py").write_text(block.text)
    (tmp_path / "kept_by_source.py").chmod(0o600)
    lines = f'class = "kept_by_source:BySource"\npath = "{tmp_path}/%Y"\noptions = {{ sources = ["door"] }}\n'
    with FakeSite(f'{HEAD}python_path = ["{tmp_path}"]\n[runner.keep]\n{lines}') as site:
        for source in ("door", "../../door"):
            site.enqueue("keep", message=b"x\n", sender="ann@example.org", meta={"source": source})
        site.run_until_idle()
    kept = b"X-Envelope-From: ann@example.org\nx\n"
    assert read_mbox(tmp_path / "2026.door") == read_mbox(tmp_path / "2026.other") == [kept]
