"""Strangers in every directory of a queue: they stop nothing, are kept byte for byte, and are said once."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from qrunner import Entry, Fate, Requeue, Runner
from qrunner.errors import CorruptEntry
from qrunner.format import LAST_DUE_NS, seal
from qrunner.message import Draft, Envelope
from qrunner.switchboard import AREAS
from qrunner.switchboard.claims import FilesLease
from tests.crash.power_children import become_nobody, give_to_nobody, in_a_child
from tests.driving import SITE, Bench, make_bench, running, until

LIVE = 20
DUE = "01700000000000000000"
GOOD = seal(Draft(b"Subject: x\n\nbody\n", Envelope.of("ann", ["bob"])), 1)
WHOLE = b"".join(GOOD.parts)


class Pass(Runner):
    async def dispose(self, entry: Entry) -> Fate:
        return entry.forward("out")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that others may enter as well."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as made:
        os.chmod(made, 0o755)
        yield Path(made)


# What a stranger may be: a function that makes it under a path.


def a_file(data: bytes) -> Callable[[Path], None]:
    return lambda path: (path.write_bytes(data), None)[1]


def a_full_directory(path: Path) -> None:
    path.mkdir()
    (path / "inside").write_bytes(b"kept")


def a_foreign_directory(path: Path) -> None:
    path.mkdir(mode=0o755)
    (path / "inside").write_bytes(b"kept")


def a_sparse_giant(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 42)


def an_entry_with_a_sparse_giant_of_a_history(path: Path) -> None:
    path.write_bytes(WHOLE)
    os.truncate(path, 1 << 42)


def a_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def unreadable(path: Path) -> None:
    path.write_bytes(WHOLE)
    path.chmod(0)


NONSENSE: dict[str, Callable[[Path], None]] = {
    "empty": a_file(b""),
    "one byte": a_file(b"q"),
    "garbage": a_file(bytes(range(256)) * 9),
    "cut in the header": a_file(WHOLE[:40]),
    "cut in the envelope": a_file(WHOLE[:90]),
    "cut in the message": a_file(WHOLE[:-3]),
    "zeros": a_file(bytes(len(WHOLE))),
    "a future version": a_file(WHOLE.replace(b"qrunner 1 ", b"qrunner 2 ", 1)),
    "a far future version": a_file(b"qrunner 12345678901234567890 " + WHOLE[10:]),
    "wrong checksum": a_file(WHOLE.replace(b"body", b"b0dy")),
    "huge lengths": a_file(b"qrunner 1 99999999 999999999999 " + WHOLE[32:]),
    "negative lengths": a_file(b"qrunner 1 -0000001 -00000000001 " + WHOLE[32:]),
    "lengths off by one": a_file(WHOLE[:30] + b"1" + WHOLE[31:]),
    "nested too deep": a_file(b"qrunner 1 %08d %012d %s\n" % (90_000, 0, b"0" * 40) + b"[" * 90_000),
    "the entry of another name": a_file(WHOLE),
    "a sparse giant": a_sparse_giant,
    "a giant of a history": an_entry_with_a_sparse_giant_of_a_history,
    "directory": lambda path: path.mkdir(),
    "full directory": a_full_directory,
    "foreign directory": a_foreign_directory,
    "fifo": lambda path: os.mkfifo(path),
    "socket": a_socket,
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "link to a file": lambda path: path.symlink_to("/etc/passwd"),
    "link to a directory": lambda path: path.symlink_to("/etc"),
    "unreadable": unreadable,
}
NOT_NAMES = (
    b"stray",
    b"1234567890+abc.pck",
    b"caf\xe9 \xff\x00".replace(b"\x00", b""),
    b"two\nlines",
    b"\x1b[31mred",
    b"x" * 255,
    DUE.encode() + b"+" + b"A" * 40,
    b"9" * 20 + b"+" + b"ab" * 20,
    DUE.encode() + b"+" + b"ab" * 20 + b".what",
    DUE.encode() + b"+" + b"ab" * 20 + b".1,x",
    b".hidden",
    b".new.0123456789abcdef",
    b"00000000000000000000",
    b"\xd9\xa3" * 20,
)


@dataclass(frozen=True, slots=True)
class Stranger:
    """One that was planted, and what there was to see of it."""

    path: Path
    looks: tuple[object, ...]


def looks(path: Path) -> tuple[object, ...]:
    """What can be seen of anything: kind, mode, and bytes, or where it leads, or what is in it."""
    about = path.lstat()
    kind = stat.S_IFMT(about.st_mode)
    if stat.S_ISREG(about.st_mode):
        shown: object = (about.st_size, path.read_bytes() if about.st_size < 1 << 20 else b"", about.st_mode)
    elif stat.S_ISLNK(about.st_mode):
        shown = os.readlink(path)
    elif stat.S_ISDIR(about.st_mode):
        shown = sorted((one.name, one.read_bytes()) for one in path.iterdir())
    else:
        shown = None
    return kind, shown


def plant(root: Path) -> list[Stranger]:
    """Strangers everywhere."""
    places = ["in", "in/ab", "in/.hops", "hold/in", "shunt/in", "bad/in", ".lease", ".lease/in"]
    planted: list[Path] = []
    for place in places:
        for name in NOT_NAMES:
            path = root / place / os.fsdecode(name)
            path.write_bytes(b"a stranger's")
            planted.append(path)
        for number, make in enumerate(NONSENSE.values()):
            # In the directory where an entry of this id belongs, or beside it.
            path = root / place / f"{DUE}+ab{number:038x}"
            make(path)
            planted.append(path)
    for number, make in enumerate(NONSENSE.values()):
        claimed = root / "in" / "ab" / f"{DUE}+abc{number:037x}.4711,abcdef,{number},b007,a"
        intent = root / "in" / ".hops" / f"{number:040x}.abc.intent"
        lease = root / ".lease" / "in" / f"{number}.json"
        for path in (claimed, intent, lease):
            make(path)
            planted.append(path)
    return [Stranger(path, looks(path)) for path in planted]


def is_kept(root: Path, stranger: Stranger) -> bool:
    """Whether it lies where it was, or in ``bad`` under a name that begins with its own."""
    there = [stranger.path, *(root / "bad" / "in").glob(f"{stranger.path.name[:61]}*")]
    return any(os.path.lexists(path) and looks(path) == stranger.looks for path in there)


class Lines(logging.Handler):
    """What was said."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def runs_until_it_has_looked_often(bench: Bench, runner: type[Runner], looks_wanted: int = 6) -> list[str]:
    """Runs the real engine until it has handed on all that lives, and a few looks more; what it said."""
    lines = Lines()
    logging.getLogger("qrunner").addHandler(lines)
    refresh, count = FilesLease.refresh, [0]

    def counted(lease: FilesLease) -> object:
        count[0] += 1
        return refresh(lease)

    FilesLease.refresh = counted  # type: ignore[method-assign,assignment]
    engine = bench.engine(runner)

    async def all_of_it() -> None:
        await until(lambda: engine.processed == LIVE, "the work beside the strangers")
        seen = count[0]
        await until(lambda: count[0] >= seen + looks_wanted, "a few looks more")
        assert (engine.state, engine.reason) == ("running", "")

    running(engine, all_of_it)
    return lines.said


