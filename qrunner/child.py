"""One runner's process: one slice, from its start to its stop.

Under a master it reads the master's copy of the configuration and holds the end of a pipe that breaks when the master
dies; it stops then as if it had been told to. `qrunner-ctl run` has the same life in the foreground, without either.

Exit codes: 0 stopped as it was told, or `--once` and nothing is due; 1 it did not come up; 70 it came up and a bug
ended it; 75 `--once`, and another process owns its range; 78 its class can't be loaded.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import faulthandler
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qrunner import log as logs
from qrunner.clock import rfc3339
from qrunner.config import Config, parse
from qrunner.errors import ConfigError, LeaseHeld, QRunnerError
from qrunner.loading import extend_path, load_class
from qrunner.log import event
from qrunner.metrics import write_state
from qrunner.owner import become_owner
from qrunner.rundir import RunDir

if TYPE_CHECKING:
    from qrunner.engine.driver import Driver

OK, DID_NOT_START, BUG, TRY_AGAIN, CONFIGURATION = 0, 1, 70, 75, 78
_LOOK_S, _LOOK_RARELY_S, _LOOK_EARLY_S, _BEAT_S = 2.0, 5.0, 0.05, 10.0
_AFTER_GRACE_S = 5.0

_log = logging.getLogger("qrunner.runner")


@dataclass(frozen=True, slots=True)
class Task:
    """What this process is to do.

    :param lifeline: a descriptor that ends when the master dies; None: there is no master.
    """

    config: Config
    runner: str
    slice: int
    once: bool = False
    lifeline: int | None = None
    restarts: int = 0


class Heartbeat:
    """Writes down how the engine is: when that changes, and every ten seconds."""

    def __init__(self, task: Task, engine: Driver) -> None:
        self._task, self._engine = task, engine
        self._path = RunDir(task.config.site.state_dir).runner_file(task.runner, task.slice)
        self._said: dict[str, Any] = {}
        self._age_s = 0.0
        self.was_up = False
        self._is_news = True

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self.beat()
            # Whoever waits for us to come up is told at once.
            look_s = (_LOOK_S if self._is_news else _LOOK_RARELY_S) if self.was_up else _LOOK_EARLY_S
            await asyncio.sleep(look_s)
            self._age_s += look_s

    def beat(self) -> None:
        """One look; a disk without room for it is no reason to stop."""
        self.was_up = self.was_up or self._engine.patient or self._engine.state in ("running", "suspended")
        state = self._state()
        self._is_news = state != self._said
        if self._is_news or self._age_s >= _BEAT_S:
            with contextlib.suppress(OSError):
                write_state(self._path, state)
            self._said, self._age_s = state, 0.0

    def _state(self) -> dict[str, Any]:
        engine = self._engine
        return {
            "name": self._task.runner,
            "slice": self._task.slice,
            "state": engine.state,
            "reason": engine.reason,
            "patient": engine.patient,
            "since": rfc3339(engine.since_ns),
            "processed": engine.processed,
            "failed": engine.failed,
            "rate_1m": engine.rate_1m,
            "in_hand": engine.in_hand,
            "restarts": self._task.restarts,
            "nonce": engine.nonce,
            "has_blamed": engine.has_blamed,
            "grace_s": self._task.config.runners[self._task.runner].grace_s,
            "has_master": self._task.lifeline is not None,
        }


def run_slice(task: Task) -> int:
    """Runs the slice until it is told to stop; the exit code. The log is set up already."""
    config = task.config.runners[task.runner]
    _be_nice(config.slices[task.slice].nice)
    extend_path(task.config.site.python_path)
    # Loaded here, and not above, so that a program which only asks for the exit codes does not pay for it.
    from qrunner.engine.choice import driver_for
    from qrunner.site import Site

    try:
        runner_class = load_class(config.class_name)
        engine = driver_for(Site(task.config), config, task.slice, runner_class, log=_log)
    except ConfigError as error:
        event(_log, "runner not loaded", level=logging.ERROR, exc=error.__cause__, error=str(error))
        return _say(str(error), CONFIGURATION)
    except Exception as error:
        event(_log, "runner not made", level=logging.ERROR, exc=error)
        return _say(f"{type(error).__name__}: {error}", DID_NOT_START)
    return asyncio.run(_live(task, engine))


async def _live(task: Task, engine: Driver) -> int:
    heart = Heartbeat(task, engine)
    # At once: what is claimed next may end this process, and the master is to know whom the last death is laid to.
    engine.came_up = engine.changed = heart.beat
    _listen(task, engine)
    beating = asyncio.create_task(heart.run())
    try:
        await engine.run(once=task.once)
    except LeaseHeld as error:
        return _say(str(error), TRY_AGAIN)
    except Exception as error:
        heart.beat()
        event(_log, "runner failed", level=logging.ERROR, exc=error)
        return _say(f"{type(error).__name__}: {error}", BUG if heart.was_up else DID_NOT_START)
    finally:
        beating.cancel()
        heart.beat()
    return OK


def _listen(task: Task, engine: Driver) -> None:
    """Signals and the master's end, as calls in the loop."""
    loop = asyncio.get_running_loop()

    def stop_at_once() -> None:
        engine.stop()
        # Once the loop has seen the stop: it then waits for what is in hand, and this ends the wait.
        loop.call_soon(engine.cut_short)

    def interrupted() -> None:
        engine.stop()
        _end_after(task, engine)
        loop.add_signal_handler(signal.SIGINT, stop_at_once)

    def orphaned() -> None:
        event(_log, "the master has died", level=logging.WARNING)
        _print_into_the_log(task.config)
        engine.stop()

    loop.add_signal_handler(signal.SIGUSR1, logs.reopen)
    loop.add_signal_handler(signal.SIGQUIT, stop_at_once)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if task.lifeline is None:
        loop.add_signal_handler(signal.SIGTERM, interrupted)
        loop.add_signal_handler(signal.SIGINT, interrupted)
    else:
        loop.add_signal_handler(signal.SIGTERM, engine.stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # A thread, because site code may be holding up the loop when the master dies.
        waiting = threading.Thread(target=_await_orphanhood, args=(task, engine, loop, orphaned), daemon=True)
        waiting.start()


def _await_orphanhood(
    task: Task, engine: Driver, loop: asyncio.AbstractEventLoop, orphaned: Callable[[], None]
) -> None:
    assert task.lifeline is not None
    os.read(task.lifeline, 1)
    with contextlib.suppress(RuntimeError):  # the loop is closed, and we are about to end anyway
        loop.call_soon_threadsafe(orphaned)
    _end_after(task, engine)


def _end_after(task: Task, engine: Driver) -> None:
    """Ends the process some seconds after its grace, whatever site code is stuck in; the master does so otherwise.
    That is written down, so that what is in hand is not blamed."""

    def end() -> None:
        event(_log, "runner ended, it did not stop", level=logging.WARNING)
        with contextlib.suppress(OSError, QRunnerError):
            engine.site.spool.explain(task.config.site.node, os.getpid())
        os._exit(OK)

    timer = threading.Timer(engine.config.grace_s + _AFTER_GRACE_S, end)
    timer.daemon = True
    timer.start()


def _hold_own_pipe() -> None:
    """Holds the reading end of the pipe that we print to, for life.

    It ends with the master otherwise, and from then on a mere print() of a site's code would raise, and shunt.
    """
    with contextlib.suppress(OSError):
        os.open("/proc/self/fd/1", os.O_RDONLY | os.O_NONBLOCK)


def _print_into_the_log(config: Config) -> None:
    """Nobody reads the pipe any more; once it is full, a print() would wait for ever."""
    with contextlib.suppress(OSError):
        log = os.open(RunDir(config.site.state_dir).log_file, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)
        for fd in (1, 2):
            os.dup2(log, fd)
        os.close(log)


def _be_nice(increment: int) -> None:
    try:
        os.nice(increment)
    except PermissionError:
        event(_log, "nice refused", level=logging.WARNING, nice=increment)


def _say(text: str, code: int) -> int:
    """For the master, who keeps the last line that a process printed."""
    sys.stderr.write(text.replace("\n", " ") + "\n")
    return code


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("qrunner.child")
    parser.add_argument("--config", type=Path, required=True, help="the master's copy")
    parser.add_argument(
        "--path", type=Path, required=True, help="where its relative paths start: the original"
    )
    parser.add_argument("--runner", required=True)
    parser.add_argument("--slice", type=int, required=True)
    parser.add_argument("--lifeline", type=int, required=True)
    parser.add_argument("--echo", type=int)
    parser.add_argument("--restarts", type=int, default=0)
    return parser.parse_args()


def main() -> int:
    """``python -m qrunner.child``, as the master begins it."""
    faulthandler.enable()
    _hold_own_pipe()
    options = _options()
    config = parse(options.config.read_text("utf-8"), options.path)
    become_owner(config.site.queue_dir)
    echo = os.fdopen(options.echo, "w", buffering=1) if options.echo is not None else None
    log_file = RunDir(config.site.state_dir).log_file
    logs.setup(f"runner:{options.runner}/{options.slice}", path=log_file, stream=echo)
    for fd in filter(None, (options.lifeline, options.echo)):
        os.set_inheritable(fd, False)
    task = Task(config, options.runner, options.slice, lifeline=options.lifeline, restarts=options.restarts)
    return run_slice(task)


if __name__ == "__main__":
    sys.exit(main())
