"""Word from the kernel: real directories, real events."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qrunner.wakeup import Event, Watch


@pytest.fixture
def watch() -> Iterator[Watch]:
    """A watch that is closed at the end."""
    watch = Watch()
    yield watch
    watch.close()


def test_nothing_has_happened_yet(watch: Watch, tmp_path: Path) -> None:
    watch.add(str(tmp_path))
    assert watch.read() == []


def test_a_nameless_file_that_is_given_a_name_is_told(watch: Watch, tmp_path: Path) -> None:
    watch.add(str(tmp_path))
    file = os.open(tmp_path, os.O_TMPFILE | os.O_WRONLY)
    assert watch.read() == []
    directory = os.open(tmp_path, os.O_DIRECTORY)
    os.link(f"/proc/self/fd/{file}", "linked", dst_dir_fd=directory)
    os.close(file)
    os.close(directory)
    assert watch.read() == [Event(str(tmp_path), b"linked")]


def test_a_file_that_is_moved_in_is_told_once(watch: Watch, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "file").touch()
    watch.add(str(tmp_path / "here"))
    (tmp_path / "file").rename(tmp_path / "here" / "file")
    assert watch.read() == [Event(str(tmp_path / "here"), b"file")]


def test_what_leaves_or_is_written_is_not_told(watch: Watch, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    for name in "abc":
        (tmp_path / "here" / name).touch()
    watch.add(str(tmp_path / "here"))
    (tmp_path / "here" / "a").unlink()
    (tmp_path / "here" / "b").rename(tmp_path / "b")
    (tmp_path / "here" / "c").write_text("more")
    assert watch.read() == []


def test_names_come_in_order_each_with_its_directory(watch: Watch, tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    for directory in (first, second):
        directory.mkdir()
        watch.add(str(directory))
    names = [b"%d-%s" % (number, os.urandom(1 + number % 100).hex().encode()) for number in range(500)]
    for number, name in enumerate(names):
        (second if number % 2 else first).joinpath(name.decode()).touch()
    assert watch.read() == [
        Event(str(second if number % 2 else first), name) for number, name in enumerate(names)
    ]


def test_a_name_that_is_not_utf_8_is_told_as_it_is(watch: Watch, tmp_path: Path) -> None:
    watch.add(str(tmp_path))
    os.close(os.open(os.fsencode(tmp_path) + b"/\xff\n\xe9", os.O_CREAT))
    assert watch.read() == [Event(str(tmp_path), b"\xff\n\xe9")]


@pytest.mark.parametrize("end", ["removed", "moved"])
def test_a_directory_that_goes_away_is_lost(watch: Watch, tmp_path: Path, end: str) -> None:
    (tmp_path / "here").mkdir()
    watch.add(str(tmp_path / "here"))
    if end == "removed":
        shutil.rmtree(tmp_path / "here")
    else:
        (tmp_path / "here").rename(tmp_path / "there")
    events = watch.read()
    assert events
    assert all(event.lost and event.directory == str(tmp_path / "here") for event in events)


def test_a_directory_that_was_made_anew_can_be_watched_again(watch: Watch, tmp_path: Path) -> None:
    here = tmp_path / "here"
    for _ in range(3):
        here.mkdir()
        watch.add(str(here))
        (here / "file").touch()
        assert watch.read() == [Event(str(here), b"file")]
        shutil.rmtree(here)
        assert watch.read()[-1].lost


def test_a_directory_that_was_moved_away_is_watched_no_longer(watch: Watch, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    watch.add(str(tmp_path / "here"))
    (tmp_path / "here").rename(tmp_path / "there")
    assert watch.read()[-1].lost
    (tmp_path / "there" / "file").touch()
    assert [event for event in watch.read() if not event.lost] == []


def test_adding_a_directory_twice_tells_of_it_once(watch: Watch, tmp_path: Path) -> None:
    watch.add(str(tmp_path))
    watch.add(str(tmp_path))
    (tmp_path / "file").touch()
    assert watch.read() == [Event(str(tmp_path), b"file")]


def test_events_beyond_what_the_kernel_keeps_are_told_as_lost(watch: Watch, tmp_path: Path) -> None:
    watch.add(str(tmp_path))
    kept = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    for at in range(kept + 1):
        # Two names by turns: an event that repeats the last one is not kept at all.
        source, target = (tmp_path / "a", tmp_path / "b") if at % 2 else (tmp_path / "b", tmp_path / "a")
        source.touch() if at == 0 else None
        source.rename(target)
    events = watch.read()
    assert len(events) <= kept + 1
    assert events[-1].lost
    (tmp_path / "after").touch()
    assert watch.read() == [Event(str(tmp_path), b"after")]


@pytest.mark.parametrize("what", ["nothing", "a file"])
def test_what_is_no_directory_can_not_be_watched(watch: Watch, tmp_path: Path, what: str) -> None:
    if what == "a file":
        (tmp_path / "here").touch()
    with pytest.raises(OSError, match="here"):
        watch.add(str(tmp_path / "here"))


def test_no_descriptors_left_is_an_error_that_the_caller_can_catch() -> None:
    program = (
        "import resource; from qrunner.wakeup import Watch\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))\n"
        "try: Watch()\nexcept OSError as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "Too many open files" in result.stdout


def test_a_closed_watch_may_be_closed_again(tmp_path: Path) -> None:
    watch = Watch()
    watch.add(str(tmp_path))
    descriptor = watch.fileno()
    watch.close()
    watch.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


async def _hears_of(watch: Watch, directory: Path) -> list[Event]:
    loop, heard = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(watch.fileno(), heard.set)
    loop.call_soon((directory / "file").touch)
    async with asyncio.timeout(10):
        await heard.wait()
    loop.remove_reader(watch.fileno())
    return watch.read()


def test_an_event_loop_wakes_up(watch: Watch, tmp_path: Path) -> None:
    watch.add(str(tmp_path))
    assert asyncio.run(_hears_of(watch, tmp_path)) == [Event(str(tmp_path), b"file")]


def test_what_was_written_in_place_is_told_again_when_it_is_closed(watch: Watch, tmp_path: Path) -> None:
    watch.add(str(tmp_path), written=True)
    with (tmp_path / "file").open("wb") as file:
        assert [(one.name, one.whole) for one in watch.read()] == [(b"file", False)]
        file.write(b"text")
    assert [(one.name, one.whole) for one in watch.read()] == [(b"file", True)]
    (tmp_path / "file").rename(tmp_path / "other")
    assert [(one.name, one.whole) for one in watch.read()] == [(b"other", True)]
