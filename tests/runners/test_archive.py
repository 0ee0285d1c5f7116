"""The archive: every format keeps every message as it is, once, where and when it belongs."""

from __future__ import annotations

import errno
import mailbox
import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from qrunner.config import ConfigErrors, load, parse
from qrunner.errors import ConfigError
from qrunner.fate import Requeue
from qrunner.message import Entry
from qrunner.runners.archive import ArchiveRunner
from qrunner.switchboard.disk import Disk
from qrunner.testing import FakeClock, FakeSite
from tests.crash.power_faults import FailingDisk, Fault
from tests.driving import Bench, make_bench, running, until
from tests.mailstore.letters import letters, read, read_mbox, whole

pytest_plugins = ["qrunner.testing.plugin"]

Make = Callable[..., FakeSite]
SITE = '[site]\nhostname = "lists.example.org"\npostmaster = "postmaster@lists.example.org"\ndurability = "none"\n'
FORMATS = ("mbox", "maildir", "eml")


def keep(path: Path | str, format: str = "mbox", more: str = "", kind: str = "archive") -> str:
    return f'{SITE}[runner.keep]\nclass = "{kind}"\nformat = "{format}"\npath = "{path}"\n{more}'


@pytest.fixture
def at(tmp_path: Path) -> Path:
    return tmp_path / "archive" / "of all"


@pytest.mark.parametrize("format", FORMATS)
def test_every_message_is_kept_byte_for_byte(format: str, at: Path, fake_site: Make) -> None:
    site = fake_site(keep(at, format, "concurrency = 4"))
    for message in letters():
        site.enqueue("keep", message=message, sender="ann@example.org")
    site.run_until_idle(60)
    same = whole if format == "mbox" else bytes
    assert Counter(read(format, at)) == Counter(map(same, letters()))
    assert site.entries("keep") == site.entries("shunt") == []


@pytest.mark.parametrize("format", FORMATS)
def test_all_that_is_made_is_its_owners_alone_and_nothing_is_left_lying_about(
    format: str, at: Path, fake_site: Make
) -> None:
    site = fake_site(keep(at, format))
    site.enqueue("keep")
    site.run_until_idle()
    found = [path for path in at.parent.rglob("*") if not path.name.endswith(".undo")]
    assert {path.stat().st_mode & 0o777 for path in found if path.is_file()} == {0o600}
    folders = [at.parent, *(path for path in found if path.is_dir())]
    assert {path.stat().st_mode & 0o777 for path in folders} == {0o700}
    assert len([path for path in found if path.is_file()]) == 1


def test_a_maildir_is_one_as_its_rules_want_it(at: Path, fake_site: Make) -> None:
    site = fake_site(keep(at, "maildir"))
    id = site.enqueue("keep")
    site.run_until_idle()
    assert {path.name for path in at.iterdir()} == {"tmp", "new", "cur"}
    (path,) = (at / "new").iterdir()
    time, unique, host = path.name.split(".", 2)
    assert (int(time), unique, host) == (int(site.clock.now_ns() / 1e9), f"Q{id}", "lists.example.org")
    assert [message.get_subdir() for message in mailbox.Maildir(str(at))] == ["new"]


def test_a_folder_is_sorted_by_time(at: Path, fake_site: Make) -> None:
    site = fake_site(keep(at, "eml"))
    first = site.enqueue("keep")
    site.clock.advance("90s")
    second = site.enqueue("keep")
    site.run_until_idle()
    assert sorted(os.listdir(at)) == [f"20260101T000000Z-{first}.eml", f"20260101T000130Z-{second}.eml"]


