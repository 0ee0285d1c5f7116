"""``status``: the site at a glance, for people and for programs.

What is said of the runners is what they run on: the master's copy of the configuration, not the file that may have
been changed since. Queues are counted by their files' names; only the foremost entry of each is opened, for its age.

Exit codes: 0 healthy, 1 there are problems, 3 no master is running.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import click

from qrunner.clock import rfc3339
from qrunner.config import Config, RunnerConfig, load, parse
from qrunner.ctl.context import DONE, FAILED, NOT_RUNNING, colour, config_path, load_places, say
from qrunner.errors import QueueError
from qrunner.log import visible
from qrunner.master.watch import Master, Process, living_master, lone_processes
from qrunner.rundir import RunDir
from qrunner.site import Site
from qrunner.slices import cut
from qrunner.smtp.board import FileBoard
from qrunner.suspension import Suspension, Suspensions, machine_book
from qrunner.switchboard import AREAS, Area, Counts, Holder, Ref, Spool
from qrunner.tally import FileTally

_STALE_S = 30.0
_STREAK = 3
_GOOD, _BAD = ("running", "up", "healthy"), ("failed", "down", "stopped")

State = dict[str, Any]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="one JSON document")
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """Master, runners, queues, hosts, problems. Exit 0 healthy, 1 degraded, 3 not running."""
    state = gather(*_running(ctx))
    click.echo(json.dumps(state, ensure_ascii=True) if as_json else as_text(state))
    if state["master"]["state"] != "running":
        ctx.exit(NOT_RUNNING)
    ctx.exit(DONE if state["healthy"] else FAILED)


def _running(ctx: click.Context) -> tuple[Config, Master | None]:
    """The configuration that is in effect, and the master. One that is being edited does not keep us from it."""
    places = load_places(ctx)
    master = living_master(RunDir(places.state_dir))
    if master is not None:
        if places.problems:
            say(f"{config_path(ctx)} has errors, and is not what runs; see: qrunner-ctl check")
        with contextlib.suppress(OSError):
            return parse(master.snapshot.read_text("utf-8"), master.config), master
    return load(config_path(ctx)), master


def gather(config: Config, master: Master | None) -> State:
    """All of it, as the JSON document has it; how `top` sees it, too."""
    run = RunDir(config.site.state_dir)
    spool = _spool(config)
    runners = list(_runners(config, master, run, spool))
    waiting = _waiting(config, spool) if spool is not None else {}
    queues = list(_queues(waiting, spool)) if spool is not None else []
    hosts = list(_hosts(config, run))
    suspended = Suspensions(config.site.queue_dir, config.site.state_dir).now()
    _mark("runner", runners, suspended)
    _mark("queue", queues, suspended)
    problems = [
        *_master_problems(master),
        *_disk_problems(config),
        *map(_suspended_problem, suspended),
        *(found for one in runners for found in _runner_problems(one)),
        # A stranger's host that is down is his problem, not the site's.
        *(found for one in hosts if one["name"] in config.smtp for found in _host_problems(one)),
        *_aside_problems(waiting),
    ]
    for one in runners:
        for inner in ("patient", "streak", "since"):
            del one[f"_{inner}"]
    return {
        "site": config.site.hostname,
        "healthy": not problems,
        "problems": problems,
        "master": {
            "state": "running" if master is not None else "stopped",
            "pid": master.pid if master is not None else None,
            "since": master.since if master is not None else None,
        },
        "runners": runners,
        "queues": queues,
        "hosts": hosts,
        "reports": _reports(run),
    }


def _spool(config: Config) -> Spool | None:
    """The spool; None where its directory is not there yet."""
    try:
        return Site(config).spool
    except QueueError:
        return None


# Runners.


def _runners(config: Config, master: Master | None, run: RunDir, spool: Spool | None) -> Iterator[State]:
    kept = {(one.name, one.slice): one for one in lone_processes(run)}
    kept.update({(one.name, one.slice): one for one in (master.processes if master is not None else ())})
    for runner in config.runners.values():
        holders = spool.holders(runner.queue) if spool is not None and not runner.door else ()
        for index in range(len(runner.slices)):
            yield _runner(config, runner, index, kept.get((runner.name, index)), holders)


def _runner(
    config: Config, runner: RunnerConfig, index: int, process: Process | None, holders: Sequence[Holder]
) -> State:
    one = runner.slices[index]
    beat: Mapping[str, Any] = process.beat if process is not None else {}
    return {
        "name": runner.name,
        "slice": index,
        "slices": len(runner.slices),
        "weight": one.weight,
        "range": None if runner.door else str(cut([each.weight for each in runner.slices])[index]),
        "queue": runner.queue or None,
        "node": one.node or config.site.node,
        "state": process.state if process is not None else _elsewhere(config, runner, index, holders),
        "pid": process.pid if process is not None else None,
        "restarts": process.restarts if process is not None else 0,
        "heartbeat_age_s": _rounded(process.heartbeat_age_s if process is not None else None),
        "processed": beat.get("processed", 0),
        "failed": beat.get("failed", 0),
        "rate_1m": beat.get("rate_1m", 0),
        "suspended": False,
        "reason": (process.reason if process is not None else "") or None,
        "_patient": process.is_patient if process is not None else False,
        "_streak": process.streak if process is not None else 0,
        "_since": process.since if process is not None else None,
    }


def _elsewhere(config: Config, runner: RunnerConfig, index: int, holders: Sequence[Holder]) -> str:
    """Of a slice that has no process here: whether another machine's has its lease."""
    node = runner.slices[index].node
    if node in (None, config.site.node):
        return "stopped"
    held = any((one.node, one.runner, one.slice) == (node, runner.name, index) for one in holders)
    return "running" if held else "stopped"


