"""A whole site in this process: the real configuration, runners and fates, on a clock that a test advances.

Its queues are in memory, and in place of every host of ``[smtp.*]`` there is a ``Sink``. Doors (``lmtp``,
``maildir``) are left out, since they bring mail from outside: ``enqueue`` does.

Guarantees: no network, no disk, no sleep. Everything runs in an event loop of the site's own, in a thread of its
own, so that a plain test and an asynchronous one use it alike.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import weakref
from collections.abc import Coroutine, Iterable, Mapping
from types import MappingProxyType, TracebackType
from typing import Any, Literal, TypeVar, get_args

from qrunner.config import Config, RunnerConfig, parse
from qrunner.engine.choice import engine_for
from qrunner.engine.loop import Engine
from qrunner.loading import extend_path, load_class
from qrunner.message import Entry
from qrunner.pressure import Load
from qrunner.runner import Door
from qrunner.scores import MemoryScores
from qrunner.site import Site
from qrunner.smtp.sink import Sink, SinkDialer
from qrunner.switchboard import Ref
from qrunner.switchboard.memory import MemorySpool
from qrunner.tally import MemoryTally
from qrunner.testing.clock import FakeClock
from qrunner.testing.entries import MESSAGE, RECIPIENTS, SENDER
from qrunner.testing.judging import NOWHERE

T = TypeVar("T")
Aside = Literal["hold", "shunt", "bad"]
_NAMED = 10
_SLACK_S = 5.0


class FakeSite:
    """A site that runs when it is told to.

    :param toml: the configuration, as it would stand in ``qrunner.toml``. Classes and handlers of the test's own
        module are named by its ``__name__``.
    :param clock: None: one that starts at the first moment of 2026.

    ``pressure`` is what ``only_when_idle`` sees of the machine, in percent; set it.

    :raises ConfigErrors: all that is wrong with it. ConfigError: a class or a handler can't be imported.
    """

    def __init__(self, toml: str, *, clock: FakeClock | None = None) -> None:
        self.config: Config = parse(toml, NOWHERE / "etc" / "qrunner.toml")
        self.clock = clock or FakeClock()
        self.sink: Mapping[str, Sink] = MappingProxyType({name: Sink(name) for name in self.config.smtp})
        self.spool = MemorySpool(self.clock, node=self.config.site.node, site=str(self.config.path))
        self.spool.prepare(self.config.queues())
        self.site = Site(
            self.config,
            spool=self.spool,
            clock=self.clock,
            dialer=SinkDialer(self.sink),
            tally=MemoryTally(),
            scores=MemoryScores(),
            pressure=lambda: Load(self.pressure, self.pressure),
        )
        self.pressure = 0.0
        extend_path(self.config.site.python_path)
        self.engines: list[Engine] = []
        self._loop = _Loop()
        try:
            self._loop.run(self._make())
        except BaseException:
            self._loop.end()
            raise

    def enqueue(
        self,
        queue: str = "in",
        *,
        message: bytes = MESSAGE,
        sender: str = SENDER,
        recipients: Iterable[str] = RECIPIENTS,
        meta: Mapping[str, Any] | None = None,
        delay: float = 0,
    ) -> str:
        """``Site.enqueue``, with a default for every argument."""
        return self.site.enqueue(
            queue, message=message, sender=sender, recipients=recipients, meta=meta, delay=delay
        )

    def entries(self, queue: str) -> list[Entry]:
        """What waits in a queue, oldest due first; ``hold``, ``shunt``, ``bad``: what was set aside from any."""
        if queue in get_args(Aside):
            refs = [ref for name in self.spool.queues() for ref in self.spool.peek(name, queue)]  # type: ignore[arg-type]
        else:
            refs = list(self.spool.peek(queue))
        return [self.spool.read(ref) for ref in refs]

    def run_until_idle(self, limit_s: float = 10) -> None:
        """Lets the runners do all that is due now. Afterwards what is left waits for its time, or for a person, or
        stands in a queue that no runner has.

        :param limit_s: real seconds.
        :raises AssertionError: the time was not enough; it names what still waits.
        :raises Exception: what a runner's ``start`` raised, once; the others go on at the next call.
        """
        try:
            self._loop.run(self._settle(limit_s), limit_s + _SLACK_S)
        except TimeoutError:
            raise AssertionError(f"not idle after {limit_s:g} s; still waiting: {self._waiting()}") from None

    def close(self) -> None:
        """Stops the runners. A site that is not closed ends with the process."""
        if self._loop.is_running:
            try:
                self._loop.run(self._close(), _SLACK_S)
            finally:
                self._loop.end()

    def __enter__(self) -> FakeSite:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def _make(self) -> None:
        for config in self.config.runners.values():
            if config.enabled and not config.door:
                runner_class = load_class(config.class_name)
                if issubclass(runner_class, Door):
                    continue
                for number in self._slices(config):
                    log = logging.getLogger(f"qrunner.{config.name}")
                    self.engines.append(engine_for(self.site, config, number, runner_class, log=log))

    def _slices(self, config: RunnerConfig) -> list[int]:
        return [number for number, part in enumerate(config.slices) if part.enabled]

    async def _settle(self, limit_s: float) -> None:
        async with asyncio.timeout(limit_s):
            for engine in self.engines:
                if engine.state == "starting":
                    await self._open(engine)
            while any([await engine.step() for engine in self.engines if engine.state != "stopped"]):
                pass

    async def _open(self, engine: Engine) -> None:
        try:
            await engine.open(once=True)
        except BaseException:
            await engine.close()
            raise

    async def _close(self) -> None:
        for engine in self.engines:
            engine.stop()
            engine.cut_short()
            await engine.close()

    def _waiting(self) -> str:
        now = self.clock.now_ns()
        refs = [ref for queue in self._owned() for ref in self.spool.peek(queue)]
        due = [ref for ref in refs if ref.active or ref.due_ns <= now]
        named = [self._named(ref) for ref in due[:_NAMED]]
        more = [f"and {len(due) - _NAMED} more"] if len(due) > _NAMED else []
        return "; ".join([*named, *more]) or "nothing that is due, but a runner is busy"

    def _owned(self) -> dict[str, None]:
        return dict.fromkeys(engine.config.queue for engine in self.engines)

    def _named(self, ref: Ref) -> str:
        place = f"in the hands of runner {ref.queue}" if ref.active else f"due in {ref.queue}"
        try:
            entry = self.spool.read(ref)
        except FileNotFoundError:
            return f"{ref.id[:12]} {place}"
        return f"{ref.id[:12]} {place}, from <{entry.sender}> to {', '.join(entry.recipients) or 'nobody'}"


class _Loop:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="fake site")
        self._thread.start()
        # A site that nobody closed must not keep its thread when it is forgotten.
        self._end = weakref.finalize(self, _end, self._loop, self._thread)

    @property
    def is_running(self) -> bool:
        return self._end.alive

    def run(self, work: Coroutine[Any, Any, T], limit_s: float | None = None) -> T:
        """What the coroutine returns. :raises TimeoutError: not within the limit; it was cancelled."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(limit_s)
        except TimeoutError:
            future.cancel()
            raise

    def end(self) -> None:
        self._end()


def _end(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    loop.call_soon_threadsafe(loop.stop)
    thread.join(_SLACK_S)
    # A runner that never comes back keeps its thread; it is a daemon, and ends with the process.
    if not thread.is_alive():
        loop.close()
