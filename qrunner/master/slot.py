"""One slice's place under the master: the process that has it now, and when the next one begins.

Guarantees: a process that ends unasked is followed by another, for as long as the master lives. The first comes after
a tenth of a second, and each that dies soon doubles the wait, up to a minute; one that has lived a minute begins
anew. A death that is laid to entries which were in hand doubles nothing: they are on their way out. Times are jittered,
so that a hundred slices that died of one cause do not come back in step.

Not guaranteed: that the process does anything. A slice whose processes do not come up, or die one after another, is
``failed`` for those who ask, and is tried again all the same: what was wrong may have been mended.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qrunner.log import event
from qrunner.master.plan import Job, Plan
from qrunner.metrics import read_state
from qrunner.rundir import RunDir

_FIRST_S, _MOST_S = 0.1, 60.0
_SOON_S = 60.0
_STREAK_IS_FAILED = 5
_LINE = 4096
EXIT_DID_NOT_START, EXIT_CONFIG = 1, 78

# Without the folder that we happen to stand in on the import path.
PYTHON = (sys.executable, "-P")

_log = logging.getLogger("qrunner.master")


def backoff_s(streak: int) -> float:
    """Seconds to wait after so many deaths in a row, the first being 1; jittered by a fifth either way."""
    delay = _MOST_S if streak > 16 else min(_MOST_S, _FIRST_S * 2.0 ** max(0, streak - 1))
    return delay * random.uniform(0.8, 1.2)


class Slot:
    """A slice, and its process while it has one."""

    def __init__(self, job: Job, plan: Plan, run: RunDir) -> None:
        self.job, self.plan = job, plan
        self._file = run.runner_file(*job.key)
        self.process: subprocess.Popen[bytes] | None = None
        self.restarts = self.streak = 0
        self.start_at_ns = 0
        self.kill_at_ns: int | None = None
        self.exit: int | None = None
        self.error = ""
        self.never_up = False
        self._since_ns = self._began_ns = 0
        self._tail = b""
        self._said = ""
        self._may_forgive = False

    @property
    def failed(self) -> bool:
        """Whether there is something for a person to look at: it does not come up, or not for long."""
        return self.never_up or self.streak >= _STREAK_IS_FAILED

    @property
    def stopping(self) -> bool:
        return self.kill_at_ns is not None

    def start(self, lifeline: int, echo: int | None) -> None:
        """Begins a process.

        :param lifeline: the reading end of a pipe whose writing end is ours alone: its end tells of our death.
        :param echo: a descriptor to log to besides the file, for a master in the foreground.
        """
        # Unbuffered, so that what it prints is in the log when it is printed.
        argv = [*PYTHON, "-u", "-m", "qrunner.child", *self._arguments(), f"--lifeline={lifeline}"]
        fds = [lifeline]
        if echo is not None:
            argv.append(f"--echo={echo}")
            fds.append(echo)
        self._began_ns = time.monotonic_ns()
        try:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=fds,
                env=environment(),
                # A session of its own: a Ctrl-C at the terminal is the master's to handle, and blames no entry.
                start_new_session=True,
            )
        except OSError as error:  # no process, no memory, no descriptor left: that passes
            self._died(f"can't start a process: {error}", None)
            return
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        self._tail, self._said, self._may_forgive = b"", "", True
        event(_log, "runner started", runner=self.job.label, process=self.process.pid, restarts=self.restarts)

    def _arguments(self) -> list[str]:
        plan, job = self.plan, self.job
        return [
            f"--config={plan.snapshot}",
            f"--path={plan.config.path}",
            f"--runner={job.runner}",
            f"--slice={job.slice}",
            f"--restarts={self.restarts}",
        ]

    def stop(self, limit_s: float, number: signal.Signals = signal.SIGTERM) -> None:
        """Asks the process to stop, by this signal; from so many seconds on it is to be killed."""
        self.kill_at_ns = time.monotonic_ns() + round(limit_s * 1e9)
        if self.process is not None:
            self.process.send_signal(number)

    def kill(self, explain: Callable[[int], None]) -> None:
        """Ends the process, having written down first that it is we who do it."""
        assert self.process is not None
        event(_log, "runner killed", level=logging.WARNING, runner=self.job.label, process=self.process.pid)
        explain(self.process.pid)
        self.process.kill()
        self.kill_at_ns = time.monotonic_ns() + 10**9

    def signal(self, number: signal.Signals) -> None:
        """Passes a signal on, to a process that is up to it."""
        if self.process is not None and self.beat() is not None:
            self.process.send_signal(number)

    def reap(self) -> bool:
        """Whether the process has just ended."""
        if self.process is None or self.process.poll() is None:
            return False
        process = self.process
        self._forgive()
        self.read_output()
        assert process.stdout is not None
        process.stdout.close()
        beat, self.process = self.beat(), None
        code = process.returncode
        if self.stopping:
            event(_log, "runner stopped", runner=self.job.label, process=process.pid, exit=code)
        else:
            self._died(_reason(code, beat, self._said), code, process.pid)
        return True

    def _died(self, why: str, code: int | None, pid: int | None = None) -> None:
        now = time.monotonic_ns()
        lived_s = (now - self._began_ns) / 1e9
        self.streak = self.streak + 1 if lived_s < _SOON_S else 1
        self.never_up = code in (EXIT_DID_NOT_START, EXIT_CONFIG)
        self.exit, self.error = code, why
        self.restarts += 1
        wait_s = backoff_s(self.streak)
        self.start_at_ns = now + round(wait_s * 1e9)
        event(
            _log,
            "runner died",
            level=logging.ERROR,
            runner=self.job.label,
            process=pid,
            exit=code,
            error=why,
            lived_s=lived_s,
            next_in_s=wait_s,
        )

    def settle(self) -> None:
        """Forgets the deaths of before, once the process has lived a while. For the master to call at times."""
        self._forgive()
        if self.process is not None and (time.monotonic_ns() - self._began_ns) / 1e9 >= _SOON_S:
            self.streak, self.never_up, self.exit, self.error = 0, False, None, ""

    def _forgive(self) -> None:
        """Takes back, once, a death that the next process lays to entries: they are on their way out."""
        if self._may_forgive and self.streak and (self.beat() or {}).get("has_blamed"):
            self._may_forgive = False
            self.streak -= 1

    def beat(self) -> dict[str, Any] | None:
        """What the process said of itself last; None: nothing yet."""
        state = read_state(self._file)
        return state if state and self.process is not None and state.get("pid") == self.process.pid else None

    @property
    def is_up(self) -> bool:
        beat = self.beat()
        return beat is not None and (
            beat.get("state") in ("running", "suspended") or bool(beat.get("patient"))
        )

    def read_output(self) -> bool:
        """Logs what the process has printed since; False: it has closed its end."""
        assert self.process is not None
        assert self.process.stdout is not None
        while True:
            try:
                data = os.read(self.process.stdout.fileno(), 65536)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not data:
                self._line(self._tail)
                self._tail = b""
                return False
            *lines, self._tail = (self._tail + data).split(b"\n")
            self._tail = self._tail[-_LINE:]
            for line in lines:
                self._line(line[:_LINE])

    def _line(self, line: bytes) -> None:
        text = line.decode("utf-8", "backslashreplace").rstrip()
        if text:
            self._said = text[-500:]
            event(_log, "runner said", runner=self.job.label, text=text)

    def as_state(self) -> dict[str, Any]:
        """What `status` is told of it."""
        return {
            "name": self.job.runner,
            "slice": self.job.slice,
            "pid": self.process.pid if self.process is not None else None,
            "restarts": self.restarts,
            "streak": self.streak,
            "failed": self.failed,
            "grace_s": self.job.grace_s,
            "exit": self.exit,
            "error": self.error,
        }


def _reason(code: int, beat: dict[str, Any] | None, said: str) -> str:
    """Why it ended, in one line: what it wrote down, else what it printed last."""
    how = f"ended by {_signal_name(-code)}" if code < 0 else f"exit code {code}"
    why = str(beat.get("reason") or "") if beat and beat.get("state") == "failed" else said
    return f"{how}: {why}" if why else how


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def environment() -> dict[str, str]:
    """The environment of a process that is to import the same qrunner, wherever it is started."""
    package = str(Path(__file__).resolve().parent.parent)
    paths = [os.path.abspath(part) for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    # Named only where it has to be: what stands in PYTHONPATH is searched before the standard library.
    if package not in (*paths, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        paths.append(package)
    values = dict(os.environ)
    if paths:
        values["PYTHONPATH"] = os.pathsep.join(paths)
    return values
