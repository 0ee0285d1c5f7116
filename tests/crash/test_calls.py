"""What the deaths of the other tests rest on: no change to the file system escapes the counting, as strace sees it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.dying import Stage
from tests.crash.looking import look
from tests.crash.traced import MARK
from tests.crash.transitions import TRANSITIONS

ROOT = Path(__file__).parents[2]
# Everything by which a process can change what lies under a directory, and how the marks are seen.
CHANGES = (
    "open,openat,openat2,creat,write,pwrite64,writev,pwritev,pwritev2,copy_file_range,sendfile,splice,fallocate,"
    "fsync,fdatasync,sync_file_range,syncfs,ftruncate,truncate,link,linkat,symlink,symlinkat,rename,renameat,"
    "renameat2,unlink,unlinkat,rmdir,mkdir,mkdirat,mknod,mknodat,chmod,fchmod,fchmodat,chown,fchown,fchownat,"
    "utimensat,setxattr,fsetxattr,io_uring_enter"
)
MARKS = "stat,newfstatat,statx"
CALL = re.compile(r"(?:(\d+) +)?(\w+)\((.*)")
KIND = {
    "openat": "open",
    "linkat": "link",
    "unlinkat": "unlink",
    "mkdirat": "mkdir",
    "renameat": "rename",
    "pwrite64": "write",
    "replace": "rename",
}


def strace(stage: Stage, log: Path, *names: str, kill: str = "") -> subprocess.CompletedProcess[str]:
    command = [
        "strace",
        "-f",
        "-y",
        "-s",
        "16",
        "-o",
        str(log),
        "-e",
        f"trace={CHANGES},?{',?'.join(MARKS.split(','))}",
    ]
    inject = ["-e", f"inject={kill}"] if kill else ["--seccomp-bpf"]
    program = [sys.executable, "-m", "tests.crash.traced", str(stage.root), str(stage.log), *names]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command, *inject, *program],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=100,
    )


def seen(log: Path, root: Path) -> Iterator[list[str]]:
    """The changes under ``root`` that each marked transition made, by the names of the counting."""
    changes: list[str] | None = None
    for line in log.read_text(errors="replace").splitlines():
        found = CALL.match(line)
        if not found:
            continue
        _, name, arguments = found.groups()
        if f"{MARK}begins" in arguments:
            changes = []
        elif f"{MARK}ends" in arguments:
            assert changes is not None
            yield changes
            changes = None
        elif changes is not None and str(root) in arguments and is_change(name, arguments):
            changes.append(KIND.get(name, name))


def is_change(name: str, arguments: str) -> bool:
    if name in MARKS.split(","):
        return False
    return name != "openat" or bool(re.search(r"O_CREAT|O_TRUNC|O_TMPFILE", arguments))


@pytest.mark.needs("strace")
def test_every_change_that_strace_sees_has_been_counted(stage: Stage, tmp_path: Path) -> None:
    result = strace(stage, tmp_path / "trace")
    assert result.returncode == 0, result.stderr
    counted = [json.loads(line) for line in result.stdout.splitlines()]
    assert [name for name, *_ in counted] == [*TRANSITIONS, "recover", "take the range"]
    for (name, *calls), changes in zip(counted, seen(tmp_path / "trace", stage.root), strict=True):
        assert changes == [KIND.get(call, call) for call in calls], name
        assert calls


def deaths(log: Path, root: Path) -> list[str]:
    """Each change of the transition as strace is told to kill at it."""
    counts: dict[str, int] = {}
    found: list[str] = []
    begun = False
    for line in log.read_text(errors="replace").splitlines():
        match = CALL.match(line)
        if match:
            _, name, arguments = match.groups()
            counts[name] = counts.get(name, 0) + 1
            begun = begun or f"{MARK}begins" in arguments
            if begun and str(root) in arguments and is_change(name, arguments):
                found.append(f"{name}:signal=KILL:when={counts[name]}")
    return found


@pytest.mark.needs("strace")
@pytest.mark.parametrize(
    "sample", [11, pytest.param(1, marks=pytest.mark.stress)], ids=["at some calls", "at every call"]
)
def test_one_that_strace_kills_leaves_what_a_killed_fork_leaves(
    stage: Stage, tmp_path: Path, sample: int
) -> None:
    transition = TRANSITIONS["one to three"]
    stage.fill(transition)
    assert strace(stage, tmp_path / "trace", "one to three").returncode == 0
    stage.clear()
    outcomes = []
    for death in deaths(tmp_path / "trace", stage.root)[::sample]:
        stage.fill(transition)
        result = strace(stage, tmp_path / "killed", "one to three", kill=death)
        assert result.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL), death
        places = look(stage.root).places
        assert places in (transition.before, transition.after), death
        outcomes.append(places == transition.after)
        stage.recover()
        assert look(stage.root).places == places, death
        stage.clear()
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {False, True}
