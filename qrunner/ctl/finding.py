"""The entries that a selection means, found in the spool.

Guarantees: entries come oldest due first. An id is said to be missing only after a second look, since an entry that
moves while we look may be in neither place that we look at.

Not guaranteed: that all is still so when the caller acts. Nothing is locked; a verb's own move is what decides.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain

import click

from qrunner.ctl.selectors import SHORTEST, Selection
from qrunner.errors import CorruptEntry
from qrunner.message import Entry, Glance
from qrunner.site import Site
from qrunner.slices import cut, owner
from qrunner.switchboard import AREAS, Area, Ref

Place = tuple[Area, str]
Read = Callable[[Ref], Entry | Glance]

_STATES = {"hold": "held", "shunt": "shunted", "bad": "bad"}


def state(ref: Ref, now_ns: int) -> str:
    """``ready deferred active held shunted bad``, as ``list`` calls it."""
    if ref.area != "queue":
        return _STATES[ref.area]
    if ref.active:
        return "active"
    return "deferred" if ref.due_ns > now_ns else "ready"


@dataclass(frozen=True, slots=True)
class Found:
    """An entry that was asked for; ``entry`` is read where somebody had to, ``error`` says why it can't be."""

    ref: Ref
    named: bool = False
    entry: Entry | Glance | None = None
    error: str = ""


@dataclass(slots=True)
class Findings:
    """All that a selection means, and the ids that mean nothing."""

    found: list[Found] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


class Ids:
    """Ids, or their beginnings, and what has been found of each."""

    def __init__(self, words: Iterable[str]) -> None:
        self.hits: dict[str, dict[str, dict[Ref, None]]] = {word: {} for word in words}
        self._words: dict[str, list[str]] = {}
        for word in self.hits:
            self._words.setdefault(word[:SHORTEST], []).append(word)

    def take(self, ref: Ref) -> bool:
        """Whether the entry is one of these; it is then noted."""
        fitting = [word for word in self._words.get(ref.id[:SHORTEST], ()) if ref.id.startswith(word)]
        for word in fitting:
            self.hits[word].setdefault(ref.id, {})[ref] = None
        return bool(fitting)

    @property
    def missing(self) -> list[str]:
        return [word for word, ids in self.hits.items() if not ids]

    def refs(self) -> list[Ref]:
        """All that was found, each once. :raises click.UsageError: a beginning fits several ids."""
        for word, ids in self.hits.items():
            if len(ids) > 1:
                raise click.UsageError(f"{word} fits several entries:\n" + "\n".join(sorted(ids)))
        refs = chain.from_iterable(refs for ids in self.hits.values() for refs in ids.values())
        return list(dict.fromkeys(refs))


