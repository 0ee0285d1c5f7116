"""An mbox: what is appended is there whole and once, and nobody else's bytes are touched."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrunner.mailstore.mbox import Mbox, Spot, framed
from qrunner.switchboard.disk import Disk
from tests.crash.calls import some_or_all
from tests.crash.power_faults import FAULTS, FailingDisk, Fault
from tests.mailstore.letters import ARRIVAL, letters, read_mbox, whole

DISK = Disk(durable=False)
OLD = b"From ann@example.org Thu Jan  1 00:00:00 2026\nSubject: old\n\nold\n\n"


def record(message: bytes, sender: str = "ann@example.org") -> bytes:
    return framed(sender, ARRIVAL, message)


def add(path: Path, message: bytes, disk: Disk = DISK) -> Spot:
    with Mbox.opened(str(path), disk) as box:
        spot = box.spot_for(record(message))
        box.append(record(message))
    return spot


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.stat().st_size}


# The form


def test_every_message_is_read_back_byte_for_byte(tmp_path: Path) -> None:
    path = tmp_path / "all.mbox"
    for message in letters():
        add(path, message)
    assert read_mbox(path) == [whole(message) for message in letters()]


@given(
    st.lists(
        st.lists(st.sampled_from([b"From ", b">", b"\n", b"\r", b"x", b"\0", b"\xff", b" "])), max_size=4
    )
)
def test_any_message_is_read_back(parts: list[list[bytes]]) -> None:
    from tempfile import TemporaryDirectory

    messages = [b"".join(part) for part in parts]
    with TemporaryDirectory() as folder:
        for message in messages:
            add(Path(folder, "m"), message)
        assert (read_mbox(Path(folder, "m")) if messages else []) == [whole(one) for one in messages]


def test_a_message_begins_with_its_sender_and_its_arrival_in_utc() -> None:
    assert record(b"a: b\n\nFrom x\n>From y\n>> From z").splitlines() == [
        b"From ann@example.org Sat Feb 28 23:59:58 2026",
        b"a: b",
        b"",
        b">From x",
        b">>From y",
        b">> From z",
        b"",
    ]


@pytest.mark.parametrize(
    ("sender", "word"),
    [
        ("", b"MAILER-DAEMON"),
        ('"john doe"@example.org', b'"john-doe"@example.org'),
        ("a\nFrom b@example.org", b"a-From-b@example.org"),
        ("a\x1b[2J\x85b@example.org", b"a-[2J-b@example.org"),
        ("ä@example.org", "ä@example.org".encode()),
        ("\udcff\ud800@example.org", b"??@example.org"),
    ],
)
def test_no_sender_can_end_the_line_that_names_it(sender: str, word: bytes) -> None:
    first, *_ = record(b"x: y\n", sender).split(b"\n")
    assert first == b"From " + word + b" Sat Feb 28 23:59:58 2026"
    assert len(first.split(b" ")) == 7


@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n"])
def test_what_another_program_left_without_its_line_is_ended_first(end: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(OLD.rstrip(b"\n") + end)
    add(path, b"Subject: new\n\nnew\n")
    assert read_mbox(path) == [b"Subject: old\n\nold\n", b"Subject: new\n\nnew\n"]


def test_it_is_ours_alone_and_so_are_the_folders_that_are_made_for_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "m"
    add(path, b"x\n")
    assert path.stat().st_mode & 0o777 == 0o600
    assert {path.parent.stat().st_mode & 0o777, path.parent.parent.stat().st_mode & 0o777} == {0o700}


def test_one_of_another_mode_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(OLD)
    path.chmod(0o640)
    add(path, b"x\n")
    assert path.stat().st_mode & 0o777 == 0o640


# Whether it is there


def test_what_was_appended_is_found_and_what_was_not_is_not(tmp_path: Path) -> None:
    path = tmp_path / "m"
    first, second = add(path, b"one\n"), add(path, b"two\n")
    with Mbox.opened(str(path), DISK) as box:
        assert box.holds(first)
        assert box.holds(second)
        assert not box.holds(box.spot_for(record(b"three\n")))
        assert not box.holds(Spot(first.at + 1, first.size, first.crc))


# What was begun and torn


def died(path: Path, message: bytes, leaves: Callable[[bytes], bytes]) -> bytes:
    """As a process leaves it that dies in the middle of an append; what there was before."""
    before = path.read_bytes() if path.exists() else b""
    box = Mbox.take(str(path), DISK)
    data = box._gap(len(before)) + record(message)
    box._remember(len(before), data)
    box.close()
    path.write_bytes(before + leaves(data))
    return before


LONG = b"Subject: long\n\n" + b"a line of some length\n" * 10_000
TORN: dict[str, Callable[[bytes], bytes]] = {
    "one byte": lambda data: data[:1],
    "the first line": lambda data: data[: data.index(b"\n") + 1],
    "half": lambda data: data[: len(data) // 2],
    "all but a byte": lambda data: data[:-1],
    "nothing but zeros": lambda data: bytes(len(data)),
    "half and zeros": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
    "zeros and half": lambda data: bytes(4096) + data[4096 : len(data) // 2],
}


@pytest.mark.parametrize("message", [b"Subject: x\n\n" + b"text\n" * 2_000, LONG], ids=["short", "long"])
@pytest.mark.parametrize("left", TORN)
def test_what_a_death_left_torn_is_taken_off_before_anything_is_appended(
    left: str, message: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "m"
    path.write_bytes(OLD)
    assert died(path, message, TORN[left]) == OLD
    add(path, b"next\n")
    assert read_mbox(path) == [b"Subject: old\n\nold\n", b"next\n"]


def test_what_was_whole_stays(tmp_path: Path) -> None:
    path = tmp_path / "m"
    died(path, b"one\n", lambda data: data)
    add(path, b"two\n")
    assert read_mbox(path) == [b"one\n", b"two\n"]


OTHERS: dict[str, Callable[[bytes], bytes]] = {
    "instead of ours, shorter": lambda data: b"From eve@example.net Thu Jan  1 00:00:00 2026\n\nx\n\n",
    "instead of ours, longer": lambda data: OLD * 3000,
    "behind what was torn": lambda data: data[:100] + b"\n\n" + OLD * 3000,
    "behind what was whole": lambda data: data + OLD,
    "of the same sender in the same second": lambda data: record(b"Subject: another\n\n"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_what_another_program_has_written_meanwhile_is_never_touched(other: str, tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(OLD)
    died(path, LONG, OTHERS[other])
    before = path.read_bytes()
    add(path, b"next\n")
    assert path.read_bytes().startswith(before)
    assert read_mbox(path)[-1] == b"next\n"


def test_an_mbox_that_was_put_away_meanwhile_and_its_successor_are_left_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "m"
    died(path, b"Subject: x\n\nx\n", lambda data: data[:10])
    path.rename(tmp_path / "m.1")
    path.write_bytes(OLD)
    add(path, b"next\n")
    assert (tmp_path / "m.1").read_bytes() == record(b"")[:10]
    assert path.read_bytes() == OLD + record(b"next\n")


@pytest.mark.parametrize("left", [b"", b"00000000 {}\n", b"not ours", b"\0" * 300])
def test_a_note_that_is_not_whole_means_that_nothing_had_begun(left: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(OLD)
    (tmp_path / ".m.undo").write_bytes(left)
    add(path, b"x\n")
    assert read_mbox(path) == [b"Subject: old\n\nold\n", b"x\n"]


# A disk that fails


@some_or_all(3)
@pytest.mark.parametrize("fault", FAULTS, ids=str)
@pytest.mark.parametrize("is_new", [True, False], ids=["a new one", "one that is there"])
def test_a_disk_that_fails_at_any_call_leaves_it_as_it_was_or_whole(
    fault: Fault, is_new: bool, tmp_path: Path, every: int
) -> None:
    at, more = 1 - every, True
    while more:
        at += every
        path = tmp_path / str(at) / "m"
        path.parent.mkdir()
        if not is_new:
            path.write_bytes(OLD)
            add(path, b"first\n")
        before = path.read_bytes() if path.exists() else b""
        done = False
        with FailingDisk(fault, at).mounted() as disk:
            try:
                add(path, b"Subject: x\n\n" + b"text\n" * 2_000, Disk())
                done = True
            except OSError:
                pass
        more = bool(disk.failed)
        lock = path.parent / "m.lock"
        if "unlink" in disk.failed:
            lock.unlink(missing_ok=True)
        assert not lock.exists()
        # What could not be cut off then is cut off now.
        add(path, b"next\n")
        found = read_mbox(path)
        assert found[-1] == b"next\n"
        assert len(found) - len(read_mbox_of(before, tmp_path)) in ((2,) if done else (1, 2)), disk.failed
        assert all(one.startswith(b"Subject: x\n\n" + b"text\n" * 2_000) for one in found[-2:-1] if done)
        assert not list(path.parent.glob(".new.*")) or "unlink" in disk.failed
    assert at > 4


def read_mbox_of(data: bytes, folder: Path) -> list[bytes]:
    path = folder / "read"
    path.write_bytes(data)
    return read_mbox(path)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_full_disk_leaves_not_a_byte(at: int, tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(OLD)
    full = Fault(errno.ENOSPC, frozenset({"write"}), partly=True)
    with Mbox.opened(str(path), Disk()) as box, FailingDisk(full, at).mounted() as disk:
        with pytest.raises(OSError, match="No space"):
            box.append(record(LONG))
        assert disk.failed
        assert path.read_bytes() == OLD
    assert names(tmp_path) == {"m"}


# What it may not be


@pytest.mark.parametrize("kind", ["fifo", "folder", "link"])
def test_what_is_no_file_is_refused_without_waiting_for_it(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "m"
    {
        "fifo": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "link": lambda: path.symlink_to(tmp_path / "elsewhere"),
    }[kind]()
    with pytest.raises(OSError, match=r"regular|directory|symbolic"):
        Mbox.take(str(path), DISK)
    assert not (tmp_path / "elsewhere").exists()
