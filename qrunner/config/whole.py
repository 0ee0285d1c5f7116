"""What can only be said of the whole: that names lead somewhere, and nowhere twice."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches

from qrunner.config.model import Config, RunnerConfig
from qrunner.config.reading import Spot, nearest
from qrunner.match import Match

LAST_RESORT = "backoff"


def check(config: Config, root: Spot) -> None:
    """Notes what does not fit together."""
    _one_runner_a_queue(config, root)
    _virtual_or_real(config, root)
    _queues_are_served(config, root)
    _hosts_are_there(config, root)
    _not_to_itself(config, root)
    _no_circles(config, root)
    _no_mail_goes_round(config, root)
    _archives_are_outside(config, root)


def _owners(config: Config) -> dict[str, str]:
    """Queue → the first runner that serves it."""
    owners: dict[str, str] = {}
    for runner in config.runners.values():
        if not runner.door:
            owners.setdefault(runner.queue, runner.name)
    return owners


def _one_runner_a_queue(config: Config, root: Spot) -> None:
    owners = _owners(config)
    for runner in config.runners.values():
        if not runner.door and owners[runner.queue] != runner.name:
            text = f'the queue "{runner.queue}" has a runner already, "{owners[runner.queue]}"'
            root.at("runner", runner.name, "queue").wrong(
                f"{text}, expected one runner a queue (slices share one)"
            )


def _virtual_or_real(config: Config, root: Spot) -> None:
    owners = _owners(config)
    for name in [*config.balance, *config.routes]:
        spot = root.at("balance" if name in config.balance else "route", name)
        if name in owners:
            spot.wrong(f'is also the queue of runner "{owners[name]}", expected a name of its own')
    for name in config.balance.keys() & config.routes.keys():
        root.at("route", name).wrong("is also a balance, expected a name of its own")


def _queues_are_served(config: Config, root: Spot) -> None:
    """A queue that no runner of ours serves may be another machine's, or a program's; a slip of the pen is neither."""
    known = {*_owners(config), *config.balance, *config.routes}
    for spot, name in root.reading.queues:
        if name not in known and _is_slip(name, known):
            spot.wrong(f'no runner serves a queue "{name}", {nearest(name, known)}')


def _is_slip(name: str, known: Collection[str]) -> bool:
    near = get_close_matches(name, known, 1, cutoff=0.66)
    # "out-b" beside "out" is meant; "otu" is not.
    return bool(near) and not name.startswith(near[0]) and not near[0].startswith(name)


def _hosts_are_there(config: Config, root: Spot) -> None:
    for spot, name in root.reading.hosts:
        if name not in config.smtp:
            spot.wrong(f"there is no [smtp.{name}], {nearest(name, config.smtp)}")


def _not_to_itself(config: Config, root: Spot) -> None:
    for runner in config.runners.values():
        subscribers = [name for name, _ in runner.settings.get("subscribers") or ()]
        on_down = runner.settings.get("on_down") or ()
        for key, queues in (("next", runner.next), ("on_down", on_down), ("subscribers", subscribers)):
            if runner.queue in queues:
                root.at("runner", runner.name, key).wrong(
                    f'"{runner.queue}" is its own queue, expected another'
                )


def _no_circles(config: Config, root: Spot) -> None:
    """Choices among choices must come to an end. Each circle is named once."""
    edges = _choices(config)
    done: set[str] = set()
    for name in edges:
        circle = _circle(name, edges)
        if circle and not done & set(circle):
            done |= set(circle)
            section = "balance" if circle[0] in config.balance else "route"
            text = (
                f"goes round in a circle ({' → '.join([*circle, circle[0]])}), expected to end in real queues"
            )
            root.at(section, circle[0]).wrong(text)


def _choices(config: Config) -> dict[str, list[str]]:
    """Virtual queue → the virtual queues among what it may choose."""
    edges = {name: [member for member, _ in one.members] for name, one in config.balance.items()}
    edges |= {name: [rule.queue for rule in one.rules] for name, one in config.routes.items()}
    return {name: [to for to in edges[name] if to in edges] for name in edges}


def _no_mail_goes_round(config: Config, root: Spot) -> None:
    """Mail that is passed on, whatever it is, to where it comes from never ends; a fan-out on the way fills the disk."""
    ways = _passes_on(config)
    edges = {queue: [to for _, to in goes if to in ways] for queue, goes in ways.items()}
    done: set[str] = set()
    for queue in edges:
        circle = _circle(queue, edges)
        # To itself at once is said already.
        if len(circle) > 1 and not done & set(circle):
            done |= set(circle)
            key = next(key for key, to in ways[queue] if to == circle[1])
            text = f"mail goes round for ever ({' → '.join([*circle, circle[0]])}), expected an end to it"
            root.at("runner", _owners(config)[queue], key).wrong(text)


def _passes_on(config: Config) -> dict[str, list[tuple[str, str]]]:
    """Queue → where all of its mail goes, with the key that says so, for runners without a handler to end it."""
    return {
        one.queue: [("next", to) for to in one.next if one.class_name == "incoming"]
        + [("subscribers", to) for to, match in one.settings.get("subscribers", ()) if match == Match()]
        for one in config.runners.values()
        if one.class_name in ("incoming", "fanout") and not one.handlers
    }


def _archives_are_outside(config: Config, root: Spot) -> None:
    for runner in config.runners.values():
        path = runner.settings.get("path")
        if runner.class_name == "archive" and path and path.is_relative_to(config.site.queue_dir):
            root.at("runner", runner.name, "path").wrong(
                f"{path} is inside queue_dir, expected a place of its own"
            )


def _circle(start: str, edges: Mapping[str, list[str]]) -> list[str]:
    """A way from a name back to itself; empty if there is none."""
    ways: list[list[str]] = [[start]]
    seen: set[str] = set()
    while ways:
        way = ways.pop()
        for to in edges[way[-1]]:
            if to == start:
                return way
            if to not in seen:
                seen.add(to)
                ways.append([*way, to])
    return []


def with_last_resort(config: Config) -> Config:
    """Where mail goes while its hosts are down, unless it is said: to the queue ``backoff``, if there is one."""
    known = {*_owners(config), *config.balance, *config.routes}
    runners = {one.name: _with_on_down(one, LAST_RESORT in known) for one in config.runners.values()}
    named = tuple(dict.fromkeys([*config.named, *_more_named(runners)]))
    return replace(config, runners=runners, named=named)


def _with_on_down(runner: RunnerConfig, has_backoff: bool) -> RunnerConfig:
    if "on_down" not in runner.settings or runner.settings["on_down"] is not None:
        return runner
    usable = has_backoff and runner.queue != LAST_RESORT
    return replace(runner, settings={**runner.settings, "on_down": (LAST_RESORT,) if usable else ()})


def _more_named(runners: Mapping[str, RunnerConfig]) -> Iterator[str]:
    for runner in runners.values():
        yield from runner.settings.get("on_down", ())
