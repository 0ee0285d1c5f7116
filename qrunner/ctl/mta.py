"""The lines that make an MTA hand its mail to a site, as text to paste.

Guarantees: every path is absolute and every command is started without a shell, by the owner of the queues, so
that a program that is missing defers mail and does not bounce it.

Failures: `ConfigError` where a path can't stand in such a line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

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
