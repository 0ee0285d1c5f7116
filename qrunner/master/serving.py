"""The master: keeps one process a slice running, and tells them of stops, reloads and rotated logs.

====================  =========================================================================================
signal                what it does
====================  =========================================================================================
TERM, INT             stops: every runner finishes or puts back what it has in hand; who is still there some
                      seconds after its ``grace`` is killed, and that is written down so that no entry is blamed
QUIT, a second INT    stops at once
HUP                   reads the configuration again: one with an error changes nothing; else the runners whose
                      section changed are stopped, and started anew
USR1                  all open their log files anew
====================  =========================================================================================

Guarantees: there is one master for a ``state_dir``, because it holds a lock for life; the lock ends with it, so no
crash leaves anything to be tidied. The runners are processes of their own, begun by exec on a checked copy of the
configuration. None outlives the master unnoticed: each holds the end of a pipe that breaks with it, and stops then.

Not guaranteed: that a runner does its work. That is for ``status`` to say.

Failures: what cannot be written down for lack of space is left out; the runners go on.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qrunner import log as logs
from qrunner.clock import rfc3339
from qrunner.config import Config, load
from qrunner.errors import QRunnerError
from qrunner.log import event
from qrunner.master.plan import Plan, make_plan, prepare, sweep_snapshots
from qrunner.master.slot import PYTHON, Slot, environment
from qrunner.metrics import write_state
from qrunner.owner import become_owner
from qrunner.rundir import RunDir

_AFTER_GRACE_S = 5.0
_AT_ONCE_S = 2.0
_CHECK_S = 30.0
_TICK_S, _BUSY_TICK_S = 5.0, 0.25
_SIGNALS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGCHLD,
)

_log = logging.getLogger("qrunner.master")


class Master:
    """Keeps the slices of a plan running until it is told to stop.

    :param echo: a descriptor that the runners log to besides the file; for the foreground.
    """

    def __init__(self, plan: Plan, run: RunDir, *, echo: int | None = None) -> None:
        self.plan, self.run_dir, self._echo = plan, run, echo
        self.slots = [Slot(job, plan, run) for job in plan.jobs()]
        # Slots of before a reload, and of everything once we stop: their processes are on their way out.
        self.leaving: list[Slot] = []
        self._state, self._since_ns = "running", time.time_ns()
        self._interrupts = self._reloads = 0
        self._reload_error = self._reload_at = ""
        self._published: dict[str, Any] = {}
        self._ready = False
        self._selector = selectors.DefaultSelector()
        self._lifeline = os.pipe()

    def run(self) -> None:
        """Until everything has stopped."""
        event(_log, "master started", config=self.plan.config.path, slices=len(self.slots))
        with self._wakeups() as wake:
            self._tend()
            while self._state != "stopping" or self.leaving:
                self._publish()
                self._wait(wake)
                self._tend()
        self._state = "stopped"
        self._publish()
        event(_log, "master stopped")

    @contextlib.contextmanager
    def _wakeups(self) -> Iterator[int]:
        """Signals as bytes in a pipe, so that nothing runs inside a handler."""
        reader, writer = os.pipe()
        for fd in (reader, writer):
            os.set_blocking(fd, False)
        before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        handlers = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
        self._selector.register(reader, selectors.EVENT_READ)
        try:
            yield reader
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(before)
            self._selector.close()
            os.close(reader)
            os.close(writer)

    def _wait(self, wake: int) -> None:
        """Until a signal, or something that a runner printed, or until something is to be done."""
        for key, _ in self._selector.select(self._timeout_s()):
            if key.fd == wake:
                for number in dict.fromkeys(_drain(wake)):
                    self._on_signal(number)
            elif not key.data.read_output():
                self._selector.unregister(key.fileobj)

    def _timeout_s(self) -> float:
        """Seconds until a process is to be started or killed, at most a tick."""
        now = time.monotonic_ns()
        due = [slot.start_at_ns for slot in self.slots if slot.process is None and not self._is_blocked(slot)]
        due += [slot.kill_at_ns for slot in self.leaving if slot.kill_at_ns is not None]
        # Only systemd asks us when all are up; for anybody else the runners' files say it.
        tick_s = _BUSY_TICK_S if not self._ready and "NOTIFY_SOCKET" in os.environ else _TICK_S
        return max(0.0, min([tick_s, *((at - now) / 1e9 for at in due)]))

    # What a tick does.

    def _tend(self) -> None:
        self._reap()
        now = time.monotonic_ns()
        for slot in self.leaving:
            if slot.kill_at_ns is not None and slot.kill_at_ns <= now:
                slot.kill(self._explain)
        for slot in self.slots:
            slot.settle()
            if slot.process is None and slot.start_at_ns <= now and not self._is_blocked(slot):
                self._start(slot)
        if not self._ready and all(slot.is_up for slot in self.slots) and self._state == "running":
            self._ready = True
            notify("READY=1")

    def _reap(self) -> None:
        for slot in [*self.slots, *self.leaving]:
            before = slot.process
            if before is not None and slot.reap():
                self._forget_output(before.stdout)
        self.leaving = [slot for slot in self.leaving if slot.process is not None]

    def _start(self, slot: Slot) -> None:
        slot.start(self._lifeline[0], self._echo)
        if slot.process is not None and slot.process.stdout is not None:
            self._selector.register(slot.process.stdout, selectors.EVENT_READ, slot)

    def _forget_output(self, stream: Any) -> None:
        """The reaped process's end is closed already; the selector knows it by the object."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(stream)

    def _is_blocked(self, slot: Slot) -> bool:
        """Whether processes of before a reload still have a part of what this one is to have."""
        job = slot.job
        return any(
            other.job.runner == job.runner or (job.queue and other.job.queue == job.queue)
            for other in self.leaving
        )

    # What a signal does.

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGINT:
            self._interrupts += 1
        if number == signal.SIGQUIT or self._interrupts > 1:
            self._stop(at_once=True)
        elif number in (signal.SIGTERM, signal.SIGINT):
            self._stop()
        elif number == signal.SIGHUP and self._state == "running":
            self._reload()
        elif number == signal.SIGUSR1:
            logs.reopen()
            for slot in [*self.slots, *self.leaving]:
                slot.signal(signal.SIGUSR1)

    def _stop(self, *, at_once: bool = False) -> None:
        if self._state != "stopping":
            self._state = "stopping"
            event(_log, "master stopping", at_once=at_once)
            notify("STOPPING=1")
        elif not at_once:
            return
        leaving, self.slots = [*self.leaving, *self.slots], []
        self._leave(leaving, at_once=at_once)

    def _leave(self, slots: list[Slot], *, at_once: bool = False) -> None:
        for slot in slots:
            if at_once:
                slot.stop(_AT_ONCE_S, signal.SIGQUIT)
            else:
                slot.stop(slot.job.grace_s + _AFTER_GRACE_S)
        self.leaving = list(dict.fromkeys([*self.leaving, *slots]))

    def _reload(self) -> None:
        self._reload_at = rfc3339(time.time_ns())
        try:
            config = load(self.plan.config.path)
            self._check_places(config)
            check_imports(config.path)
            prepare(config)
            plan = make_plan(config, self.run_dir)
        except (QRunnerError, OSError) as error:
            self._reload_error = str(error)
            event(_log, "reload refused", level=logging.ERROR, error=str(error))
        else:
            self._reload_error = ""
            self._take_up(plan)
        self._reloads += 1

    def _check_places(self, config: Config) -> None:
        old, new = self.plan.config.site, config.site
        for key in ("state_dir", "queue_dir"):
            if getattr(old, key) != getattr(new, key):
                raise QRunnerError(f"site.{key} has changed: that takes a stop and a start, not a reload")

    def _take_up(self, plan: Plan) -> None:
        """Stops what changed or is no more, and makes place for what is new; what is the same is not touched."""
        old, self.plan = self.plan, plan
        same = {
            name
            for name in plan.config.runners.keys() & old.config.runners.keys()
            if plan.depends(name) == old.depends(name)
        }
        kept = [slot for slot in self.slots if slot.job.runner in same]
        changed = [slot for slot in self.slots if slot.job.runner not in same]
        for slot in kept:
            slot.plan = plan
        there = {slot.job.key for slot in kept}
        # A runner is stopped as a whole, since the ranges of its slices hang together.
        self._leave(changed)
        self.slots = kept + [Slot(job, plan, self.run_dir) for job in plan.jobs() if job.key not in there]
        self._ready = False
        event(
            _log,
            "reloaded",
            sha1=plan.sha1,
            stopped=sorted({slot.job.label for slot in changed}),
            started=sorted({slot.job.label for slot in self.slots if slot not in kept}),
        )
        sweep_snapshots(self.run_dir, {old.snapshot, plan.snapshot})

    def _explain(self, pid: int) -> None:
        """Writes down that we kill it. What can't be written costs at most a mark in a history."""
        from qrunner.site import Site

        try:
            Site(self.plan.config).spool.explain(self.plan.config.site.node, pid)
        except (OSError, QRunnerError) as error:
            event(_log, "kill not written down", level=logging.WARNING, process=pid, error=str(error))

    # What others are told.

    def _publish(self) -> None:
        """Says how things are, when that has changed."""
        state = {
            "state": self._state,
            "since": rfc3339(self._since_ns),
            "config": str(self.plan.config.path),
            "snapshot": str(self.plan.snapshot),
            "sha1": self.plan.sha1,
            "reloads": self._reloads,
            "reload_error": self._reload_error,
            "reload_at": self._reload_at,
            "slots": [slot.as_state() for slot in self.slots],
        }
        if state != self._published:
            with contextlib.suppress(OSError):
                write_state(self.run_dir.master_file, state)
                self._published = state


