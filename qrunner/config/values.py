"""How single values are written: durations, sizes, addresses, names, references, and lists of them.

Each reader takes a raw value and its place, and returns the converted value or raises Wrong.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from qrunner.config.reading import Read, Spot, Wrong, attempt, shown
from qrunner.match import Pattern

T = TypeVar("T")

UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
# These stand beside the queues, in the same directory.
RESERVED = ("hold", "shunt", "bad")

_LONGEST_S = 36500 * UNITS_S["d"]
_LARGEST = 2**62
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|[smhd])")
_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)([KMG]?)")
_RATE = re.compile(r"([0-9]{1,9}) */ *([0-9]*(?:ms|[smhd]))")
_QUEUE = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_HEX = re.compile(r"[0-9a-f]+")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOSTNAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")


def duration_s(text: str) -> float:
    """Seconds of ``90s``, ``1.5h`` or ``1h30m``. ValueError says what was expected."""
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise Wrong(f'{shown(text)} is not a duration, expected numbers with ms s m h d, such as "5m"')
    seconds = sum(float(number) * UNITS_S[unit] for number, unit in parts)
    if seconds > _LONGEST_S:
        raise Wrong(f"{shown(text)} is too long, expected a hundred years at most")
    return seconds


def size_bytes(text: str) -> int:
    """Bytes of ``64M`` (K M G are powers of 1024). ValueError says what was expected."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise Wrong(f'{shown(text)} is not a size, expected a number and one of K M G, such as "64M"')
    return min(int(float(match[1]) * SIZES[match[2]]), _LARGEST)


def is_queue_name(name: str) -> bool:
    """Whether a queue, or a runner, may be called so. Never like the first digits of an id."""
    return _QUEUE.fullmatch(name) is not None and _HEX.fullmatch(name) is None and name not in RESERVED


def text_as(convert: Callable[[str], T], expected: str) -> Callable[[Any, Spot], T]:
    """A reader of strings, made from a function that raises ValueError in words."""

    def read(value: Any, spot: Spot) -> T:
        if not isinstance(value, str):
            raise Wrong(f"{shown(value)} is not a text in quotes, expected {expected}")
        try:
            return convert(value)
        except ValueError as error:
            raise Wrong(str(error)) from None

    return read


def text_that(fits: Callable[[str], object], expected: str) -> Callable[[Any, Spot], str]:
    """A reader of strings that are taken as they stand."""

    def same(text: str) -> str:
        if not fits(text):
            raise Wrong(f"{shown(text)} is not right, expected {expected}")
        return text

    return text_as(same, expected)


def is_reference(text: str) -> bool:
    """Whether it is written ``package.module:name``."""
    module, colon, name = text.partition(":")
    return bool(colon) and all(part.isidentifier() for part in (*module.split("."), *name.split(".")))


def _is_address(text: str) -> bool:
    local, _, domain = text.rpartition("@")
    return bool(local and domain) and text.isprintable() and " " not in domain


def _is_ip(text: str) -> bool:
    try:
        return bool(ipaddress.ip_address(text))
    except ValueError:
        return False


def _is_hostname(text: str) -> bool:
    return len(text) <= 253 and _HOSTNAME.fullmatch(text) is not None


def _rate(text: str) -> tuple[int, float]:
    match = _RATE.fullmatch(text)
    count, span = match.groups() if match else ("0", "")
    span_s = duration_s(span if span[0].isdigit() else f"1{span}") if span else 0.0
    if int(count) < 1 or span_s <= 0:
        raise Wrong(f'{shown(text)} is not a rate, expected a count and a time, such as "600/m"')
    return int(count), span_s


