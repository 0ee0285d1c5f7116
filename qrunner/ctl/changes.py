"""A change to entries: chosen, asked for, carried out one by one, written down.

Guarantees: each entry changes by one move that the spool makes only if nobody has the entry in hand, so an entry that
a runner works on is left alone and named. Each change stands in the log with the user, the selectors and the id.

Failures: exit 1 where something that was asked for could not be done; the rest is done. 2 where nothing was selected,
or many were and nobody is there to be asked.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pwd
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

import click

from qrunner.ctl.context import DONE, FAILED, load_site, say
from qrunner.ctl.finding import Found, Search, state
from qrunner.ctl.selectors import DURATION, Selection, takes_selection
from qrunner.errors import CorruptEntry, QueueError
from qrunner.log import FileHandler, LineFormatter, event
from qrunner.rundir import RunDir
from qrunner.site import Site
from qrunner.switchboard import AREAS, Area, Ref

TERMINAL = "/dev/tty"

# An entry that moves while we look is looked for again so often, without waiting.
_LOOKS = 3
_LONGEST_WORDS = 300
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 2.0


@dataclass(frozen=True, slots=True)
class Verb:
    """What a verb does to one entry.

    :param name: as it is typed and asked: ``hold``; ``past`` as it is told: ``held``.
    :param act: makes the move; False: the entry has gone or is in somebody's hands.
    :param areas: what it can be done to; ``elsewhere`` says why a named entry in another is refused.
    :param searched: where it looks for what is not named; None: in ``areas``.
    :param home: the area that a queue's name means.
    :param wants: whether there is anything to do about an entry.
    :param asks: whether it asks before it touches more than one.
    """

    name: str
    past: str
    act: Callable[[Ref], bool]
    areas: tuple[Area, ...] = AREAS
    elsewhere: str = ""
    searched: tuple[Area, ...] | None = None
    home: Area = "queue"
    wants: Callable[[Ref], bool] = lambda ref: True
    asks: bool = True

    def concerns(self, found: Found) -> bool:
        """Whether there is anything to do, or to say, about an entry."""
        busy = found.named and found.ref.active
        return found.ref.area in self.areas and (busy or self.wants(found.ref))


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms: only said what would be done, not asked, and how long an entry in hand is waited for."""

    dry_run: bool = False
    yes: bool = False
    wait_s: float = 0.0


