"""The lines that make an MTA hand its mail to a site, as text to paste.

Guarantees: every path is absolute and every command is started without a shell, by the owner of the queues, so
that a program that is missing defers mail and does not bounce it.

Failures: `ConfigError` where a path can't stand in such a line.
"""

from __future__ import annotations

import os
import pwd
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from qrunner.config import Config, Listen
from qrunner.ctl.context import load_config
from qrunner.errors import ConfigError

# What local(8) runs without a shell, without the blank: the line is split there. pipe(8) takes the same.
_PLAIN = re.compile(r"[A-Za-z0-9@_=+:,./-]+\Z")
_SERVICE = "qrunner"

_INTRO = """\
# Postfix in front of qrunner, by {ways}. One way is enough; different addresses may take different ones.
# Add what stands below a file's name to that file, run the commands named there, then `postfix reload`.
"""
_MAIN = """\
# For mail to {domains}:
relay_domains = {domains}
transport_maps = {type}:{transport}
"""
_LMTP = """\
# {domain}, through the LMTP door. (Then: postmap {type}:{transport})
{domain}  lmtp:{door}
"""
_PIPE_MASTER = """\
{service}  unix  -  n  n  -  20  pipe
  flags=q user={owner} null_sender=
  argv={inject} -Q {queue_dir} -q {queue} -f ${{sender}} -- ${{recipient}}
"""
_PIPE_TRANSPORT = """\
# {domain}, through the pipe. (Then: postmap {type}:{transport})
{domain}  {service}:
"""
_ALIAS_MAIN = """\
# For single addresses of this machine: local(8) runs a command as the owner of the file that names it.
alias_maps = {alias_maps}, {type}:{aliases}
"""
_ALIAS = """\
# One line an address. (Then: chown {owner} {aliases} && postalias {type}:{aliases})
list: "|{inject} -Q {queue_dir} -q {queue}"
"""


def postfix_lines(
    queue_dir: Path,
    inject: Path,
    owner: str,
    queue: str = "in",
    lmtp: str | None = None,
    *,
    domains: Sequence[str] = ("lists.example.org",),
    alias_dir: Path | None = None,
    config_dir: Path = Path("/etc/postfix"),
    map_type: str = "hash",
    alias_maps: str = "hash:/etc/aliases",
) -> str:
    """What to paste where, for Postfix.

    :param inject: the installed ``qrunner-inject``.
    :param owner: user name of the owner of ``queue_dir``; Postfix runs no command as root.
    :param lmtp: where an LMTP door listens, as ``listen`` says: ``HOST:PORT`` or ``unix:PATH``; None: no such door.
    :param alias_dir: where the alias file is to be, a directory of the owner; default: beside ``queue_dir``.
    :param config_dir: Postfix's; `map_type` and `alias_maps`: what ``postconf -h default_database_type`` and
        ``postconf -h alias_maps`` print.
    :raises ConfigError: a path has a blank or a character that a shell would be needed for.
    """
    facts = {
        "queue_dir": _plain(queue_dir),
        "inject": _plain(inject),
        "main": str(config_dir / "main.cf"),
        "master": str(config_dir / "master.cf"),
        "transport": str(config_dir / "transport"),
        "alias_maps": alias_maps,
        "aliases": _plain((alias_dir or queue_dir.parent) / "aliases"),
        "owner": owner,
        "queue": queue,
        "service": _SERVICE,
        "type": map_type,
    }
    ways = [*(["LMTP"] if lmtp else []), *([] if owner == "root" else ["pipe(8)", "an alias"])]
    if not ways:
        raise ConfigError("Postfix runs no command as root, the owner of the queues: configure an LMTP door")
    sections = _sections(lmtp, owner != "root", domains, facts)
    return _INTRO.format(ways=" or ".join(ways)) + "".join(f"\n### {file}\n{text}" for file, text in sections)


