"""How the values with an inside are written: matches, places to listen, programs, exit codes.

Readers like those of single values.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from qrunner.config import values as v
from qrunner.config.model import Listen, WhenIdle
from qrunner.config.reading import Key, Keys, Spot, Wrong, attempt, read_table, shown
from qrunner.match import Match, Patterns
from qrunner.verp import delimiters

# What a program's exit codes mean unless it is said otherwise: as of the MTA's pipe.
EXITS = {0: "done", 75: "later"}
# What a dated path may have of strftime's: numbers, in UTC, and nothing that depends on a language.
DATES = "YymdHjGV%"


def free_table(value: Any, spot: Spot) -> dict[str, Any]:
    """A table whose keys are not ours."""
    if not isinstance(value, dict):
        raise Wrong(f"{shown(value)} is not right, expected a table")
    return value


def free_list(value: Any, spot: Spot) -> list[Any]:
    """A list whose values are read one by one, later."""
    if not isinstance(value, list) or not value:
        raise Wrong(f"{shown(value)} is not right, expected a list of one or more tables")
    return value


def when_idle(value: Any, spot: Spot) -> WhenIdle | None:
    if isinstance(value, dict):
        return WhenIdle(**read_table(value, spot, WHEN_IDLE))
    if not isinstance(value, bool):
        raise Wrong(f'{shown(value)} is not right, expected true, or {{ pressure = 10, queues = ["in"] }}')
    return WhenIdle() if value else None


def listen(value: Any, spot: Spot) -> Listen:
    """``HOST:PORT``, ``[IPv6]:PORT``, ``:PORT`` (every interface) or ``unix:PATH``."""
    text = v.plain_text(value, spot)
    if text.startswith("unix:") and text != "unix:":
        return Listen(path=v.absolute(text.removeprefix("unix:"), spot))
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^:\[\]/]*)):([0-9]{1,5})", text)
    if match is None or int(match[3]) > 65535:
        raise Wrong(f'{shown(value)} is no place to listen, expected "127.0.0.1:8024" or "unix:PATH"')
    return Listen(host=match[1] or match[2] or "", port=int(match[3]))


def command(value: Any, spot: Spot) -> tuple[str, ...]:
    """A program and its arguments; a program with a slash is a path like any other."""
    program, *rest = v.arguments(value, spot) or ("",)
    return (str(v.absolute(program, spot)) if "/" in program else program, *rest)


def dated_path(value: Any, spot: Spot) -> Path:
    """A path like any other, with parts of a date in it."""
    path = v.path(value, spot)
    check_dates(str(path))
    return path


def check_dates(text: str) -> None:
    """Wrong, which is a ValueError: it has something of strftime's that is no number of a date."""
    for directive in re.findall("%.?", text):
        if directive == "%" or directive[1] not in DATES:
            known = " ".join(f"%{one}" for one in DATES[:-1])
            raise Wrong(f"{shown(directive)} is no part of a date, expected one of {known}, or %% for a %")


def exits(value: Any, spot: Spot) -> dict[int, str]:
    """Exit codes, each with what becomes of the entry."""
    fate = v.choice("done", "later", "bounce", "shunt", "hold")
    found = dict(EXITS)
    for code, name in free_table(value, spot).items():
        read = attempt(fate, name, spot.at(code))
        if not re.fullmatch("[0-9]{1,3}", code) or int(code) > 255:
            spot.at(code).wrong(f"{shown(code)} is no exit code, expected 0 to 255")
        elif read:
            found[int(code)] = read
    return found


def verp(value: Any, spot: Spot) -> str:
    """The two delimiters; ``true`` means the usual ``+=``. Empty: no VERP."""
    if not isinstance(value, bool) and not re.fullmatch(r"[-+=]{2}", str(value)):
        raise Wrong(f'{shown(value)} is not right, expected true, false, or two of "-+="')
    return delimiters(value)


def named_patterns(value: Any, spot: Spot) -> tuple[tuple[str, Patterns], ...]:
    """Names, of header fields or metadata, each with its patterns."""
    given = free_table(value, spot).items()
    pairs = ((name, attempt(v.patterns, one, spot.at(name))) for name, one in given)
    return tuple((name, these) for name, these in pairs if these)


MATCH: Keys = {
    "sender": Key(v.patterns, ()),
    "recipient": Key(v.patterns, ()),
    "domain": Key(v.patterns, ()),
    "header": Key(named_patterns, ()),
    "meta": Key(named_patterns, ()),
}
WHEN_IDLE: Keys = {"pressure": Key(v.integer(0), 0), "queues": Key(v.queues, ())}


def subscribers(value: Any, spot: Spot) -> tuple[tuple[str, Match], ...]:
    """Queues, each with the match that decides whether it gets a copy."""
    if not isinstance(value, dict) or not value:
        raise Wrong(f"{shown(value)} is not right, expected queues with their matches: {{ linux = {{}} }}")
    for name in value:
        attempt(v.queue, name, spot.at(name))
    return tuple((name, Match(**read_table(one, spot.at(name), MATCH))) for name, one in value.items())


def members(value: Any, spot: Spot) -> tuple[tuple[str, int], ...]:
    """Queues and their weights."""
    if not isinstance(value, dict) or not value:
        raise Wrong(
            f"{shown(value)} is not right, expected queues with their weights: {{ out-a = 60, out-b = 40 }}"
        )
    for name in value:
        attempt(v.queue, name, spot.at(name))
    pairs = ((name, attempt(v.integer(1), one, spot.at(name))) for name, one in value.items())
    return tuple((name, weight) for name, weight in pairs if weight)
