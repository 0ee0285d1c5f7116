"""A small site in a folder of its own, with real processes, for tests that start them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from qrunner.config import parse
from qrunner.ctl.status import gather
from qrunner.master.watch import Master, living_master
from qrunner.rundir import RunDir, is_alive
from qrunner.site import Site

ROOT = Path(__file__).parent.parent
Found = TypeVar("Found")

CONFIG = """\
[site]
hostname = "lists.example.org"
node = "a"
queue_dir = "../qfiles"
state_dir = "../var"
postmaster = "postmaster@lists.example.org"
python_path = ["../code"]
durability = "none"

[runner.in]
class = "tiny:Pass"
next = "out"

[runner.out]
class = "tiny:Keep"
slices = [{ weight = 70 }, { weight = 30 }]
"""

CODE = '''\
"""The runners of a site that is made to be stopped, killed and reloaded."""

import asyncio
import os
import time
from pathlib import Path

from qrunner import Requeue, Runner

HERE = Path(__file__).parent


class Pass(Runner):
    async def dispose(self, entry):
        return entry.forward("out")


class Keep(Runner):
    async def dispose(self, entry):
        return Requeue(3600)


class Drift(Runner):
    """Takes its time, half of it in a thread that listens to nobody."""

    def dispose(self, entry):
        time.sleep(0.005)
        return entry.forward("last")


class Chatty(Runner):
    """Prints as it goes, for two hundred milliseconds."""

    async def dispose(self, entry):
        for number in range(200):
            print("there is more to say:", "x" * 1000)
            await asyncio.sleep(0.001)
        return entry.forward("out")


class Unready(Runner):
    """Does not come up while there is a file `unready`."""

    async def start(self):
        if (HERE / "unready").exists():
            raise ValueError("the table is missing")


class Mortal(Runner):
    """Dies when it has nothing to do, while there is a file `mortal`."""

    async def idle(self):
        if (HERE / "mortal").exists():
            print("this is the end", flush=True)
            os._exit(9)


class Busy(Runner):
    """Has an entry in hand until there is a file `enough`."""

    async def dispose(self, entry):
        (HERE / "busy").touch()
        while not (HERE / "enough").exists():
            await asyncio.sleep(0.01)
        return Requeue(3600)


class Stuck(Runner):
    """Listens to nobody once it has an entry in hand."""

    async def dispose(self, entry):
        (HERE / "busy").touch()
        while True:
            time.sleep(1)
'''


def wait_for(what: Callable[[], Found], limit_s: float = 20.0) -> Found:
    """The first thing that is true of what the call returns. AssertionError if that takes too long."""
    limit = time.monotonic() + limit_s
    while not (found := what()):
        assert time.monotonic() < limit, f"not within {limit_s:g} s: {what}"
        time.sleep(0.02)
    return found


class TinySite:
    """A site with two runners, and every process that a test has begun on it."""

    def __init__(self, folder: Path, *, state_dir: str = "var") -> None:
        self.folder = folder
        self.config = folder / "etc" / f"{state_dir}.toml"
        self.code = folder / "code"
        self.run = RunDir(folder / state_dir)
        for made in (self.config.parent, self.code):
            made.mkdir(mode=0o700, exist_ok=True)
        self.write(CONFIG.replace('"../var"', f'"../{state_dir}"'))
        self.add_file("tiny.py", CODE)

    def write(self, text: str) -> None:
        """Makes this the configuration, by a rename as editors do."""
        fresh = self.config.with_suffix(".new")
        fresh.write_text(text)
        fresh.chmod(0o600)
        fresh.replace(self.config)

    def change(self, old: str, new: str) -> None:
        """Replaces a part of the configuration."""
        text = self.config.read_text()
        assert old in text
        self.write(text.replace(old, new))

    def add_file(self, name: str, text: str = "") -> Path:
        """A file beside the site's code."""
        path = self.code / name
        path.write_text(text)
        path.chmod(0o600)
        return path

    def start_ctl(self, *words: str, **options: Any) -> subprocess.Popen[str]:
        """Begins `qrunner-ctl`, with `-c` unless it is among the words."""
        where = [] if {"-c", "--config"} & set(words) else ["-c", str(self.config)]
        return subprocess.Popen(
            [sys.executable, "-c", "from qrunner.ctl import main; main()", *words, *where],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def ctl(self, *words: str, code: int = 0) -> str:
        """Runs `qrunner-ctl`; what it said on both channels. AssertionError for another exit code."""
        process = self.start_ctl(*words)
        out, err = process.communicate(timeout=60)
        assert process.returncode == code, f"{words}: {process.returncode}\n{out}{err}\n{self.log()}"
        return out + err

    def status(self, code: int | None = None) -> dict[str, Any]:
        """`status --json`."""
        process = self.start_ctl("status", "--json")
        out, err = process.communicate(timeout=60)
        assert code is None or process.returncode == code, f"{process.returncode}\n{out}{err}"
        found: dict[str, Any] = json.loads(out)
        return found

    def told(self) -> dict[str, Any]:
        """What `status` would tell, without a process for it: for those who look again and again."""
        master = living_master(self.run)
        text = self.config if master is None else master.snapshot
        return gather(parse(text.read_text("utf-8"), self.config), master)

    def log(self) -> str:
        """The log so far."""
        try:
            return self.run.log_file.read_text()
        except FileNotFoundError:
            return ""

    @property
    def master(self) -> Master:
        """The living master."""
        found = living_master(self.run)
        assert found is not None, "no master is running"
        return found

    def pids(self) -> dict[str, int | None]:
        """The runners' processes under the master, by `name/slice`."""
        return {f"{one.name}/{one.slice}": one.pid for one in self.master.processes}

    def pid(self, label: str) -> int:
        """A runner's process; waits until it has one that is up."""

        def up() -> int | None:
            found = [one for one in self.master.processes if f"{one.name}/{one.slice}" == label and one.is_up]
            pid = found[0].pid if found else None
            # The master hears of a death a moment after it.
            return pid if pid is not None and is_alive(pid) else None

        pid = wait_for(up)
        assert pid is not None
        return pid

    def kill(self, label: str) -> None:
        """SIGKILL for a runner's process; it has died when this returns."""
        os.kill(pid := self.pid(label), signal.SIGKILL)
        wait_for(lambda: not is_alive(pid))

    def enqueue(self, queue: str = "in") -> str:
        """A message in a queue; its id."""
        return Site.load(self.config).enqueue(
            queue, message=b"Subject: x\n\nx\n", sender="a@example.org", recipients=["b@example.org"]
        )

    def end(self) -> None:
        """Ends whatever still lives, a master that was just about to begin among it."""
        for pid in (left := self._processes()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not any(map(is_alive, left)))
        assert self._processes() == []

    def _processes(self) -> list[int]:
        """Every process of ours that was begun on this site: its folder, which no other has, is on their lines."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                line = path.read_bytes()
                if b"qrunner" in line and bytes(self.folder) in line and is_alive(int(path.parent.name)):
                    found.append(int(path.parent.name))
        return found


@contextlib.contextmanager
def tiny_site(folder: Path, **options: Any) -> Iterator[TinySite]:
    """A site, of which nothing lives when the block has ended."""
    site = TinySite(folder, **options)
    try:
        yield site
    finally:
        site.end()
