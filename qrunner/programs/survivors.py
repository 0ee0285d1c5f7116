"""What outlived the runner that had started it, ended before its entry is run again.

The history of an entry says which keeper and which program were started for it (``started``), by their numbers, the
moment they were started and the boot; and that they ended (``ended``). Without the second line nobody saw the end.

Guarantees: no process is touched but these, and those that have the entry's id and its queue in their environment,
as all have that such a program starts. A number that another process has by now is told by its start.

Not guaranteed: a process that neither died with its keeper nor kept its environment is not found, nor one on another
machine, where it dies by its own keeper's hand.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from qrunner.metrics import boot_id
from qrunner.programs.running import Process
from qrunner.programs.warden import started, stat_of

STARTED, ENDED = "started", "ended"
_BY_ITSELF_S = 2.0
_LOOK_S = 0.02


def open_record(history: Iterable[Mapping[str, Any]], queue: str) -> Mapping[str, Any] | None:
    """The last start in this queue whose end was not written down."""
    found: Mapping[str, Any] | None = None
    for line in history:
        if line.get("queue") == queue and line.get("what") in (STARTED, ENDED):
            found = line if line["what"] == STARTED else None
    return found


def record_of(keeper: Process, program: Process) -> dict[str, Any]:
    """The fields of a ``started`` line by which its processes are found again."""
    return {
        "keeper": [keeper.pid, keeper.started],
        "program": [program.pid, program.started],
        "boot": boot_id(),
    }


def end(record: Mapping[str, Any], id: str, queue: str, limit_s: float) -> list[int]:
    """Ends what is left of a start; those that are still there after so many seconds."""
    if record.get("boot") != boot_id():
        return []
    keeper, program = (_process(record.get(name)) for name in ("keeper", "program"))
    # Its runner is dead, so it is about to kill all of it, and knows better than we do what that is.
    _await_end(keeper, _BY_ITSELF_S)
    limit = time.monotonic() + limit_s
    while True:
        left = [one for one in (keeper, program, *marked(id, queue)) if is_alive(one)]
        if not left or time.monotonic() > limit:
            return [one.pid for one in left]
        for one in left:
            kill(one)
        time.sleep(_LOOK_S)


def _process(value: Any) -> Process:
    """From a history, where anybody may have written; a number that is none is nobody's."""
    if isinstance(value, list) and len(value) == 2 and all(isinstance(one, int) for one in value):
        return Process(*value)
    return Process(0, 0)


def _await_end(process: Process, limit_s: float) -> None:
    limit = time.monotonic() + limit_s
    while is_alive(process) and time.monotonic() < limit:
        time.sleep(_LOOK_S)


def is_alive(process: Process) -> bool:
    """Whether this very process still runs."""
    fields = stat_of(process.pid) if process.pid > 1 else []
    return bool(fields) and fields[0] not in (b"Z", b"X") and started(process.pid) == process.started


def kill(process: Process) -> None:
    """Kills this very process, if it is still there."""
    with contextlib.suppress(OSError):
        fd = os.pidfd_open(process.pid)
        try:
            # Asked once the descriptor is had: whoever has the number from now on is not meant by it.
            if started(process.pid) == process.started:
                signal.pidfd_send_signal(fd, signal.SIGKILL)
        finally:
            os.close(fd)


def marked(id: str, queue: str) -> Iterator[Process]:
    """All that have the marks of this entry in this queue in their environment."""
    marks = {f"QRUNNER_ID={id}".encode(), f"QRUNNER_QUEUE={queue}".encode()}
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            pid = int(name)
            begun = started(pid)
            with contextlib.suppress(OSError), open(f"/proc/{name}/environ", "rb") as file:
                if marks <= set(file.read().split(b"\0")):
                    yield Process(pid, begun)