def _sections(
    lmtp: str | None, commands: bool, domains: Sequence[str], facts: dict[str, str]
) -> Iterator[tuple[str, str]]:
    yield facts["main"], _MAIN.format(domains=", ".join(domains), **facts)
    if lmtp:
        lines = (_LMTP.format(domain=domain, door=_door(lmtp), **facts) for domain in domains)
        yield facts["transport"], "".join(lines)
    if commands:
        yield facts["master"], _PIPE_MASTER.format(**facts)
        lines = (_PIPE_TRANSPORT.format(domain=domain, **facts) for domain in domains)
        yield facts["transport"], "".join(lines)
        yield facts["main"], _ALIAS_MAIN.format(**facts)
        yield facts["aliases"], _ALIAS.format(**facts)


def _door(listen: str) -> str:
    """A door's ``listen`` as lmtp(8) spells it; an IPv6 address keeps its brackets."""
    if listen.startswith("unix:"):
        return "unix:" + _plain(Path(listen.removeprefix("unix:")))
    return "inet:" + listen


def _plain(path: Path) -> str:
    """The absolute path, if Postfix can hand it on as it is."""
    text = str(path.absolute())
    if not _PLAIN.match(text):
        raise ConfigError(
            f"{text!r} can't stand in a command of Postfix: only letters, digits and @_=+:,./- are plain there"
        )
    return text


@click.command("mta-config")
@click.argument("mta", type=click.Choice(["postfix"]))
@click.option("-q", "--queue", default="in", show_default=True, metavar="QUEUE", help="where its mail goes")
@click.option(
    "--domain", "domains", multiple=True, metavar="DOMAIN", help="whose mail; else the site's hostname"
)
@click.option(
    "--inject", metavar="PATH", help="the qrunner-inject that it is to start; else the one beside this"
)
@click.pass_context
def mta_config(
    ctx: click.Context, mta: str, queue: str, domains: tuple[str, ...], inject: str | None
) -> None:
    """The lines that make an MTA hand its mail to this site, to paste."""
    pipe = Path(inject) if inject else installed_pipe()
    config = load_config(ctx)
    if queue not in config.queues():
        known = " ".join(config.queues())
        raise click.BadParameter(f"there is no queue {queue!r}; the queues are: {known}", param_hint="-q")
    lines = postfix_lines(
        config.site.queue_dir,
        pipe,
        _owner(config.site.queue_dir),
        queue,
        _lmtp_door(config),
        domains=domains or (config.site.hostname,),
        **_said_by_postfix(),
    )
    click.echo(lines, nl=False)


def installed_pipe() -> Path:
    """The ``qrunner-inject`` that was installed with this program, or stands beside it in a checkout.

    :raises ConfigError: there is none.
    """
    checkout = Path(__file__).parents[2] / "bin"
    for folder in (Path(sys.argv[0]).parent, Path(sysconfig.get_path("scripts")), checkout):
        file = folder.absolute() / "qrunner-inject"
        if os.access(file, os.X_OK):
            return file
    raise ConfigError("qrunner-inject is not installed beside this program: name it by --inject")


def _owner(queue_dir: Path) -> str:
    try:
        return pwd.getpwuid(queue_dir.stat().st_uid).pw_name
    except FileNotFoundError:
        raise ConfigError(f"{queue_dir} is not there: `qrunner-ctl init` lays out a site") from None
    except KeyError:
        raise ConfigError(f"the owner of {queue_dir} has no name, and Postfix wants one for user=") from None


def _lmtp_door(config: Config) -> str | None:
    for runner in config.runners.values():
        if runner.enabled and runner.class_name == "lmtp" and runner.settings.get("protocol") == "lmtp":
            listen = runner.settings["listen"]
            return str(listen) if isinstance(listen, Listen) else None
    return None


def _said_by_postfix() -> dict[str, Any]:
    """What the Postfix of this machine says of itself; nothing where there is none."""
    names = ("config_directory", "default_database_type", "alias_maps")
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
    try:
        answer = subprocess.run(
            ["postconf", "-h", *names],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
            env={**os.environ, "PATH": path},
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    said = answer.stdout.splitlines()
    if len(said) != len(names) or not all(said):
        return {}
    return {"config_dir": Path(said[0]), "map_type": said[1], "alias_maps": said[2]}
