"""The stock runner ``command``: hands each message to a program on standard input, never through a shell.

The program gets the message's bytes as they are, an environment of seven variables, three descriptors, an empty folder
to work in, and a session of its own. Its exit code decides, as ``exits`` says: 0 is ``done``, 75 ``later``, anything else
``shunt``; a program that dies of signal N counts as 128 + N. ``done`` goes on to ``next``, if there is one; and with
``output`` what the program printed on standard output goes to that queue, in the same commit.

Guarantees: when the program has ended, and at ``timeout`` and the end of ``grace`` too, all that it has started is ended
before anything becomes of the entry. A program that outlived its killed runner is ended before its entry is run again.
The end of what it printed stands in the history; however much that was, it fills neither memory nor disk.

Not guaranteed: that it runs once. After a crash it runs again, as all site code does.

Failures: a program that is missing or can't be executed is not the message's fault: the entry waits at no cost, and the
runner is ``waiting`` and says why.

Configuration: ``command``, ``exits``, ``output``, ``next``, ``timeout``, ``concurrency``.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import pwd
import re
import signal
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from qrunner.addressing import taken_from_headers
from qrunner.errors import PermanentFailure, Shunted, TemporaryFailure, Unready
from qrunner.fate import Done, Fate, Hold
from qrunner.log import event
from qrunner.message import Entry, Envelope
from qrunner.programs import survivors
from qrunner.programs.finding import search_path, unrunnable
from qrunner.programs.folders import Folders, remove
from qrunner.programs.running import Ended, Order, Running, Wardens
from qrunner.rundir import RunDir
from qrunner.runner import Desk, Runner

T = TypeVar("T")

LARGEST_OUTPUT = 32 << 20
# For a program that is to end, until it is killed. A runner that stops is killed itself if it takes much longer.
_TERM_S, _TERM_STOPPING_S = 5.0, 1.0
_PATIENCE_S = 10.0
_STOP_SHOWS_S = 1.0
_STATUS = re.compile(r"([45]\.\d{1,3}\.\d{1,3})\s+(?=\S)")
_FIELD = re.compile(rb"[!-9;-~]+[ \t]*:")
_MBOX = re.compile(rb"From [^\n]*\n")


class CommandRunner(Runner):
    """Runs a program for each entry. A subclass may say what is run, in which environment, and what its end means."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        settings = desk.config.settings
        self.command: tuple[str, ...] = tuple(settings.get("command") or ())
        self.exits: Mapping[int, str] = settings.get("exits") or {0: "done", 75: "later"}
        self.output: str | None = settings.get("output")
        self._folders: Folders | None = None
        self._wardens = Wardens()
        self._removals: set[asyncio.Future[None]] = set()

    # What a subclass may say otherwise

    def arguments(self, entry: Entry) -> Sequence[str]:
        """The program and its arguments. A path starts at the configuration's folder; a program without a slash is looked
        for on its own ``PATH``."""
        return self.command

    def environment(self, entry: Entry) -> Mapping[str, str]:
        """The program's environment, all of it."""
        return {
            "PATH": search_path(),
            "HOME": _home(),
            "LANG": "C.UTF-8",
            "QRUNNER_ID": entry.id,
            "QRUNNER_QUEUE": self.queue,
            "SENDER": entry.sender,
            "RECIPIENTS": _one_a_line(entry.recipients),
        }

    def concluded(self, entry: Entry, ended: Ended) -> Fate:
        """What becomes of an entry whose program has ended; raises as ``dispose`` may."""
        what = "later" if ended.code is None else self.exits.get(ended.code, "shunt")
        how = f"{ended.program}: {_how(ended)}"
        said = ended.err.last_line or (ended.out.last_line if self.output is None else "")
        if what == "done":
            return self._done(entry, ended, said)
        if what == "later":
            raise TemporaryFailure(said or how, status=_status(said, "4"))
        if what == "bounce":
            raise PermanentFailure(said or how, status=_status(said, "5"))
        told = f"{how}: {said}" if said else how
        if what == "hold":
            return Hold(told)
        raise Shunted(told)

    def reply(self, entry: Entry, printed: bytes) -> Entry:
        """What the program printed, as an entry for ``output``: from the null sender, since a program made it, to those
        whom its headers name; if they name nobody, to the sender of what the program was given.

        :raises Shunted: it is no message.
        """
        recipients, message = _addressed(printed)
        to = recipients or [entry.sender] * bool(entry.sender)
        # Without an id of its own yet: it is another message, whose parent is the entry.
        return Entry(
            id="",
            queue=entry.queue,
            envelope=Envelope.of("", to),
            message=message,
            recipients=tuple(dict.fromkeys(to)),
            meta=entry.meta,
            arrival_ns=entry.arrival_ns,
            due_ns=entry.due_ns,
        )

    def _done(self, entry: Entry, ended: Ended, said: str) -> Fate:
        goes = [entry.forward(queue) for queue in self.desk.config.next]
        if self.output is not None and ended.out.size:
            if not ended.out.is_whole:
                raise Shunted(
                    f"it printed {ended.out.size} bytes, and {LARGEST_OUTPUT} are the most that is taken"
                )
            goes.append(self.reply(entry, ended.out.data).forward(self.output))
        return goes or Done(said)

    # The life of a runner

    async def start(self) -> None:
        """Begins the process that starts programs, and takes away what those of dead runners left in their folders."""
        self._folders = Folders(self._place(), f"{self.name}.{self.slice}")
        await asyncio.to_thread(self._folders.sweep)
        self._wardens = Wardens(self._folders.lock)
        self._wardens.start()
        if self.command and (wrong := unrunnable(self.command[0], search_path())):
            event(
                self.log,
                "no program",
                level=logging.WARNING,
                program=self.command[0],
                reason=wrong,
            )

    def _place(self) -> Path | None:
        state_dir = self.site.config.site.state_dir
        # A site in a test has no folder of its own.
        return RunDir(state_dir).work if state_dir.is_dir() else None

    async def cleanup(self) -> None:
        """After the last program."""
        if self._removals:
            await asyncio.wait(self._removals)
        self._wardens.close()
        if self._folders is not None:
            await asyncio.to_thread(self._folders.close)

    # One entry

    async def dispose(self, entry: Entry) -> Fate:
        """Runs the program."""
        await self._end_survivors(entry)
        ended = await self._run(entry)
        if ended.signal in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL):
            await self._unless_all_stops()
        if ended.error is not None:
            self._refuse(ended)
        return self.concluded(entry, ended)

    async def _end_survivors(self, entry: Entry) -> None:
        record = survivors.open_record(entry.history, self.queue)
        if record is not None:
            await self._make_sure(entry, record)

    async def _make_sure(self, entry: Entry, record: Mapping[str, Any]) -> None:
        """Ends what is left of a start. :raises Unready: something of it lives on."""
        left = await asyncio.to_thread(survivors.end, record, entry.id, self.queue, _PATIENCE_S)
        if left:
            raise Unready(f"what was started for {entry.id} can't be ended: process {left[0]}")

    async def _run(self, entry: Entry) -> Ended:
        assert self._folders is not None
        arguments, environment = self._with_path(self.arguments(entry)), self.environment(entry)
        _check_texts((*arguments, *environment, *environment.values()))
        if wrong := unrunnable(arguments[0], environment.get("PATH", "")):
            raise Unready(f"{arguments[0]} {wrong}")
        whole = LARGEST_OUTPUT if self.output is not None else 0
        try:
            folder = self._folders.fresh()
            try:
                running = await self._wardens.begin(
                    Order(arguments, environment, folder, entry.message, whole)
                )
                with contextlib.closing(running):
                    ended = await self._watch(entry, running)
            finally:
                removal = self._removal(folder)
            if removal is not None:
                # It has ended: what becomes of the entry is not put off by a stop any more.
                await _uninterrupted(removal)
        except OSError as error:
            raise Unready(f"no program can be started: {error.strerror or error}") from error
        return ended

    def _with_path(self, arguments: Sequence[str]) -> Sequence[str]:
        """A program with a slash is a path, from the configuration's folder."""
        program, *rest = arguments
        return [os.path.join(self.site.config.path.parent, program) if "/" in program else program, *rest]

    def _removal(self, folder: Path) -> asyncio.Future[None] | None:
        """Begins to take a folder away; None: it is gone. Where the runner stops, only ``cleanup`` waits for it."""
        with contextlib.suppress(OSError):
            folder.rmdir()
            return None
        removal = asyncio.ensure_future(asyncio.to_thread(remove, folder))
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)
        return removal

    async def _watch(self, entry: Entry, running: Running) -> Ended:
        """Lets it run, to its end or to ours. :raises OSError: its start can't be written down, and it was none."""
        begun_ns = self.clock.monotonic_ns()
        record = survivors.record_of(running.keeper, running.program)
        await self.desk.progress.note(entry, {"what": survivors.STARTED, "queue": self.queue, **record})
        running.go()
        try:
            ended = await running.ended()
        except asyncio.CancelledError:
            # The time is over, or the runner stops. What becomes of the entry waits until nothing of this is left.
            ended = await _uninterrupted(self._end(entry, running, record))
            await self._note_end(entry, ended, begun_ns)
            raise
        if ended.is_unknown:
            await self._make_sure(entry, record)
        await self._note_end(entry, ended, begun_ns)
        return ended

    async def _end(self, entry: Entry, running: Running, record: Mapping[str, Any]) -> Ended:
        """:raises Unready: something of it lives on, whatever we do."""
        running.terminate()
        patience_s = _TERM_STOPPING_S if self.desk.stopping.is_set() else _TERM_S
        if (ended := await _within(patience_s, running.ended())) is not None:
            return ended
        running.kill()
        if (ended := await _within(_PATIENCE_S, running.ended())) is not None:
            return ended
        # Its keeper does not answer, maybe because the program has stopped it.
        event(self.log, "program does not die", level=logging.ERROR, id=entry.id, process=running.program.pid)
        await self._make_sure(entry, record)
        return await running.ended()

    async def _note_end(self, entry: Entry, ended: Ended, begun_ns: int) -> None:
        took_s = round((self.clock.monotonic_ns() - begun_ns) / 1e9, 3)
        line = {"what": survivors.ENDED, "queue": self.queue, **_facts(ended), "took_s": took_s}
        line |= {name: out.text for name, out in (("stdout", ended.out), ("stderr", ended.err)) if out.size}
        try:
            await self.desk.progress.note(entry, line)
        except OSError as error:
            # What it printed is for people; how it ended is carried out all the same.
            event(self.log, "end not written", id=entry.id, reason=str(error), **_facts(ended))

    async def _unless_all_stops(self) -> None:
        """A signal to all of a service reaches programs as well: a stop is not their fault, nor the message's.

        :raises asyncio.CancelledError: we are about to stop.
        """
        if await _within(_STOP_SHOWS_S, self.desk.stopping.wait()):
            raise asyncio.CancelledError

    def _refuse(self, ended: Ended) -> None:
        assert ended.error is not None
        if ended.error == errno.E2BIG:
            raise Shunted(
                f"{ended.program}: arguments and environment are too long, too many recipients maybe"
            )
        words = _WORDS.get(ended.error) or os.strerror(ended.error)
        raise Unready(f"{ended.program}: {words}")


