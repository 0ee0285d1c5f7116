"""A disk that is really full: the runner waits, nothing is lost, and once there is room it drains by itself."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qrunner import Entry, Fate, Runner
from qrunner.errors import QueueError
from qrunner.runners.archive import ArchiveRunner
from tests.crash.power_children import in_a_child, mount_ext4, mount_tmpfs, with_mounts_of_its_own
from tests.driving import Bench, make_bench, running, until
from tests.mailstore.letters import read

COUNT = 60
BODY = b"x" * 4096


class Fork(Runner):
    """Everything that needs room at once: two children, one of them with another content."""

    async def dispose(self, entry: Entry) -> Fate:
        return [entry.forward("out"), entry.with_header("X-Copy", "1").forward("other")]


class Change(Runner):
    async def dispose(self, entry: Entry) -> Fate:
        return entry.with_header("X-Seen", "1").forward("out")


class Later(Runner):
    async def dispose(self, entry: Entry) -> Fate:
        return entry.forward("other")


@pytest.fixture(params=["tmpfs", "ext4"])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Path]:
    """Mounts a small disk, in a process that has mounts of its own; the folder."""
    if request.param == "ext4" and os.geteuid() != 0:
        pytest.skip("only root mounts an image")
    mounts = {"tmpfs": mount_tmpfs, "ext4": mount_ext4}[request.param]

    def mounted() -> Path:
        with_mounts_of_its_own()
        mounts(tmp_path / "disk")
        return tmp_path / "disk"

    return mounted


def fill(disk: Path) -> Path:
    """Takes all the room there is, to the last byte."""
    ballast = disk / "ballast"
    with ballast.open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 10, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
    return ballast


def numbers(bench: Bench, queue: str) -> Counter[str | None]:
    return Counter(entry.header("X-N") for entry in bench.entries(queue))


def put(bench: Bench, count: int) -> None:
    for number in range(count):
        bench.site.enqueue(
            "in", message=b"X-N: %d\n\n" % number + BODY, sender="", recipients=["to@example.org"]
        )


pytestmark = pytest.mark.needs("mount", "mke2fs")


@pytest.mark.parametrize("runner", [Fork, Change])
@pytest.mark.parametrize("concurrency", [1, 20])
def test_a_runner_on_a_full_disk_waits_and_drains_when_there_is_room(
    small_disk: Callable[[], Path], runner: type[Runner], concurrency: int
) -> None:
    def story() -> None:
        disk = small_disk()
        bench = make_bench(disk, f"concurrency = {concurrency}")
        put(bench, COUNT)
        ballast = fill(disk)
        engine = bench.engine(runner)
        everything = Counter(str(number) for number in range(COUNT))

        async def full_and_freed() -> None:
            await until(lambda: engine.state == "waiting", "the runner's waiting")
            assert "No space left" in engine.reason
            with pytest.raises(QueueError, match="No space left"):
                put(bench, COUNT)
            # The one that was refused may have had room for some before it.
            extra = sum(numbers(bench, "in").values()) + sum(numbers(bench, "out").values()) - COUNT
            assert extra >= 0
            ballast.unlink()
            await until(lambda: engine.processed == COUNT + extra, "the drain")
            assert engine.state == "running"

        running(engine, full_and_freed)
        wanted = {"out", "other"} if runner is Fork else {"out"}
        assert set(bench.where()) == wanted
        for queue in wanted:
            assert everything <= numbers(bench, queue)
        assert not list(Path(disk, "qfiles", "in", ".hops").iterdir())
        assert not list(Path(disk).rglob(".new.*"))

    in_a_child(story)


def test_below_min_free_nothing_is_taken_in_and_what_is_there_still_drains(
    small_disk: Callable[[], Path],
) -> None:
    def story() -> None:
        disk = small_disk()
        bench = make_bench(disk)
        spool = bench.site.spool
        spool.min_free = 1 << 20  # type: ignore[attr-defined]
        put(bench, 5)
        with (disk / "ballast").open("wb") as file:
            free = os.statvfs(disk)
            file.write(bytes(free.f_bavail * free.f_frsize - (1 << 19)))
        with pytest.raises(QueueError, match=f"less than {1 << 20} bytes"):
            put(bench, 1)
        bench.drain(Fork)
        assert bench.where() == {"out": 5, "other": 5}

    in_a_child(story)


def test_what_only_moves_needs_no_room(small_disk: Callable[[], Path]) -> None:
    def story() -> None:
        disk = small_disk()
        bench = make_bench(disk)
        put(bench, 20)
        ballast = fill(disk)
        engine = bench.engine(Later)

        async def moved() -> None:
            # ext4 may want a block for a directory that grows; then it waits, and goes on.
            await until(lambda: engine.processed == 20 or engine.state == "waiting")
            ballast.unlink()
            await until(lambda: engine.processed == 20)

        running(engine, moved)
        assert bench.where() == {"other": 20}

    in_a_child(story)


@pytest.mark.parametrize("format", ["mbox", "maildir", "eml"])
def test_an_archive_on_a_full_disk_has_nothing_in_part_and_is_whole_when_there_is_room(
    small_disk: Callable[[], Path], format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qrunner.runners.archive._LATER_S", 0.1)

    def story() -> None:
        disk = small_disk()
        bench = make_bench(tmp_path, f'format = "{format}"\npath = "{disk}/kept/all"\nconcurrency = 4')
        put(bench, COUNT)
        ballast = fill(disk)
        # Room for some of them.
        os.truncate(ballast, ballast.stat().st_size - 12 * len(BODY))
        engine = bench.engine(ArchiveRunner)

        def kept() -> list[bytes]:
            return read(format, disk / "kept" / "all")

        async def full_and_freed() -> None:
            await until(lambda: any(entry.history for entry in bench.entries("in")), "the first that waits")
            assert len(kept()) < COUNT
            assert all(message.rstrip(b"\n").endswith(BODY) for message in kept())
            ballast.unlink()
            await until(lambda: not bench.where(), "the drain")

        running(engine, full_and_freed)
        assert Counter(message.partition(b"\n")[0] for message in kept()) == Counter(
            b"X-N: %d" % number for number in range(COUNT)
        )
        assert all(message.rstrip(b"\n").endswith(BODY) for message in kept())

    in_a_child(story)


@pytest.fixture(autouse=True)
def _unmounted() -> Iterator[None]:
    """Nothing that was mounted is seen here."""
    before = Path("/proc/self/mounts").read_text()
    yield
    assert Path("/proc/self/mounts").read_text() == before
