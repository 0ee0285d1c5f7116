"""The sections of the file, each made into its value."""

from __future__ import annotations

import re
import socket
from dataclasses import replace
from typing import Any

from qrunner.config import keys
from qrunner.config.model import (
    BalanceConfig,
    HostConfig,
    RouteConfig,
    RuleConfig,
    RunnerConfig,
    SiteConfig,
    SliceConfig,
    is_loopback,
)
from qrunner.config.reading import Spot, attempt, nearest, read_given, read_table, shown, tables
from qrunner.config.values import absolute, is_reference, new_host, new_queue
from qrunner.match import Match
from qrunner.schedule import Retry


def site(data: Any, spot: Spot) -> SiteConfig:
    found = read_table(data, spot, keys.SITE)
    hostname = found["hostname"] or _own_name()
    derived = {
        "hostname": hostname,
        "node": found["node"] or re.sub(r"[^A-Za-z0-9._-]", "-", hostname)[:64],
        "queue_dir": found["queue_dir"] or absolute("../qfiles", spot),
        "state_dir": found["state_dir"] or absolute("../var", spot),
        "postmaster": found["postmaster"] or f"postmaster@{hostname}",
        "retry": _retry(Retry(), found["retry"], spot),
    }
    return SiteConfig(**{**found, **derived})


def _own_name() -> str:
    """As the machine knows it by itself: a name server that is away must not delay a start."""
    return socket.gethostname() or "localhost"


def _retry(base: Retry, given: dict[str, Any], spot: Spot) -> Retry:
    merged = replace(base, **given)
    if merged.first_s > merged.max_s:
        spot.at("retry").wrong(f"first ({merged.first_s:g} s) is longer than max ({merged.max_s:g} s)")
    return merged


def hosts(data: Any, spot: Spot, site: SiteConfig) -> dict[str, HostConfig]:
    return {name: _host(name, one, spot.at(name), site) for name, one in tables(data, spot).items()}


def _host(name: str, data: Any, spot: Spot, site: SiteConfig) -> HostConfig:
    attempt(new_host, name, spot)
    given = read_given(data, spot, keys.SMTP)
    if given.get("mode") == "mx":
        _check_mx(given, spot, site)
    elif isinstance(data, dict) and "host" not in data:
        spot.at("host").wrong('is missing, expected a name or an address, or mode = "mx"')
    if ("username" in given) != ("password_file" in given):
        missing = "password_file" if "username" in given else "username"
        spot.at(missing).wrong("is missing, expected username and password_file together")
    if "tls" not in given and is_loopback(given.get("host", "")):
        given["tls"] = "none"
    if given.get("tls") == "implicit":
        given.setdefault("port", 465)
    return HostConfig(name=name, **given)


def _check_mx(given: dict[str, Any], spot: Spot, site: SiteConfig) -> None:
    if "host" in given:
        spot.at("host").wrong('has no meaning beside mode = "mx", expected one of the two')
    if "username" in given:
        spot.at("username").wrong('would be told to hosts of strangers, expected none beside mode = "mx"')
    if "." not in site.hostname.strip("."):
        text = f'strangers\' hosts are told our name, and "{site.hostname}" is not a full one, expected [site] hostname'
        spot.at("mode").wrong(f'{text} = "mail.example.org"')


def runners(data: Any, spot: Spot, site: SiteConfig) -> dict[str, RunnerConfig]:
    return {name: _runner(name, one, spot.at(name), site) for name, one in tables(data, spot).items()}


def _runner(name: str, data: Any, spot: Spot, site: SiteConfig) -> RunnerConfig:
    attempt(new_queue, name, spot)
    stock = _stock(data, spot)
    own = {**stock.keys, **(keys.HOSTS if stock.delivers else {})}
    found = read_table(data, spot, {**keys.RUNNER, **own})
    data = data if isinstance(data, dict) else {}
    settings = {key: found.pop(key) for key in stock.keys}
    instances, retry = found.pop("instances"), found.pop("retry")
    found |= {
        "name": name,
        "queue": "" if stock.door else found["queue"] or name,
        "concurrency": found["concurrency"] or stock.concurrency,
        "retry": _retry(site.retry, retry, spot),
        "settings": settings,
        "door": stock.door,
    }
    found["slices"] = _slices(data, spot, found, instances, stock)
    _check_runner(data, spot, stock, found)
    found.pop("smtp", None)
    return RunnerConfig(**found)