# Queues.


Waiting = Mapping[tuple[Area, str], Counts]


def _waiting(config: Config, spool: Spool) -> Waiting:
    """What is in each queue, and set aside from it."""
    names = dict.fromkeys([*config.queues(), *spool.queues()])
    now = time.time_ns()
    return {(area, name): spool.counts(name, now, area) for area in AREAS for name in names}


def _queues(waiting: Waiting, spool: Spool) -> Iterator[State]:
    now = time.time_ns()
    for (area, name), counts in waiting.items():
        if area == "queue":
            yield _queue(name, counts, spool, now)
    for aside in AREAS[1:]:
        total = sum((counts for (area, _), counts in waiting.items() if area == aside), Counts())
        nobody_waits = {"ready": 0, "deferred": 0, "active": 0, "next_due_s": None}
        yield _queue(aside, total, spool, now) | nobody_waits


def _queue(name: str, counts: Counts, spool: Spool, now: int) -> State:
    due = counts.next_due_ns
    return {
        "name": name,
        "depth": counts.depth,
        "ready": counts.ready,
        "deferred": counts.deferred,
        "active": counts.active,
        "oldest_age_s": _age_s(spool, counts.first, now),
        "next_due_s": _rounded((due - now) / 1e9) if due is not None else None,
        "suspended": False,
    }


def _age_s(spool: Spool, ref: Ref | None, now: int) -> float | None:
    """Seconds since the foremost entry arrived; since it was due, where it can't be read any more."""
    if ref is None:
        return None
    since_ns = ref.due_ns
    with contextlib.suppress(Exception):  # whatever stands there, its name has told enough
        since_ns = spool.read(ref).arrival_ns
    return _rounded(max(0, now - since_ns) / 1e9)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


# Suspensions.


def _mark(kind: str, those: Iterable[State], suspended: Iterable[Suspension]) -> None:
    names = {one.name for one in suspended if one.kind == kind}
    for one in those:
        one["suspended"] = one["name"] in names


