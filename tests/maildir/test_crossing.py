"""Files that a process may not move, though it may move others."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from qrunner.clock import SystemClock
from qrunner.maildir.box import LOCK, Maildir, Unfit
from qrunner.maildir.crossing import Crossing
from qrunner.switchboard import Add
from qrunner.switchboard.disk import Disk
from qrunner.switchboard.files import FilesSpool
from qrunner.testing.contract import draft
from tests.crash.power_children import become_nobody, in_a_child
from tests.runners.letters import Box


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that every user may pass through."""
    if os.geteuid() != 0:
        pytest.skip("files of another user are made by root")
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o777)
        yield Path(made)


def test_what_may_not_be_moved_or_read_is_left_and_the_rest_is_taken(folder: Path) -> None:
    box = Box(folder / "box")
    box.put(b"roots", name="1.root")
    box.put(b"secret", name="2.secret")
    (box.path / "new" / "2.secret").chmod(0)
    # In a sticky directory a file is moved by its owner, or by the directory's.
    (box.path / "new").chmod(0o1777)
    for name in (".", "cur"):
        (box.path / name).chmod(0o777)

    def work() -> None:
        become_nobody()
        (box.path / "new" / "3.ours").write_bytes(b"ours")
        spool = FilesSpool(folder / "qfiles", SystemClock(), durable=False)
        spool.prepare(["in"])
        maildir = Maildir(box.path, "a test")
        crossing = Crossing(maildir, spool.staging(maildir.door), Disk(False))
        crossing.settle()
        with pytest.raises(Unfit, match="Permission denied"):
            maildir.read("2.secret", 0)
        maildir.is_whole("1.root")
        letters = [maildir.read(name, 0) for name in ("1.root", "3.ours")]
        taken = crossing.take({one: [Add(draft(message=one.message), "in", 0)] for one in letters})
        assert list(taken.stuck) == letters[:1]
        assert [spool.read(ref).message for ref in spool.peek("in")] == [b"ours"]
        assert list(crossing.staging.staged()) == []
        assert (box.new(), box.cur()) == (["1.root", "2.secret"], ["3.ours:2,"])
        assert crossing.is_settled

    in_a_child(work)


def test_a_maildir_from_which_nothing_may_be_moved_makes_its_reader_wait(folder: Path) -> None:
    box = Box(folder / "box")
    box.put(b"roots", name="1.root")
    (box.path / LOCK).touch()
    (box.path / LOCK).chmod(0o666)

    def work() -> None:
        become_nobody()
        spool = FilesSpool(folder / "qfiles", SystemClock(), durable=False)
        spool.prepare(["in"])
        maildir = Maildir(box.path, "a test")
        crossing = Crossing(maildir, spool.staging(maildir.door), Disk(False))
        maildir.is_whole("1.root")
        letter = maildir.read("1.root", 0)
        with pytest.raises(PermissionError):
            crossing.take({letter: [Add(draft(), "in", 0)]})
        assert not crossing.is_settled
        crossing.settle()
        assert (list(crossing.staging.staged()), list(spool.peek("in"))) == ([], [])

    in_a_child(work)