def _stock(data: Any, spot: Spot) -> keys.Stock:
    """What the class of this table may say; of a class that is not there, as little as can be known."""
    name = data.get("class") if isinstance(data, dict) else None
    if not isinstance(name, str) or is_reference(name):
        return keys.SITE_CLASS
    if name not in keys.STOCK:
        known = f'{nearest(name, keys.STOCK)} A class of the site\'s own is written "package.module:Class"'
        spot.at("class").wrong(f"{shown(name)} is no stock runner, {known}")
    return keys.STOCK.get(name, keys.SITE_CLASS)


def _slices(
    data: dict[str, Any], spot: Spot, runner: dict[str, Any], instances: int | None, stock: keys.Stock
) -> tuple[SliceConfig, ...]:
    given = data.get("slices", [{}] * (instances or 1))
    if "slices" in data and "instances" in data:
        spot.at("instances").wrong("cannot stand beside slices, expected one of the two")
    if not isinstance(given, list) or not given:
        spot.at("slices").wrong(f"{shown(given)} is not right, expected a list of one or more tables")
        return ()
    allowed = {**keys.SLICE, **(keys.HOSTS if stock.delivers else {})}
    inherited = {name: runner[name] for name in ("node", "concurrency", "nice", "enabled")}
    inherited["smtp"] = runner.get("smtp", ())
    laid_over = (read_given(one, spot.at("slices", index), allowed) for index, one in enumerate(given))
    return tuple(_slice(runner, {**inherited, **own}) for own in laid_over)


def _slice(runner: dict[str, Any], values: dict[str, Any]) -> SliceConfig:
    values["options"] = {**runner["options"], **values.get("options", {})}
    values["enabled"] = runner["enabled"] and values["enabled"]
    return SliceConfig(**values)


def _check_runner(data: dict[str, Any], spot: Spot, stock: keys.Stock, found: dict[str, Any]) -> None:
    if stock.wants_next and not found["next"] and "next" not in data and not found["handlers"]:
        spot.at("next").wrong("is missing, expected the queue to which what comes in goes on")
    if stock.door:
        _check_door(data, spot, len(found["slices"]))
    if found["class_name"] == "outgoing" and "smtp" not in data:
        _check_delivers(spot, found["slices"], "slices" in data)
    if found["class_name"] == "lmtp":
        _check_accept(spot, data, found["settings"])


def _check_door(data: dict[str, Any], spot: Spot, slices: int) -> None:
    if "queue" in data:
        spot.at("queue").wrong('has no meaning for a door, which owns no queue, expected next = "QUEUE"')
    if slices > 1:
        key = "slices" if "slices" in data else "instances"
        spot.at(key).wrong("a door cannot be cut into slices, expected one process")


def _check_delivers(spot: Spot, slices: tuple[SliceConfig, ...], has_slices: bool) -> None:
    without = [index for index, one in enumerate(slices) if not one.smtp]
    for index in without if has_slices else without[:1]:
        where = spot.at("slices", index) if has_slices else spot
        where.at("smtp").wrong("is missing, expected the name of an [smtp.NAME], or a list of them")


def _check_accept(spot: Spot, data: dict[str, Any], settings: dict[str, Any]) -> None:
    listen = settings["listen"]
    if "accept" not in data and listen is not None and not listen.is_local:
        text = f"is missing, and {listen} can be reached from other machines"
        spot.at("accept").wrong(f'{text}, expected the addresses to accept, such as ["*@lists.example.org"]')


def balances(data: Any, spot: Spot) -> dict[str, BalanceConfig]:
    return {name: _balance(name, one, spot.at(name)) for name, one in tables(data, spot).items()}


def _balance(name: str, data: Any, spot: Spot) -> BalanceConfig:
    attempt(new_queue, name, spot)
    return BalanceConfig(name=name, **read_table(data, spot, keys.BALANCE))


def routes(data: Any, spot: Spot) -> dict[str, RouteConfig]:
    return {name: _route(name, one, spot.at(name)) for name, one in tables(data, spot).items()}


def _route(name: str, data: Any, spot: Spot) -> RouteConfig:
    attempt(new_queue, name, spot)
    rules = read_table(data, spot, keys.ROUTE)["rules"]
    return RouteConfig(name, tuple(_rule(one, spot.at("rules", index)) for index, one in enumerate(rules)))


def _rule(data: Any, spot: Spot) -> RuleConfig:
    found = read_table(data, spot, keys.RULE)
    queue = found.pop("queue")
    return RuleConfig(Match(**found), queue)
