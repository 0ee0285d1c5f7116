"""What a site's code makes of an entry: handlers, then the runner's own work.

A plain function is called in a thread of its own, an ``async def`` in the loop. Nothing happens before a fate is
returned.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import inspect
import logging
from collections.abc import Callable, Iterable, Sequence
from types import FunctionType
from typing import Any

from qrunner.bounce import Bounce
from qrunner.log import event
from qrunner.message import Entry, still_owed
from qrunner.threads import in_thread


async def called(function: Callable[..., Any], *arguments: Any) -> Any:
    """The value of a site's function, plain or asynchronous; raises what it raises."""
    if _is_asynchronous(function):
        return await function(*arguments)
    result = await in_thread(function, *arguments)
    return await result if inspect.isawaitable(result) else result


def _is_asynchronous(function: Callable[..., Any]) -> bool:
    plain = getattr(function, "__func__", function)
    if isinstance(plain, FunctionType):
        return _is_coroutine_function(plain)
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


# Asked with every entry.
_is_coroutine_function = functools.lru_cache(maxsize=256)(inspect.iscoroutinefunction)


async def handled(handlers: Sequence[Callable[..., Any]], entry: Entry) -> object:
    """The entry as the handlers left it, or the fate that one of them returned, which ends the chain."""
    given = entry
    for handler in handlers:
        result = await called(handler, entry)
        if isinstance(result, Entry):
            entry = result
        elif result is not None:
            return result
    if entry.recipients != given.recipients:
        # Handlers run again at each attempt: whom they add again and who has it already is not owed.
        entry = dataclasses.replace(entry, recipients=still_owed(entry.envelope, given.history))
    return entry


async def fate_of(
    handlers: Sequence[Callable[..., Any]], dispose: Callable[[Entry], Any], entry: Entry
) -> object:
    """What the handlers and then ``dispose`` decide."""
    left = await handled(handlers, entry)
    return await called(dispose, left) if isinstance(left, Entry) else left


async def tell(
    hooks: Sequence[Callable[[Bounce], Any]],
    bounces: Iterable[Bounce],
    timeout_s: float | None,
    log: logging.Logger,
) -> None:
    """Tells each hook of each bounce. What they raise is logged, but for a cancellation.

    :param timeout_s: of one call.
    """
    for bounce in bounces:
        for hook in hooks:
            try:
                async with asyncio.timeout(timeout_s):
                    await called(hook, bounce)
            except BaseException as error:  # SystemExit too, as of all that a site's code does
                if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                    raise
                id, to = bounce.entry.id, bounce.address
                event(log, "bounced failed", level=logging.ERROR, id=id, to=to, exc=error)


def _is_cancelled() -> bool:
    """Whether we are; a site's code may also have cancelled itself."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
