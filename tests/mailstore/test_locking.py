"""The locks of mailboxes: ours keep mailers out, and theirs us."""

from __future__ import annotations

import fcntl
import mailbox
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qrunner.mailstore.locking import Locked, LockedFile
from qrunner.mailstore.mbox import Mbox, framed
from qrunner.switchboard.disk import Disk
from tests.mailstore.letters import ARRIVAL, read_mbox
from tests.sites import ROOT, wait_for

DISK = Disk(durable=False)


@contextmanager
def another(program: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """A program that does something to the mbox, says so, and waits."""
    code = f"import fcntl, mailbox, os, sys\npath = sys.argv[1]\n{program}\nprint('done', flush=True)\nsys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "done\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


MAILERS = {
    "fcntl": "f = open(path, 'ab'); fcntl.lockf(f, fcntl.LOCK_EX)",
    "a lock file without a process": "os.close(os.open(path + '.lock', os.O_CREAT | os.O_EXCL))",
    "a lock file": "open(path + '.lock', 'x').write(f'{os.getpid()}\\n')",
    "both": "mailbox.mbox(path).lock()",
}


@pytest.mark.parametrize("mailer", MAILERS)
def test_what_a_mailer_has_locked_is_not_had_until_it_lets_go(mailer: str, tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.touch()
    with another(MAILERS[mailer], path), pytest.raises(Locked, match="m is locked by another program"):
        LockedFile.take(str(path), DISK)
    (tmp_path / "m.lock").unlink(missing_ok=True)
    LockedFile.take(str(path), DISK).close()
    assert [one.name for one in tmp_path.iterdir()] == ["m"]


def test_what_we_have_no_mailer_has_and_neither_has_another_thread_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "m"
    held = LockedFile.take(str(path), DISK)
    with pytest.raises(Locked):
        LockedFile.take(str(path), DISK)
    with pytest.raises(mailbox.ExternalClashError):
        mailbox.mbox(str(path)).lock()
    tries = "f = open(path, 'ab')\ntry:\n fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)\nexcept OSError: pass\nelse: sys.exit()"
    with another(tries, path):
        pass
    # Closing another descriptor of it does not give ours up, as it does with locks of processes.
    path.read_bytes()
    with another(tries, path):
        pass
    with pytest.raises(Locked):
        LockedFile.take(str(path), DISK)
    held.close()
    mailbox.mbox(str(path)).lock()


def test_what_a_dead_process_held_is_free_at_once(tmp_path: Path) -> None:
    path = tmp_path / "m"
    take = f"sys.path.insert(0, {str(ROOT)!r})\nfrom qrunner.mailstore.locking import LockedFile\nfrom qrunner.switchboard.disk import Disk\nheld = LockedFile.take(path, Disk())"
    with another(take, path) as process:
        assert (tmp_path / "m.lock").read_text().split("\n")[0] == str(process.pid)
        with pytest.raises(Locked):
            LockedFile.take(str(path), DISK)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (tmp_path / "m.lock").exists()
    LockedFile.take(str(path), DISK).close()
    assert [one.name for one in tmp_path.iterdir()] == ["m"]


def dead() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    ("said", "age_s", "is_stale"),
    [
        ("{dead}", 0, True),
        ("{dead}\n{here}\n", 0, True),
        ("{dead}\nelsewhere.example.org\n", 0, False),
        ("{dead}\nelsewhere.example.org\n", 400, True),
        ("{us}\n", 0, False),
        ("{us}\n", 400, True),
        ("", 0, False),
        ("", 400, True),
        ("0", 0, False),
        ("who knows", 0, False),
    ],
)
def test_a_lock_file_is_stale_if_its_process_is_dead_or_it_is_old(
    said: str, age_s: int, is_stale: bool, tmp_path: Path
) -> None:
    path, lock = tmp_path / "m", tmp_path / "m.lock"
    lock.write_text(said.format(dead=dead(), us=os.getpid(), here=socket.gethostname()))
    os.utime(lock, (time.time() - age_s, time.time() - age_s))
    if is_stale:
        LockedFile.take(str(path), DISK).close()
    else:
        with pytest.raises(Locked):
            LockedFile.take(str(path), DISK)
        assert lock.exists()


def test_one_that_is_put_away_while_it_is_opened_is_left_for_the_one_that_has_the_name_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m"
    path.write_bytes(b"old")
    real = fcntl.fcntl

    def rotate(*arguments: object) -> object:
        if not (tmp_path / "m.1").exists():
            path.rename(tmp_path / "m.1")
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "fcntl", rotate)
    held = LockedFile.take(str(path), DISK)
    assert os.fstat(held.fd).st_ino == path.stat().st_ino != (tmp_path / "m.1").stat().st_ino
    held.close()


def test_many_threads_and_another_program_append_to_one_mbox_and_nothing_is_lost_or_mixed(
    tmp_path: Path,
) -> None:
    path, count, threads = tmp_path / "m", 30, 4
    path.touch()
    theirs = (
        "for n in range(30):\n"
        " while True:\n"
        "  box = mailbox.mbox(path)\n"
        "  try: box.lock()\n"
        "  except mailbox.ExternalClashError: continue\n"
        "  break\n"
        " box.add(f'Subject: their {n}\\n\\n' + 'x' * 9000 + '\\n'); box.flush(); box.unlock(); box.close()"
    )

    def ours(thread: int) -> None:
        for number in range(count):
            message = f"Subject: our {thread} {number}\n\n{'y' * 9000}\n".encode()

            def added(message: bytes = message) -> bool:
                try:
                    with Mbox.opened(str(path), DISK) as box:
                        box.append(framed("", ARRIVAL, message))
                except Locked:
                    return False
                return True

            wait_for(added)

    working = [threading.Thread(target=ours, args=(thread,)) for thread in range(threads)]
    for one in working:
        one.start()
    with another(theirs, path):
        for one in working:
            one.join()
    subjects = sorted(message.partition(b"\n")[0].decode() for message in read_mbox(path))
    wanted = [f"Subject: their {n}" for n in range(30)]
    wanted += [f"Subject: our {thread} {n}" for thread in range(threads) for n in range(count)]
    assert subjects == sorted(wanted)
    assert {len(message) for message in read_mbox(path)} <= set(range(9000, 9030))
