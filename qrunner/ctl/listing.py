"""The verbs that look at entries: ``list``, ``show``, ``slices``.

Guarantees: nothing is changed, and nothing is waited for. ``list`` is streamed, oldest due first. What came from
outside is printed with control characters made visible, except by ``show --raw``, which prints the message's bytes.

Not guaranteed: that what moves while we look is seen, or seen once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import re
import sys
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from qrunner.clock import rfc3339, to_the_second
from qrunner.config import RunnerConfig
from qrunner.ctl.context import DONE, FAILED, colour, load_site, say
from qrunner.ctl.finding import Found, Search, state
from qrunner.ctl.readers import rendered
from qrunner.ctl.selectors import Selection, checked_id, takes_selection
from qrunner.log import visible
from qrunner.message import Entry, Glance, header_block
from qrunner.site import Site
from qrunner.slices import SPACE, Range, cut, owner
from qrunner.switchboard import Ref

# Where each kind of line says what went wrong.
_ERRORS = {"attempt": "text", "deferred": "reply", "failed": "reply", "shunt": "reason", "waits": "reason"}
_STYLES = {"deferred": "yellow", "active": "green", "held": "blue", "shunted": "red", "bad": "red"}


@click.command("list")
@takes_selection
@click.option("--limit", type=click.IntRange(min=0), metavar="N", help="no more than so many")
@click.option("--json", "as_json", is_flag=True, help="one JSON object a line")
@click.pass_context
def list_(ctx: click.Context, selection: Selection, limit: int | None, as_json: bool) -> None:
    """Entries, oldest due first."""
    search = Search(load_site(ctx), selection)
    rows = Rows(search, as_json)
    missing: list[str] = []
    if selection.only_ids or selection.ids:
        findings = search.collect(rows.read)
        missing = findings.missing
        parts: Iterable[list[str]] = [[rows.text(one) for one in findings.found]]
    else:
        parts = rendered(search.refs(), rows.of)
    _print(parts, None if as_json else HEADING, limit)
    for word in missing:
        say(f"{word}: there is no such entry")
    ctx.exit(FAILED if missing else DONE)


def _print(parts: Iterable[list[str]], heading: str | None, limit: int | None) -> None:
    left = sys.maxsize if limit is None else limit
    with contextlib.closing(_begun(parts)) as begun:
        for rows in begun if left else ():
            if heading is not None:
                click.echo(colour(heading, bold=True))
                heading = None
            click.echo("\n".join(rows[:left]))
            left -= len(rows)
            if left <= 0:
                break


def _begun(parts: Iterable[list[str]]) -> Generator[list[str], None, None]:
    """Those that are not empty, as something that can be closed."""
    yield from (rows for rows in parts if rows)


@dataclass(frozen=True, slots=True)
class Rows:
    """Entries as lines of text."""

    search: Search
    as_json: bool

    def of(self, refs: Sequence[Ref]) -> list[str]:
        """The rows of those that fit."""
        return [self.text(found) for found in self.search.seen(refs, self.read)]

    def read(self, ref: Ref) -> Entry | Glance:
        """What a row shows, or why there is nothing to show: of what is bad, the whole file is asked."""
        spool = self.search.site.spool
        return spool.read(ref) if ref.area == "bad" else spool.glance(ref)

    def text(self, found: Found) -> str:
        """One row, which may be two lines."""
        if self.as_json:
            return json.dumps(described(found, self.search.now_ns))
        entry = found.entry
        error = found.error if entry is None else last_error(entry)
        return _row(found, self.search.now_ns) + (f"\n              {visible(error)}" if error else "")


def described(found: Found, now_ns: int) -> dict[str, Any]:
    """The fields of ``list --json``; what can't be read has no envelope, and says why as ``last_error``."""
    ref, entry = found.ref, found.entry
    known: dict[str, Any] = {"id": ref.id or None, "queue": ref.queue, "state": state(ref, now_ns)}
    if entry is None:
        known.update(arrival=None, due=rfc3339(ref.due_ns))
        known.update(dict.fromkeys(("size", "sender", "recipients", "attempts")))
        known.update(last_error=found.error or None, meta=None)
        return known
    known["arrival"] = rfc3339(entry.arrival_ns)
    known["due"] = rfc3339(ref.due_ns)
    known["size"] = entry.size
    known["sender"] = entry.sender
    known["recipients"] = list(entry.recipients)
    known["attempts"] = entry.attempts
    known["last_error"] = last_error(entry)
    known["meta"] = dict(entry.meta)
    return known


