"""What a master runs: the slices of a checked configuration that are this machine's, and what each depends on.

The configuration's text is kept beside the master's lock under its own hash; the processes read that copy, never the
file that somebody may be editing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qrunner.config import Config, RunnerConfig
from qrunner.rundir import RunDir
from qrunner.smtp.living import hosts_behind


@dataclass(frozen=True, slots=True)
class Job:
    """One slice of one runner, to be kept running. ``queue`` is empty for a door."""

    runner: str
    slice: int
    queue: str
    grace_s: float

    @property
    def key(self) -> tuple[str, int]:
        return self.runner, self.slice

    @property
    def label(self) -> str:
        """As it is called in the log."""
        return f"{self.runner}/{self.slice}"


@dataclass(frozen=True, slots=True)
class Plan:
    """A configuration and its snapshot."""

    config: Config
    sha1: str
    snapshot: Path

    def jobs(self) -> tuple[Job, ...]:
        """What is to be run on this machine, in the order of the configuration."""
        return tuple(
            Job(runner.name, index, "" if runner.door else runner.queue, runner.grace_s)
            for runner in self.config.runners.values()
            for index in range(len(runner.slices))
            if is_ours(self.config, runner, index)
        )

    def depends(self, name: str) -> tuple[Any, ...]:
        """All of the configuration that a runner's processes look at; while it is equal they need no restart."""
        config, runner = self.config, self.config.runners[name]
        hosts = _hosts(config, runner)
        # Routes and balances are looked up by site code as well, under any name, so a runner depends on them all.
        return (
            runner,
            config.site,
            hosts,
            {name: config.smtp.get(name) for names in hosts.values() for name in names},
            config.balance,
            config.routes,
            # A balance leaves out those whose hosts are all down.
            {
                member: hosts_behind(config, member)
                for one in config.balance.values()
                for member, _ in one.members
            },
        )


def is_ours(config: Config, runner: RunnerConfig, index: int) -> bool:
    """Whether this machine is to run the slice."""
    one = runner.slices[index]
    return runner.enabled and one.enabled and one.node in (None, config.site.node)


def _hosts(config: Config, runner: RunnerConfig) -> dict[str, tuple[str, ...]]:
    """The hosts of each slice, and those of the queues that it hands mail to while its own are down."""
    own = {str(index): one.smtp for index, one in enumerate(runner.slices)}
    return own | {queue: hosts_behind(config, queue) for queue in runner.settings.get("on_down") or ()}


def make_plan(config: Config, run: RunDir) -> Plan:
    """Writes the snapshot of a checked configuration. ``OSError``: there was no room."""
    data = config.text.encode()
    sha1 = hashlib.sha1(data, usedforsecurity=False).hexdigest()
    path = run.snapshot_file(sha1)
    if not path.exists():
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            scratch.write_bytes(data)
            os.replace(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)
    return Plan(config, sha1, path)


def prepare(config: Config) -> None:
    """Makes the queues of a configuration that are not there yet."""
    from qrunner.site import Site

    config.site.queue_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    Site(config).spool.prepare(config.queues())


def sweep_snapshots(run: RunDir, wanted: Collection[Path]) -> None:
    """Removes the snapshots that no process reads any more."""
    for path in run.run.glob("config-*.toml"):
        if path not in wanted:
            with contextlib.suppress(OSError):
                path.unlink()
