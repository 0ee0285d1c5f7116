"""qrunner: mail queues in a directory, drained by runners that each own a slice of the hash space.

The map. An import goes downward, or leftward on its own floor; where a bar stands between two wings, neither
knows the other, and only a job joins them. What stands in brackets imports nothing of ours. A test reads this
table and walks every import.

::

    programs   [inject]  master/*  child  ctl/*
    jobs       mailstore/*  maildir/*  runners/*
    engine     routing  site  runner  loading  engine/*  testing/*
    wings      switchboard/* | smtp/*
    values     message  format  fate  slices  schedule  match  bounce  report  verp  delivered  config/*
    ground     errors  clock  threads  wakeup  owner  log  metrics  rundir  tally  suspension

Exceptions, each with its reason: none.

What a site's own code imports stands in ``__all__``. It is loaded when it is asked for, so that a program
which wants one value does not pay for the engine.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qrunner.errors import PermanentFailure, TemporaryFailure
    from qrunner.fate import Done, Fate, Hold, Requeue
    from qrunner.message import Entry
    from qrunner.runner import BatchRunner, Runner
    from qrunner.site import Site

__all__ = [
    "BatchRunner",
    "Done",
    "Entry",
    "Fate",
    "Hold",
    "PermanentFailure",
    "Requeue",
    "Runner",
    "Site",
    "TemporaryFailure",
]

_HOMES = {
    "errors": ("PermanentFailure", "TemporaryFailure"),
    "fate": ("Done", "Fate", "Hold", "Requeue"),
    "message": ("Entry",),
    "runner": ("BatchRunner", "Runner"),
    "site": ("Site",),
}


def __getattr__(name: str) -> Any:
    """Load a public name from its home, once (PEP 562)."""
    for module, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(f"{__name__}.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
