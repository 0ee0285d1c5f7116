"""Very many entries, looked at by several processes: for ``list``, whose time goes into opening files.

The first are looked at alone, so that a short list costs no more than itself and a long one begins at once. Then each
reader, forked from us, goes through the same refs and does every nth part of them, and the parts are taken in turns.

Guarantees: order, and no reader that outlives us. A reader is never far ahead of whoever takes the parts.

Failures: ``QRunnerError`` when a reader was killed.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, cycle, islice

# All of it now: whoever asks may not be allowed to read it any more once they are the queues' owner.
from multiprocessing import get_context, popen_fork  # noqa: F401
from multiprocessing.connection import Connection

from qrunner.errors import QRunnerError
from qrunner.switchboard import Ref

_PART = 200
_ALONE = 50
_MOST = 4

Render = Callable[[Sequence[Ref]], list[str]]


def rendered(refs: Iterator[Ref], render: Render, readers: int | None = None) -> Iterator[list[str]]:
    """What ``render`` makes of the refs, part by part, in their order.

    :param readers: how many processes; None: one for each CPU, up to four.
    """
    parts = iter(lambda: list(islice(refs, _PART)), [])
    yield from map(render, islice(parts, _ALONE))
    if not (more := next(parts, None)):
        return
    parts = chain([more], parts)
    number = min(len(os.sched_getaffinity(0)), _MOST) if readers is None else readers
    yield from map(render, parts) if number < 2 else _shared(parts, render, number)


def _shared(parts: Iterator[list[Ref]], render: Render, readers: int) -> Iterator[list[str]]:
    context = get_context("fork")
    with contextlib.ExitStack() as ending:
        pipes = []
        for number in range(readers):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(
                target=_read, args=(theirs, parts, render, number, readers), daemon=True
            )
            process.start()
            theirs.close()
            for step in (ours.close, process.join, process.terminate):
                ending.callback(step)
            pipes.append(ours)
        for pipe in cycle(pipes):
            try:
                rows = pipe.recv()
            except EOFError:
                raise QRunnerError("a process that read entries for us was killed") from None
            if rows is None:
                return
            yield rows


def _read(pipe: Connection, parts: Iterator[list[Ref]], render: Render, number: int, readers: int) -> None:
    """Every nth part. Ends with whoever takes them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What a part leaves behind has no cycles.
    gc.disable()
    with contextlib.suppress(BrokenPipeError):
        for part in islice(parts, number, None, readers):
            pipe.send(render(part))
        pipe.send(None)
