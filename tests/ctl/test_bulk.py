"""`inject --mbox` and `--maildir`: each message once, whatever interrupts it; and what is said on the way."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import random
import re
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from qrunner.ctl import bulk, journal, orders
from qrunner.message import Entry
from qrunner.switchboard.files import FilesSpool
from qrunner.switchboard.staging import FilesStaging
from tests.sites import wait_for

from .conftest import ENTRY_POINT, Place

FROM = b"From ann@x.example Mon Jan  1 00:00:00 2024\n"


def message(number: int, size: int = 10) -> bytes:
    return b"Subject: n%d\n\n%s\n" % (number, b"x" * size)


def mbox(*messages: bytes) -> bytes:
    return b"".join(FROM + one + b"\n" for one in messages)


def write(path: Path, *numbers: int) -> str:
    with open(path, "ab") as file:
        file.write(mbox(*map(message, numbers)))
    return str(path)


def maildir(folder: Path, *names: str) -> Path:
    for part in ("new", "cur", "tmp"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        (folder / name).write_bytes(message(number))
    return folder


def subjects(place: Place, queue: str = "in") -> list[str]:
    return [entry.header("Subject") or "" for entry in place.site.entries(queue)]


def entries(place: Place) -> list[Entry]:
    return list(place.site.entries("in"))


# In order, and once


def test_messages_are_queued_in_the_order_of_the_mbox(place: Place, tmp_path: Path) -> None:
    result = place.call("inject", "--mbox", write(tmp_path / "box", *range(1500)), "b@y.example")
    assert result.exit_code == 0
    assert subjects(place) == [f"n{number}" for number in range(1500)]
    assert result.stdout.split() == [entry.id for entry in entries(place)]
    assert result.stderr == f"{tmp_path / 'box'}: 1500 messages injected\n"
    assert place.log().count(" inject id=") == 1500


def test_messages_of_a_maildir_are_queued_in_the_order_of_their_names_and_stay_as_they_are(
    place: Place, tmp_path: Path
) -> None:
    folder = maildir(tmp_path / "dir", "cur/2.b:2,S", "new/1.a", "new/3.c", "new/.hidden", "tmp/0.x")
    before = {path: path.stat() for path in folder.rglob("*")}
    assert place.call("inject", "--maildir", str(folder), "b@y.example").exit_code == 0
    assert subjects(place) == ["n1", "n0", "n2"]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == {
        path: about.st_mtime_ns for path, about in before.items()
    }


def test_the_sender_is_that_of_the_from_line_then_of_return_path_and_f_wins(
    place: Place, tmp_path: Path
) -> None:
    box = tmp_path / "box"
    box.write_bytes(
        FROM + b"Return-Path: <old@x>\nDelivered-To: b@y\n\n1\n\n"
        b"From nobody Mon Jan  1 00:00:00 2024\nReturn-Path: <path@x>\nDelivered-To: b@y\n\n2\n\n"
        b"From nobody Mon Jan  1 00:00:00 2024\nReturn-Path: <>\nDelivered-To: b@y\n\n3\n"
    )
    assert place.call("inject", "--mbox", str(box)).exit_code == 0
    assert place.call("inject", "--mbox", str(box), "-f", "me@x").exit_code == 0
    senders = [entry.sender for entry in entries(place)]
    assert senders == ["ann@x.example", "path@x", "", "me@x", "me@x", "me@x"]


def test_recipients_of_the_headers_are_each_message_s_own(place: Place, tmp_path: Path) -> None:
    box = tmp_path / "box"
    box.write_bytes(mbox(b"To: a@y\nBcc: b@y\n\n1\n", b"To: c@y\n\n2\n"))
    assert place.call("inject", "-t", "--mbox", str(box)).exit_code == 0
    assert [entry.recipients for entry in entries(place)] == [("a@y", "b@y"), ("c@y",)]
    assert b"Bcc" not in entries(place)[0].message


def test_a_message_that_a_route_splits_is_one_all_the_same(place: Place, tmp_path: Path) -> None:
    box = write(tmp_path / "box", *range(3))
    result = place.call("inject", "-q", "main", "--mbox", box, "a@slow.example", "b@fast.example")
    assert (result.exit_code, len(result.stdout.split())) == (0, 3)
    assert subjects(place, "slow") == subjects(place, "out") == ["n0", "n1", "n2"]
    assert "3 messages injected" in result.stderr


def test_what_was_injected_is_not_injected_again_unless_somebody_says_so(
    place: Place, tmp_path: Path
) -> None:
    boxes = [
        ("--mbox", write(tmp_path / "box", 1, 2)),
        ("--maildir", str(maildir(tmp_path / "dir", "new/1", "new/2"))),
    ]
    for words in boxes:
        assert place.call("inject", *words, "b@y").exit_code == 0
        result = place.call("inject", *words, "b@y")
        assert (result.exit_code, result.stdout) == (0, "")
        assert "all of it was injected before, and nothing has come since; --again" in result.stderr
    assert len(entries(place)) == 4
    for words in boxes:
        assert len(place.call("inject", *words, "b@y", "--again").stdout.split()) == 2
        assert place.call("inject", *words, "b@y").stdout == ""
        # Another command is another one.
        assert len(place.call("inject", *words, "c@y").stdout.split()) == 2
    assert len(entries(place)) == 12


def test_a_file_that_was_written_anew_is_another_one(place: Place, tmp_path: Path) -> None:
    box = write(tmp_path / "box", 1, 2)
    assert place.call("inject", "--mbox", box, "b@y").exit_code == 0
    for numbers in ((3,), (4, 5, 6)):
        (tmp_path / "box").unlink()
        assert place.call("inject", "--mbox", write(tmp_path / "box", *numbers), "b@y").exit_code == 0
    assert subjects(place) == ["n1", "n2", "n3", "n4", "n5", "n6"]


def test_of_a_mailbox_that_grows_only_what_has_come_goes_in(place: Place, tmp_path: Path) -> None:
    folder = maildir(tmp_path / "dir", "new/5", "new/6")
    for numbers in ((1, 2), (3,), (4,)):
        assert place.call("inject", "--mbox", write(tmp_path / "box", *numbers), "b@y").exit_code == 0
    assert subjects(place) == ["n1", "n2", "n3", "n4"]
    assert place.call("inject", "--maildir", str(folder), "c@y").exit_code == 0
    (folder / "new/6").rename(folder / "cur/6:2,S")
    (folder / "new/1").write_bytes(message(9))
    result = place.call("inject", "--maildir", str(folder), "c@y")
    assert "going on; 2 messages injected before" in result.stderr
    assert subjects(place)[4:] == ["n0", "n1", "n9"]


# Refused


def test_a_message_that_cant_be_taken_is_named_and_the_others_go_in(place: Place, tmp_path: Path) -> None:
    box = tmp_path / "box"
    box.write_bytes(mbox(message(1), message(2, 3000), message(3), b"To: broken <\n\n", message(5)))
    result = place.call("inject", "--max-size", "2K", "--mbox", str(box), "-t", "b@y")
    assert result.exit_code == 1
    assert subjects(place) == ["n1", "n3", "n5"]
    assert f"{box}, message 2: 3014 bytes, larger than 2048\n" in result.stderr
    assert f"{box}, message 4: the addresses in To can't be read" in result.stderr
    assert f"{box}: 3 messages injected, 2 refused\n" in result.stderr
    # What was refused was refused; the same command is done, and says that it was not all.
    again = place.call("inject", "--max-size", "2K", "--mbox", str(box), "-t", "b@y")
    assert (again.exit_code, again.stdout) == (1, "")
    assert "2 refused" in again.stderr


def test_a_message_without_anybody_to_send_it_to_is_named(place: Place, tmp_path: Path) -> None:
    result = place.call("inject", "--mbox", write(tmp_path / "box", 1, 2), env={"RECIPIENT": None})
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"{tmp_path / 'box'}, message 2: no recipient" in result.stderr


def test_an_envelope_that_no_file_can_hold_is_refused(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orders, "_LONGEST_ENVELOPE", 500)
    box = tmp_path / "box"
    box.write_bytes(mbox(b"To: %s@y\n\n" % (b"x" * 500), message(1)))
    result = place.call("inject", "--mbox", str(box), "-t", "b@y")
    assert (result.exit_code, subjects(place)) == (1, ["n1"])
    assert "message 1: its envelope is too long" in result.stderr


@pytest.mark.parametrize("bad", ["fifo", "folder", "link", "gone", "no mbox", "unreadable"])
def test_what_is_no_mbox_is_said_and_the_next_one_goes_in(place: Place, tmp_path: Path, bad: str) -> None:
    path, good = tmp_path / "bad", write(tmp_path / "good", 1)
    if bad == "fifo":
        os.mkfifo(path)
    elif bad == "folder":
        path.mkdir()
    elif bad == "link":
        path.symlink_to(tmp_path / "none")
    elif bad == "no mbox":
        path.write_bytes(b"\x1f\x8b\x08\x00mail")
    elif bad == "unreadable":
        path.symlink_to(path)
    result = place.call("inject", "--mbox", str(path), "--mbox", good, "b@y")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"{path}: ")
    assert (
        bad != "no mbox"
        or r"'\x1f\x8b\x08\x00mail', expected a line that begins with 'From '" in result.stderr
    )
    assert subjects(place) == ["n1"]


def test_in_a_maildir_what_is_no_message_is_named_and_the_others_go_in(place: Place, tmp_path: Path) -> None:
    folder = maildir(tmp_path / "dir", "new/1", "new/5")
    (folder / "new/2").mkdir()
    (folder / "new/3").symlink_to("1")
    os.mkfifo(folder / "new/4")
    (folder / "new/6").write_bytes(b"x" * 5000)
    result = place.call("inject", "--max-size", "4K", "--maildir", str(folder), "b@y")
    assert (result.exit_code, subjects(place)) == (1, ["n0", "n1"])
    for number, why in (
        (2, ""),
        (3, ""),
        (4, "not a regular file"),
        (6, "larger than 4096"),
    ):
        assert re.search(rf"dir, {number}: .*{why}", result.stderr)


def test_a_folder_that_is_no_maildir_is_said(place: Place, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    result = place.call("inject", "--maildir", str(tmp_path), "b@y")
    assert (result.exit_code, "no Maildir: it has no folder cur" in result.stderr) == (1, True)


# Interrupted


def start(place: Place, *words: str, **options: object) -> subprocess.Popen[bytes]:
    command = [*ENTRY_POINT, "-c", str(place.config), "inject", *words]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, **options}
    return subprocess.Popen(command, env=place.environment(), **options)  # type: ignore[call-overload,no-any-return]


def count(place: Place) -> Counter[str]:
    return Counter(subjects(place))


def waiting(place: Place) -> int:
    return sum(1 for _ in (place.folder / "qfiles/in").glob("[0-9a-f]*/*"))


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.stress) for seed in (2, 3))])
def test_killed_again_and_again_it_brings_each_message_once(place: Place, tmp_path: Path, seed: int) -> None:
    dice, total = random.Random(seed), 4000
    boxes = {
        "--mbox": write(tmp_path / "box", *range(total)),
        "--maildir": str(maildir(tmp_path / "dir", *(f"new/{n:06d}" for n in range(1000)))),
    }
    words = [word for pair in boxes.items() for word in pair]
    kills = 0
    while True:
        process = start(place, *words, "b@y", stdout=subprocess.DEVNULL)
        before, many = waiting(place), dice.randrange(1, 1500)
        while process.poll() is None and waiting(place) < before + many:
            pass
        process.kill()
        process.wait()
        kills += process.returncode == -signal.SIGKILL
        if process.returncode == 0:
            break
    assert kills > 1
    found = count(place)
    expected = Counter(f"n{n}" for n in range(total)) + Counter(f"n{n}" for n in range(1000))
    assert found == expected


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_polite_stop_says_how_far_it_came_and_how_to_go_on(
    place: Place, tmp_path: Path, number: signal.Signals
) -> None:
    box = write(tmp_path / "box", *range(8_000))
    process = start(place, "--mbox", box, "b@y", stderr=subprocess.PIPE)
    wait_for(lambda: waiting(place) > 500)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    injected = len(out.split())
    assert process.returncode == 1
    assert 500 < injected < 8_000
    assert err.decode() == (
        f"interrupted. {box}: {injected} messages injected so far; the same command goes on from there\n"
    )
    assert waiting(place) == injected
    assert place.call("inject", "--mbox", box, "b@y").exit_code == 0
    assert count(place) == Counter(f"n{n}" for n in range(8_000))


def interrupted(place: Place, monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    """The disk is full after two batches of ten; what was said."""
    stages = iter(range(99))

    def check(self: FilesSpool) -> None:
        if next(stages) >= 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(bulk, "_BATCH", 10)
        patch.setattr(FilesSpool, "_check_space", check)
        result = place.call("inject", *words)
    assert (result.exit_code, len(result.stdout.split())) == (75, 20)
    return result.stderr


def test_a_queue_that_takes_nothing_more_is_75_and_the_same_command_goes_on(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--mbox", write(tmp_path / "box", *range(35)), "b@y"]
    said = interrupted(place, monkeypatch, *words)
    assert "20 messages injected so far; the same command goes on from there" in said
    assert "queue in: No space left on device" in said
    result = place.call("inject", *words)
    assert (result.exit_code, len(result.stdout.split())) == (0, 15)
    assert f"{words[1]}: going on; 20 messages injected before" in result.stderr
    assert subjects(place) == [f"n{n}" for n in range(35)]


def test_a_queue_that_fails_after_the_commit_is_75_and_the_same_command_finishes_it(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--mbox", write(tmp_path / "box", *range(5)), "b@y"]

    def fail(self: FilesStaging, keys: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(FilesStaging, "publish", fail)
        result = place.call("inject", *words)
    assert (result.exit_code, result.stdout, entries(place)) == (75, "", [])
    assert "the queue: No space left on device" in result.stderr
    assert place.call("inject", *words).exit_code == 0
    assert subjects(place) == [f"n{n}" for n in range(5)]


def test_another_machine_or_site_on_the_same_mail_leaves_it_alone(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no journal that says what was committed."""
    words = ["--mbox", write(tmp_path / "box", *range(5)), "b@y"]
    with monkeypatch.context() as patch:
        patch.setattr(FilesStaging, "publish", lambda self, keys: (_ for _ in ()).throw(OSError(5, "no")))
        assert place.call("inject", *words).exit_code == 75
    text = place.config.read_text()
    for changed in (text.replace('"../var"', '"../other"'), text.replace("[site]", '[site]\nnode = "b"')):
        place.config.write_text(changed)
        assert len(place.call("inject", *words).stdout.split()) == 5
    place.config.write_text(text)
    assert place.call("inject", *words).exit_code == 0
    assert count(place) == Counter({f"n{n}": 3 for n in range(5)})


