"""The configuration file: TOML in, frozen values out.

Guarantees: every problem is found in one go, each with file, line and key, before anything is started; what is
returned is complete, converted and consistent. No name server is asked, no class imported.

Failures: ConfigErrors, whose text is one problem a line.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any

from qrunner.config import access, keys, sections, whole
from qrunner.config.access import find
from qrunner.config.lines import Lines
from qrunner.config.model import (
    BalanceConfig,
    Config,
    HostConfig,
    Listen,
    RouteConfig,
    RuleConfig,
    RunnerConfig,
    SiteConfig,
    SliceConfig,
    WhenIdle,
    is_loopback,
)
from qrunner.config.problems import ConfigErrors, Problem
from qrunner.config.reading import Reading, Spot, nearest
from qrunner.config.values import duration_s, is_queue_name, size_bytes
from qrunner.schedule import Retry

__all__ = [
    "BalanceConfig",
    "Config",
    "ConfigErrors",
    "HostConfig",
    "Listen",
    "Problem",
    "Retry",
    "RouteConfig",
    "RuleConfig",
    "RunnerConfig",
    "SiteConfig",
    "SliceConfig",
    "WhenIdle",
    "duration_s",
    "find",
    "is_loopback",
    "is_queue_name",
    "load",
    "nearest",
    "parse",
    "problem_at",
    "size_bytes",
]

_AT_LINE = re.compile(r" \(at line (\d+), column \d+\)$")


def load(path: Path) -> Config:
    """Reads and checks a file. ConfigErrors also if others may write it, or a folder that it imports from."""
    text, status = access.read(path)
    return _parse(text, path, check_modes=True, status=status)


def parse(text: str, path: Path, *, check_modes: bool = False) -> Config:
    """Checks a text as if it stood in ``path``, where its relative paths start. ConfigErrors.

    :param check_modes: look at the folders and files that it names, too, as ``load`` does.
    """
    return _parse(text, path, check_modes=check_modes, status=None)


def problem_at(config: Config, key: tuple[str | int, ...], text: str) -> Problem:
    """A problem that shows only later (a class that can't be imported), with the line of its key.

    :param key: the way to it, such as ``("runner", "in", "class")``.
    """
    reading = Reading(config.path, config.path.parent, Lines(config.text))
    Spot(reading, key).wrong(text)
    return reading.problems[0]


def _parse(text: str, path: Path, *, check_modes: bool, status: os.stat_result | None) -> Config:
    data = _toml(text, path)
    root = Spot(Reading(path, Path(os.path.realpath(path.absolute().parent)), Lines(text)))
    config = _config(data, root, text)
    whole.check(config, root)
    if check_modes:
        _check_surroundings(config, status, root)
    if root.reading.problems:
        raise ConfigErrors(root.reading.problems)
    return config


def _toml(text: str, path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except ValueError as error:  # TOMLDecodeError, or int()'s own for a number of thousands of digits
        found = _AT_LINE.search(str(error))
        line = int(found[1]) if found else text.rstrip("\n").count("\n") + 1
        raise access.unusable(path, f"is not TOML: {_AT_LINE.sub('', str(error))}", line) from None
    except RecursionError:
        raise access.unusable(path, "is not TOML: nested too deep") from None


def _config(data: dict[str, Any], root: Spot, text: str) -> Config:
    for name in [name for name in data if name not in keys.SECTIONS]:
        root.at(name).wrong(f"unknown section, {nearest(name, keys.SECTIONS)}")
    part = {name: (data.get(name, {}), root.at(name)) for name in keys.SECTIONS}
    site = sections.site(*part["site"])
    config = Config(
        path=root.reading.folder / root.reading.file.name,
        site=site,
        smtp=sections.hosts(*part["smtp"], site),
        runners=sections.runners(*part["runner"], site),
        balance=sections.balances(*part["balance"]),
        routes=sections.routes(*part["route"]),
        text=text,
        named=tuple(name for _, name in root.reading.queues),
    )
    return whole.with_last_resort(config)


def _check_surroundings(config: Config, status: os.stat_result | None, root: Spot) -> None:
    owners = access.trusted(config.site.queue_dir)
    if status is not None:
        access.check_file(status, owners, root.at("configuration").wrong)
    for folder in config.site.python_path:
        access.check_folder(folder, owners, root.at("site", "python_path").wrong)
    for host in config.smtp.values():
        for file, key in (
            (host.ca_file, "ca_file"),
            (host.client_cert, "client_cert"),
            (host.password_file, "password_file"),
        ):
            if file is not None:
                access.check_readable(file, root.at("smtp", host.name, key).wrong)
    for runner in config.runners.values():
        if runner.class_name == "archive" and runner.settings["path"] is not None:
            place = root.at("runner", runner.name, "path")
            access.check_kind(runner.settings["path"], runner.settings["format"] != "mbox", place.wrong)
