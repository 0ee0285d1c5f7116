"""Plain functions of a site's code, called in threads of their own.

Not guaranteed: that a thread ends. One that outlives its time limit is left behind, and what it returns is
ignored; such threads never keep the process from ending.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any


async def in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's value, or what it raised."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def tell(value: Any, error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(value)
        elif isinstance(error, StopIteration):
            # A future can't carry one (PEP 479).
            done.set_exception(RuntimeError("StopIteration raised"))
        else:
            done.set_exception(error)

    def work() -> None:
        value: Any = None
        error: BaseException | None = None
        try:
            value = function(*arguments)
        except BaseException as raised:  # whatever it is, it is the entry's fate and not the thread's
            error = raised
        try:
            loop.call_soon_threadsafe(tell, value, error)
        except RuntimeError:
            return  # the loop has ended: nobody waits any more

    threading.Thread(target=work, daemon=True, name=f"call {getattr(function, '__name__', '')}").start()
    return await done
