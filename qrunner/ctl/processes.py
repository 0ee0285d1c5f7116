"""The verbs on processes: ``start stop restart reload reopen run``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import click

from qrunner.config import ConfigErrors
from qrunner.ctl.context import (
    NotRunning,
    config_path,
    load_config,
    load_places,
    say,
)
from qrunner.errors import ConfigError, QRunnerError
from qrunner.master.watch import Master, Process, living_master, lone_processes
from qrunner.rundir import RunDir, is_alive

if TYPE_CHECKING:
    from qrunner.config import Config

_UP_S = 30.0
_MARGIN_S = 30.0
_LOOK_S = 0.03


class Seconds(click.ParamType[float]):
    """A duration as in the configuration (``30s``, ``1h30m``), or a number of seconds."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        from qrunner.config.values import duration_s

        text = str(value)
        try:
            return float(text) if text.replace(".", "", 1).isdecimal() else duration_s(text)
        except ValueError as error:
            self.fail(str(error), param, ctx)


wait_option = click.option(
    "--wait", "wait_s", type=Seconds(), default=_UP_S, metavar="TIME", help="how long to wait (30s)"
)


@click.command()
@click.option("--foreground", is_flag=True, help="stay in the foreground, log to standard error too")
@wait_option
@click.pass_context
def start(ctx: click.Context, foreground: bool, wait_s: float) -> None:
    """Start the master; return when every runner is up.

    Where one is not up within the time, it is named, with the reason, and the exit code is 1; the master goes on
    trying. One that is running already is left alone.
    """
    config = load_config(ctx)
    _start(ctx, config, wait_s, foreground=foreground)


@click.command()
@click.option("--now", is_flag=True, help="without grace: what is in hand is put back, and nobody is blamed")
@click.pass_context
def stop(ctx: click.Context, now: bool) -> None:
    """Stop, and wait until the master and every runner have ended."""
    places = load_places(ctx)
    _stop(RunDir(places.state_dir), now=now)
    say("stopped")


@click.command()
@click.option("--now", is_flag=True, help="stop without grace")
@wait_option
@click.pass_context
def restart(ctx: click.Context, now: bool, wait_s: float) -> None:
    """Stop, if it is running, then start. A configuration with an error stops nothing."""
    config = load_config(ctx)
    _check_access(config)
    check_imports(config)
    try:
        _stop(RunDir(config.site.state_dir), now=now)
    except NotRunning:
        say("was not running")
    _start(ctx, config, wait_s)


@click.command()
@wait_option
@click.pass_context
def reload(ctx: click.Context, wait_s: float) -> None:
    """Take up the changed configuration: only runners whose section changed are restarted.

    It is checked first; with an error in it nothing changes, and the exit code is 78.
    """
    config = load_config(ctx)
    _check_access(config)
    check_imports(config)
    run = RunDir(config.site.state_dir)
    master = _master(run)
    if not os.path.samefile(master.config, config.path):
        raise QRunnerError(f"the master runs on {master.config}: reload that one, or stop and start")
    os.kill(master.pid, signal.SIGHUP)
    limit = time.monotonic() + wait_s + max((one.grace_s for one in config.runners.values()), default=0.0)
    _await_reload(run, master, limit)
    _await_up(run, limit)
    say("reloaded")


@click.command()
@click.pass_context
def reopen(ctx: click.Context) -> None:
    """Have all processes open their log files anew, after a rotation."""
    master = _master(RunDir(load_places(ctx).state_dir))
    os.kill(master.pid, signal.SIGUSR1)


@click.command()
@click.argument("runner")
@click.option(
    "--slice", type=click.IntRange(0), default=None, metavar="I", help="which slice, counted from 0"
)
@click.option("--once", is_flag=True, help="end when nothing is due")
@click.pass_context
def run(ctx: click.Context, runner: str, slice: int | None, once: bool) -> None:
    """Run one RUNNER in the foreground, without a master. Ctrl-C stops it."""
    from qrunner import child, log

    config = load_config(ctx)
    index = _which_slice(config, runner, slice)
    _check_access(config)
    places = RunDir(config.site.state_dir)
    places.make()
    log.setup(f"runner:{runner}/{index}", path=places.log_file, stream=sys.stderr)
    from qrunner.master.plan import prepare

    prepare(config)
    ctx.exit(child.run_slice(child.Task(config, runner, index, once=once)))


def _which_slice(config: Config, runner: str, slice: int | None) -> int:
    if runner not in config.runners:
        raise click.UsageError(f"there is no runner {runner!r}; there are {', '.join(config.runners)}")
    count = len(config.runners[runner].slices)
    if slice is None and count > 1:
        raise click.UsageError(
            f"runner {runner!r} has {count} slices: say which with --slice 0 to {count - 1}"
        )
    if slice is not None and slice >= count:
        raise click.UsageError(f"runner {runner!r} has no slice {slice}: they count from 0 to {count - 1}")
    return slice or 0


def check_imports(config: Config) -> None:
    """Imports what the configuration names, in this process, as the runners will.

    :raises ConfigErrors: with everything that can't be had.
    """
    from qrunner.ctl.setup import import_problems

    problems = import_problems(config.path)
    if problems:
        raise ConfigErrors(problems)


