"""``bounce``: an entry is given up by hand, and its sender is told.

The report is what a runner's would be: one an hour about mail from one sender to one address, of all processes together,
and those that are left out are counted. It goes to the sender, whatever ``report`` of the runner says. The functions that
the runner of the entry's queue names as ``bounced`` are called for each recipient, once the entry has ended.

Not guaranteed: the method ``bounced`` of a site's class is not called. There is no such runner in this process, and what
its ``start`` would open is the running one's.

Failures: a function that can't be loaded, or raises, is named, and the exit code is 1; entries end all the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import click

from qrunner.bounce import bounces
from qrunner.config import RunnerConfig
from qrunner.ctl.changes import Task, Terms, Verb, takes_terms
from qrunner.ctl.context import say
from qrunner.ctl.selectors import Selection
from qrunner.engine.disposal import called
from qrunner.engine.reports import Reports
from qrunner.errors import ConfigError
from qrunner.fate import Failure
from qrunner.loading import extend_path, load_function
from qrunner.message import Entry
from qrunner.report import audience
from qrunner.switchboard import Add, Area, Ref

_AREAS: tuple[Area, ...] = ("queue", "hold", "shunt")
STATUS = "5.0.0"


@click.command()
@takes_terms
@click.option("--reason", default="", metavar="TEXT", help="what the sender is told")
@click.pass_context
def bounce(ctx: click.Context, selection: Selection, terms: Terms, reason: str) -> None:
    """End entries, each with a report to its sender about everybody who is still owed it.

    Both happen, or neither. Who has asked not to be told is not, nor who was told of the same address within the hour;
    instead of the null sender it is the postmaster.
    """
    task = Task.begin(ctx, selection, terms)
    text = reason or f"given up by the postmaster of {task.site.config.site.hostname}"
    desk = _Desk(task, text)
    elsewhere = "it can't be read, so nobody can be told"
    ctx.exit(task.carry_out(Verb("bounce", "bounced", desk.give_up, _AREAS, elsewhere)))


class _Desk:
    """Gives entries up, one by one."""

    def __init__(self, task: Task, text: str) -> None:
        self._task, self._text, self._log = task, text, logging.getLogger("qrunner.ctl")
        self._hooks: dict[str, list[Callable[..., Any]]] = {}

    def give_up(self, ref: Ref) -> bool:
        """False: it has gone, or is in somebody's hands."""
        seen: list[Entry] = []

        def follow(entry: Entry) -> tuple[Add, ...]:
            seen[:] = [entry]
            return self._reports(entry, ref.queue)

        hooks = self._loaded(ref.queue)
        reports = self._task.site.spool.conclude(ref, follow)
        if reports is None:
            return False
        (entry,) = seen
        if not reports:
            say(f"{ref.id}: nobody is to be told of it{self._why(entry)}")
        self._tell(entry, hooks)
        return True

    def _failures(self, entry: Entry) -> tuple[Failure, ...]:
        return tuple(Failure(address, STATUS, self._text) for address in entry.recipients)

    def _reports(self, entry: Entry, queue: str) -> tuple[Add, ...]:
        config = replace(self._runner(queue), report="sender")
        return Reports(self._task.site, config, self._log).of_failures(entry, self._failures(entry))

    def _why(self, entry: Entry) -> str:
        """Why there is no report, where somebody wants one."""
        postmaster = self._task.site.config.site.postmaster
        _, told = audience(entry, self._failures(entry), report="sender", postmaster=postmaster)
        return ": somebody was within the hour, and it is counted" if told else ""

    def _runner(self, queue: str) -> RunnerConfig:
        """That of the queue; for a queue that has none any more, one that says nothing."""
        owners = (
            one for one in self._task.site.config.runners.values() if not one.door and one.queue == queue
        )
        return next(owners, RunnerConfig("bounce", "", queue))

    def _loaded(self, queue: str) -> list[Callable[..., Any]]:
        """The functions that want to hear of it."""
        if queue not in self._hooks:
            self._hooks[queue] = []
            for name in self._runner(queue).bounced:
                extend_path(self._task.site.config.site.python_path)
                try:
                    self._hooks[queue].append(load_function(name))
                except ConfigError as error:
                    self._task.complain(f"bounced is not called: {error}")
        return self._hooks[queue]

    def _tell(self, entry: Entry, hooks: list[Callable[..., Any]]) -> None:
        for one in bounces(entry, self._failures(entry)):
            for hook in hooks:
                try:
                    asyncio.run(_called(hook, one))
                except (Exception, SystemExit) as error:  # a site's code may raise anything
                    words = f"{type(error).__name__}: {error}"
                    self._task.complain(f"{entry.id}: bounced failed for {one.address}: {words}")


async def _called(hook: Callable[..., Any], argument: object) -> None:
    await called(hook, argument)
