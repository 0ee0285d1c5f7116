"""Programs that do not want to end, and which processes live."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from qrunner.rundir import is_alive


def alive(pids: Iterable[int]) -> list[int]:
    """Those of them that do."""
    return [pid for pid in pids if is_alive(pid)]


def hanging(folder: Path) -> str:
    """A program that ignores SIGTERM, as do its child, a child in a session of its own, and an orphan in another. All of
    them write down who they are."""
    return f"""
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
def stay(name):
    open("{folder}/" + name + ".new", "w").write(str(os.getpid()))
    os.rename("{folder}/" + name + ".new", "{folder}/" + name)
    while True:
        time.sleep(60)
if not os.fork():
    stay("child")
if not os.fork():
    os.setsid()
    stay("session")
if not os.fork():
    os.setsid()
    if not os.fork():
        os.close(0), os.close(1), os.close(2)
        os.environ.clear()
        stay("orphan")
    os._exit(0)
stay("program")
"""


HANGING = ("child", "session", "orphan", "program")


def pids(folder: Path) -> list[int]:
    """Those who have written down who they are, once they all have."""
    return [int((folder / name).read_text()) for name in HANGING]
