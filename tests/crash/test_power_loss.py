"""No power cut loses a message: every state that a journalling file system allows is laid out and recovered."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest.mock import patch

import pytest

from qrunner.format import parse_name
from qrunner.message import Entry
from qrunner.slices import WHOLE, Range
from qrunner.switchboard import AREAS, Recovered
from qrunner.switchboard.files import FilesSpool
from qrunner.testing.clock import FakeClock
from tests.crash.power import (
    Cut,
    DirectoryOperation,
    Files,
    Mark,
    Name,
    Operation,
    Rename,
    State,
    Sync,
    SyncDirectory,
    Trace,
    Unlink,
    Write,
    states,
)
from tests.crash.power_recording import TRACED, files_under, read_strace
from tests.crash.power_stories import (
    CORNER,
    QUEUES,
    STORIES,
    Site,
    Story,
    cornered,
    key_of,
    lay_out,
    message_of,
)
from tests.injecting import START
from tests.injecting import lay_out as lay_out_queue

MEMORY = "/dev/shm"


@pytest.fixture
def root() -> Iterator[Path]:
    """A directory in memory, where thousands of states are laid out one after another."""
    with tempfile.TemporaryDirectory(dir=MEMORY if os.path.isdir(MEMORY) else None) as made:
        yield Path(made)


@dataclass(slots=True)
class Promises:
    """What was promised before the power went."""

    accepted: dict[str, str] = field(default_factory=dict)
    ends: dict[str, Sequence[str]] = field(default_factory=dict)
    texts: dict[str, set[bytes]] = field(default_factory=dict)
    done: set[tuple[str, str]] = field(default_factory=set)

    @classmethod
    def at(cls, trace: Trace, state: State) -> Promises:
        """Those of the operations before the cut."""
        self = cls()
        survived = [n for n, one in enumerate(trace.operations) if isinstance(one, DirectoryOperation)]
        survived = survived[: state.names]
        for number, mark in enumerate(trace.operations[: state.cut]):
            if not isinstance(mark, Mark):
                continue
            if mark.what == "accepted":
                self.accepted[mark.key] = str(mark.value)
            elif mark.what in ("may end", "may become"):
                self.ends[mark.key] = mark.value or ()  # type: ignore[assignment]
            elif mark.what == "may read":
                self.texts.setdefault(mark.key, set()).add(mark.value)  # type: ignore[arg-type]
            elif mark.what == "noted" or _renamed_since(
                trace.operations, self.accepted[mark.key], [n for n in survived if n > number]
            ):
                self.done.add((mark.key, str(mark.value)))
        return self

    def holds(self, key: str, found: dict[str, list[Entry]]) -> bool:
        """Whether an accepted message is there, or everything that may stand in its place."""
        if key in found:
            return True
        return key in self.ends and all(self.holds(child, found) for child in self.ends[key])

    def fits(self, key: str, entry: Entry) -> bool:
        """Whether what was found is what was accepted, whole."""
        gone = {to for done, to in self.done if done == key}
        texts = {message_of(key), *self.texts.get(key, ())}
        return entry.message in texts and entry.meta == {"key": key} and not gone & set(entry.recipients)


def _renamed_since(operations: Sequence[Operation], id: str, numbers: Sequence[int]) -> bool:
    """Whether the entry has been given a ready name by one of these operations."""
    for number in numbers:
        one = operations[number]
        path = one.target if isinstance(one, Rename) else one.path if isinstance(one, Name) else ""
        if path.endswith(f"+{id}"):
            return True
    return False


class Machine:
    """Boots on a laid out disk, over and over: recovers, and looks at what there is."""

    def __init__(self, root: Path, part: Range) -> None:
        self.root, self.part = root, part
        # Long after: what was swept only for its age is swept too.
        self.clock = FakeClock(datetime.now(UTC) + timedelta(days=9))
        self._orders = 0

    def boot(self, files: Files) -> tuple[dict[str, list[Entry]], list[str]]:
        """The entries by their keys, and the names in ``bad``."""
        for path, data in files.items():
            (self.root / path).write_bytes(data)
        found = self._recover()
        entries, bad = self._look()
        self._wipe()
        assert not found.suspects, "a power cut blames nobody"
        return entries, bad

    def _recover(self) -> Recovered:
        self._orders += 1
        all_found = Recovered()
        spool = FilesSpool(self.root, self.clock, node="a")
        # The queues of a site come up in any order.
        for queue in sorted(QUEUES, reverse=bool(self._orders % 2)):
            lease = spool.lease(queue, self.part, queue, 0)
            found = lease.refresh()
            all_found.suspects |= found.suspects
            lease.release()
        return all_found

    def _look(self) -> tuple[dict[str, list[Entry]], list[str]]:
        found: dict[str, list[Entry]] = {}
        bad: list[str] = []
        spool = FilesSpool(self.root, self.clock, node="a")
        for queue in QUEUES:
            hops = [name for name in os.listdir(self.root / queue / ".hops") if not name.startswith(".new.")]
            assert not hops, f"left behind by a recovery: {hops}"
            for area in AREAS:
                for directory in spool.layout.directories(queue, area, self.part):
                    for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else ():
                        if area == "bad":
                            bad.append(name)
                        elif parse_name(name) is not None:
                            self._read(spool, area, queue, f"{directory}/{name}", found)
        return found, bad

    def _read(
        self, spool: FilesSpool, area: str, queue: str, path: str, found: dict[str, list[Entry]]
    ) -> None:
        from qrunner.switchboard.layout import ref_of

        ref = ref_of(area, queue, *path.rsplit("/", 1))  # type: ignore[arg-type]
        assert ref is not None
        assert not ref.active, f"still in a dead hand: {path}"
        entry = spool.read(ref)
        found.setdefault(key_of(entry.message), []).append(entry)

    def _wipe(self) -> None:
        for directory, _, names in os.walk(self.root):
            for name in names:
                os.unlink(f"{directory}/{name}")


def try_all(trace: Trace, machine: Machine) -> int:
    """Boots on every state of the trace and holds the promises against it; how many there were."""
    booted: dict[frozenset[tuple[str, bytes]], tuple[dict[str, list[Entry]], list[str]]] = {}
    checked = set()
    for state in states(trace):
        files = frozenset(state.files.items())
        if (files, state.cut, state.names) in checked:
            continue
        checked.add((files, state.cut, state.names))
        try:
            if files not in booted:
                booted[files] = machine.boot(state.files)
            _check(Promises.at(trace, state), *booted[files])
        except Exception as error:
            raise AssertionError(_described(trace, state)) from error
    return len(booted)


def _check(promises: Promises, found: dict[str, list[Entry]], bad: Sequence[str]) -> None:
    for key in promises.accepted:
        assert promises.holds(key, found), f"lost: {key}"
    for key, entries in found.items():
        for entry in entries:
            assert promises.fits(key, entry), f"not what was accepted: {entry}"
    for name in bad:
        assert not any(id in name for id in promises.accepted.values()), f"taken for bad: {name}"


def _described(trace: Trace, state: State) -> str:
    lines = [f"cut after {state.cut} operations, {state.names} directory operations survived; files:"]
    lines += [f"    {path}: {len(data)} bytes {data[-60:]!r}" for path, data in sorted(state.files.items())]
    lines += [f"  {n + 1}. {_short(one)}" for n, one in enumerate(trace.operations[: state.cut])]
    return "\n".join(lines)


def _short(operation: Operation) -> str:
    text = repr(operation)
    return text if len(text) < 240 else f"{text[:160]} … {text[-60:]}"


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_nothing_is_lost_by_a_power_cut_during(story: Story, root: Path) -> None:
    with cornered():
        site = Site.at(root / "recorded")
        with site.recorder.recording() as trace:
            story(site)
        disk = root / "laid-out"
        lay_out(disk)
        with patch("qrunner.switchboard.files.boot_id", lambda: "b007"):
            assert try_all(trace, Machine(disk, CORNER)) >= 2


# The pipe, a process of its own

WAYS = {"nameless": (False, 0), "under a hidden name": (True, 0), "too large to hold": (False, (1 << 20) + 9)}


@pytest.mark.needs("strace")
@pytest.mark.parametrize("way", list(WAYS))
def test_nothing_that_the_pipe_took_is_lost_by_a_power_cut(way: str, root: Path, tmp_path: Path) -> None:
    hidden, padding = WAYS[way]
    recorded, disk = root / "recorded", root / "laid-out"
    for made in (recorded, disk):
        for queue in QUEUES:
            lay_out_queue(made / queue)
        lay_out_rest(made)
    trace = trace_of_the_pipe(recorded, tmp_path / "trace", hidden, message_of("one") + b"." * padding)
    with patch("qrunner.switchboard.files.boot_id", lambda: "b007"):
        assert try_all(trace, Machine(disk, WHOLE)) >= 2


def lay_out_rest(root: Path) -> None:
    for queue in QUEUES:
        for part in (f"{queue}/.hops", f".lease/{queue}", f"hold/{queue}", f"shunt/{queue}", f"bad/{queue}"):
            (root / part).mkdir(parents=True)


def trace_of_the_pipe(root: Path, log: Path, hidden: bool, message: bytes) -> Trace:
    """Runs the real program under strace; without /proc it works under a hidden name."""
    faults = ["-e", "inject=access:error=ENOENT"] if hidden else []
    size = str(len(message) + 4096)
    options = ["-f", "-xx", "-s", size, "-e", f"trace={TRACED},access", *faults, "-o", str(log)]
    order = ["-Q", str(root), "-f", "ann@example.org", "-m", "key=one", "--min-free", "1K"]
    command = ["strace", *options, *START, *order, "bob@example.net"]
    result = subprocess.run(command, input=message, capture_output=True, timeout=60, check=False)
    assert result.returncode == 0, result.stdout
    trace = read_strace(log.read_text().splitlines(), str(root))
    assert trace.after() == files_under(root), "the trace does not tell all that was done"
    (path,) = files_under(root)
    trace.operations.insert(0, Mark("may read", "one", message))
    trace.operations.append(Mark("accepted", "one", path.partition("+")[2]))
    return trace


# The model, held against what is known of disks


def all_files(*operations: Operation, before: Files | None = None) -> list[Files]:
    """What a cut after all of these operations may leave."""
    trace = Trace(dict(before or {}), list(operations))
    return [state.files for state in states(trace) if state.cut == len(operations)]


def test_an_unsynced_file_may_be_empty_or_cut_or_zeros_or_whole_or_not_there() -> None:
    found = all_files(Name("d/f", 1), Write(1, 0, b"abcd"))
    contents = {files.get("d/f") for files in found}
    assert contents == {None, b"abcd", b"", b"ab", b"abc", b"\0\0\0\0", b"ab\0\0"}


def test_a_synced_file_is_whole_but_its_name_may_be_missing_until_its_directory_is_synced() -> None:
    written = [Name("d/f", 1), Write(1, 0, b"abcd"), Sync(1)]
    assert all_files(*written) == [{}, {"d/f": b"abcd"}]
    assert all_files(*written, SyncDirectory("d")) == [{"d/f": b"abcd"}]


def test_what_was_synced_survives_what_is_appended() -> None:
    found = all_files(Write(-1, 1, b"bc"), before={"f": b"a"})
    assert {files["f"] for files in found} == {b"a", b"ab", b"abc", b"a\0\0", b"ab\0"}


def test_directory_operations_survive_as_a_prefix_and_each_whole() -> None:
    found = all_files(Rename("a/1", "b/1"), Unlink("a/2"), before={"a/1": b"x", "a/2": b"y"})
    assert found == [{"a/1": b"x", "a/2": b"y"}, {"b/1": b"x", "a/2": b"y"}, {"b/1": b"x"}]


def test_a_sync_of_one_directory_takes_along_what_came_before_it_elsewhere() -> None:
    both = [Rename("a/1", "b/1"), Rename("c/2", "d/2")]
    before = {"a/1": b"x", "c/2": b"y"}
    assert all_files(*both, SyncDirectory("d"), before=before) == [{"b/1": b"x", "d/2": b"y"}]
    assert len(all_files(*both, SyncDirectory("a"), before=before)) == 2


def test_a_shortened_file_may_still_be_long() -> None:
    assert all_files(Cut(-1, 1), before={"f": b"abc"}) == [{"f": b"a"}, {"f": b"abc"}]


@pytest.mark.parametrize("left_out", [Sync, SyncDirectory])
def test_an_enqueue_that_forgot_a_sync_would_be_found_out(left_out: type[Operation], root: Path) -> None:
    with cornered():
        site = Site.at(root / "recorded")
        with site.recorder.recording() as trace:
            site.accept("one")
        lay_out(root / "laid-out")
        forgetful = Trace({}, [one for one in trace.operations if not isinstance(one, left_out)])
        with pytest.raises(AssertionError, match="cut after"):
            try_all(forgetful, Machine(root / "laid-out", CORNER))
        shutil.rmtree(root / "laid-out")