def _master(run: RunDir) -> Master:
    master = living_master(run)
    if master is None:
        raise _none(run)
    return master


def _none(run: RunDir) -> QRunnerError:
    """That there is no master; or that one has the lock, and has never managed to say who it is."""
    if run.is_locked():
        return QRunnerError(f"a process holds {run.lock_file} and has not said which (a full disk?)")
    return NotRunning("not running")


# Start.


def _start(ctx: click.Context, config: Config, wait_s: float, *, foreground: bool = False) -> None:
    run = RunDir(config.site.state_dir)
    master = living_master(run)
    if master is not None and master.state == "stopping":
        say(f"waiting for process {master.pid} to stop")
        _await_end(master)
    elif run.is_locked():
        say(f"already running, process {master.pid}" if master else "already running")
        return
    _check_access(config)
    check_imports(config)
    run.make()
    from qrunner.master.plan import prepare

    prepare(config)
    if foreground:
        _become_master(ctx)
    process = _spawn(ctx, run)
    limit = time.monotonic() + wait_s
    while living_master(run) is None:
        if process.poll() is not None and not run.is_locked():
            raise QRunnerError(
                f"the master ended at once, exit code {process.returncode}; see {run.log_file}"
            )
        if time.monotonic() > limit:
            raise QRunnerError(f"the master has not come up in {wait_s:g} s; see {run.log_file}")
        time.sleep(_LOOK_S)
    count = _await_up(run, limit)
    say(f"started: {count} runner{'s' * (count != 1)} up")


def _check_access(config: Config) -> None:
    """Whether who we are now can begin a master: root could read all of this, and the owner of the queues may not.

    :raises QRunnerError: with what can't be read.
    """
    for needed in (config.path, sys.executable, os.__file__, __file__):
        if not os.access(needed, os.R_OK):
            raise QRunnerError(
                f"the owner of {config.site.queue_dir} ({os.environ.get('USER', os.geteuid())}), "
                f"as whom everything is run, can't read {needed}"
            )


def _command(ctx: click.Context) -> list[str]:
    from qrunner.master.slot import PYTHON

    return [*PYTHON, "-m", "qrunner.master", f"--config={config_path(ctx).absolute()}"]


def _become_master(ctx: click.Context) -> None:
    from qrunner.master.slot import environment

    # Exec'd, so that the master in the foreground is the same process as the other, without what we have loaded.
    argv = [*_command(ctx), "--foreground"]
    os.execve(argv[0], argv, environment())


def _spawn(ctx: click.Context, run: RunDir) -> subprocess.Popen[bytes]:
    from qrunner.master.slot import environment

    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    log = os.open(run.log_file, flags, 0o600)
    try:
        return subprocess.Popen(
            _command(ctx),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=environment(),
            start_new_session=True,
        )
    finally:
        os.close(log)


def _await_up(run: RunDir, limit: float) -> int:
    """Until every runner is up; their number. One that has failed is not waited for.

    :raises QRunnerError: with those that are not, and why.
    """
    while True:
        master = living_master(run)
        if master is None:
            raise QRunnerError(f"the master has ended; see {run.log_file}")
        late = [one for one in master.processes if not one.is_up]
        if not late:
            return len(master.processes)
        if time.monotonic() > limit or all(one.state == "failed" for one in late):
            raise QRunnerError("\n".join(map(_not_up, late)))
        time.sleep(_LOOK_S)


def _not_up(one: Process) -> str:
    return f"runner {one.name}[{one.slice}] is not up: {one.state}{': ' * bool(one.reason)}{one.reason}"


# Reload.


def _await_reload(run: RunDir, before: Master, limit: float) -> None:
    while (master := _master(run)).reloads == before.reloads:
        if time.monotonic() > limit:
            raise QRunnerError("the master does not answer")
        time.sleep(_LOOK_S)
    if master.reload_error:
        raise ConfigError(master.reload_error)


# Stop.


def _stop(run: RunDir, *, now: bool) -> None:
    """Stops the master and waits for its end. :raises NotRunning: there was none."""
    master = living_master(run)
    if master is None:
        _await_orphans(run)
        raise _none(run)
    os.kill(master.pid, signal.SIGQUIT if now else signal.SIGTERM)
    _await_end(master)


def _await_end(master: Master) -> None:
    limit = time.monotonic() + _patience_s(master)
    while is_alive(master.pid):
        if time.monotonic() > limit:
            raise QRunnerError(f"the master, process {master.pid}, has not ended; `stop --now` does not wait")
        time.sleep(_LOOK_S)


def _patience_s(master: Master) -> float:
    """The longest grace of those that run, and then some: the master kills before that is over."""
    return max((one.grace_s for one in master.processes), default=0.0) + _MARGIN_S


def _await_orphans(run: RunDir) -> None:
    """Runners whose master was killed end by themselves; a stop is done when they have."""
    orphans = [one for one in lone_processes(run) if one.orphaned]
    if orphans:
        say(f"the master is gone; waiting for {len(orphans)} runners that it has left")
    limit = time.monotonic() + max((one.grace_s for one in orphans), default=0.0) + _MARGIN_S
    while any(one.pid is not None and is_alive(one.pid) for one in orphans) and time.monotonic() < limit:
        time.sleep(_LOOK_S)
