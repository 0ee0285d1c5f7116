"""SMTP hosts in a thread of the test, and what they have been given, to be waited for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager

from qrunner.smtp.sink import Received, Sink
from qrunner.smtp.sinkserver import SinkServer

LIMIT_S = 60.0


class Hosts:
    """Some hosts, each on a free port."""

    def __init__(self) -> None:
        self.ports: dict[str, int] = {}
        self.got: list[tuple[str, Received]] = []
        self._news = threading.Condition()

    def told(self, sink: Sink, received: Received) -> None:
        """For the hosts: one of them has taken a message."""
        with self._news:
            self.got.append((sink.name, received))
            self._news.notify_all()

    def wait_for(self, done: Callable[[], bool], tell: Callable[[], object] = lambda: "") -> None:
        """Until what they have is enough. AssertionError if that takes too long."""
        with self._news:
            assert self._news.wait_for(done, LIMIT_S), f"{len(self.got)} messages in {LIMIT_S:g} s; {tell()}"

    async def serve(self, names: Sequence[str], ready: threading.Event, end: asyncio.Event) -> None:
        """Listens until the end."""
        async with AsyncExitStack() as stack:
            for name in names:
                server = await stack.enter_async_context(SinkServer(Sink(name), told=self.told))
                self.ports[name] = server.port
            ready.set()
            await end.wait()


@contextmanager
def sinks(*names: str) -> Iterator[Hosts]:
    """Hosts of these names, that listen as long as the block lasts."""
    hosts, ready = Hosts(), threading.Event()
    loop, end = asyncio.new_event_loop(), asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(hosts.serve(names, ready, end),))
    thread.start()
    try:
        assert ready.wait(LIMIT_S)
        yield hosts
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join()
        loop.close()