@pytest.mark.parametrize("format", FORMATS)
def test_each_day_has_an_archive_of_its_own_by_the_time_of_arrival_in_utc(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    clock = FakeClock(datetime(2026, 2, 28, 23, 59, 59, tzinfo=UTC))
    with FakeSite(keep(tmp_path / "%Y" / "%m-%d.100%%", format), clock=clock) as site:
        site.enqueue("keep", message=b"February\n")
        clock.advance("1s")
        site.enqueue("keep", message=b"March\n")
        # What waited is kept where it belongs, however late that is.
        clock.advance("40d")
        site.run_until_idle()
    assert read(format, tmp_path / "2026" / "02-28.100%") == [b"February\n"]
    assert read(format, tmp_path / "2026" / "03-01.100%") == [b"March\n"]
    assert sorted(os.listdir(tmp_path)) == ["2026"]


def test_with_next_it_goes_on_as_it_is(at: Path, fake_site: Make) -> None:
    site = fake_site(keep(at, more='next = ["out", "other"]'))
    id = site.enqueue("keep", recipients=["a@example.org"])
    site.run_until_idle()
    assert [entry.parents for queue in ("out", "other") for entry in site.entries(queue)] == [(id,)] * 2
    assert len(read_mbox(at)) == 1


def test_without_next_it_is_finished_and_the_log_says_where_it_is(
    at: Path, fake_site: Make, caplog: pytest.LogCaptureFixture
) -> None:
    site = fake_site(keep(at))
    caplog.set_level("INFO", logger="qrunner")
    site.enqueue("keep")
    site.run_until_idle()
    (said,) = [record.fields for record in caplog.records if record.message == "done"]  # type: ignore[attr-defined]
    assert said["reason"] == f"kept in {at}"


def test_nothing_of_a_message_decides_where_it_is_kept(at: Path, tmp_path: Path, fake_site: Make) -> None:
    site = fake_site(keep(at, "eml"))
    evil = "../../../%Y/\0/evil@example.org"
    site.enqueue("keep", message=b"Subject: ../../x\n\n", sender=evil, meta={"source": "../.."})
    site.run_until_idle()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == list(at.glob("*.eml"))


# What keeps it from being written


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EMFILE])
def test_a_disk_that_fails_makes_the_message_wait_at_no_cost(
    format: str, code: int, at: Path, fake_site: Make
) -> None:
    site = fake_site(keep(at, format))
    site.enqueue("keep", message=b"Subject: x\n\n" + b"x" * 100_000)
    with FailingDisk(Fault(code, frozenset({"write", "create"}), lasting=True), 1).mounted():
        site.run_until_idle()
    (entry,) = site.entries("keep")
    assert (entry.attempts, entry.history[-1]["what"]) == (0, "requeue")
    assert os.strerror(code) in entry.history[-1]["reason"]
    assert [path for path in at.parent.rglob("*") if path.is_file() and path.stat().st_size] == []
    site.clock.advance("40d")
    site.run_until_idle()
    assert [len(message) for message in read(format, at)] in ([100_012], [100_013])


@pytest.mark.parametrize("format", FORMATS)
def test_a_folder_that_can_not_be_made_makes_it_wait(format: str, at: Path, fake_site: Make) -> None:
    at.parent.write_bytes(b"a file stands where the folder is to be")
    site = fake_site(keep(at, format))
    site.enqueue("keep")
    site.run_until_idle()
    (entry,) = site.entries("keep")
    assert "Not a directory" in entry.history[-1]["reason"]
    at.parent.unlink()
    site.clock.advance("1m")
    site.run_until_idle()
    assert len(read(format, at)) == 1


def test_a_message_that_waits_for_ever_does_not_grow_for_ever(at: Path, fake_site: Make) -> None:
    site = fake_site(keep(at))
    site.enqueue("keep", message=b"x" * 5000)
    # Neither the folder nor the note is to blame: there is no room in the mbox.
    with FailingDisk(Fault(errno.ENOSPC, frozenset({"write"}), lasting=True), 4).mounted() as disk:
        for _ in range(20):
            disk.at = disk.count + 4
            site.clock.advance("1m")
            site.run_until_idle()
    (entry,) = site.entries("keep")
    assert [line["what"] for line in entry.history].count("archive") == 1
    assert read_mbox(at) == []


