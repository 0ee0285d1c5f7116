"""The verb ``inject``: messages into a queue, as the MTA's pipe does it, for people and scripts.

One message on standard input, or those of files, of an mbox, of a Maildir. The envelope is that of the command line;
what it leaves out is, of standard input, what the environment says (``$SENDER``, ``$ORIGINAL_RECIPIENT``,
``$RECIPIENT``), of the others, what a delivery wrote on top of the message (``Return-Path``, ``Delivered-To`` or
``X-Original-To``, the ``From `` line of an mbox). Without any sender, it is the user at the site's host name.

Guarantees: an id is printed when its message is durable. Files are read only, and their messages stay where they are.

Not guaranteed: that a second run after an interruption leaves out what the first has injected.

Failures: 75 where the queue takes nothing; 1 where single messages can't be taken, the others are.
"""

from __future__ import annotations

import logging
import mailbox
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from qrunner.addressing import header_fields, name_of, taken_from_headers, text_of_field
from qrunner.config.values import size_bytes
from qrunner.ctl.changes import change_log, invoking_user, login
from qrunner.ctl.context import DONE, FAILED, load_site, say
from qrunner.ctl.selectors import unique
from qrunner.errors import PermanentFailure
from qrunner.inject import text_of, uncensored, without_from_line
from qrunner.log import event
from qrunner.message import checked_meta
from qrunner.site import Site


@dataclass(frozen=True, slots=True)
class Letter:
    """A message as it was found: where, and which envelope its place gives it; None: none."""

    where: str
    message: bytes
    sender: str | None = None
    recipients: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Order:
    """What the command line says of every message. ``login`` is who sends it if nothing else says."""

    login: str
    queue: str
    sender: str | None
    recipients: tuple[str, ...]
    meta: Mapping[str, str]
    from_headers: bool
    no_recipients: bool
    max_size: int


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
@click.pass_context
def inject(
    ctx: click.Context,
    /,
    files: tuple[str, ...],
    mboxes: tuple[str, ...],
    maildirs: tuple[str, ...],
    **said: Any,
) -> None:
    """Put messages into a queue: the one on standard input, or those of files."""
    user, order = invoking_user(), Order(login(), **said)
    site = load_site(ctx)
    _check_queue(site, order.queue)
    sources = (
        *((_of_file, file) for file in files),
        *((_of_mbox, file) for file in mboxes),
        *((_of_maildir, folder) for folder in maildirs),
    )
    if not sources:
        _check_recipients(order)
        sources = ((_of_input, "standard input"),)
    with change_log(site) as log:
        done = [_inject_all(site, order, user, log, read, place) for read, place in sources]
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
    if not (order.recipients or order.from_headers or order.no_recipients or _from_environment()):
        raise click.UsageError(
            "no recipient: neither an argument nor -t nor $ORIGINAL_RECIPIENT nor $RECIPIENT"
        )


def _from_environment() -> tuple[str, ...]:
    found = os.environ.get("ORIGINAL_RECIPIENT") or os.environ.get("RECIPIENT")
    return (found,) if found else ()


Source = Callable[[str], Iterator[Letter]]


def _inject_all(site: Site, order: Order, user: str, log: logging.Logger, read: Source, place: str) -> bool:
    """Everything in one place; False: something was left out, which was said.

    :raises QueueError: the queue takes nothing.
    """
    whole = True
    try:
        for letter in read(place):
            try:
                id = _inject_one(site, order, letter)
            except PermanentFailure as error:
                say(f"{letter.where}: {error}")
                whole = False
            else:
                click.echo(id)
                event(log, "inject", id=id, queue=order.queue, user=user, where=letter.where)
    except (OSError, mailbox.Error) as error:
        say(f"{place}: {error}")
        return False
    return whole


def _inject_one(site: Site, order: Order, letter: Letter) -> str:
    message = letter.message
    if order.max_size and len(message) > order.max_size:
        raise PermanentFailure(f"larger than {order.max_size} bytes")
    recipients = list(order.recipients)
    if order.from_headers:
        addressed, message = taken_from_headers(message)
        recipients += addressed
    if not recipients and not order.no_recipients:
        recipients += letter.recipients
        if not recipients:
            raise PermanentFailure("no recipient")
    sender = order.sender if order.sender is not None else letter.sender
    if sender is None:
        sender = f"{order.login}@{site.config.site.hostname}"
    return site.enqueue(
        order.queue, message=message, sender=sender, recipients=unique(recipients), meta=order.meta
    )


# Where messages come from


def _of_input(place: str) -> Iterator[Letter]:
    if sys.stdin.isatty():
        say("the message, ended by Ctrl-D:")
    message = without_from_line(sys.stdin.buffer.read())
    sender, original = os.environ.get("SENDER"), os.environ.get("ORIGINAL_RECIPIENT")
    if sender is not None:
        sender = uncensored(sender, message, b"return-path:")
    if original:
        yield Letter(place, message, sender, (uncensored(original, message, b"x-original-to:"),))
    else:
        yield Letter(place, message, sender, _from_environment())


def _of_file(place: str) -> Iterator[Letter]:
    yield _delivered(place, Path(place).read_bytes())


def _of_mbox(place: str) -> Iterator[Letter]:
    box = mailbox.mbox(place, create=False)
    try:
        for number, key in enumerate(box.iterkeys(), 1):
            yield _delivered(f"{place}, message {number}", box.get_bytes(key, from_=True))
    finally:
        box.close()


def _of_maildir(place: str) -> Iterator[Letter]:
    box = mailbox.Maildir(place, create=False)
    # The names begin with the time of delivery.
    for key in sorted(box.keys()):
        yield _delivered(f"{place}, {key}", box.get_bytes(key))


def _delivered(where: str, data: bytes) -> Letter:
    """A message that was delivered before; whoever did that wrote its envelope on top of it."""
    message = without_from_line(data)
    fields = header_fields(message)
    paths = [text_of_field(field) for field in fields if name_of(field) == b"return-path"]
    sender = paths[0].removeprefix("<").removesuffix(">") if paths else None
    if sender is None and message != data:
        word = (data.split(None, 2)[1:2] or [b""])[0].decode("utf-8", "surrogateescape")
        sender = word if "@" in word else "" if word.upper() == "MAILER-DAEMON" else None
    to = [
        text_of_field(field)
        for name in (b"delivered-to", b"x-original-to")
        for field in fields
        if name_of(field) == name
    ]
    return Letter(where, message, sender, tuple(address for address in to[:1] if address))
