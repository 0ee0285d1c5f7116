"""The verb ``inject``: messages into a queue, as the MTA's pipe does it, for people and scripts.

One message on standard input, or those of files, of an mbox, of a Maildir. The envelope is that of the command line;
what it leaves out is, of standard input, what the environment says (``$SENDER``, ``$ORIGINAL_RECIPIENT``,
``$RECIPIENT``), of the others, what a delivery wrote on top of the message (the ``From `` line of an mbox or
``Return-Path``, ``Delivered-To`` or ``X-Original-To``). Without any sender, it is the user at the site's host name.

Guarantees: an id is printed when its message is durable. Files are read only, and their messages stay where they are.
An mbox or a Maildir can be gone on with after an interruption (``bulk``).

Failures: 75 where the queue takes nothing; 1 where single messages can't be taken, the others are.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import click

from qrunner.config.values import size_bytes
from qrunner.ctl.bulk import Bulk, Stop, door
from qrunner.ctl.changes import change_log, invoking_user, login
from qrunner.ctl.context import DONE, FAILED, load_site, say
from qrunner.ctl.letters import Box, Changed, Letter, Maildir, MboxFile, from_environment, of_file, of_input
from qrunner.ctl.mbox import QUOTINGS, NoMbox
from qrunner.ctl.orders import Order
from qrunner.errors import PermanentFailure
from qrunner.inject import text_of
from qrunner.log import event
from qrunner.message import checked_meta
from qrunner.site import Site


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> int:
    try:
        return size_bytes(value) if value else 0
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None


def _meta(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> Mapping[str, str]:
    pairs = [text_of(value).partition("=") for value in values]
    if not all(key and equals for key, equals, _ in pairs):
        raise click.BadParameter("expected KEY=VALUE", ctx, param)
    try:
        return checked_meta({key: value for key, _, value in pairs})
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None


def _texts(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    if not all(values):
        raise click.BadParameter("an address may not be empty", ctx, param)
    return tuple(map(text_of, values))


def _sender(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    return value if value is None else "" if value == "<>" else text_of(value)


@click.command()
@click.argument("recipients", nargs=-1, metavar="[RCPT]...", callback=_texts)
@click.option("-q", "--queue", default="in", show_default=True, metavar="QUEUE", help="real or virtual")
@click.option("-f", "--from", "sender", callback=_sender, metavar="SENDER", help="'' is the null sender")
@click.option("-m", "--meta", multiple=True, callback=_meta, metavar="KEY=VALUE", help="for the runners")
@click.option("-t", "from_headers", is_flag=True, help="recipients also from To, Cc and Bcc; Bcc is removed")
@click.option("--no-rcpt", "no_recipients", is_flag=True, help="the message has no recipients")
@click.option("--max-size", callback=_size, metavar="N", help="refuse what is larger (K, M, G)")
@click.option("--file", "files", multiple=True, metavar="FILE", help="a message in a file")
@click.option("--mbox", "mboxes", multiple=True, metavar="FILE", help="every message of an mbox")
@click.option("--maildir", "maildirs", multiple=True, metavar="DIR", help="every message of a Maildir")
@click.option(
    "--quoting",
    type=click.Choice(QUOTINGS),
    default=QUOTINGS[0],
    show_default=True,
    help="how the mbox has lines that begin with From",
)
@click.option("--again", is_flag=True, help="also what an mbox or a Maildir gave before")
@click.pass_context
def inject(
    ctx: click.Context,
    /,
    files: tuple[str, ...],
    mboxes: tuple[str, ...],
    maildirs: tuple[str, ...],
    again: bool,
    **said: Any,
) -> None:
    """Put messages into a queue: the one on standard input, or those of files.

    An mbox or a Maildir that was interrupted goes on where it was when the same command is given again.
    """
    user, myself = invoking_user(), login()
    site = load_site(ctx)
    order = Order(f"{myself}@{site.config.site.hostname}", **said)
    _check_queue(site, order.queue)
    with change_log(site) as log:
        if not (files or mboxes or maildirs):
            _check_recipients(order)
            ctx.exit(DONE if _alone(site, order, user, log, of_input) else FAILED)
        done = [_alone(site, order, user, log, partial(of_file, file), file) for file in files]
        boxes: list[tuple[str, Callable[[], Box]]] = [
            *((file, partial(MboxFile, file, order.quoting, order.max_size)) for file in mboxes),
            *((folder, partial(Maildir, folder, order.max_size)) for folder in maildirs),
        ]
        if boxes:
            with Stop() as stop, door(site, user, stop) as staging:
                bulk = Bulk(site, order, user, log, staging, stop, again)
                done += [not stop.asked and _whole(bulk, place, box) for place, box in boxes]
    ctx.exit(DONE if all(done) else FAILED)


def _check_queue(site: Site, queue: str) -> None:
    config = site.config
    known = dict.fromkeys((*config.queues(), *config.balance, *config.routes, *site.spool.queues()))
    if queue not in known:
        raise click.BadParameter(
            f"there is no queue {queue!r}; there are: {' '.join(known)}", param_hint="-q"
        )


def _check_recipients(order: Order) -> None:
    """Before anything is read: a person who forgot them should not type a message first."""
    if not (order.recipients or order.from_headers or order.no_recipients or from_environment()):
        raise click.UsageError(
            "no recipient: neither an argument nor -t nor $ORIGINAL_RECIPIENT nor $RECIPIENT"
        )


def _alone(
    site: Site, order: Order, user: str, log: logging.Logger, read: Callable[[], Letter], place: str = ""
) -> bool:
    """One message; False: it was left out, which was said.

    :raises QueueError: the queue takes nothing.
    """
    try:
        letter = read()
        id = site.accept(order.queue, order.draft(letter))[0]
    except PermanentFailure as error:
        say(f"{letter.where}: {error}")
        return False
    except OSError as error:
        say(f"{place}: {error}")
        return False
    click.echo(id)
    event(log, "inject", id=id, queue=order.queue, user=user, where=letter.where)
    return True


def _whole(bulk: Bulk, place: str, opened: Callable[[], Box]) -> bool:
    """A box; False: something of it was left out, which was said.

    :raises QueueError: the queue takes nothing.
    """
    try:
        with contextlib.closing(opened()) as box:
            return bulk.inject(box)
    except (OSError, NoMbox, Changed) as error:
        say(f"{place}: {error}")
        return False