def last_error(entry: Entry | Glance) -> str | None:
    """What went wrong last, in the words of whoever said it."""
    for line in reversed(entry.history):
        key = _ERRORS.get(str(line.get("what")))
        if key is not None and line.get(key):
            return str(line[key])
    return None


HEADING = (
    f"{'ID':12}  {'QUEUE':12}  {'STATE':8}  {'ARRIVAL':20}  {'DUE':20}  {'SIZE':>9}  {'TRIES':>5}  ENVELOPE"
)


def _row(found: Found, now_ns: int) -> str:
    ref, entry = found.ref, found.entry
    arrival = size = attempts = ""
    envelope = "?"
    if entry is not None:
        arrival, size, attempts = to_the_second(entry.arrival_ns), str(entry.size), str(entry.attempts)
        envelope = f"<{entry.sender}> to {', '.join(entry.recipients) or 'nobody any more'}"
    return (
        f"{ref.id[:12]:12}  {ref.queue:12}  {_shown(state(ref, now_ns))}  {arrival:20}  "
        f"{to_the_second(ref.due_ns):20}  {size:>9}  {attempts:>5}  {visible(envelope)}"
    )


@functools.cache
def _shown(state: str) -> str:
    return colour(f"{state:8}", fg=_STYLES.get(state))


@click.command()
@click.argument("id")
@click.option("--raw", is_flag=True, help="the message's bytes, exactly")
@click.option("--json", "as_json", is_flag=True, help="one JSON document")
@click.pass_context
def show(ctx: click.Context, id: str, raw: bool, as_json: bool) -> None:
    """One entry: its envelope, its headers, its whole history."""
    site = load_site(ctx)
    found = _the_one(site, id)
    if found is None:
        say(f"{id}: there is no such entry")
        ctx.exit(FAILED)
    if raw:
        click.echo(_content(site, found), nl=False)
    elif as_json:
        click.echo(json.dumps(_document(found, site.clock.now_ns()), indent=2))
    else:
        click.echo("\n".join(_page(_document(found, site.clock.now_ns()))))


def _the_one(site: Site, id: str) -> Found | None:
    """The entry of this id; of several copies the one in a queue rather than one that was set aside."""
    search = Search(site, Selection(ids=(checked_id(id),)))
    found = search.collect(site.spool.read).found
    areas = ("queue", "hold", "shunt", "bad")
    return min(found, key=lambda one: (one.entry is None, areas.index(one.ref.area)), default=None)


def _content(site: Site, found: Found) -> bytes:
    """The message; of what is no entry, all there is."""
    return found.entry.message if isinstance(found.entry, Entry) else site.spool.content(found.ref)


def _document(found: Found, now_ns: int) -> dict[str, Any]:
    """``show --json``: what ``list`` says, and the whole of the entry but for its body."""
    entry = found.entry
    if not isinstance(entry, Entry):
        return described(found, now_ns)
    return {
        **described(found, now_ns),
        "envelope": dataclasses.asdict(entry.envelope),
        "parents": list(entry.parents),
        "headers": [list(pair) for pair in headers(entry.message)],
        "history": [{"time": _time(line), **line} for line in entry.history],
    }


def _time(line: Mapping[str, Any]) -> str | None:
    return rfc3339(line["t"]) if isinstance(line.get("t"), int) else None


def headers(message: bytes) -> list[tuple[str, str]]:
    """The header lines as they stand, unfolded; what is no header is left out."""
    text = header_block(message).decode("utf-8", "surrogateescape")
    unfolded = re.sub(r"\r?\n(?=[ \t])", "", text)
    pairs = (line.partition(":") for line in re.split(r"\r?\n", unfolded))
    return [
        (name, value.strip()) for name, colon, value in pairs if colon and name and " " not in name.rstrip()
    ]


