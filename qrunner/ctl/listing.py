"""The verbs that look at entries: ``list``, ``show``, ``slices``.

Guarantees: nothing is changed, and nothing is waited for. ``list`` is streamed, oldest due first. What came from
outside is printed with control characters made visible, except by ``show --raw``, which prints the message's bytes.

Not guaranteed: that what moves while we look is seen, or seen once.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import click

from qrunner.clock import rfc3339
from qrunner.config import RunnerConfig
from qrunner.ctl.context import DONE, FAILED, colour, load_site, say
from qrunner.ctl.finding import Found, Search, state
from qrunner.ctl.selectors import Selection, checked_id, takes_selection
from qrunner.log import visible
from qrunner.message import Entry, header_block
from qrunner.site import Site
from qrunner.slices import SPACE, Range, cut, owner

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
    found: Iterable[Found]
    missing: list[str] = []
    if selection.only_ids or selection.ids:
        findings = search.collect(read=True)
        found, missing = findings.found, findings.missing
    else:
        found = search.stream(read=True)
    lines = (described(one, search.now_ns) for one in found)
    for text in _json_lines(islice(lines, limit)) if as_json else _table(islice(lines, limit), search.now_ns):
        click.echo(text)
    for word in missing:
        say(f"{word}: there is no such entry")
    ctx.exit(FAILED if missing else DONE)


def described(found: Found, now_ns: int) -> dict[str, Any]:
    """The fields of ``list --json``; what can't be read has no envelope, and says why as ``last_error``."""
    ref, entry = found.ref, found.entry
    known: dict[str, Any] = {"id": ref.id or None, "queue": ref.queue, "state": state(ref, now_ns)}
    due = rfc3339(ref.due_ns)
    if entry is None:
        rest = dict.fromkeys(("size", "sender", "recipients", "attempts"))
        return {**known, "arrival": None, "due": due, **rest, "last_error": found.error or None, "meta": None}
    return {
        **known,
        "arrival": rfc3339(entry.arrival_ns),
        "due": due,
        "size": entry.size,
        "sender": entry.sender,
        "recipients": list(entry.recipients),
        "attempts": entry.attempts,
        "last_error": last_error(entry),
        "meta": dict(entry.meta),
    }


def last_error(entry: Entry) -> str | None:
    """What went wrong last, in the words of whoever said it."""
    for line in reversed(entry.history):
        key = _ERRORS.get(str(line.get("what")))
        if key is not None and line.get(key):
            return str(line[key])
    return None


def _json_lines(lines: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    return (json.dumps(line) for line in lines)


def _table(lines: Iterable[dict[str, Any]], now_ns: int) -> Iterator[str]:
    heading = f"{'ID':12}  {'QUEUE':12}  {'STATE':8}  {'ARRIVAL':20}  {'DUE':20}  {'SIZE':>9}  {'TRIES':>5}  ENVELOPE"
    for number, line in enumerate(lines):
        if number == 0:
            yield colour(heading, bold=True)
        yield _row(line)
        if line["last_error"]:
            yield f"              {visible(line['last_error'])}"


def _row(line: Mapping[str, Any]) -> str:
    envelope = "?"
    if line["sender"] is not None:
        envelope = f"<{line['sender']}> to {', '.join(line['recipients']) or 'nobody any more'}"
    size, attempts = ["" if line[key] is None else line[key] for key in ("size", "attempts")]
    shown = colour(f"{line['state']:8}", fg=_STYLES.get(line["state"]))
    return (
        f"{(line['id'] or '')[:12]:12}  {line['queue']:12}  {shown}  {_to_the_second(line['arrival']):20}  "
        f"{_to_the_second(line['due']):20}  {size:>9}  {attempts:>5}  {visible(envelope)}"
    )


def _to_the_second(moment: str | None) -> str:
    return re.sub(r"\.\d+", "", moment or "")


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
    found = search.collect(read=True).found
    areas = ("queue", "hold", "shunt", "bad")
    return min(found, key=lambda one: (one.entry is None, areas.index(one.ref.area)), default=None)


def _content(site: Site, found: Found) -> bytes:
    """The message; of what is no entry, all there is."""
    return found.entry.message if found.entry is not None else site.spool.content(found.ref)


def _document(found: Found, now_ns: int) -> dict[str, Any]:
    """``show --json``: what ``list`` says, and the whole of the entry but for its body."""
    entry = found.entry
    if entry is None:
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
