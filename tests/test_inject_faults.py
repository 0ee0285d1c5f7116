"""The pipe under faults: killed, failed or starved at every call it makes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from qrunner import inject
from tests.crash.calls import some_or_all
from tests.injecting import MESSAGE, PROGRAM, Result, accepted, files, lay_out, only_entry, read, run


@pytest.fixture
def queue_dir(tmp_path: Path) -> Path:
    """A queue directory with the queue ``in`` and its sub-directories."""
    root = tmp_path / "qfiles"
    lay_out(root / "in")
    return root


class Trace:
    """What the program asks of the kernel from the moment it first looks at the queue directory."""

    def __init__(self, lines: list[str], queue_dir: Path) -> None:
        self.calls: list[tuple[str, int, str]] = []
        counts: dict[str, int] = {}
        begun = False
        for line in lines:
            found = re.match(r"(?:\d+ +)?(\w+)\(", line)
            if not found:
                continue
            name = found[1]
            counts[name] = counts.get(name, 0) + 1
            begun = begun or f'"{queue_dir}"' in line and "execve" not in line
            if begun and name not in ("exit_group", "exit", "mmap", "munmap", "brk", "rt_sigaction"):
                self.calls.append((name, counts[name], line))

    def some(self, every: int) -> list[tuple[str, int, str]]:
        """One of so many calls, the first and the last among them."""
        return list(dict.fromkeys([*self.calls[::every], self.calls[-1]]))

    def first(self, pattern: str) -> tuple[str, int]:
        """The call whose line matches, as strace counts it."""
        return next((name, nth) for name, nth, line in self.calls if re.search(pattern, line))


def traced(queue_dir: Path, log: Path, *inject_options: str, message: bytes = MESSAGE) -> Result:
    options = [word for option in inject_options for word in ("-e", f"inject={option}")]
    before = ["strace", "-f", "-o", str(log), "-s", "64", *options]
    # A file is read in the same pieces each time, a pipe is not, and the calls are counted.
    with tempfile.TemporaryFile() as stdin:
        stdin.write(message)
        stdin.seek(0)
        return run(queue_dir, "-f", "a@x", "--min-free", "1K", "b@x", before=before, stdin=stdin)


def trace(queue_dir: Path, log: Path, *inject_options: str, message: bytes = MESSAGE) -> Trace:
    result = traced(queue_dir, log, *inject_options, message=message)
    assert result.returncode == 0, result.stdout
    found = Trace(log.read_text(errors="replace").splitlines(), queue_dir)
    clear(queue_dir)
    return found


def clear(queue_dir: Path) -> None:
    for path in files(queue_dir):
        path.unlink()


def without_tmpfile(queue_dir: Path, log: Path) -> str:
    """The fault that makes the program use a hidden name: a /proc that is not there."""
    name, nth = trace(queue_dir, log).first(r"/proc/self/fd\"")
    return f"{name}:error=ENOENT:when={nth}"


LARGE = b"x" * (2 * inject.HELD + 1)
WAYS = {"nameless": (False, MESSAGE), "hidden name": (True, MESSAGE), "large": (False, LARGE)}


@pytest.fixture(params=list(WAYS))
def way(request: pytest.FixtureRequest, queue_dir: Path, tmp_path: Path) -> tuple[list[str], bytes, Trace]:
    """Options for strace, the message, and the trace of an undisturbed run."""
    hidden, message = WAYS[request.param]
    options = [without_tmpfile(queue_dir, tmp_path / "trace")] if hidden else []
    return options, message, trace(queue_dir, tmp_path / "trace", *options, message=message)


@pytest.mark.needs("strace")
def test_the_file_is_synced_before_its_name_and_the_name_before_the_exit(
    way: tuple[list[str], bytes, Trace],
) -> None:
    _, _, found = way
    calls = [name for name, _, _ in found.calls]
    relevant = [name for name in calls if name in ("write", "pwrite64", "fsync", "link", "linkat", "rename")]
    assert [name for name in relevant if name != "write"] == ["fsync", "linkat", "fsync"]
    assert relevant.index("fsync") > max(at for at, name in enumerate(relevant) if name == "write")
    opened = {line.rpartition("= ")[2].strip(): line for name, _, line in found.calls if name == "openat"}
    synced = [re.search(r"fsync\((\d+)\)", line) for name, _, line in found.calls if name == "fsync"]
    file, directory = (opened[match[1]] for match in synced if match)
    assert "O_TMPFILE" in file or '".new.' in file
    assert "O_DIRECTORY" in directory
    linked = next(line for name, _, line in found.calls if name == "linkat")
    assert re.search(r"\+([0-9a-f]{2})", linked)[1] in directory  # type: ignore[index]


@pytest.mark.needs("strace")
@some_or_all(3)
def test_nothing_half_written_is_left_wherever_it_is_killed(
    way: tuple[list[str], bytes, Trace], queue_dir: Path, tmp_path: Path, every: int
) -> None:
    options, message, found = way
    outcomes = set()
    for name, nth, line in found.some(every):
        if any(option.startswith(f"{name}:") for option in options):
            continue
        result = traced(
            queue_dir, tmp_path / "trace", *options, f"{name}:signal=KILL:when={nth}", message=message
        )
        assert result.returncode != 0, line
        entries = [read(path) for path in files(queue_dir) if not path.name.startswith(".new.")]
        assert [entry.message for entry in entries] in ([], [message]), line
        hidden = [path for path in files(queue_dir) if path.name.startswith(".new.")]
        assert not hidden or options
        outcomes.add(len(entries))
        clear(queue_dir)
    assert outcomes == {0, 1}


@pytest.mark.needs("strace")
@pytest.mark.parametrize(
    ("error", "every"),
    [
        ("ENOSPC", 3),
        pytest.param("ENOSPC", 1, marks=pytest.mark.stress),
        pytest.param("EIO", 1, marks=pytest.mark.stress),
    ],
)
def test_a_call_that_fails_is_75_with_no_remains(
    way: tuple[list[str], bytes, Trace], queue_dir: Path, tmp_path: Path, error: str, every: int
) -> None:
    options, message, found = way
    for name, nth, line in found.some(every):
        if any(option.startswith(f"{name}:") for option in options) or name in ("close", "getpid", "geteuid"):
            continue
        result = traced(
            queue_dir, tmp_path / "trace", *options, f"{name}:error={error}:when={nth}", message=message
        )
        if result.returncode == 0:
            # Another way led to the same end; a hidden name that could not be removed is no message.
            assert "O_TMPFILE" in line or name in (
                "access",
                "faccessat",
                "faccessat2",
                "unlinkat",
                "getrandom",
            ), line
            assert [read(path).message for path in files(queue_dir) if path.name[0] != "."] == [message]
        else:
            assert (result.returncode, result.stdout[:6]) == (75, b"4.3.0 "), line
            assert files(queue_dir) == [], line
        clear(queue_dir)


@pytest.mark.needs("strace")
def test_a_name_whose_directory_was_not_synced_is_withdrawn(queue_dir: Path, tmp_path: Path) -> None:
    last = max(nth for name, nth, _ in trace(queue_dir, tmp_path / "trace").calls if name == "fsync")
    result = traced(queue_dir, tmp_path / "trace", f"fsync:error=EIO:when={last}")
    assert (result.returncode, files(queue_dir)) == (75, [])
    assert "unlinkat(" in (tmp_path / "trace").read_text()


@pytest.mark.needs("strace")
def test_a_signal_after_the_link_does_not_hide_that_the_message_is_there(
    queue_dir: Path, tmp_path: Path
) -> None:
    found = trace(queue_dir, tmp_path / "trace")
    last = max(nth for name, nth, _ in found.calls if name == "fsync")
    result = traced(queue_dir, tmp_path / "trace", f"fsync:signal=TERM:when={last}")
    assert result.returncode == 0
    only_entry(queue_dir)


@pytest.mark.needs("strace")
def test_a_signal_before_the_link_leaves_no_hidden_name(queue_dir: Path, tmp_path: Path) -> None:
    hidden = without_tmpfile(queue_dir, tmp_path / "trace")
    first = min(nth for name, nth, _ in trace(queue_dir, tmp_path / "trace", hidden).calls if name == "fsync")
    result = traced(queue_dir, tmp_path / "trace", hidden, f"fsync:signal=TERM:when={first}")
    assert (result.returncode, files(queue_dir)) == (75, [])


def test_a_write_that_the_kernel_cuts_short_is_continued(queue_dir: Path) -> None:
    """As a quota or a signal may do it: the program is told 1, 2, 3, … bytes at a time."""
    program = (
        "import posix, sys; write, steps = posix.write, iter(range(1, 10000)); "
        "posix.write = lambda fd, data: write(fd, data[:next(steps)]); "
        f"exec(open({str(PROGRAM)!r}).read())"
    )
    entry = accepted(queue_dir, "-f", "", "b@x", start=[sys.executable, "-IS", "-c", program])
    assert entry.message == MESSAGE


def on_a_small_disk(tmp_path: Path, script: str, *arguments: str, message: bytes) -> Result:
    """Runs a shell script where ``$disk`` is a tmpfs of 256 KiB that nobody else sees."""
    disk = tmp_path / "disk"
    disk.mkdir()
    alone = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    mounted = (
        f"mount -t tmpfs -o size=256k,mode=700 tmpfs {disk} && mkdir {disk}/in && disk={disk} && {script}"
    )
    return subprocess.run(
        [*alone, "sh", "-c", mounted, "sh", *arguments],
        input=message,
        capture_output=True,
        timeout=60,
        check=False,
    )


@pytest.mark.needs("unshare", "mount")
@pytest.mark.parametrize("size", [300 << 10, 3 << 20])
def test_a_full_disk_is_75_with_no_remains_and_room_for_the_next(tmp_path: Path, size: int) -> None:
    once = f"{PROGRAM} -Q $disk -f a@x --min-free 0 b@x"
    script = f"{once}; echo code $?; ls -A $disk/in; echo small | {once}; echo code $?; ls $disk/in | wc -l"
    result = on_a_small_disk(tmp_path, script, message=b"x" * size)
    first, *rest = result.stdout.decode().splitlines()
    assert first.startswith("4.3.0 ")
    assert "No space left" in first
    assert rest == ["code 75", "code 0", "1"]


@pytest.mark.needs("unshare", "mount")
def test_a_nearly_full_disk_takes_nothing(tmp_path: Path) -> None:
    script = f"{PROGRAM} -Q $disk -f a@x b@x; echo code $?; ls -A $disk/in"
    first, *rest = on_a_small_disk(tmp_path, script, message=MESSAGE).stdout.decode().splitlines()
    assert first == f"4.3.0 qrunner-inject: less than {64 << 20} bytes free for the queue"
    assert rest == ["code 75"]


@pytest.mark.needs("unshare", "mount")
def test_a_large_message_stops_where_min_free_begins(tmp_path: Path) -> None:
    script = f"{PROGRAM} -Q $disk -f a@x --min-free 200k b@x; echo code $?; ls -A $disk/in"
    result = on_a_small_disk(tmp_path, script, message=b"x" * (3 << 20))
    assert result.stdout.decode().splitlines()[-1] == "code 75"