def test_strangers_everywhere_stop_nothing_and_are_kept_and_said_once(folder: Path) -> None:
    def story() -> None:
        (folder / "warm").mkdir()
        bench = make_bench(folder, 'poll_interval = "50ms"\nconcurrency = 3')
        root = folder / "qfiles"
        for _number in range(LIVE):
            bench.put(1)
        # What is imported late can be read by nobody only where it is installed for all: once, before.
        make_bench(folder / "warm").drain(Pass)
        planted = plant(root)
        folder.chmod(0o755)
        give_to_nobody(folder)
        for stranger in planted:
            if (
                stranger.path.is_dir()
                and not stranger.path.is_symlink()
                and stranger.path.stat().st_mode & 0o044
            ):
                os.lchown(stranger.path, 0, 0)
        planted = [Stranger(stranger.path, looks(stranger.path)) for stranger in planted]

        def as_nobody() -> None:
            become_nobody()
            said = runs_until_it_has_looked_often(bench, Pass)
            assert {line: n for line, n in Counter(said).items() if n > 1} == {}
            assert len([line for line in said if "stranger" in line]) >= 2 * len(NOT_NAMES) - 6
            see_everything(bench)

        in_a_child(as_nobody)
        assert len(bench.entries("out")) == LIVE
        lost = [stranger for stranger in planted if not is_kept(root, stranger)]
        assert not lost, lost[:5]

    story()


