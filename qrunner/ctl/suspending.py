"""``suspend`` and ``resume``: what an operator wants to stand still for a while.

``runner:NAME`` claims nothing, on this machine; ``queue:NAME`` takes in and hands nothing out; ``host:NAME`` is as if
it were down, for this machine; mail for ``domain:NAME`` waits, and what else an entry is owed goes out. What is in hand is
finished. It costs no attempt and no lifetime.

Guarantees: what was said is durable, and a running site heeds it within seconds. A name that means nothing is refused;
what is suspended can be resumed although the configuration no longer knows it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches

import click

from qrunner.ctl.changes import change_log, invoking_user
from qrunner.ctl.context import load_site, say
from qrunner.ctl.selectors import DURATION, unique
from qrunner.log import event
from qrunner.rundir import RunDir
from qrunner.site import Site
from qrunner.suspension import KINDS, Target

_DOMAIN = re.compile(r"[^\s@/*?,;:<>()]{1,255}|\[[0-9A-Fa-f.:]+\]|\[IPv6:[0-9A-Fa-f.:]+\]")
_WHAT = "runner:NAME, queue:NAME, host:NAME or domain:NAME"
_TARGETS = "[runner:|queue:|host:|domain:]NAME..."
_WAITING = "what has met {} meanwhile is tried again by itself, within {} at most; sooner by: qrunner-ctl flush --{} {}"


@click.command()
@click.argument("targets", nargs=-1, required=True, metavar=_TARGETS)
@click.option("--reason", default="", metavar="TEXT", help="shown by `status`")
@click.option("--for", "for_s", type=DURATION, metavar="TIME", help="it ends by itself after so long")
@click.pass_context
def suspend(ctx: click.Context, targets: tuple[str, ...], reason: str, for_s: float | None) -> None:
    """Let a runner, a queue, a host or a recipient domain wait, until it is resumed."""
    wanted, user = unique(targets), invoking_user()
    site = load_site(ctx)
    those = [_known(site, word) for word in wanted]
    with change_log(site) as log:
        for target in those:
            site.suspensions.suspend(target, for_s=for_s, reason=reason, by=user)
            name = ":".join(target)
            event(log, "suspend", target=name, user=user, reason=reason or None, for_s=for_s)
            click.echo(name)
            say(str(site.suspensions.find(*target)))


@click.command()
@click.argument("targets", nargs=-1, required=True, metavar=_TARGETS)
@click.pass_context
def resume(ctx: click.Context, targets: tuple[str, ...]) -> None:
    """Let them go on."""
    wanted, user = unique(targets), invoking_user()
    site = load_site(ctx)
    on = {one.target for one in site.suspensions.now()}
    those = [target if (target := _split(word)) in on else _known(site, word) for word in wanted]
    with change_log(site) as log:
        for target in those:
            name = ":".join(target)
            if not site.suspensions.resume(target):
                say(f"{name} is not suspended")
                continue
            event(log, "resume", target=name, user=user)
            click.echo(name)
            if target[0] in ("host", "domain"):
                say(_WAITING.format(name, "five minutes", *target))


def _split(word: str) -> Target:
    """:raises click.BadParameter: there is no such kind."""
    kind, _, name = word.partition(":")
    if kind in KINDS and name:
        return kind, name.rstrip(".").lower() if kind == "domain" else name
    near = get_close_matches(kind, KINDS, 1)
    hint = f"; did you mean {near[0]}:{name or 'NAME'}?" if near else ""
    raise click.BadParameter(f"{word!r} is nothing to suspend, expected {_WHAT}{hint}")


def _known(site: Site, word: str) -> Target:
    """What a word means. :raises click.BadParameter: nothing that we know."""
    kind, name = _split(word)
    _CHECKS[kind](site, name)
    return kind, name


def _check_runner(site: Site, name: str) -> None:
    _must_be_among(site.config.runners, "runner", name)


def _check_queue(site: Site, name: str) -> None:
    config = site.config
    if config.is_virtual(name):
        members = [queue for queue, _ in config.balance[name].members] if name in config.balance else []
        queues = members or [rule.queue for rule in config.routes[name].rules]
        raise click.BadParameter(
            f"{name} is a choice among queues, and nothing waits in it: name one of {' '.join(unique(queues))}"
        )
    _must_be_among(unique((*config.queues(), *site.spool.queues())), "queue", name)


def _check_host(site: Site, name: str) -> None:
    hosts = site.config.smtp
    if name in hosts and hosts[name].mode == "mx":
        raise click.BadParameter(
            f"{name} is each recipient's own host: name the host itself, or domain:NAME, or the runner"
        )
    named = [one for one, host in hosts.items() if host.mode != "mx"]
    by_mx = len(named) < len(hosts)
    met = [path.stem for path in RunDir(site.config.site.state_dir).hosts.glob("*.json")]
    # A host that is found in the DNS and is well is known to nobody beforehand.
    if not (by_mx and "." in name and _DOMAIN.fullmatch(name.partition(":")[0])):
        _must_be_among(unique((*named, *(met if by_mx else ()))), "host", name)


def _check_domain(site: Site, name: str) -> None:
    if not _DOMAIN.fullmatch(name):
        raise click.BadParameter(f"{name!r} is no domain, expected one such as example.org")


_CHECKS: dict[str, Callable[[Site, str], None]] = {
    "runner": _check_runner,
    "queue": _check_queue,
    "host": _check_host,
    "domain": _check_domain,
}


def _must_be_among(known: Iterable[str], kind: str, name: str) -> None:
    names = list(known)
    if name in names:
        return
    near = get_close_matches(name, names, 1)
    hint = f"did you mean {near[0]}?" if near else f"the {kind}s are: {' '.join(names) or 'none'}"
    raise click.BadParameter(f"there is no {kind} {name!r}; {hint}")
