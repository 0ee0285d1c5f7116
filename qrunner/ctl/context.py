"""What all verbs share: the site they work on, whose user they become, what an error ends with.

Standard output is data, standard error is talk: data goes through ``click.echo``, talk through ``say``.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qrunner.errors import TEMPORARY_ERRNOS, ConfigError, QRunnerError, QueueError

if TYPE_CHECKING:
    from qrunner.config import Config
    from qrunner.site import Site

DONE, FAILED, USAGE, NOT_RUNNING, TRY_AGAIN, CONFIGURATION = 0, 1, 2, 3, 75, 78


class NotRunning(QRunnerError):
    """There is no master to talk to."""


@dataclass(slots=True)
class Settings:
    """What was said before the verb, or beside it. ``ctx.find_root().obj``."""

    config: Path | None = None


def exit_code(error: Exception) -> int | None:
    """The exit code that an error ends the program with; None: it is a bug, or click's own to tell."""
    if isinstance(error, NotRunning):
        return NOT_RUNNING
    if isinstance(error, ConfigError):
        return CONFIGURATION
    if isinstance(error, QueueError):
        return TRY_AGAIN
    if isinstance(error, QRunnerError):
        return FAILED
    if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
        return TRY_AGAIN if error.errno in TEMPORARY_ERRNOS else FAILED
    return None


def config_path(ctx: click.Context) -> Path:
    """The configuration file that this call is about, absolute. :raises ConfigError: there is none."""
    from qrunner.config import find

    return find(ctx.find_root().ensure_object(Settings).config)


def load_config(ctx: click.Context) -> Config:
    """The configuration, checked; from here on this process is the owner of the queues.

    :raises ConfigErrors: with every problem.
    :raises QRunnerError: we are neither the owner nor root.
    """
    from qrunner.config import load
    from qrunner.owner import become_owner

    config = load(config_path(ctx))
    become_owner(config.site.queue_dir)
    return config


def load_site(ctx: click.Context) -> Site:
    """The site; from here on this process is the owner of the queues. Raises as ``load_config``."""
    # Before root becomes the owner, who may not be able to read where Python is installed.
    from qrunner.site import Site

    return Site(load_config(ctx))


@dataclass(frozen=True, slots=True)
class Places:
    """Where a site's files are, as far as a configuration can say that has an error in it."""

    queue_dir: Path
    state_dir: Path
    problems: str = ""


def load_places(ctx: click.Context) -> Places:
    """Where the site is, for verbs that must work while its configuration is being edited: ``stop``, ``status``.

    :raises ConfigErrors: it can't be told.
    """
    from qrunner.config import load
    from qrunner.owner import become_owner

    path = config_path(ctx)
    try:
        site = load(path).site
        places = Places(site.queue_dir, site.state_dir)
    except ConfigError as error:
        places = _salvage(path, error)
    become_owner(places.queue_dir)
    return places


def _salvage(path: Path, error: ConfigError) -> Places:
    """The two folders from a text that is no configuration just now; the error again if they are not in it."""
    try:
        text, others_may_write = path.read_text("utf-8", "replace"), path.stat().st_mode & 0o022
    except OSError:
        raise error from None
    if others_may_write:
        raise error
    found = dict(re.findall(r"""^\s*(queue_dir|state_dir)\s*=\s*["']([^"'\n]+)["']""", text, re.MULTILINE))
    base = path.absolute().parent.resolve()
    if found.keys() != {"queue_dir", "state_dir"}:
        raise error
    queue_dir, state_dir = (Path(os.path.normpath(base / found[key])) for key in ("queue_dir", "state_dir"))
    return Places(queue_dir, state_dir, str(error))


def say(text: str) -> None:
    """Talk: a line, or several, on standard error, whatever they are made of."""
    from qrunner.log import visible

    click.echo(visible(text, keep="\n"), err=True)


def colour(text: str, **style: object) -> str:
    """The text in a colour where standard output is a terminal and ``NO_COLOR`` does not forbid it."""
    if os.environ.get("NO_COLOR") or not sys.stdout.isatty():
        return text
    return click.style(text, **style)  # type: ignore[arg-type]
