"""The log: one line a record, whatever the record says.

::

    2026-11-21T07:30:00.123+00:00 info runner:out/0[4711] delivered id=3f… to=ann@example.org host=mta1

Time with zone, level, program and process, what happened, and its fields: `grep id=3f` tells a message's life, over
every program and every rotated file. A field's value stands in double quotes, with backslashes as in JSON, when it
is empty or has a space, a quote, ``=`` or a backslash in it.

Guarantees: a record is one line and one ``write``, at the end of the file as it then is, so that several processes
may write to one file; what came from outside cannot begin a line of its own, nor reach the terminal as a command.
Logging stops nothing: a line that the disk has no room for is dropped, and the next one that fits says how many were.

Not guaranteed: that a line is on stable storage.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

_WANTS_QUOTES = re.compile(r'[\s"=\\]|\A\Z').search
_SEVERAL = (list, tuple, set, frozenset)
_ROOT = "qrunner"
_OURS = f"{_ROOT}."


def visible(text: str, keep: str = "") -> str:
    """Text from outside, fit for a terminal or a line of a log.

    Control characters, line ends, marks that turn the direction of writing, and bytes that were not UTF-8 are shown
    as ``\\x1b``, ``\\n``, ``\\u202e``, ``\\xff``. A backslash stays one: this is for eyes, not for reading back.

    :param keep: characters that may stay as they are, such as ``"\\n"``.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that surrogateescape has carried here
        return f"\\x{code - 0xDC00:02x}"
    return repr(character)[1:-1]


def fields(values: dict[str, object]) -> str:
    """``key=value key="other value"``; a value of None is left out, a list is joined by commas."""
    return " ".join([f"{key}={_value(value)}" for key, value in values.items() if value is not None])


def _value(value: object) -> str:
    if isinstance(value, str):
        text = value
    elif isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    else:
        text = ",".join(map(str, value)) if isinstance(value, _SEVERAL) else str(value)
    if text.isalnum():
        return text
    if _WANTS_QUOTES(text):
        text = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return visible(text)


def event(
    log: logging.Logger,
    what: str,
    /,
    *,
    level: int = logging.INFO,
    exc: BaseException | None = None,
    **values: object,
) -> None:
    """Write that something happened.

    :param what: a word or two, always the same for the same kind of event; they are what an operator searches for.
    :param exc: its traceback goes into the same line.
    :param values: the fields, `id` first where there is one.
    """
    if log.isEnabledFor(level):
        log.handle(_Event(log.name, level, what, exc, values))


class _Event(logging.LogRecord):
    """A record as `log.log` makes it, but for what would cost more than the rest of the line: the place in our source,
    the thread, and the name that a process of multiprocessing would have."""

    def __init__(
        self, name: str, level: int, what: str, exc: BaseException | None, values: dict[str, object]
    ) -> None:
        now_s = time.time()
        # By name, since formats such as "%(filename)s" look there.
        self.__dict__.update(
            _UNTOLD,
            name=name,
            levelno=level,
            levelname=logging.getLevelName(level),
            msg=what,
            exc_info=None if exc is None else (type(exc), exc, exc.__traceback__),
            created=now_s,
            msecs=now_s % 1 * 1000,
            process=os.getpid(),
            fields=values,
        )


_UNTOLD: dict[str, object] = {
    **dict.fromkeys(("args", "exc_text", "stack_info", "thread", "threadName", "processName", "taskName")),
    **dict.fromkeys(("pathname", "filename", "module", "funcName"), ""),
    "lineno": 0,
    "relativeCreated": 0.0,
}


class LineFormatter(logging.Formatter):
    """Any record, also one of a library or of a site's own code, as one line without its line end."""

    def __init__(self, program: str) -> None:
        super().__init__()
        self.program = visible(program)
        self._second = -1, ""

    def _when(self, time_s: float) -> str:
        """RFC 3339, to the millisecond."""
        second, known = int(time_s), self._second
        if second != known[0]:
            known = self._second = second, datetime.fromtimestamp(second, UTC).isoformat()[:-6]
        return f"{known[1]}.{int(time_s % 1 * 1000):03d}+00:00"

    def format(self, record: logging.LogRecord) -> str:
        values: dict[str, object] = getattr(record, "fields", {})
        if not (record.name == _ROOT or record.name.startswith(_OURS)):
            values = {**values, "logger": record.name}
        if record.exc_info and record.exc_info[0]:
            values = {**values, "traceback": self.formatException(record.exc_info)}
        what, told = visible(record.getMessage()), fields(values)
        line = f"{self._when(record.created)} {record.levelname.lower()} {self.program}[{record.process}]"
        return " ".join([line, *([what] if what else ()), *([told] if told else ())])


class FileHandler(logging.Handler):
    """Appends lines to a file that others may append to as well, and that may be rotated away beneath it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._fd = self._open()
        self._lost = 0
        self._torn = False

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(self.path, flags, 0o600)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # arguments that do not fit their format are a bug of the caller's, and told as one
            self.handleError(record)
            return
        if self._lost:
            line += f" lines_lost={self._lost}"
        self._write(line.encode("utf-8", "backslashreplace") + b"\n")

    def _write(self, line: bytes) -> None:
        # A line that was cut short by a full disk is ended before the next begins.
        data = b"\n" + line if self._torn else line
        try:
            written = os.write(self._fd, data)
        except OSError:
            written = 0
        if written:
            self._torn = written < len(data)
        self._lost = 0 if written == len(data) else self._lost + 1

    def reopen(self) -> None:
        """Go on in the file that has the name now. Where it cannot be opened, OSError, and the old one stays."""
        fresh = self._open()
        self.acquire()
        try:
            os.close(self._fd)
            self._fd = fresh
        finally:
            self.release()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        super().close()


def setup(
    program: str, *, path: Path | None = None, stream: TextIO | None = None, level: int = logging.INFO
) -> None:
    """Say where this process logs; what an earlier call said is forgotten.

    :param program: who speaks: ``master``, ``runner:out/0``, ``ctl``.
    :param path: the file; its folder must be there. Raises OSError if it cannot be opened.
    :param stream: standard error, for a program in the foreground. With neither, standard error it is.
    :param level: what is worth a line of ours and of a site's; libraries are heard from `WARNING` on.
    """
    handlers: list[logging.Handler] = []
    if path is not None:
        handlers.append(FileHandler(path))
    if stream is not None or path is None:
        handlers.append(logging.StreamHandler(stream or sys.stderr))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    for handler in handlers:
        handler.setFormatter(LineFormatter(program))
        root.addHandler(handler)
    root.setLevel(level)
    for library in ("asyncio", "aiosmtplib", "filelock", "mail.log"):
        logging.getLogger(library).setLevel(max(level, logging.WARNING))
    logging.captureWarnings(True)


def reopen() -> None:
    """Open the log file anew, after a rotation. Not for a signal handler: call it from the loop that saw the flag.

    Where that fails the old file is kept, and says why.
    """
    for handler in logging.getLogger().handlers:
        if isinstance(handler, FileHandler):
            try:
                handler.reopen()
            except OSError as error:
                event(
                    logging.getLogger(_ROOT),
                    "log not reopened",
                    level=logging.ERROR,
                    exc=error,
                    path=handler.path,
                )