plain_text = text_that(lambda text: text and text.isprintable(), "printable characters, one or more")
argument = text_that(lambda text: "\0" not in text, "a text without NUL")
duration = text_as(duration_s, 'a duration, such as "5m"')
hostname = text_that(_is_hostname, 'a host name, such as "lists.example.org"')
server = text_that(
    lambda text: _is_hostname(text.removesuffix(".")) or _is_ip(text), "a host's name or address"
)
ip_address = text_that(_is_ip, 'an IP address, such as "192.0.2.1"')
node = text_that(_NAME.fullmatch, "a machine's name: up to 64 letters, digits, and . _ -")
address = text_that(_is_address, 'an address, such as "postmaster@example.org"')
sender = text_that(lambda text: not text or _is_address(text), 'an address, or "" for the null sender')
function = text_that(is_reference, '"package.module:function"')
rate = text_as(_rate, 'a count and a time, such as "600/m"')
pattern = text_as(Pattern, "a glob or /regular expression/")
new_queue = text_that(
    is_queue_name,
    "a queue's name: a small letter, then up to 63 of a-z 0-9 _ -; not hexadecimal digits only, nor hold shunt bad",
)
new_host = text_that(_NAME.fullmatch, "a host's name: up to 64 letters, digits, and . _ -")
_size = text_as(size_bytes, 'a size, such as "64M"')


def positive_duration(value: Any, spot: Spot) -> float:
    seconds = duration(value, spot)
    if seconds <= 0:
        raise Wrong(f"{shown(value)} is no time at all, expected more than that")
    return seconds


def size(value: Any, spot: Spot) -> int:
    """A plain number counts bytes."""
    return value if _is_integer(value) and 0 <= value <= _LARGEST else _size(value, spot)


def size_of(low: int) -> Callable[[Any, Spot], int]:
    """A size that is no smaller."""

    def read(value: Any, spot: Spot) -> int:
        found = size(value, spot)
        if found < low:
            raise Wrong(f"{shown(value)} is too little, expected {low} bytes or more")
        return found

    return read


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def boolean(value: Any, spot: Spot) -> bool:
    if not isinstance(value, bool):
        raise Wrong(f"{shown(value)} is not right, expected true or false")
    return value


def integer(low: int, high: int = _LARGEST) -> Callable[[Any, Spot], int]:
    bounds = f"of {low} or more" if high == _LARGEST else f"from {low} to {high}"

    def read(value: Any, spot: Spot) -> int:
        if not _is_integer(value) or not low <= value <= high:
            raise Wrong(f"{shown(value)} is not right, expected a whole number {bounds}")
        return int(value)

    return read


def number(low: float, high: float) -> Callable[[Any, Spot], float]:
    def read(value: Any, spot: Spot) -> float:
        if not (_is_integer(value) or isinstance(value, float)) or not low <= value <= high:
            raise Wrong(f"{shown(value)} is not right, expected a number from {low} to {high}")
        return float(value)

    return read


def choice(*names: str) -> Callable[[Any, Spot], str]:
    def read(value: Any, spot: Spot) -> str:
        if not isinstance(value, str) or value not in names:
            raise Wrong(f"{shown(value)} is not known, expected {', '.join(names[:-1])} or {names[-1]}")
        return value

    return read


def path(value: Any, spot: Spot) -> Path:
    """Relative ones start at the configuration's own folder."""
    return absolute(plain_text(value, spot), spot)


def absolute(text: str, spot: Spot) -> Path:
    return Path(os.path.normpath(spot.reading.folder / text))


def list_of(
    read: Read, *, single: bool = False, some: bool = False
) -> Callable[[Any, Spot], tuple[Any, ...]]:
    """A tuple of values; ``single``: one alone need not stand in brackets; ``some``: not none."""

    def read_list(value: Any, spot: Spot) -> tuple[Any, ...]:
        if single and not isinstance(value, list):
            return (read(value, spot),)
        if not isinstance(value, list):
            raise Wrong(f"{shown(value)} is not a list, expected one in brackets")
        if some and not value:
            raise Wrong("the list is empty, expected one value or more")
        found = (attempt(read, one, spot.at(index)) for index, one in enumerate(value))
        return tuple(one for one in found if one is not None)

    return read_list


def queue(value: Any, spot: Spot) -> str:
    """The name of a queue, real or virtual, that must be there when all is read."""
    name = new_queue(value, spot)
    spot.reading.queues.append((spot, name))
    return name


def host(value: Any, spot: Spot) -> str:
    """The name of an ``[smtp.NAME]`` that must be there when all is read."""
    name = new_host(value, spot)
    spot.reading.hosts.append((spot, name))
    return name


queues = list_of(queue, single=True)
hosts = list_of(host, single=True, some=True)
functions = list_of(function, single=True)
addresses = list_of(address, single=True)
patterns = list_of(pattern, single=True, some=True)
arguments = list_of(argument, some=True)