def _suspended_problem(one: Suspension) -> State:
    """Somebody's wish; but mail waits for its end, and nobody else will think of it."""
    until = f" until {rfc3339(one.until_ns)}" if one.until_ns is not None else ""
    by = f" by {one.by}" if one.by else ""
    what = f"is suspended{by}{until}" + (f": {one.reason}" if one.reason else "")
    return _problem(
        what, f"{one.kind} {one.name}", rfc3339(one.since_ns), f"qrunner-ctl resume {one.kind}:{one.name}"
    )


# Hosts.

_HOST_FIELDS = ("name", "state", "failures", "retry_at", "last_error", "suspended")
_HOST_COLUMNS = ("name", "state", "failures", "retry_at", "rate_wait_s", "last_error")


def _hosts(config: Config, run: RunDir) -> Iterator[State]:
    """Those of the configuration, and those found by MX that are not well. One with a rate says for how long what comes
    now would wait for its turn."""
    known = [name for name, host in config.smtp.items() if host.mode != "mx"]
    found = [path.stem for path in sorted(run.hosts.glob("*.json"))]
    board = FileBoard(run.hosts)
    named = (one.name for one in machine_book(run.state_dir).read() if one.kind == "host")
    for name in dict.fromkeys([*known, *found, *(name for name in named if board.read(name).suspended)]):
        health = board.read(name).as_json()
        state = "suspended" if health["suspended"] else health["state"]
        has_rate = (
            config.smtp[name].rate if name in known else any(host.rate for host in config.smtp.values())
        )
        more = {"state": state, "last_error": health["last_error"] or None}
        more |= {"rate_wait_s": _rounded(board.line_s(name))} if has_rate else {}
        yield {key: health[key] for key in _HOST_FIELDS} | more


# Reports.


def _reports(run: RunDir) -> State:
    """How many were left out since the last of their kind, and of how many addresses."""
    counts = [count for _, count in FileTally(run.reports).left_out()]
    return {"left_out": sum(counts), "addresses": len(counts)}


# Problems.


def _problem(what: str, where: str, since: str | None, hint: str) -> State:
    return {"what": what, "where": where, "since": since, "hint": hint}


def _master_problems(master: Master | None) -> Iterator[State]:
    if master is None:
        yield _problem("no master is running", "master", None, "qrunner-ctl start")
    elif master.reload_error:
        what = f"the last reload was refused: {master.reload_error}"
        yield _problem(what, str(master.config), master.reload_at, "qrunner-ctl check, then reload")


def _disk_problems(config: Config) -> Iterator[State]:
    with contextlib.suppress(OSError):
        free = os.statvfs(config.site.queue_dir)
        if free.f_bavail * free.f_frsize < config.site.min_free:
            what = f"less than min_free ({config.site.min_free} bytes) is free: no mail is taken in"
            yield _problem(what, str(config.site.queue_dir), None, "make room")


def _runner_problems(one: State) -> Iterator[State]:
    where, state, reason = f"runner {one['name']}[{one['slice']}]", one["state"], one["reason"]
    because = f": {reason}" if reason else ""
    age_s = one["heartbeat_age_s"]
    alone = f"qrunner-ctl run {one['name']} --slice {one['slice']} shows it; the log says more"
    if state == "failed":
        yield _problem(f"does not come up, or not for long{because}", where, one["_since"], alone)
    elif state == "waiting" and not one["_patient"]:
        yield _problem(f"waits{because}", where, one["_since"], "it goes on by itself once that has ended")
    elif one["_streak"] >= _STREAK:
        yield _problem(f"has died {one['_streak']} times in a row{because}", where, one["_since"], alone)
    if age_s is not None and age_s > _STALE_S and state != "stopped":
        hint = f"process {one['pid']} hangs, or its disk is full"
        yield _problem(f"has given no sign of life for {age_s:.0f} s", where, one["_since"], hint)


def _host_problems(one: State) -> Iterator[State]:
    if one["state"] not in ("up", "suspended"):
        because = f": {one['last_error']}" if one["last_error"] else ""
        hint = f"tried again at {one['retry_at']}" if one["retry_at"] else "it is tried again by itself"
        yield _problem(f"is {one['state']}{because}", f"host {one['name']}", None, hint)