def _page(document: Mapping[str, Any]) -> Iterator[str]:
    for key in ("id", "queue", "state", "arrival", "due", "size", "attempts", "last_error"):
        if document[key] is not None:
            yield f"{key.replace('_', ' '):12}{visible(str(document[key]))}"
    if "envelope" not in document:
        return
    yield from _envelope_lines(document)
    yield from ("", "headers")
    yield from (f"  {visible(f'{name}: {value}')}" for name, value in document["headers"])
    yield from ("", "history")
    yield from (f"  {visible(_told(line))}" for line in document["history"])


def _envelope_lines(document: Mapping[str, Any]) -> Iterator[str]:
    envelope, owed = document["envelope"], document["recipients"]
    yield f"{'sender':12}<{visible(envelope['sender'])}>"
    for recipient in envelope["recipients"]:
        more = [f"{key}={recipient[key]}" for key in ("notify", "orcpt") if recipient[key]]
        settled = [] if recipient["address"] in owed else ["(settled)"]
        yield f"{'recipient':12}{visible(' '.join([recipient['address'], *more, *settled]))}"
    for key in ("envid", "ret", "body", "smtputf8"):
        if envelope[key]:
            yield f"{key:12}{visible(str(envelope[key]))}"
    for parent in document["parents"]:
        yield f"{'parent':12}{visible(parent)}"
    if document["meta"]:
        yield f"{'meta':12}{json.dumps(document['meta'])}"


def _told(line: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in line.items() if key not in ("t", "time", "what")}
    told = " ".join(
        f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in rest.items()
    )
    return f"{line['time'] or '?':24}  {line.get('what')}  {told}".rstrip()


@click.command()
@click.argument("runner")
@click.option("--json", "as_json", is_flag=True, help="one JSON document")
@click.pass_context
def slices(ctx: click.Context, runner: str, as_json: bool) -> None:
    """The slices of a runner: weight, range, share, who owns it, how many entries wait in it."""
    site = load_site(ctx)
    config = site.config.runners.get(runner)
    if config is None:
        known = " ".join(site.config.runners)
        raise click.BadParameter(
            f"there is no runner {runner!r}; the runners are: {known}", param_hint="RUNNER"
        )
    if config.door:
        raise click.UsageError(f"{runner} is a door: it owns no queue, and has no slices")
    slices = _slices(site, config)
    if as_json:
        click.echo(json.dumps({"runner": runner, "queue": config.queue, "slices": slices}, indent=2))
    else:
        click.echo("\n".join(_slice_table(slices)))


def _slices(site: Site, config: RunnerConfig) -> list[dict[str, Any]]:
    parts = cut([one.weight for one in config.slices])
    waiting = _waiting(site, config.queue, parts)
    live = site.spool.holders(config.queue)
    owners = [[holder for holder in live if holder.range and holder.range.overlaps(part)] for part in parts]
    return [
        {
            "slice": number,
            "weight": one.weight,
            "range": str(part),
            "share": (part.hi - part.lo) / SPACE,
            "owner": "; ".join(map(str, holders)) or None,
            "waiting": waiting[number],
            "node": one.node or config.node,
            "smtp": list(one.smtp),
            "enabled": config.enabled and one.enabled,
        }
        for number, (one, part, holders) in enumerate(zip(config.slices, parts, owners, strict=True))
    ]


def _waiting(site: Site, queue: str, parts: Sequence[Range]) -> Counter[int | None]:
    """How many entries nobody has in hand, by slice."""
    return Counter(owner(parts, ref.id) for ref in site.spool.peek(queue) if not ref.active)


def _slice_table(slices: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    yield colour(
        f"{'SLICE':>5}  {'WEIGHT':>6}  {'SHARE':>7}  {'WAITING':>8}  {'HOSTS':16}  RANGE, OWNER", bold=True
    )
    for one in slices:
        first, _, last = one["range"].partition("-")
        hosts = ",".join(one["smtp"]) + ("" if one["enabled"] else " (disabled)")
        yield (
            f"{one['slice']:>5}  {one['weight']:>6}  {one['share']:>7.2%}  {one['waiting']:>8}  {hosts:16}  "
            f"{first[:10]}-{last[:10]}  {visible(one['owner'] or 'nobody')}"
        )
