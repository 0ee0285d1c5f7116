"""``qrunner-ctl``: one verb a command, one file a family of verbs.

``program`` knows which file has which verb and loads it when it is asked for; ``context`` is what all verbs share:
the site that they work on, whose user they become, and which exit code an error ends with.
"""

from __future__ import annotations


def main() -> None:
    """The console script."""
    from qrunner.ctl.program import main as program

    program()
