"""SMTP hosts in a thread of the test, and what they have been given, to be waited for."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager

from qrunner.smtp.sink import Received, Sink
from qrunner.smtp.sinkserver import SinkServer

LIMIT_S = 60.0


class Hosts:
    """Some hosts, each on a free port."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.ports: dict[str, int] = {}
        self.sink: dict[str, Sink] = {}
        self.got: list[tuple[str, Received]] = []
        self._news = threading.Condition()
        self._loop = loop
        self._servers: dict[str, SinkServer] = {}

    def told(self, sink: Sink, received: Received) -> None:
        """For the hosts: one of them has taken a message."""
        with self._news:
            self.got.append((sink.name, received))
            self._news.notify_all()

    def by(self, name: str) -> Counter[str]:
        """How often each recipient stands in what this host has."""
        with self._news:
            return Counter(to for host, one in self.got if host == name for to in one.recipients)

    def take_down(self, name: str) -> None:
        """It breaks its connections and refuses new ones."""
        self._do(self._servers[name].stop())

    def bring_back(self, name: str) -> None:
        """It listens again, where it did."""
        self._do(self._servers[name].__aenter__())

    def _do(self, work: Coroutine[None, None, object]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(LIMIT_S)

    def wait_for(self, done: Callable[[], bool], tell: Callable[[], object] = lambda: "") -> None:
        """Until what they have is enough. AssertionError if that takes too long."""
        with self._news:
            assert self._news.wait_for(done, LIMIT_S), f"{len(self.got)} messages in {LIMIT_S:g} s; {tell()}"

    def more_come(self, count: int, limit_s: float) -> bool:
        """Whether so many more have come before the time was over."""
        with self._news:
            before = len(self.got)
            return self._news.wait_for(lambda: len(self.got) >= before + count, limit_s)

    async def serve(self, names: Sequence[str], ready: threading.Event, end: asyncio.Event) -> None:
        """Listens until the end."""
        async with AsyncExitStack() as stack:
            for name in names:
                self.sink[name] = Sink(name)
                server = await stack.enter_async_context(SinkServer(self.sink[name], told=self.told))
                self.ports[name], self._servers[name] = server.port, server
            ready.set()
            await end.wait()


@contextmanager
def sinks(*names: str) -> Iterator[Hosts]:
    """Hosts of these names, that listen as long as the block lasts."""
    loop, ready, end = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    hosts = Hosts(loop)
    thread = threading.Thread(target=loop.run_until_complete, args=(hosts.serve(names, ready, end),))
    thread.start()
    try:
        assert ready.wait(LIMIT_S)
        yield hosts
    finally:
        loop.call_soon_threadsafe(end.set)
        thread.join()
        loop.close()