def test_a_signal_that_was_ignored_from_the_start_stays_so(place: Place, tmp_path: Path) -> None:
    box = write(tmp_path / "box", *range(3000))
    ignoring = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *ENTRY_POINT, "-c", str(place.config), "inject"]
    process = subprocess.Popen(
        [*ignoring, "--mbox", box, "b@y"],
        env=place.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    wait_for(lambda: waiting(place) > 10)
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.decode()) == (0, f"{box}: 3000 messages injected\n")


def test_an_mbox_that_has_changed_since_it_was_interrupted_is_not_guessed_at(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = tmp_path / "box"
    words = ["--mbox", write(box, *range(35)), "b@y"]
    interrupted(place, monkeypatch, *words)
    for content in (b"", box.read_bytes()[:500], box.read_bytes().replace(b"n3\n", b"nx\n")):
        box.write_bytes(content)
        result = place.call("inject", *words)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "written anew since it was interrupted after 20 messages injected; --again" in result.stderr
    assert len(place.call("inject", *words, "--again").stdout.split()) == 35
    assert len(entries(place)) == 55


def test_what_again_has_begun_goes_on_and_does_not_begin_again(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--mbox", write(tmp_path / "box", *range(25)), "b@y"]
    assert place.call("inject", *words).exit_code == 0
    assert "the same command, without --again, goes on" in interrupted(place, monkeypatch, *words, "--again")
    assert len(place.call("inject", *words, "--again").stdout.split()) == 5
    assert count(place) == Counter({f"n{n}": 2 for n in range(25)})


def test_a_journal_that_cant_be_written_takes_nothing_in(place: Place, tmp_path: Path) -> None:
    (tmp_path / "var").mkdir(exist_ok=True)
    (tmp_path / "var/inject").write_text("in the way")
    result = place.call("inject", "--mbox", write(tmp_path / "box", 1), "b@y")
    assert (result.exit_code, "can't be written down" in result.stderr, entries(place)) == (75, True, [])


def test_torn_and_foreign_lines_of_a_journal_count_for_nothing(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--mbox", write(tmp_path / "box", *range(35)), "b@y"]
    interrupted(place, monkeypatch, *words)
    (path,) = (tmp_path / "var/inject").iterdir()
    path.write_bytes(b"\x00" * 100 + b"\n" + path.read_bytes() + b'00000000 {"parcel":"x"')
    assert place.call("inject", *words).exit_code == 0
    assert subjects(place) == [f"n{n}" for n in range(35)]


def test_a_journal_of_what_was_finished_long_ago_goes_and_one_that_was_not_stays(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert place.call("inject", "--mbox", write(tmp_path / "done", 1), "b@y").exit_code == 0
    interrupted(place, monkeypatch, "--mbox", write(tmp_path / "half", *range(35)), "b@y")
    folder = tmp_path / "var/inject"
    for path in folder.iterdir():
        long_ago = time.time() - journal.KEPT_S - 60
        os.utime(path, (long_ago, long_ago))
    assert len(list(folder.iterdir())) == 2
    assert place.call("inject", "--mbox", write(tmp_path / "new", 1), "b@y").exit_code == 0
    assert len(list(folder.iterdir())) == 2
    assert place.call("inject", "--mbox", str(tmp_path / "half"), "b@y").exit_code == 0
    assert len(entries(place)) == 37


def test_two_at_once_come_in_one_after_the_other_and_nothing_twice(place: Place, tmp_path: Path) -> None:
    words = ["--mbox", write(tmp_path / "box", *range(8_000)), "b@y"]
    first = start(place, *words, stdout=subprocess.DEVNULL)
    wait_for(lambda: waiting(place) > 100)
    first.send_signal(signal.SIGSTOP)
    second = start(place, *words, stderr=subprocess.PIPE)
    assert second.stderr is not None
    assert b"waiting for another injection to end: " in second.stderr.readline()
    first.kill()
    first.wait()
    out, _ = second.communicate(timeout=60)
    assert (second.returncode, len(out.split()) < 8_000) == (0, True)
    assert count(place) == Counter(f"n{n}" for n in range(8_000))


def test_an_mbox_that_somebody_is_writing_to_is_not_read(place: Place, tmp_path: Path) -> None:
    box = write(tmp_path / "box", 1)
    with open(box, "ab") as mailer:
        fcntl.lockf(mailer, fcntl.LOCK_EX)
        # A lock of this process would not stop this process.
        process = start(place, "--mbox", box, "b@y", stderr=subprocess.PIPE)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err.decode()) == (75, f"{box}: somebody is writing to it\n")


# The bar


def on_terminal(place: Place, *words: str, **environment: str) -> str:
    """What standard error, a terminal, was given; standard output is none."""
    terminal, other = pty.openpty()
    env = {**place.environment(), "TERM": "xterm", **environment}
    command = [*ENTRY_POINT, "-c", str(place.config), "inject", *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=other, env=env)
    os.close(other)
    seen = b""
    try:
        while chunk := os.read(terminal, 65536):
            seen += chunk
    except OSError:  # how a terminal says that nobody is left at its other end
        pass
    process.communicate(timeout=60)
    os.close(terminal)
    return seen.decode()


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}])
def test_a_bar_is_drawn_on_a_terminal_and_has_no_colour(
    place: Place, tmp_path: Path, environment: dict[str, str]
) -> None:
    path = tmp_path / "box\x1b[31m"
    seen = on_terminal(place, "--mbox", write(path, *range(3000)), "b@y", **environment)
    assert "100%" in seen
    assert "box\\x1b[31m" in seen
    assert set(re.findall(r"\x1b\[[?0-9]*([a-zA-Z])", seen)) <= {"K", "l", "h"}
    assert seen.rstrip().endswith("3000 messages injected")


def test_no_bar_is_drawn_elsewhere(place: Place, tmp_path: Path) -> None:
    process = start(place, "--mbox", write(tmp_path / "box", 1), "b@y", stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=60)
    assert len(out.split()) == 1
    assert err.decode() == f"{tmp_path / 'box'}: 1 message injected\n"
