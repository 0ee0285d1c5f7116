"""Which entries a verb is about: the arguments and the filters, the same for every verb.

An argument is an id (its first six or more hexadecimal digits), the name of a queue, ``hold`` ``shunt`` or ``bad``
for what was set aside, ``-`` for ids on standard input, or ``ALL``. Several arguments add up; the filters (options)
then narrow them down, all of them must fit, and of one that is given several times any may. Patterns are those of
a route: a glob, case ignored, or a regular expression between slashes.

Failures: ``click.UsageError`` for an argument that can be none of these.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any

import click

from qrunner.match import Pattern, Patterns, any_fits
from qrunner.message import Entry, Glance

ALL = "ALL"
# Names that are no queue's. One of them could be the beginning of an id.
ASIDE = ("hold", "shunt", "bad")
SHORTEST = 6

_HEX = re.compile(r"[0-9a-f]{1,40}", re.IGNORECASE)
_TOO_SHORT = f"an id is its first {SHORTEST} or more hexadecimal digits"


@dataclass(frozen=True, slots=True)
class Filters:
    """What an entry must fulfil. ``queues`` are names as for an argument; ages are seconds since arrival."""

    queues: tuple[str, ...] = ()
    sender: Patterns = ()
    recipient: Patterns = ()
    domain: Patterns = ()
    host: Patterns = ()
    older_s: float | None = None
    newer_s: float | None = None

    @property
    def opens(self) -> bool:
        """Whether an entry must be read to answer."""
        patterns = self.sender or self.recipient or self.domain or self.host
        return bool(patterns) or self.older_s is not None or self.newer_s is not None

    @property
    def given(self) -> bool:
        """Whether there is any filter."""
        return bool(self.queues) or self.opens

    def fit(self, entry: Entry | Glance, hosts: Callable[[], Iterable[str]], now_ns: int) -> bool:
        """Whether an entry fits, its queue aside; ``hosts``: those that it was, or would be, handed to."""
        age_s = (now_ns - entry.arrival_ns) / 1e9
        return (
            (self.older_s is None or age_s > self.older_s)
            and (self.newer_s is None or age_s < self.newer_s)
            and (not self.sender or any_fits(self.sender, entry.sender))
            and _some(self.recipient, entry.recipients)
            and _some(self.domain, (address.rpartition("@")[2] for address in entry.recipients))
            and (not self.host or _some(self.host, hosts()))
        )


def _some(patterns: Patterns, values: Iterable[str]) -> bool:
    return not patterns or any(any_fits(patterns, value) for value in values)


@dataclass(frozen=True, slots=True)
class Selection:
    """What was asked for. ``words`` is how, for the log; ``ids`` are lower case, whole or beginnings."""

    ids: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    everything: bool = False
    from_input: bool = False
    filters: Filters = Filters()
    words: str = ""

    @property
    def empty(self) -> bool:
        """Whether nothing at all was said."""
        return not (self.only_ids or self.names or self.everything or self.filters.given)

    @property
    def only_ids(self) -> bool:
        """Whether every entry was named by itself, so that no more can be touched than was typed."""
        return bool(self.ids or self.from_input) and not self.names and not self.everything


def chosen(arguments: Iterable[str], filters: Filters, words: str = "") -> Selection:
    """The selection that these arguments make. :raises click.UsageError: one of them is nothing that we know."""
    ids: list[str] = []
    names: list[str] = []
    everything = from_input = False
    for word in arguments:
        if word == ALL:
            everything = True
        elif word == "-":
            from_input = True
            ids += ids_from_input()
        elif _HEX.fullmatch(word) and word not in ASIDE:
            ids.append(checked_id(word))
        else:
            names.append(word)
    return Selection(unique(ids), unique(names), everything, from_input, filters, words)


def unique(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(words))


def checked_id(word: str) -> str:
    """The id, or beginning of one, in lower case. :raises click.UsageError: it is none."""
    if not _HEX.fullmatch(word) or len(word) < SHORTEST:
        raise click.UsageError(f"{word!r}: {_TOO_SHORT}")
    return word.lower()


def ids_from_input() -> list[str]:
    """The ids on standard input: the first word of each line."""
    lines = (line.split() for line in sys.stdin)
    return [checked_id(words[0]) for words in lines if words]


class _Duration(click.ParamType[float]):
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        from qrunner.config.values import duration_s

        try:
            return value if isinstance(value, float) else duration_s(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _Glob(click.ParamType[Pattern]):
    name = "pattern"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Pattern:
        try:
            # The null sender as everybody writes it.
            return value if isinstance(value, Pattern) else Pattern("" if value == "<>" else value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


DURATION = _Duration()
GLOB = _Glob()

_FILTERS = (
    click.option("-q", "--queue", "queues", multiple=True, metavar="QUEUE", help="in this queue"),
    click.option(
        "--sender", multiple=True, type=GLOB, metavar="GLOB", help="from this sender ('' or <>: none)"
    ),
    click.option("--recipient", multiple=True, type=GLOB, metavar="GLOB", help="owed to this recipient"),
    click.option("--domain", multiple=True, type=GLOB, metavar="GLOB", help="owed to this recipient domain"),
    click.option(
        "--host", multiple=True, type=GLOB, metavar="GLOB", help="that this host is, or was, to take"
    ),
    click.option("--older", "older_s", type=DURATION, metavar="AGE", help="arrived longer ago, such as 1h"),
    click.option("--newer", "newer_s", type=DURATION, metavar="AGE", help="arrived less long ago"),
)


def takes_selection(command: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator: the command gets the arguments and filters as one ``selection``."""

    @wraps(command)
    def called(*args: Any, selectors: tuple[str, ...], **values: Any) -> Any:
        names = Filters.__dataclass_fields__
        filters = Filters(**{name: values.pop(name) for name in names})
        return command(*args, selection=chosen(selectors, filters, typed(selectors, filters)), **values)

    decorated: Callable[..., Any] = click.argument("selectors", nargs=-1, metavar="[ID|QUEUE|-|ALL]...")(
        called
    )
    for option in reversed(_FILTERS):
        decorated = option(decorated)
    return decorated


def typed(arguments: Iterable[str], filters: Filters) -> str:
    """The selectors as a line that could be typed again."""
    words = list(arguments)
    given: Mapping[str, tuple[str, ...]] = {
        "queue": filters.queues,
        **{
            key: tuple(p.text for p in getattr(filters, key))
            for key in ("sender", "recipient", "domain", "host")
        },
        "older": () if filters.older_s is None else (f"{filters.older_s:g}s",),
        "newer": () if filters.newer_s is None else (f"{filters.newer_s:g}s",),
    }
    for key, values in given.items():
        words += [f"--{key}={value}" for value in values]
    return shlex.join(words)
