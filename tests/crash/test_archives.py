"""A process dies at every call by which it archives: each message is kept once, whole, however fast it is taken away."""

from __future__ import annotations

import os
import signal
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qrunner.fate import Fate
from qrunner.message import Entry
from qrunner.runners.archive import ArchiveRunner
from tests.crash.calls import REAL, Calls, Point, points, some_or_all
from tests.driving import Bench, make_bench
from tests.mailstore.letters import read

MEMORY = "/dev/shm"
OLD = b"From eve@example.net Thu Jan  1 00:00:00 2026\nSubject: old\n\nold\n\n"
MESSAGES = [b"Subject: %d\n\nFrom here on\n%s" % (n, b"a line of text\n" * 600) for n in range(2)]
Takes = Callable[[], None]


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY if os.path.isdir(MEMORY) else None) as made:
        yield Path(made)


class Archive:
    """An archive of one format, the queue in front of it, and the reader behind it."""

    def __init__(self, folder: Path, format: str) -> None:
        self.folder, self.format = folder, format
        self.place = folder / "kept" / "all"
        self.taken = folder / "taken"

    def bench(self) -> Bench:
        """Made anew for each process."""
        keys = f'format = "{self.format}"\npath = "{self.place}"\nmax_crashes = 1000\nnext = "out"\n'
        bench = make_bench(self.folder, keys)
        bench.site.spool.disk.durable = True  # type: ignore[attr-defined]
        return bench

    def begin(self) -> None:
        """Two messages in the queue, in front of an archive that is there already, or not yet."""
        bench = self.bench()
        for message in MESSAGES:
            bench.site.enqueue("in", message=message, sender="ann@example.org", recipients=["b@example.org"])

    def die(self, point: Point | None, takes: Takes | None = None) -> tuple[str, ...]:
        """A process archives, and dies there; the changes that it made, from its first message on."""
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            self._live(point, takes, writer)
        os.close(writer)
        with open(reader, "rb") as pipe:
            *calls, last = pipe.read().decode().split("\n")
        _, status = os.waitpid(pid, 0)
        assert status == signal.SIGKILL, "\n".join([*calls, last])
        assert (last == "returned") is (point is None) or last == "returned", calls
        return tuple(calls)

    def _live(self, point: Point | None, takes: Takes | None, writer: int) -> None:
        calls = Calls(point)

        def between() -> None:
            REAL["write"](writer, f"{calls.names[-1]}\n".encode())
            if takes is not None:
                takes()

        calls.between = between

        class Dying(ArchiveRunner):
            async def dispose(self, entry: Entry) -> Fate:
                calls.armed = True
                return await super().dispose(entry)

        Dying._disk = property(lambda self: self.site.spool.disk, lambda self, disk: None)  # type: ignore[assignment,misc]
        try:
            with calls.watched():
                self.bench().drain(Dying)
            calls.armed = False
            if takes is not None:
                takes()
            REAL["write"](writer, b"returned")
            os.kill(os.getpid(), signal.SIGKILL)
        except BaseException:
            REAL["write"](writer, traceback.format_exc().encode())
        os._exit(1)

    def recover(self, takes: Takes | None = None) -> None:
        """Its successor does the rest."""
        bench = self.bench()
        bench.drain(ArchiveRunner)
        if takes is not None:
            takes()
        assert bench.where() == {"out": len(MESSAGES)}, bench.where()
        assert Counter(entry.message for entry in bench.entries("out")) == Counter(MESSAGES)

    def kept(self) -> list[bytes]:
        return read(self.format, self.place)

    def strays(self) -> list[str]:
        """What lies there that is no message: `.NAME.undo` may, empty."""
        files = [path for path in self.place.parent.rglob("*") if path.is_file() and path != self.place]
        hidden = [path for path in files if "/tmp/" in str(path) or path.name.startswith(".")]
        return [path.name for path in [*hidden, *self.place.parent.glob("*.lock")] if path.stat().st_size]

    def take(self) -> None:
        """A reader who lives between any two calls: takes what has a name, and writes down what that was."""
        place = self.place / "new" if self.format == "maildir" else self.place
        try:
            names = REAL["listdir"](place)
        except FileNotFoundError:
            return
        for name in names:
            if not name.startswith("."):
                data = Path(place, name).read_bytes()
                fd = REAL["open"](self.taken, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
                REAL["write"](fd, data + b"\0")
                os.close(fd)
                REAL["unlink"](f"{place}/{name}")

    def was_taken(self) -> list[bytes]:
        return self.taken.read_bytes().split(b"\0")[:-1] if self.taken.exists() else []

    def clear(self) -> None:
        for directory, _, names in os.walk(self.folder):
            for name in names:
                os.unlink(f"{directory}/{name}")


def each_death(
    archive: Archive, prepare: Callable[[], object], takes: Takes | None, every: int = 1
) -> Iterator[Point | None]:
    """Dies at each point, one after the other, each from an empty start; then its successor has done the rest."""
    archive.begin()
    prepare()
    calls = archive.die(None, takes)
    assert len(calls) > 8 * len(MESSAGES)
    for point in points(calls, every):
        archive.clear()
        archive.begin()
        prepare()
        archive.die(point, takes)
        archive.recover(takes)
        yield point


@some_or_all(9)
@pytest.mark.parametrize("format", ["mbox", "maildir", "eml"])
def test_a_death_at_any_call_neither_loses_nor_doubles_nor_tears(
    format: str, folder: Path, every: int
) -> None:
    archive = Archive(folder, format)
    for point in each_death(archive, lambda: None, None, every):
        assert Counter(archive.kept()) == Counter(MESSAGES), point
        assert archive.strays() == [], point


@some_or_all(9)
def test_a_death_at_any_call_leaves_what_others_have_in_the_mbox(folder: Path, every: int) -> None:
    archive = Archive(folder, "mbox")

    def prepare() -> None:
        archive.place.parent.mkdir(exist_ok=True)
        archive.place.write_bytes(OLD)

    for point in each_death(archive, prepare, None, every):
        assert archive.place.read_bytes().startswith(OLD), point
        old, *new = archive.kept()
        assert old == b"Subject: old\n\nold\n"
        assert Counter(new) == Counter(MESSAGES), point


@some_or_all(9)
@pytest.mark.parametrize("format", ["maildir", "eml"])
def test_a_reader_who_takes_each_message_the_moment_it_is_there_gets_each_once(
    format: str, folder: Path, every: int
) -> None:
    archive = Archive(folder, format)
    for point in each_death(archive, lambda: None, archive.take, every):
        assert Counter(archive.was_taken()) == Counter(MESSAGES), point
        assert archive.kept() == [], point


@some_or_all(9)
def test_what_another_program_appends_before_the_successor_comes_is_left_as_it_is(
    folder: Path, every: int
) -> None:
    """It takes no notice of our lock: what was torn before it stays, and what it wrote too."""
    archive = Archive(folder, "mbox")
    archive.begin()
    calls = archive.die(None)
    for point in points(calls, every):
        archive.clear()
        archive.begin()
        archive.die(point)
        wrote = archive.place.exists()
        if wrote:
            with open(archive.place, "ab") as file:
                file.write(b"\n\n" + OLD)
        archive.recover()
        assert archive.place.read_bytes().count(OLD) == wrote, point
        # What was whole may have more empty lines behind it now.
        whole = [message for kept in archive.kept() if (message := kept.rstrip(b"\n") + b"\n") in MESSAGES]
        assert Counter(whole) == Counter(MESSAGES), point