def _aside_problems(waiting: Waiting) -> Iterator[State]:
    """What waits for a person. ``hold`` is somebody's wish, and no problem."""
    hints = {"shunt": "qrunner-ctl list shunt; then unshunt or delete", "bad": "qrunner-ctl list bad"}
    for (area, name), counts in waiting.items():
        if area in hints and counts.first is not None:
            what = f"{counts.depth} set aside, for a person to look at"
            yield _problem(what, f"{area}/{name}", rfc3339(counts.first.due_ns), hints[area])


# For people.


def as_text(state: State) -> str:
    """Tables, with colours on a terminal."""
    master = state["master"]
    process = f", process {master['pid']}, since {master['since']}" if master["pid"] else ""
    lines = [f"{state['site']}: master {_shade(master['state'])}{process}", ""]
    columns = (
        "name",
        "slice",
        "weight",
        "queue",
        "state",
        "pid",
        "restarts",
        "processed",
        "failed",
        "rate_1m",
    )
    lines += _table("runner", columns, state["runners"])
    lines += _patience(state)
    lines += _table(
        "queue",
        ("name", "depth", "ready", "deferred", "active", "oldest_age_s", "next_due_s"),
        state["queues"],
    )
    paced = any("rate_wait_s" in one for one in state["hosts"])
    shown = [name for name in _HOST_COLUMNS if paced or name != "rate_wait_s"]
    lines += _table("host", shown, state["hosts"])
    if state["reports"]["left_out"]:
        count, addresses = state["reports"]["left_out"], state["reports"]["addresses"]
        lines += [f"{count} reports left out, on {addresses} addresses: one an hour is sent", ""]
    for one in state["problems"]:
        since = f" (since {one['since']})" if one["since"] else ""
        lines.append(f"{colour('problem', fg='red')}: {visible(one['where'])}: {visible(one['what'])}{since}")
        lines.append(f"         {visible(one['hint'])}")
    if not state["problems"]:
        lines.append(_shade("healthy"))
    return "\n".join(lines)


def _patience(state: State) -> list[str]:
    """Why runners wait that are to; of those in trouble, the problems tell."""
    troubled = {one["where"] for one in state["problems"]}
    named = ((f"runner {one['name']}[{one['slice']}]", one) for one in state["runners"])
    lines = [
        f"{where} waits {visible(one['reason'])}"
        for where, one in named
        if one["state"] == "waiting" and one["reason"] and where not in troubled
    ]
    return [*lines, ""] if lines else []


def _table(title: str, columns: Sequence[str], rows: Sequence[State]) -> list[str]:
    """A table and an empty line; nothing for no rows."""
    if not rows:
        return []
    head = [title, *(name.removesuffix("_s").replace("_", " ") for name in columns[1:])]
    cells = [[_cell(row.get(name), name) for name in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    lines = [colour(_row(head, widths), bold=True)]
    # A colour's own characters take no room, so it is laid on what has been padded already.
    lines += [
        "  ".join(
            _shade(text.ljust(width)) if name == "state" else text.ljust(width)
            for text, width, name in zip(row, widths, columns, strict=True)
        ).rstrip()
        for row in cells
    ]
    return [*lines, ""]


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(text.ljust(width) for text, width in zip(cells, widths, strict=True)).rstrip()


def _cell(value: object, name: str) -> str:
    if value is None:
        return "-"
    return _duration(value) if name.endswith("_s") and isinstance(value, float) else visible(str(value))


def _duration(seconds: float) -> str:
    """In the largest unit that leaves a whole number worth reading: ``45s``, ``12m``, ``3h``, ``2d``."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"


def _shade(word: str) -> str:
    plain = word.strip()
    if plain in _GOOD:
        return colour(word, fg="green")
    return colour(word, fg="red" if plain in _BAD else "yellow")
