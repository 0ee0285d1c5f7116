"""The verbs on the configuration: ``init`` lays out a site, ``check`` says all that is wrong with one.

Guarantees: ``init`` writes over nothing; what it lays out passes ``check``. ``check`` starts nothing and changes nothing,
but it imports the site's code, as whoever owns the queues, and never from where others may write.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import string
import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import click

from qrunner.config import Config, ConfigErrors, Problem, load, problem_at
from qrunner.config.lines import Lines
from qrunner.config.lines import Path as KeyPath
from qrunner.config.reading import Reading, Spot
from qrunner.ctl.context import CONFIGURATION, DONE, config_path, say
from qrunner.errors import ConfigError
from qrunner.loading import extend_path, load_class, load_function
from qrunner.owner import become_owner
from qrunner.programs.finding import search_path, unrunnable
from qrunner.rundir import RunDir
from qrunner.runner import BatchRunner
from qrunner.site import Site

# Where each file of a new site goes, and what it is made from.
CONFIG = "etc/qrunner.toml"
LAYOUT = {
    CONFIG: "qrunner.toml",
    "mysite/__init__.py": "__init__.py",
    "mysite/handlers.py": "handlers.py",
    "mysite/runners.py": "runners.py",
}


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.pass_context
def init(ctx: click.Context, directory: Path) -> None:
    """Lay out a site: a commented configuration, queues, and a package with a runner of its own."""
    directory = directory.absolute()
    texts = {place: rendered(template) for place, template in LAYOUT.items()}
    become_owner(directory / "qfiles")
    for folder in (directory, directory / "qfiles", directory / "var"):
        if not folder.is_dir():
            folder.mkdir(mode=0o700, parents=True)
            click.echo(f"{folder}/")
    _lay_out(directory, texts)
    config = load(directory / CONFIG)
    site = Site(config)
    site.spool.prepare(config.queues())
    RunDir(config.site.state_dir).make()
    say(f"\nNext: read {directory / CONFIG}, then\n  qrunner-ctl -c {directory / CONFIG} start")
    ctx.exit(DONE)


def _lay_out(directory: Path, texts: Mapping[str, str]) -> None:
    """Writes the files that are not there; a site that has its own configuration has its own code, too."""
    if (directory / CONFIG).exists():
        say(f"{directory / CONFIG}: kept as it is")
        return
    for place, text in texts.items():
        (directory / place).parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(directory / place, "x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            say(f"{directory / place}: kept as it is")
        else:
            click.echo(str(directory / place))


def rendered(template: str) -> str:
    """A file of a new site."""
    text = files("qrunner.ctl").joinpath("templates", f"{template}.in").read_text("utf-8")
    name = socket.gethostname()
    return string.Template(text).substitute(hostname=name if "." in name else "lists.example.org")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="one JSON document")
@click.pass_context
def check(ctx: click.Context, as_json: bool) -> None:
    """Everything that is wrong with the configuration, each with its line."""
    path, problems = _problems(ctx)
    warnings = [] if path is None or problems else program_warnings(load(path))
    if as_json:
        document = {"config": None if path is None else str(path), "ok": not problems}
        told = {"problems": list(map(_as_json, problems)), "warnings": list(map(_as_json, warnings))}
        click.echo(json.dumps({**document, **told}, indent=2))
    else:
        for problem in problems:
            click.echo(str(problem))
        for warning in warnings:
            say(f"warning: {warning}")
        if not problems:
            say(f"{path}: nothing is wrong")
    ctx.exit(CONFIGURATION if problems else DONE)


def _as_json(problem: Problem) -> dict[str, Any]:
    return {"file": str(problem.file), "line": problem.line, "key": problem.key, "text": problem.text}


def program_warnings(config: Config) -> list[Problem]:
    """Programs that can't be run as things are. No error: mail waits for them, and they may be on their way."""
    return [
        problem_at(config, ("runner", name, "command"), f'"{command[0]}" {wrong}, expected a program')
        for name, runner in config.runners.items()
        if (command := runner.settings.get("command")) and (wrong := unrunnable(command[0], search_path()))
    ]


def _problems(ctx: click.Context) -> tuple[Path | None, list[Problem]]:
    """The file, and all that is wrong with it, by line."""
    path = None
    try:
        path = config_path(ctx)
        config = load(path)
    except ConfigErrors as errors:
        found = list(errors.problems)
        # Who may write the file, or a folder of it, decides what an import runs: then nothing is imported.
        if path is None or any(problem.key in ("configuration", "site.python_path") for problem in found):
            return path, found
    else:
        found = []
        # Our own classes first: whom root becomes may not be able to read where Python is installed.
        for runner in config.runners.values():
            if ":" not in runner.class_name:
                with contextlib.suppress(ConfigError):
                    load_class(runner.class_name)
        become_owner(config.site.queue_dir)
    known = {problem.key for problem in found}
    found += [problem for problem in import_problems(path) if problem.key not in known]
    return path, sorted(found, key=lambda problem: problem.line)


def import_problems(path: Path) -> list[Problem]:
    """What can't be imported of the classes and functions that a file of TOML names, whatever else is wrong with it."""
    text = path.read_text("utf-8")
    data = tomllib.loads(text)
    root = Spot(Reading(path, Path(os.path.realpath(path.absolute().parent)), Lines(text)))
    site = data.get("site")
    extend_path(_folders(site if isinstance(site, dict) else {}, root.reading.folder))
    runners = data.get("runner")
    # What site code prints as it is imported is not what was asked for.
    with contextlib.redirect_stdout(sys.stderr):
        for name, table in (runners if isinstance(runners, dict) else {}).items():
            if isinstance(table, dict):
                _import_all(table, root.at("runner", name))
    return root.reading.problems


def _folders(site: dict[str, Any], folder: Path) -> Iterator[Path]:
    for text in _texts(site.get("python_path")):
        yield Path(os.path.normpath(folder / text))


def _texts(value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [one for one in values if isinstance(one, str)]


def _import_all(table: dict[str, Any], spot: Spot) -> None:
    for name in _texts(table.get("class")):
        with _noted(spot.at("class")):
            if issubclass(load_class(name), BatchRunner) and _slice_count(table) != 1:
                spot.at("slices" if "slices" in table else "instances").wrong(
                    f"{name} looks at all that is due at once, expected one slice"
                )
    for key in ("handlers", "bounced", "hook"):
        is_list = isinstance(table.get(key), list)
        for index, name in enumerate(_texts(table.get(key))):
            where: KeyPath = (key, index) if is_list else (key,)
            with _noted(spot.at(*where)):
                load_function(name)


def _slice_count(table: dict[str, Any]) -> int:
    slices, instances = table.get("slices"), table.get("instances")
    if isinstance(slices, list):
        return len(slices)
    return instances if isinstance(instances, int) else 1


@contextlib.contextmanager
def _noted(spot: Spot) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        spot.wrong(str(error))
