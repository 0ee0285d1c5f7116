"""The verbs that change entries: ``hold release requeue delete unshunt flush``.

``hold`` is about what waits in queues, ``release`` about what is held, ``unshunt`` about what was shunted; each goes
back to the queue that it came from. ``requeue`` and ``delete`` are about everything; of what is in ``bad`` only what
is named, by its id or as ``bad``. What the selectors and terms mean, ``selectors`` and ``changes`` say.
"""

from __future__ import annotations

import itertools

import click

from qrunner.ctl.changes import Task, Terms, Verb, takes_terms
from qrunner.ctl.selectors import Selection
from qrunner.errors import QueueError
from qrunner.message import Draft
from qrunner.site import Site
from qrunner.switchboard import Area, Ref

_NOT_BAD: tuple[Area, ...] = ("queue", "hold", "shunt")


@click.command()
@takes_terms
@click.option("--reason", default="", metavar="TEXT", help="for its history")
@click.pass_context
def hold(ctx: click.Context, selection: Selection, terms: Terms, reason: str) -> None:
    """Set entries aside until they are released."""
    task = Task.begin(ctx, selection, terms)

    def act(ref: Ref) -> bool:
        record = task.record("hold", reason=reason or f"by {task.user}")
        return task.site.spool.shift(ref, area="hold", record=record)

    ctx.exit(task.carry_out(Verb("hold", "held", act, ("queue",), "it does not wait in a queue")))


@click.command()
@takes_terms
@click.pass_context
def release(ctx: click.Context, selection: Selection, terms: Terms) -> None:
    """Put held entries back into the queue each came from."""
    _put_back(ctx, selection, terms, "release", "released", "hold", "it is not held")


@click.command()
@takes_terms
@click.pass_context
def unshunt(ctx: click.Context, selection: Selection, terms: Terms) -> None:
    """Put shunted entries back into the queue each came from."""
    _put_back(ctx, selection, terms, "unshunt", "unshunted", "shunt", "it is not shunted")


def _put_back(
    ctx: click.Context, selection: Selection, terms: Terms, name: str, past: str, area: Area, elsewhere: str
) -> None:
    task = Task.begin(ctx, selection, terms)

    def act(ref: Ref) -> bool:
        return task.site.spool.shift(ref, area="queue", record=task.record("release"))

    ctx.exit(task.carry_out(Verb(name, past, act, (area,), elsewhere, home=area)))


@click.command()
@takes_terms
@click.option("--to", metavar="QUEUE", help="into this queue; else the one that each is in, or came from")
@click.option("--now", is_flag=True, help="due at once; else when it would have been")
@click.pass_context
def requeue(ctx: click.Context, selection: Selection, terms: Terms, to: str | None, now: bool) -> None:
    """Put entries into a queue again, wherever they are."""
    task = Task.begin(ctx, selection, terms)
    site = task.site
    if to is not None and not site.config.is_virtual(to):
        _make_sure_of(site, to)

    def act(ref: Ref) -> bool:
        if ref.area == "bad":
            site.spool.read(ref)  # what is no entry would only come back
        queue = _destination(site, to, ref)
        record = task.record("requeue", delay_s=0, reason=f"by {task.user}", to=queue)
        return site.spool.shift(ref, queue=queue, due_ns=site.clock.now_ns() if now else None, record=record)

    ctx.exit(task.carry_out(Verb("requeue", "requeued", act, searched=_NOT_BAD)))


def _make_sure_of(site: Site, queue: str) -> None:
    known = (*site.spool.queues(), *site.config.queues())
    if queue not in known:
        names = " ".join(dict.fromkeys((*known, *site.config.balance, *site.config.routes)))
        raise click.BadParameter(f"there is no queue {queue!r}; the queues are: {names}", param_hint="--to")
    if queue not in site.spool.queues():
        site.spool.prepare([queue])


def _destination(site: Site, to: str | None, ref: Ref) -> str:
    """The real queue that an entry goes to. :raises QueueError: a route would take it apart."""
    if to is None or not site.config.is_virtual(to):
        return to or ref.queue
    entry = site.spool.read(ref)
    draft = Draft(entry.message, entry.envelope.only(entry.recipients), entry.meta)
    names = sorted({name for name, _ in site.parts(to, draft, site.clock.now_ns())})
    if len(names) != 1:
        raise QueueError(f"{to} would take it apart, to {' and '.join(names)}: name one of them")
    return names[0]


@click.command()
@takes_terms
@click.pass_context
def delete(ctx: click.Context, selection: Selection, terms: Terms) -> None:
    """End entries, for good; nobody is told."""
    task = Task.begin(ctx, selection, terms)
    ctx.exit(task.carry_out(Verb("delete", "deleted", task.site.spool.remove, searched=_NOT_BAD)))


@click.command()
@takes_terms
@click.pass_context
def flush(ctx: click.Context, selection: Selection, terms: Terms) -> None:
    """Make deferred entries due now; with nothing named, all of them.

    Nothing is lost by it, so it does not ask.
    """
    if selection.empty:
        selection = Selection(everything=True, words="ALL")
    task = Task.begin(ctx, selection, terms)
    now_ns = task.site.clock.now_ns()
    # A second ago and one after the other: so they keep their order.
    moments = itertools.count(now_ns - 10**9)

    def act(ref: Ref) -> bool:
        return task.site.spool.shift(ref, due_ns=next(moments))

    def is_deferred(ref: Ref) -> bool:
        return not ref.active and ref.due_ns > now_ns

    elsewhere = "it does not wait in a queue"
    ctx.exit(
        task.carry_out(Verb("flush", "flushed", act, ("queue",), elsewhere, wants=is_deferred, asks=False))
    )
