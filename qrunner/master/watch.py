"""The master and its runners as seen from outside: what their files say, and whether they still live.

Guarantees: a file that a dead process has left behind is not believed. Whether there is a master is what its lock
says; a heartbeat counts only while its process lives.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qrunner.metrics import age_s, boot_id, read_state
from qrunner.rundir import RunDir, is_alive


@dataclass(frozen=True, slots=True)
class Process:
    """One slice as it is now. ``beat`` is what its process said last, empty if nothing yet.

    ``orphaned``: it was begun by a master that has died, and is about to end.
    """

    name: str
    slice: int
    pid: int | None
    state: str
    reason: str = ""
    restarts: int = 0
    streak: int = 0
    since: str | None = None
    heartbeat_age_s: float | None = None
    grace_s: float = 0.0
    orphaned: bool = False
    beat: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_up(self) -> bool:
        # One that an operator has suspended has come up, and waits to be resumed.
        return self.state in ("running", "suspended") or self.is_patient

    @property
    def is_patient(self) -> bool:
        """Whether it has come up, and waits because it was told to."""
        return self.state == "waiting" and bool(self.beat.get("patient"))


@dataclass(frozen=True, slots=True)
class Master:
    """A living master, in its own words."""

    pid: int
    since: str
    state: str
    config: Path
    snapshot: Path
    sha1: str
    reloads: int
    reload_error: str
    reload_at: str
    processes: tuple[Process, ...]


def living_master(run: RunDir, patience_s: float = 3.0) -> Master | None:
    """The master; None: there is none. One that has its lock and has not said anything yet is waited for."""
    until = time.monotonic() + patience_s
    while run.is_locked():
        state = read_state(run.master_file)
        if state and _speaks_of_a_master(state):
            return _master(run, state)
        if time.monotonic() > until:
            return None
        time.sleep(0.02)
    return None


def _speaks_of_a_master(state: Mapping[str, Any]) -> bool:
    """Whether the file is the living master's own: its number may be another program's by now."""
    pid = state.get("pid")
    if not isinstance(pid, int) or state.get("boot") != boot_id() or not is_alive(pid):
        return False
    try:
        return b"qrunner.master" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True


def _master(run: RunDir, state: Mapping[str, Any]) -> Master:
    return Master(
        pid=state["pid"],
        since=str(state.get("since", "")),
        state=str(state.get("state", "")),
        config=Path(state.get("config", "")),
        snapshot=Path(state.get("snapshot", "")),
        sha1=str(state.get("sha1", "")),
        reloads=int(state.get("reloads", 0)),
        reload_error=str(state.get("reload_error", "")),
        reload_at=str(state.get("reload_at", "")),
        processes=tuple(_kept(run, slot) for slot in state.get("slots", ())),
    )


def _kept(run: RunDir, slot: Mapping[str, Any]) -> Process:
    """A slice that the master keeps: its word on the process, and the process's own on its state."""
    name, index, pid = slot["name"], slot["slice"], slot["pid"]
    beat = read_state(run.runner_file(name, index)) or {}
    if pid is None or beat.get("pid") != pid:
        beat = {}
    state, reason = str(beat.get("state", "starting")), str(beat.get("reason", ""))
    if slot["failed"] and state != "running":
        state, reason = "failed", str(slot["error"])
    return Process(
        name=name,
        slice=index,
        pid=pid,
        state=state,
        reason=reason or (str(slot["error"]) if state == "starting" else ""),
        restarts=slot["restarts"],
        streak=slot["streak"],
        since=beat.get("since"),
        heartbeat_age_s=age_s(beat) if beat else None,
        grace_s=slot["grace_s"],
        beat=beat,
    )


def lone_processes(run: RunDir) -> tuple[Process, ...]:
    """Runners that live without a master: started by `run`, or about to end because theirs died."""
    found = []
    for path in sorted(run.run.glob("runner.*.json")):
        beat = read_state(path)
        if beat and beat.get("boot") == boot_id() and is_alive(int(beat.get("pid", 0))):
            found.append(_lone(beat))
    return tuple(found)


def _lone(beat: Mapping[str, Any]) -> Process:
    return Process(
        name=str(beat.get("name", "")),
        slice=int(beat.get("slice", 0)),
        pid=beat["pid"],
        state=str(beat.get("state", "")),
        reason=str(beat.get("reason", "")),
        since=beat.get("since"),
        heartbeat_age_s=age_s(beat),
        grace_s=float(beat.get("grace_s", 0.0)),
        orphaned=bool(beat.get("has_master")),
        beat=beat,
    )