def _drain(fd: int) -> bytes:
    with contextlib.suppress(BlockingIOError):
        return os.read(fd, 65536)
    return b""


def notify(text: str) -> None:
    """Tells systemd, if it is there and asked to be told (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
            channel.sendto(text.encode(), "\0" + address[1:] if address.startswith("@") else address)


def check_imports(path: Path) -> None:
    """Has another process import what the configuration names: the master itself loads no code of a site's.

    :raises QRunnerError: with what can't be had.
    """
    argv = [*PYTHON, "-c", "from qrunner.ctl import main; main()", "check", f"--config={path}"]
    try:
        check = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment(),
            timeout=_CHECK_S,
            text=True,
        )
    except subprocess.TimeoutExpired:
        raise QRunnerError(f"its code has not been imported within {_CHECK_S:g} s") from None
    if check.returncode:
        raise QRunnerError((check.stdout or check.stderr).strip())


def serve(path: Path, *, foreground: bool = False) -> int:
    """The whole life of a master, on this configuration file; the exit code. The queues have been made.

    :raises QRunnerError: it can't begin.
    """
    config = load(path)
    become_owner(config.site.queue_dir)
    run = RunDir(config.site.state_dir)
    run.make()
    logs.setup("master", path=run.log_file, stream=sys.stderr if foreground else None)
    lock = run.lock(timeout_s=2.0)
    if lock is None:
        event(_log, "a master is running already", state_dir=run.state_dir)
        return 0
    plan = make_plan(config, run)
    sweep_snapshots(run, {plan.snapshot})
    Master(plan, run, echo=os.dup(2) if foreground else None).run()
    lock.release()
    return 0


def main() -> None:
    """``python -m qrunner.master``, as ``qrunner-ctl start`` begins it."""
    parser = argparse.ArgumentParser("qrunner.master")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--foreground", action="store_true")
    options = parser.parse_args()
    try:
        sys.exit(serve(options.config, foreground=options.foreground))
    except (QRunnerError, OSError) as error:
        sys.exit(f"qrunner.master: {error}")
