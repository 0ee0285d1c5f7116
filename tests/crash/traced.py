"""Transitions for strace to look at: ``python -m tests.crash.traced ROOT LOG [NAME]``.

With a name, makes that one in this process, on a spool that is filled, and by one thread, since strace counts the
calls of each thread by itself; without, makes all, each in a process of its own, and prints what the counting of calls
saw of them, a JSON list a line.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from qrunner.switchboard.disk import Disk
from qrunner.switchboard.files import FilesSpool
from tests.crash.dying import Stage
from tests.crash.transitions import TRANSITIONS, Step, recovering, taking_the_range

MARK = "/a transition "


def marked(begin: Callable[[FilesSpool], Step]) -> Callable[[FilesSpool], Step]:
    """The same with a call before and after it that strace can't miss."""

    def setting_up(spool: FilesSpool) -> Step:
        step = begin(spool)

        def marked_step() -> None:
            with suppress(OSError):
                os.stat(f"{MARK}begins")
            step()
            with suppress(OSError):
                os.stat(f"{MARK}ends")

        return marked_step

    return setting_up


def all_of_them(stage: Stage) -> None:
    for name, transition in TRANSITIONS.items():
        stage.fill(transition)
        print(json.dumps([name, *stage.die_in(marked(transition.begin)).calls]), flush=True)
        stage.empty(stage.recover())
    stage.fill(TRANSITIONS["claim"])
    stage.die_in(TRANSITIONS["claim"].begin)
    print(json.dumps(["recover", *stage.die_in(marked(recovering)).calls]), flush=True)
    print(json.dumps(["take the range", *stage.die_in(marked(taking_the_range)).calls]), flush=True)


def main() -> None:
    root, log, *names = sys.argv[1:]
    stage = Stage(Path(root), Path(log))
    if names:
        Disk._together = lambda disk, sync, things: [sync(thing) for thing in things]  # type: ignore[method-assign,assignment]
        marked(TRANSITIONS[names[0]].begin)(stage.spool())()
    else:
        all_of_them(stage)


if __name__ == "__main__":
    main()