_WORDS = {
    errno.ENOENT: "is not there, or what its first line names is not",
    errno.EACCES: "can't be executed",
    errno.ENOEXEC: "is no program: its first line must name one (#!)",
}


def _home() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_dir or "/"
    except KeyError:
        return "/"


def _one_a_line(addresses: Sequence[str]) -> str:
    for address in addresses:
        if "\n" in address:
            raise Shunted(f"RECIPIENTS has one address a line, and this one is two: {address!r}")
    return "\n".join(addresses)


def _check_texts(texts: Sequence[str]) -> None:
    for text in texts:
        if "\0" in text:
            raise Shunted(f"no program can be given a NUL: {text!r}")


def _addressed(printed: bytes) -> tuple[list[str], bytes]:
    """The recipients that a message's headers name, and the message. :raises Shunted: it is none."""
    message = _MBOX.sub(b"", printed, count=1) if printed.startswith(b"From ") else printed
    if not _FIELD.match(message):
        raise Shunted(f"what it printed is no message, it begins with {printed[:60]!r}")
    try:
        return taken_from_headers(message)
    except PermanentFailure as error:
        raise Shunted(f"what it printed can't be addressed: {error.text}") from error


def _status(said: str, kind: str) -> str:
    """The enhanced status code with which a program's last words begin, if it fits."""
    found = _STATUS.match(said)
    return found[1] if found and found[1].startswith(kind) else f"{kind}.0.0"


def _facts(ended: Ended) -> dict[str, Any]:
    """For a history: its exit code, the name of its signal, or why it was none."""
    if ended.error is not None:
        return {"error": os.strerror(ended.error)}
    return {"exit": ended.exit} if ended.signal is None else {"signal": _signal_name(ended.signal)}


def _how(ended: Ended) -> str:
    if ended.is_unknown:
        return "nobody knows how it ended"
    return f"exit code {ended.exit}" if ended.signal is None else f"ended by {_signal_name(ended.signal)}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


async def _within(limit_s: float, work: Awaitable[T]) -> T | None:
    """What it returns; None: not within so many seconds."""
    try:
        async with asyncio.timeout(limit_s):
            return await work
    except TimeoutError:
        return None


async def _uninterrupted(work: Awaitable[T]) -> T:
    """What it returns, however often we are told to stop meanwhile."""
    task = asyncio.ensure_future(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(task)
    return task.result()