def takes_terms(command: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator: ``--dry-run --yes --wait`` as one argument ``terms``, beside the ``selection``."""

    @wraps(command)
    def called(*args: Any, dry_run: bool, yes: bool, wait_s: float, **values: Any) -> Any:
        return command(*args, terms=Terms(dry_run, yes, wait_s), **values)

    options = (
        click.option("-n", "--dry-run", is_flag=True, help="only say what would be done"),
        click.option("-y", "--yes", is_flag=True, help="do not ask"),
        click.option(
            "--wait",
            "wait_s",
            type=DURATION,
            default=0.0,
            metavar="TIME",
            help="for entries that a runner has",
        ),
    )
    decorated: Callable[..., Any] = called
    for option in reversed(options):
        decorated = option(decorated)
    return takes_selection(decorated)


def login() -> str:
    """The name of the user that this process runs as; to be asked before it becomes the owner of the queues."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid{os.getuid()}"


def invoking_user() -> str:
    """Who typed this, for the log; to be asked before this process becomes the owner of the queues."""
    name, behind = login(), os.environ.get("SUDO_USER")
    return f"{behind}({name})" if behind and behind != name else name


@contextlib.contextmanager
def change_log(site: Site) -> Iterator[logging.Logger]:
    """Where changes are written down, for as long as they are made."""
    log = logging.getLogger("qrunner.ctl")
    before = log.level, log.propagate
    places = RunDir(site.config.site.state_dir)
    handler: logging.Handler
    try:
        places.make()
        handler = FileHandler(places.log_file)
    except OSError as error:
        # On a full disk, deleting is what helps: it must not need a log.
        say(f"not logged: {error}")
        handler = logging.NullHandler()
    handler.setFormatter(LineFormatter("ctl"))
    log.setLevel(logging.INFO)
    log.propagate = False
    log.addHandler(handler)
    try:
        yield log
    finally:
        # As it was: a program that calls a verb within itself has handlers of its own here.
        log.removeHandler(handler)
        handler.close()
        log.setLevel(before[0])
        log.propagate = before[1]


@dataclass(slots=True)
class Task:
    """One verb on one selection."""

    site: Site
    user: str
    selection: Selection
    terms: Terms
    failed: bool = False
    changed: set[str] = field(default_factory=set)

    @classmethod
    def begin(cls, ctx: click.Context, selection: Selection, terms: Terms) -> Task:
        """The task of a command that was just called. :raises click.UsageError: it selects nothing."""
        if selection.empty:
            raise click.UsageError("say which entries: ids, a queue, -, ALL, or a filter such as --older 1h")
        user = invoking_user()
        return cls(load_site(ctx), user, selection, terms)

    def record(self, what: str, **values: object) -> dict[str, object]:
        """A line for an entry's history."""
        return {"what": what, "by": self.user, **values}

    def complain(self, text: str) -> None:
        """Something that was asked for was not done: says so, and the exit code will be 1."""
        self.failed = True
        say(text)

    def carry_out(self, verb: Verb) -> int:
        """Does it; the exit code."""
        search = Search(self.site, self.selection, verb.searched or verb.areas, verb.home)
        findings = search.collect()
        for word in findings.missing:
            self.complain(f"{word}: there is no such entry")
        targets = self._fit(verb, findings.found)
        if self.terms.dry_run:
            self._rehearse(verb, targets)
        elif targets and self._allowed(verb, targets):
            with change_log(self.site) as log:
                self._finish(verb, search, targets, log)
            if not self.changed and not self.failed:
                say(f"nothing to {verb.name}")
        elif not targets and not self.failed:
            say("nothing matches")
        return FAILED if self.failed else DONE

    def _fit(self, verb: Verb, found: Iterable[Found]) -> list[Found]:
        """Those in the areas that the verb is about; one that was named and is elsewhere is refused."""
        found = list(found)
        fitting = [one for one in found if one.ref.area in verb.areas]
        there = {one.ref.id for one in fitting}
        for one in found:
            if one.named and one.ref.id not in there:
                self.complain(f"{self._place(one.ref)}: {verb.elsewhere}")
        return [one for one in fitting if verb.concerns(one)]

    def _place(self, ref: Ref) -> str:
        area = "" if ref.area == "queue" else f"{ref.area}/"
        return f"{ref.id or 'a file without an id'} in {area}{ref.queue} ({state(ref, self.site.clock.now_ns())})"

    def _rehearse(self, verb: Verb, targets: list[Found]) -> None:
        for one in targets:
            if one.ref.active:
                self._name_left(one.ref)
            else:
                click.echo(one.ref.id)
        say(f"{counted(targets)} would be {verb.past}; nothing was changed")

    def _name_left(self, ref: Ref) -> None:
        why = "a runner has it in hand, left alone" if ref.active else "it could not be had, left alone"
        self.complain(f"{self._place(ref)}: {why}")

    def _allowed(self, verb: Verb, targets: list[Found]) -> bool:
        """Whether it may go ahead. :raises click.UsageError: somebody would have to be asked, and nobody is there."""
        if self.terms.yes or not verb.asks:
            return True
        only_named = self.selection.only_ids
        if len(targets) == 1 and (only_named or has_terminal()):
            return True
        answer = asked(f"{verb.name} {counted(targets)}?")
        if answer is None and not only_named:
            raise click.UsageError(
                f"{counted(targets)} would be {verb.past}, and there is no terminal to ask on: --yes"
            )
        if answer is False:
            self.complain("nothing was changed")
        return answer is not False

    def _finish(self, verb: Verb, search: Search, targets: list[Found], log: logging.Logger) -> None:
        """Acts on all of them; what is in somebody's hands is looked at again, for as long as the terms say."""
        deadline = time.monotonic() + self.terms.wait_s
        pause_s, looks = _SHORTEST_PAUSE_S, 0
        left = self._pass(verb, targets, log)
        while left:
            left = self._where_now(verb, search, left)
            waiting = time.monotonic() < deadline
            if not waiting and (looks >= _LOOKS or all(one.ref.active for one in left)):
                break
            looks += 1
            if looks > 1:
                time.sleep(max(0.0, min(pause_s, deadline - time.monotonic())))
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
            left = self._pass(verb, left, log)
        for one in left:
            self._name_left(one.ref)

    def _pass(self, verb: Verb, targets: list[Found], log: logging.Logger) -> list[Found]:
        """Acts on each; those that could not be had."""
        return [one for one in targets if one.ref.active or not self._act(verb, one.ref, log)]

    def _act(self, verb: Verb, ref: Ref, log: logging.Logger) -> bool:
        try:
            if not verb.act(ref):
                return False
        except (QueueError, CorruptEntry) as error:
            self.complain(f"{self._place(ref)}: {error}")
            return True
        self.changed.add(ref.id)
        click.echo(ref.id)
        area = None if ref.area == "queue" else ref.area
        event(
            log,
            verb.name,
            id=ref.id,
            queue=ref.queue,
            area=area,
            user=self.user,
            selectors=shortened(self.selection.words),
        )
        return True

    def _where_now(self, verb: Verb, search: Search, left: list[Found]) -> list[Found]:
        """What is left, where it is by now; what has gone, or gone elsewhere, is left no more."""
        named = {one.ref.id for one in left if one.named}
        now: list[Found] = []
        for id, places in search.again(left).items():
            if id in self.changed:
                continue
            now += [place for place in places if verb.concerns(place)]
            elsewhere = [place.ref for place in places if place.ref.area not in verb.areas]
            if id in named and not places:
                self.complain(f"{id}: it has gone meanwhile")
            elif id in named and len(elsewhere) == len(places):
                self.complain(f"{self._place(elsewhere[0])}: {verb.elsewhere}")
        return now


def counted(targets: Iterable[Found]) -> str:
    """``3 entries (2 in out, 1 in hold/in)``."""
    places = Counter(
        one.ref.queue if one.ref.area == "queue" else f"{one.ref.area}/{one.ref.queue}" for one in targets
    )
    total = places.total()
    where = ", ".join(f"{number} in {place}" for place, number in sorted(places.items()))
    return f"{total} {'entry' if total == 1 else 'entries'}" + (f" ({where})" if where else "")


def shortened(words: str) -> str:
    """Selectors for a line of the log, which need not name a thousand ids once for each of them."""
    return words if len(words) <= _LONGEST_WORDS else f"{words[:_LONGEST_WORDS]}…"


def has_terminal() -> bool:
    """Whether somebody sits there."""
    try:
        os.close(os.open(TERMINAL, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def asked(question: str) -> bool | None:
    """The answer of whoever sits at the terminal; None: nobody does. Standard input is not asked: it may be ids."""
    try:
        terminal = os.open(TERMINAL, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        os.write(terminal, f"{question} [y/N] ".encode())
        return os.read(terminal, 1000).strip().lower() in (b"y", b"yes")
    finally:
        os.close(terminal)
