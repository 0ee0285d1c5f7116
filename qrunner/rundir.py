"""The names of what a running site keeps in ``state_dir``: one place, so that all programs look in the same.

::

    run/master.lock             held by the living master; whoever wants to know whether there is one asks it
    run/master.json             what the master says of itself and of its runners; without the lock, nothing
    run/config-<sha1>.toml      the checked configuration that the runners were started on
    run/runner.<name>.<slice>.json   a runner's heartbeat
    log/qrunner.log             what all of them log
    inject/                     how far injections of whole mailboxes have come; made by the first
    host/                       health of the hosts that mail is handed to
    work/                       where programs run, a fresh folder each time
    bounce/                     on which days addresses have bounced
    report/                     of whom senders were told within the hour, and how often they were not

Guarantees: nothing here has to be tidied by hand after a crash. A lock ends with its holder, and every file says
which process it speaks of.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout


@dataclass(frozen=True, slots=True)
class RunDir:
    """The places in one ``state_dir``."""

    state_dir: Path

    @property
    def run(self) -> Path:
        return self.state_dir / "run"

    @property
    def log_file(self) -> Path:
        return self.state_dir / "log" / "qrunner.log"

    @property
    def hosts(self) -> Path:
        return self.state_dir / "host"

    @property
    def injections(self) -> Path:
        return self.state_dir / "inject"

    @property
    def reports(self) -> Path:
        return self.state_dir / "report"

    @property
    def work(self) -> Path:
        return self.state_dir / "work"

    @property
    def scores(self) -> Path:
        return self.state_dir / "bounce"

    @property
    def lock_file(self) -> Path:
        return self.run / "master.lock"

    @property
    def master_file(self) -> Path:
        return self.run / "master.json"

    def runner_file(self, name: str, slice: int) -> Path:
        """The heartbeat of a slice of a runner."""
        return self.run / f"runner.{name}.{slice}.json"

    def snapshot_file(self, sha1: str) -> Path:
        """The configuration whose text has this sha1."""
        return self.run / f"config-{sha1}.toml"

    def make(self) -> None:
        """Makes the folders that are not there yet, for their owner alone."""
        for folder in (self.state_dir, self.run, self.log_file.parent, self.hosts, self.reports):
            if not folder.is_dir():
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def lock(self, timeout_s: float = 0.0) -> BaseFileLock | None:
        """The master's lock, taken; keep it referenced. None: a living master has it."""
        # A moment's patience for whoever is only asking.
        lock = FileLock(
            self.lock_file, timeout_s, thread_local=False, fallback_to_soft=False, poll_interval=0.02
        )
        try:
            lock.acquire()
        except Timeout:
            return None
        return lock

    def is_locked(self) -> bool:
        """Whether there is a living master."""
        if not self.lock_file.exists():
            return False
        lock = self.lock()
        if lock is not None:
            lock.release()
        return lock is None


def is_alive(pid: int) -> bool:
    """Whether there is such a process; one that has ended and was not fetched yet is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1] not in (b"Z", b"X", b"")
    except OSError:
        return _answers(pid) if not os.path.isdir("/proc/self") else False


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
