"""A maildir on disk: what is complete, what is whose, and who reads it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from qrunner.errors import LeaseHeld
from qrunner.maildir import box as box_module
from qrunner.maildir.box import LOCK, SETTLED_S, Maildir, Unfinished, Unfit, nobody_writes
from qrunner.maildir.lock import Lock, Marks
from tests.runners.letters import Box


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path / "box")


@pytest.fixture
def maildir(box: Box) -> Maildir:
    return Maildir(box.path, "a test")


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel does not tell who writes, as on a network file system."""
    monkeypatch.setattr(box_module, "nobody_writes", lambda fd: None)


def test_the_kernel_tells_who_writes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb"):
        fd = os.open(path, os.O_RDONLY)
        assert nobody_writes(fd) is False
    assert nobody_writes(fd) is True
    # A writer who comes afterwards is kept by nothing.
    with path.open("ab") as file:
        file.write(b"x")
    os.close(fd)
    assert signal.getsignal(signal.SIGURG) == signal.SIG_DFL


def test_what_is_empty_is_given_time_to_be_filled(box: Box, maildir: Maildir) -> None:
    box.put(b"", name="1.a")
    with pytest.raises(Unfinished) as told:
        maildir.read("1.a", 100.0)
    assert told.value.again_s == SETTLED_S
    with pytest.raises(Unfinished):
        maildir.read("1.a", 104.9)
    assert maildir.read("1.a", 105.0).message == b""


@pytest.mark.usefixtures("silent")
def test_without_the_kernels_word_a_file_that_changes_is_not_complete(box: Box, maildir: Maildir) -> None:
    box.put(b"a", name="1.a")
    path = box.path / "new" / "1.a"
    for now_s, text in ((10.0, b"ab"), (14.0, b"abc"), (18.0, b"abcd")):
        with pytest.raises(Unfinished):
            maildir.read("1.a", now_s)
        path.write_bytes(text)
    with pytest.raises(Unfinished):
        maildir.read("1.a", 20.0)
    assert maildir.read("1.a", 25.0).message == b"abcd"


@pytest.mark.usefixtures("silent")
def test_without_the_kernels_word_what_was_moved_in_is_complete(box: Box, maildir: Maildir) -> None:
    box.put(b"a", name="1.a")
    maildir.is_whole("1.a")
    assert maildir.read("1.a", 0).message == b"a"


def test_what_has_gone_has_gone(maildir: Maildir) -> None:
    with pytest.raises(FileNotFoundError):
        maildir.read("1.a", 0)
    assert not maildir.take("1.a")
    assert not maildir.holds("1.a", 1)


def test_a_file_larger_than_any_message_is_unfit(
    box: Box, maildir: Maildir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(box_module, "LARGEST", 3)
    box.put(b"abcd", name="1.a")
    with pytest.raises(Unfit, match="larger than 3 bytes"):
        maildir.read("1.a", 0)


def test_a_name_that_comes_again_is_another_file(box: Box, maildir: Maildir) -> None:
    box.put(b"a", name="1.a")
    first = maildir.read("1.a", 0)
    assert maildir.holds("1.a", first.inode)
    assert maildir.take("1.a")
    box.put(b"b", name="1.a")
    assert not maildir.holds("1.a", first.inode)
    assert maildir.take("1.a")
    assert len(box.cur()) == 2


@pytest.mark.parametrize(
    ("name", "target"), [("1.a", "1.a:2,"), ("1.a:2,", "1.a:2,"), ("1.a:2,FS", "1.a:2,FS"), ("a:1", "a:1:2,")]
)
def test_what_a_file_is_called_in_cur(box: Box, maildir: Maildir, name: str, target: str) -> None:
    box.put(b"a", name=name)
    assert maildir.take(name)
    assert box.cur() == [target]


@pytest.mark.parametrize("folder", ["new", "cur"])
def test_a_link_is_no_folder_of_a_maildir(box: Box, tmp_path: Path, folder: str) -> None:
    (box.path / folder).rmdir()
    (tmp_path / "elsewhere").mkdir()
    (box.path / folder).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotADirectoryError):
        Maildir(box.path, "a test")


def test_the_maildir_by_another_way_is_the_same(box: Box, maildir: Maildir, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(box.path)
    with pytest.raises(LeaseHeld, match="is read by a test"):
        Maildir(tmp_path / "link", "another")
    maildir.close()
    again = Maildir(tmp_path / "link", "another")
    assert again.door == maildir.door


def test_a_maildir_in_the_place_of_ours_is_not_ours(box: Box, maildir: Maildir, tmp_path: Path) -> None:
    maildir.check()
    box.path.rename(tmp_path / "old")
    with pytest.raises(FileNotFoundError):
        maildir.check()
    Box(tmp_path / "box")
    (tmp_path / "box" / LOCK).touch()
    with pytest.raises(FileNotFoundError):
        maildir.check()


# The lock


def test_who_dies_with_messages_in_hand_has_them_marked(tmp_path: Path) -> None:
    path = str(tmp_path / LOCK)
    one = Lock(path, "one", "boot")
    one.hold(["a", "\udcff\n"])
    one.release()
    two = Lock(path, "two", "boot")
    assert two.marks == {"a": Marks(1, 0), "\udcff\n": Marks(1, 0)}
    two.hold(["a"])
    two.let(["a"])
    two.hold(["\udcff\n"])
    two.release()
    three = Lock(path, "three", "boot")
    assert three.marks == {"\udcff\n": Marks(2, 1)}
    three.forget_all_but([])
    three.let([])
    three.release()
    assert Lock(path, "four", "boot").marks == {}


@pytest.mark.parametrize("why", ["a reboot", "a stop"])
def test_a_death_that_is_explained_marks_nobody(tmp_path: Path, why: str) -> None:
    path = str(tmp_path / LOCK)
    one = Lock(path, "one", "boot")
    one.hold(["a"])
    if why == "a stop":
        one.stopping()
    one.release()
    assert Lock(path, "two", "boot" if why == "a stop" else "another").marks == {}


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\n",
        b"x\n{}",
        b"\xff\n\xff",
        b"x\n[]\n",
        b'x\n{"boot":"boot","hands":[1],"marks":{"a":1}}',
        b"x\n" + b"[" * 9999,
    ],
)
def test_a_note_that_can_not_be_read_says_nothing(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / LOCK
    path.write_bytes(text)
    lock = Lock(str(path), "who\nis this", "boot")
    assert lock.marks == {}
    first, second = path.read_text().splitlines()
    assert first == "who is this"
    assert json.loads(second)["hands"] == []


def test_poison_is_what_dies_alone_again_and_again() -> None:
    assert not Marks(3, 1).is_poison(3)
    assert Marks(3, 2).is_poison(3)
    assert not Marks(1, 0).is_poison(1)
    assert Marks(1, 1).is_poison(1)