def test_one_that_is_locked_too_long_makes_it_wait(
    at: Path, fake_site: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qrunner.runners.archive._PATIENCE_S", 0.2)
    at.parent.mkdir()
    other = mailbox.mbox(str(at))
    other.lock()
    site = fake_site(keep(at))
    site.enqueue("keep")
    site.run_until_idle()
    (entry,) = site.entries("keep")
    assert "is locked by another program" in entry.history[-1]["reason"]
    other.unlock()
    site.clock.advance("1m")
    site.run_until_idle()
    assert len(read_mbox(at)) == 1


# Once, whatever was begun before


class Torn(ArchiveRunner):
    """Does its work and does not live to say so."""

    async def dispose(self, entry: Entry) -> Any:
        fate = await super().dispose(entry)
        return Requeue(60) if not any(line["what"] == "requeue" for line in entry.history) else fate


@pytest.mark.parametrize("format", FORMATS)
def test_what_was_kept_before_is_not_kept_again(format: str, at: Path, fake_site: Make) -> None:
    site = fake_site(keep(at, format, kind=f"{__name__}:Torn"))
    site.enqueue("keep")
    for _ in range(2):
        site.run_until_idle()
        site.clock.advance("1h")
    assert site.entries("keep") == []
    assert len(read(format, at)) == 1


@pytest.mark.parametrize("becomes", ["cur/%s:2,S", "cur/%s", "../elsewhere/%s", None])
def test_what_a_reader_has_taken_since_is_not_kept_again(
    becomes: str | None, at: Path, fake_site: Make
) -> None:
    site = fake_site(keep(at, "maildir", kind=f"{__name__}:Torn"))
    site.enqueue("keep")
    site.run_until_idle()
    (path,) = (at / "new").iterdir()
    if becomes is None:
        path.unlink()
    else:
        (at / "../elsewhere").mkdir()
        path.rename(at / (becomes % path.name))
    site.clock.advance("1h")
    site.run_until_idle()
    assert site.entries("keep") == []
    assert list((at / "new").iterdir()) == []


def staged(site: FakeSite, at: Path) -> Path:
    """What lies staged once the runner was kept from its last step."""
    site.enqueue("keep", message=b"Subject: x\n\n")
    with FailingDisk(Fault(errno.ENOSPC, frozenset({"rename"})), 1).mounted():
        site.run_until_idle()
    (path,) = [one for one in at.rglob("*") if one.is_file()]
    return path


@pytest.mark.parametrize("format", ["maildir", "eml"])
def test_what_is_staged_gets_its_name_when_it_can(format: str, at: Path, fake_site: Make) -> None:
    site = fake_site(keep(at, format))
    inode = staged(site, at).stat().st_ino
    assert read(format, at) == []
    site.clock.advance("1m")
    site.run_until_idle()
    assert [path.stat().st_ino for path in at.rglob("*") if path.is_file()] == [inode]
    assert read(format, at) == [b"Subject: x\n\n"]


def test_what_lay_staged_so_long_that_it_was_swept_is_written_again(at: Path, fake_site: Make) -> None:
    site = fake_site(keep(at, "maildir"))
    staged(site, at).unlink()
    site.clock.advance("37h")
    site.run_until_idle()
    assert read("maildir", at) == [b"Subject: x\n\n"]


def test_what_is_swept_under_our_hands_is_not_taken_for_a_readers_doing(
    at: Path, fake_site: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qrunner.mailstore import folder

    real = folder.rename_new

    def sweep(source: str, target: str) -> None:
        monkeypatch.setattr(folder, "rename_new", real)
        os.unlink(source)
        real(source, target)

    monkeypatch.setattr(folder, "rename_new", sweep)
    site = fake_site(keep(at, "maildir"))
    site.enqueue("keep", message=b"Subject: x\n\n")
    site.run_until_idle()
    assert read("maildir", at) == []
    site.clock.advance("1m")
    site.run_until_idle()
    assert read("maildir", at) == [b"Subject: x\n\n"]


@pytest.mark.parametrize("format", ["maildir", "eml"])
def test_after_a_reboot_only_what_is_there_counts(
    format: str, at: Path, fake_site: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = fake_site(keep(at, format, kind=f"{__name__}:Torn"))
    site.enqueue("keep", message=b"Subject: x\n\n")
    site.run_until_idle()
    (path,) = [one for one in at.rglob("*") if one.is_file()]
    path.unlink()
    site.engines[0].runner._boot = "another"  # type: ignore[attr-defined]
    site.clock.advance("1m")
    site.run_until_idle()
    assert read(format, at) == [b"Subject: x\n\n"]


def test_an_mbox_in_which_it_is_already_may_have_another_name_by_now(at: Path, fake_site: Make) -> None:
    site = fake_site(keep(at, kind=f"{__name__}:Torn"))
    site.enqueue("keep")
    site.run_until_idle()
    site.engines[0].runner._pattern = f"{at}.new"  # type: ignore[attr-defined]
    site.clock.advance("1h")
    site.run_until_idle()
    assert site.entries("keep") == []
    assert len(read_mbox(at)) == 1
    assert not Path(f"{at}.new").exists()


def test_the_mark_of_another_archive_says_nothing(at: Path, fake_site: Make) -> None:
    other = f'[runner.second]\nclass = "archive"\npath = "{at}"\n'
    site = fake_site(keep(at, more=f'next = "second"\n{other}'))
    site.enqueue("keep")
    site.run_until_idle()
    assert len(read_mbox(at)) == 2


# A site's own


class BySender(ArchiveRunner):
    """Keeps the envelope as well, and each sender's mail by itself."""

    def content(self, entry: Entry) -> bytes:
        return b"Return-Path: <" + entry.sender.encode() + b">\n" + entry.message

    def path(self, entry: Entry) -> str:
        return f"{super().path(entry)}-{'ann' if entry.sender.startswith('ann@') else 'others'}"


def test_a_sites_class_says_by_itself_what_is_kept_and_where(at: Path, fake_site: Make) -> None:
    site = fake_site(keep(at, kind=f"{__name__}:BySender"))
    for sender in ("ann@example.org", "eve@example.net"):
        site.enqueue("keep", sender=sender, message=b"x\n")
    site.run_until_idle()
    assert read_mbox(f"{at}-ann") == [b"Return-Path: <ann@example.org>\nx\n"]
    assert read_mbox(f"{at}-others") == [b"Return-Path: <eve@example.net>\nx\n"]


def test_a_sites_class_without_a_path_is_told_so(fake_site: Make) -> None:
    with pytest.raises(ConfigError, match="keep is an archive without a path"):
        fake_site(f'{SITE}[runner.keep]\nclass = "{__name__}:BySender"\n')


# The configuration


WRONG: Sequence[tuple[str, str]] = (
    ('class = "archive"', "path: is missing"),
    ('class = "archive"\npath = "a/%s"', 'path: "%s" is no part of a date, expected one of %Y'),
    ('class = "archive"\npath = "a/%"', 'path: "%" is no part of a date'),
    ('class = "archive"\npath = "a/%D"', 'path: "%D" is no part of a date'),
    ('class = "archive"\npath = "a"\nformat = "mmdf"', 'format: "mmdf" is not known, expected mbox'),
    ('class = "archive"\npath = "../qfiles/in/x"', "path: /site/qfiles/in/x is inside queue_dir"),
)


@pytest.mark.parametrize(("lines", "problem"), WRONG)
def test_what_can_not_be_is_said_at_check_time(lines: str, problem: str) -> None:
    with pytest.raises(ConfigErrors) as caught:
        parse(f"[runner.keep]\n{lines}\n", Path("/site/etc/qrunner.toml"))
    (found,) = caught.value.problems
    assert problem in str(found)


@pytest.mark.parametrize(
    ("format", "is_folder", "problem"),
    [
        ("mbox", True, "is a folder, expected a file"),
        ("maildir", False, "is not a folder"),
        ("eml", False, "is not a folder"),
        ("mbox", False, ""),
        ("maildir", True, ""),
    ],
)
def test_a_place_that_is_of_another_kind_is_said_at_check_time(
    format: str, is_folder: bool, problem: str, tmp_path: Path
) -> None:
    place, file = tmp_path / "place", tmp_path / "qrunner.toml"
    if is_folder:
        place.mkdir()
    else:
        place.touch()
    (tmp_path / "q").mkdir()
    file.write_text(keep(place, format).replace("[site]\n", '[site]\nqueue_dir = "q"\n'))
    file.chmod(0o600)
    if not problem:
        assert load(file).runners["keep"].settings["path"] == place
        return
    with pytest.raises(ConfigErrors, match=problem):
        load(file)


# Cut short


def bench_of(folder: Path, format: str, at: Path, more: str) -> Bench:
    return make_bench(folder, f'format = "{format}"\npath = "{at}"\n{more}\n')


def test_a_stop_while_the_mbox_is_locked_puts_the_message_back(at: Path, tmp_path: Path) -> None:
    bench = bench_of(tmp_path, "mbox", at, 'grace = "0s"')
    bench.put()
    at.parent.mkdir()
    other = mailbox.mbox(str(at))
    other.lock()
    engine = bench.engine(ArchiveRunner)

    async def stopped() -> None:
        await until(lambda: engine.in_hand == 1)

    running(engine, stopped)
    assert (bench.where(), bench.entries("in")[0].history) == ({"in": 1}, ())
    other.unlock()
    bench.drain(ArchiveRunner)
    assert (bench.where(), len(read_mbox(at))) == ({}, 1)


@pytest.mark.parametrize("format", FORMATS)
def test_what_was_not_done_in_time_is_kept_once_all_the_same(
    format: str, at: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that writes goes on after its time is over, while the message is tried again."""
    real, slow = Disk.sync_file, threading.Event()

    def late(disk: Disk, fd: int) -> None:
        # Of the mbox, or of what is staged.
        if not slow.is_set() and os.readlink(f"/proc/self/fd/{fd}").startswith(f"{at.parent}/"):
            slow.wait(0.3)
        real(disk, fd)

    monkeypatch.setattr(Disk, "sync_file", late)
    often = 'timeout = "100ms"\nretry = { first = "100ms", max = "100ms", jitter = 0 }\ngrace = "5s"'
    bench = bench_of(tmp_path, format, at, often)
    bench.put(2)
    engine = bench.engine(ArchiveRunner)

    async def drained() -> None:
        await until(lambda: sum(entry.attempts for entry in bench.entries("in")) >= 3)
        slow.set()
        await until(lambda: not bench.where())

    running(engine, drained)
    assert len(read(format, at)) == 2
