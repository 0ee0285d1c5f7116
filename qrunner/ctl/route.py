"""``route``: where the virtual queues of the configuration would send mail for an address, and by which rule.

Nothing is sent and no queue is looked at. It is the configuration file that is asked, which a running site may not have
taken up yet. What a balance would choose is chance: its members are named, with their shares, and which of them live.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import click

from qrunner.config import Config
from qrunner.config.lines import Lines
from qrunner.ctl.context import FAILED, colour, load_site, say
from qrunner.ctl.selectors import unique
from qrunner.log import visible
from qrunner.match import Match, Patterns
from qrunner.message import Entry, Envelope
from qrunner.site import Site
from qrunner.smtp.living import hosts_behind

Step = Mapping[str, Any]


def _fields(_: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> list[str]:
    for text in value:
        name, colon, _rest = text.partition(":")
        if not colon or not name.strip() or not text.isprintable() or " " in name.strip():
            raise click.BadParameter(f"{text!r} is no header field, expected 'Name: value'", param=parameter)
    return list(value)


def _pairs(_: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> dict[str, str]:
    pairs = [text.partition("=") for text in value]
    for key, equals, _rest in pairs:
        if not (key and equals):
            raise click.BadParameter(f"{key!r} is no metadata, expected KEY=VALUE", param=parameter)
    return {key: rest for key, _equals, rest in pairs}


@click.command()
@click.option(
    "--test", "addresses", multiple=True, required=True, metavar="ADDRESS", help="a recipient; several"
)
@click.option("-q", "--queue", metavar="QUEUE", help="the virtual queue to ask; else every route")
@click.option("--sender", default="", metavar="ADDRESS", help="of the message; else the null sender")
@click.option(
    "--header",
    "headers",
    multiple=True,
    callback=_fields,
    metavar="FIELD",
    help="'Name: value', of the message",
)
@click.option(
    "-m", "--meta", multiple=True, callback=_pairs, metavar="KEY=VALUE", help="metadata of the entry"
)
@click.option("--json", "as_json", is_flag=True, help="one JSON document")
@click.pass_context
def route(
    ctx: click.Context,
    addresses: tuple[str, ...],
    queue: str | None,
    sender: str,
    headers: list[str],
    meta: dict[str, str],
    as_json: bool,
) -> None:
    """Which queue mail for an address would go to, and by which rule."""
    site = load_site(ctx)
    queues = _asked(site, queue)
    if not queues:
        say(f"{site.config.path} has no [route.NAME] and no [balance.NAME]")
        ctx.exit(FAILED)
    message = "".join(f"{field}\n" for field in headers).encode("utf-8", "surrogateescape") + b"\n"
    asker = _Asker(site)
    found = []
    for address in unique(addresses):
        entry = _entry(message, "" if sender == "<>" else sender, address, meta)
        found += [asker.answer(name, entry, address) for name in queues]
    click.echo(json.dumps(found, indent=2) if as_json else "\n".join(map(_told, found)))


def _asked(site: Site, queue: str | None) -> tuple[str, ...]:
    """The queues to begin with. :raises click.BadParameter: there is no such queue."""
    config = site.config
    if queue is None:
        return tuple(config.routes or config.balance)
    known = unique((*config.routes, *config.balance, *config.queues()))
    if queue not in known:
        raise click.BadParameter(
            f"there is no queue {queue!r}; the queues are: {' '.join(known)}", param_hint="--queue"
        )
    return (queue,)


def _entry(message: bytes, sender: str, address: str, meta: Mapping[str, Any]) -> Entry:
    envelope = Envelope.of(sender, [address])
    return Entry(
        id="",
        queue="",
        envelope=envelope,
        message=message,
        recipients=envelope.addresses,
        meta=meta,
        arrival_ns=0,
        due_ns=0,
    )


class _Asker:
    """Walks through the virtual queues of a configuration."""

    def __init__(self, site: Site) -> None:
        self._site, self._config = site, site.config
        self._lines = Lines(site.config.text)

    def answer(self, queue: str, entry: Entry, address: str) -> dict[str, Any]:
        """Where it goes, with every step of the way."""
        steps = list(self._walk(queue, entry, address))
        ends = unique(step["queue"] for step in steps if step["kind"] == "queue")
        return {
            "address": address,
            "sender": entry.sender,
            "queue": queue,
            "goes_to": list(ends),
            "steps": steps,
        }

    def _walk(self, queue: str, entry: Entry, address: str) -> Iterator[Step]:
        if queue in self._config.routes:
            step = self._by_rule(queue, entry, address)
        elif queue in self._config.balance:
            step = self._by_chance(queue)
        else:
            step = self._at_last(queue)
        yield step
        for name in step["to"]:
            yield from self._walk(name, entry, address)

    def _by_rule(self, name: str, entry: Entry, address: str) -> Step:
        rules = self._config.routes[name].rules
        number, fits = self._site.routing.rule(self._config.routes[name], entry, address)
        return {
            "queue": name,
            "kind": "route",
            "rule": number + 1,
            "file": str(self._config.path),
            "line": self._lines.line(("route", name, "rules", number)),
            "match": matches(rules[number].match),
            "fits": fits,
            "to": [rules[number].queue],
        }

    def _by_chance(self, name: str) -> Step:
        members = self._config.balance[name].members
        total = sum(weight for _, weight in members)
        return {
            "queue": name,
            "kind": "balance",
            "choose": self._config.balance[name].choose,
            "file": str(self._config.path),
            "line": self._lines.line(("balance", name)),
            "shares": {queue: weight / total for queue, weight in members},
            "living": [queue for queue, _ in members if self._site.routing.is_living(queue)],
            "to": [queue for queue, _ in members],
        }

    def _at_last(self, name: str) -> Step:
        return {
            "queue": name,
            "kind": "queue",
            "runner": _runner_of(self._config, name),
            "hosts": list(hosts_behind(self._config, name)),
            "to": [],
        }


def _runner_of(config: Config, queue: str) -> str | None:
    return next((one.name for one in config.runners.values() if one.queue == queue and not one.door), None)


def matches(match: Match) -> str:
    """A match as the configuration spells it; empty for one that fits everything."""
    keys = [(key, getattr(match, key)) for key in ("sender", "recipient", "domain")]
    keys += [(f"header.{name}", these) for name, these in match.header]
    keys += [(f"meta.{name}", these) for name, these in match.meta]
    return ", ".join(f"{key} = {_spelled(these)}" for key, these in keys if these)


def _spelled(these: Patterns) -> str:
    texts = [json.dumps(pattern.text, ensure_ascii=False) for pattern in these]
    return texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"


def _told(answer: Mapping[str, Any]) -> str:
    head = f"{answer['address']} in {answer['queue']}: {' or '.join(answer['goes_to'])}"
    return "\n".join(
        [colour(visible(head), bold=True), *(f"  {visible(_line(one))}" for one in answer["steps"])]
    )


def _line(step: Step) -> str:
    if step["kind"] == "route":
        what = step["match"] or "everything"
        because = what if step["fits"] else f"no rule fits, so the last one's queue ({what})"
        return f"{step['queue']}: {step['file']}:{step['line']}: rule {step['rule']}: {because} -> {step['to'][0]}"
    if step["kind"] == "balance":
        shares = ", ".join(f"{queue} {share:.0%}" for queue, share in step["shares"].items())
        living = " ".join(step["living"]) or "none, so any of them"
        return f"{step['queue']}: {step['file']}:{step['line']}: {step['choose']}: {shares}; living now: {living}"
    runner = f"runner {step['runner']}" if step["runner"] else "no runner works on it"
    return f"{step['queue']}: {runner}" + (f", hosts {' '.join(step['hosts'])}" if step["hosts"] else "")