def see_everything(bench: Bench) -> None:
    """Who lists looks at every name, and reads what it says is an entry: nothing but CorruptEntry comes of it."""
    spool = bench.site.spool
    for queue in (*spool.queues(), "nowhere"):
        for area in AREAS:
            for ref in spool.peek(queue, area):
                try:
                    spool.read(ref)
                except (CorruptEntry, FileNotFoundError):
                    continue
    assert len(list(bench.site.entries("out"))) == LIVE
    assert len(list(spool.holders("in"))) == 0


def test_the_verbs_that_list_go_through_strangers(folder: Path) -> None:
    bench = make_bench(folder)
    (folder / "etc" / "qrunner.toml").write_text(SITE.format(keys=""))
    bench.put(3)
    plant(folder / "qfiles")
    for words in (["list"], ["list", "--json"], ["list", "hold", "shunt", "bad"]):
        program = "from qrunner.ctl import main; main()"
        command = [sys.executable, "-c", program, "-c", str(folder / "etc" / "qrunner.toml"), *words]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (result.returncode, "Traceback" in result.stderr) == (0, False), result.stderr
        assert "\x1b" not in result.stdout


def test_two_of_the_same_name_a_week_apart_are_both_kept(folder: Path) -> None:
    bench = make_bench(folder, 'poll_interval = "50ms"')
    name = f"{DUE}+ab{0:038x}"
    for data in (b"the first", b"the second"):
        (folder / "qfiles" / "in" / "ab" / name).write_bytes(data)
        bench.drain(Pass)
    kept = sorted(path.read_bytes() for path in (folder / "qfiles" / "bad" / "in").iterdir())
    assert kept == [b"the first", b"the second"]


class Slow(Runner):
    """Has several in hand at once, and writes into their histories."""

    async def dispose(self, entry: Entry) -> Fate:
        await asyncio.sleep(0)
        await self.desk.progress.note(entry, {"what": "attempt", "text": "noted"})
        return entry.forward("out")


def test_a_copy_of_a_live_entry_is_an_entry_of_its_own_and_disturbs_no_other(folder: Path) -> None:
    bench = make_bench(folder, "concurrency = 5")
    ids = bench.put(3)
    for ref in list(bench.site.spool.peek("in")):
        copy = Path(ref.token).with_name(f"{ref.due_ns + 7:020d}+{ref.id}")
        shutil.copy(ref.token, copy)
    engine = bench.engine(Slow)

    async def both() -> None:
        await until(lambda: engine.processed == 6, "the copies too")

    running(engine, both)
    assert bench.where() == {"out": 6}
    assert Counter(entry.id for entry in bench.entries("out")) == dict.fromkeys(ids, 2)
    assert all(len(entry.history) == 1 for entry in bench.entries("out"))


@pytest.mark.parametrize("delay", [3600.0 * 24 * 365 * 300, 1e12])
def test_an_entry_that_waits_longer_than_time_itself_is_still_an_entry(folder: Path, delay: float) -> None:
    bench = make_bench(folder)
    bench.put(1, delay=delay)
    bench.put(1)
    bench.drain_with(lambda entry: Requeue(delay))
    assert [entry.due_ns for entry in bench.entries("in")] == [LAST_DUE_NS, LAST_DUE_NS]
    bench.drain(Pass)
    assert bench.where() == {"in": 2}