class Search:
    """One selection, looked for in one site.

    :param areas: where entries are looked for that no argument names.
    :param home: the area that the name of a queue means: ``release in`` is about what is held from ``in``.
    """

    def __init__(
        self, site: Site, selection: Selection, areas: tuple[Area, ...] = AREAS, home: Area = "queue"
    ) -> None:
        self.site, self.selection, self.home = site, selection, home
        self.queues = tuple(dict.fromkeys((*site.spool.queues(), *site.config.queues())))
        self.now_ns = site.clock.now_ns()
        self._asks = selection.filters.opens
        within = self._places(selection.filters.queues)
        self._allowed = within or self._all(AREAS)
        self._chosen = self._places(selection.names)
        if selection.everything or not (self._chosen or selection.only_ids):
            self._chosen |= within or self._all(areas)
        self._chosen &= self._allowed

    def _all(self, areas: Iterable[Area]) -> set[Place]:
        return {(area, queue) for area in areas for queue in self.queues}

    def _places(self, names: Iterable[str]) -> set[Place]:
        places: set[Place] = set()
        for name in names:
            if name in _STATES:
                places |= {(area, queue) for area, queue in self._all(AREAS) if area == name}
            elif name in self.queues:
                places.add((self.home, name))
            else:
                raise click.UsageError(self._unknown(name))
        return places

    def _unknown(self, name: str) -> str:
        config = self.site.config
        if name in config.balance:
            members = ", ".join(queue for queue, _ in config.balance[name].members)
            return f"{name} is a choice among queues, and nothing waits in it: name one of {members}"
        if name in config.routes:
            return f"{name} is a route, and nothing waits in it: name the queue that it leads to"
        return f"{name!r} is neither an id nor a queue; the queues are: {' '.join(self.queues)}"

    def refs(self) -> Iterator[Ref]:
        """All that no id names, oldest due first, before anything is asked of it."""
        return self._peek(self._chosen)

    def seen(self, refs: Iterable[Ref], read: Read) -> Iterator[Found]:
        """Those of them that fit, with what there is to see of each."""
        admitted = (self._admit(ref, named=False, read=read) for ref in refs)
        return (found for found in admitted if found is not None)

    def collect(self, read: Read | None = None) -> Findings:
        """All of it, each with what ``read`` makes of it. :raises click.UsageError: the beginning of an id fits several."""
        ids = Ids(self.selection.ids)
        others = self._look(ids)
        refs = [(ref, True) for ref in ids.refs()] + [(ref, False) for ref in others]
        refs.sort(key=lambda pair: (pair[0].due_ns, pair[0].id))
        admitted = (self._admit(ref, named=named, read=read) for ref, named in refs)
        return Findings([found for found in admitted if found is not None], ids.missing)

    def again(self, targets: Iterable[Found]) -> dict[str, list[Found]]:
        """Where these entries are now, by id. One that was not named counts only where it was looked for."""
        named = {found.ref.id: found.named for found in targets}
        fresh: dict[str, list[Found]] = {id: [] for id in named}
        for ref in self._peek(self._all(AREAS)):
            if ref.id in named and (named[ref.id] or (ref.area, ref.queue) in self._chosen):
                fresh[ref.id].append(Found(ref, named[ref.id]))
        return fresh

    def _look(self, ids: Ids) -> list[Ref]:
        """Notes what the ids mean, and returns what else was asked for."""
        others = [
            ref
            for ref in self._peek(self._allowed if ids.hits else self._chosen)
            if not ids.take(ref) and (ref.area, ref.queue) in self._chosen
        ]
        if ids.missing:
            late = Ids(ids.missing)
            for ref in self._peek(self._allowed):
                late.take(ref)
            ids.hits.update(late.hits)
        return others

    def _peek(self, places: Iterable[Place]) -> Iterator[Ref]:
        streams = [self.site.spool.peek(queue, area) for area, queue in sorted(places)]
        return heapq.merge(*streams, key=lambda ref: (ref.due_ns, ref.id))

    def _admit(self, ref: Ref, *, named: bool, read: Read | None) -> Found | None:
        """The entry as asked for, or None: it does not fit the filters, or has gone."""
        if read is None and not self._asks:
            return Found(ref, named)
        try:
            entry = (read or self.site.spool.read)(ref)
        except FileNotFoundError:
            return None
        except (CorruptEntry, OSError) as error:
            # What can't be read has no envelope that could fit.
            return None if self._asks else Found(ref, named, None, str(error))
        if self._asks and not self.selection.filters.fit(entry, lambda: hosts(self.site, entry), self.now_ns):
            return None
        return Found(ref, named, entry)


def hosts(site: Site, entry: Entry | Glance) -> set[str]:
    """The hosts that its history names, and those that the slice which owns it hands its mail to."""
    names = {line["host"] for line in entry.history if isinstance(line.get("host"), str)}
    for runner in site.config.runners.values():
        if runner.queue == entry.queue and not runner.door:
            index = owner(cut([part.weight for part in runner.slices]), entry.id)
            names.update(runner.slices[index].smtp if index is not None else ())
    return names
