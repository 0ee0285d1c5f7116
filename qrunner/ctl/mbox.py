"""An mbox, taken apart as it is read: a file of any size, one message in memory at a time.

A message begins with a ``From `` line, at the start of the file or after an empty line. Writers that quote such lines
in a body quote all of them; for the others a ``From `` line must also look like one: it has a date with a time of day,
or what follows it is a header field. The empty line before it, and at the end of the file, is the mbox's and not the
message's. Lines may end with LF or CRLF; ``Content-Length`` is not asked.

Quoting, of the lines of a message that begin with ``From ``:

========  ==========================================================================================
mboxrd    ``>`` stands before it and before every ``>From ``, ``>>From `` …: one is taken away. Exact
mboxo     ``>`` stands before ``From `` alone: taken away; what was ``>From `` before can't be told
none      the lines are as they stand
========  ==========================================================================================

Guarantees: every byte between two ``From `` lines is in one message, but for the empty line and the quotes.

Not guaranteed: that it is what was written, where a writer did not quote, or its reader took it for another kind. A
message that did not end with a line end was given one by whoever wrote the mbox.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Literal

from qrunner.errors import QRunnerError

Quoting = Literal["mboxrd", "mboxo", "none"]
QUOTINGS: tuple[Quoting, ...] = ("mboxrd", "mboxo", "none")
QUOTED = {
    "mboxrd": re.compile(rb"^>(?=>*From )", re.MULTILINE),
    "mboxo": re.compile(rb"^>(?=From )", re.MULTILINE),
}

_CHUNK = 1 << 16
_EMPTY = (b"\n", b"\r\n")
_DATE = re.compile(rb"From (?=.*[0-9]:[0-9]{2})(?=.*\b(?:19|20)[0-9]{2}\b)")
_FIELD = re.compile(rb"[!-9;-~]+[ \t]*:|>From ")
_SENDER = re.compile(rb'From +("(?:[^"\\]|\\.)*"@\S+|\S+)')
_SHOWN = 40


class NoMbox(QRunnerError):
    """A file that is none, or is none any more: it says what stands there."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A message in an mbox: where it begins and where the next does, its ``From `` line, its bytes, unquoted.

    ``size`` is that of the bytes as they stand; ``message`` is None where they are more than were asked for.
    """

    start: int
    end: int
    from_line: bytes
    size: int
    message: bytes | None


@dataclass(slots=True)
class _Growing:
    """The message that is being read."""

    start: int
    from_line: bytes
    size: int = 0
    lines: list[bytes] = field(default_factory=list)
    # How long the empty line is with which it ends so far.
    empty: int = 0

    def add(self, line: bytes, is_empty: bool, largest: int) -> None:
        self.size += len(line)
        self.empty = len(line) if is_empty else 0
        # An empty line may turn out to be the mbox's.
        if not largest or self.size <= largest + 2:
            self.lines.append(line)

    def ended(self, at: int, quoting: Quoting, largest: int) -> Piece:
        size = self.size - self.empty
        message = None
        if not largest or size <= largest:
            message = unquoted(b"".join(self.lines)[:size], quoting)
        return Piece(self.start, at, self.from_line, size, message)


def pieces(
    file: BinaryIO, at: int, end: int, *, quoting: Quoting = "mboxrd", largest: int = 0
) -> Iterator[Piece]:
    """The messages from one offset, at which one begins, to another.

    :param largest: of a message with more bytes only the size is told; 0: of none.
    :raises NoMbox: no message begins at the offset, or the file has lost its end meanwhile.
    """
    growing: _Growing | None = None
    after_empty, line_start, offset, line = True, True, at, b""
    for offset, line, following in _lines(file, at, end):
        if (
            line_start
            and after_empty
            and line.startswith(b"From ")
            and (growing is None or looks_like_one(line, following))
        ):
            if growing is not None:
                yield growing.ended(offset, quoting, largest)
            growing = _Growing(offset, line)
            after_empty = False
        elif growing is None and not line.strip():
            after_empty = True
        elif growing is None:
            raise NoMbox(
                f"no mbox: at byte {offset} stands {_shown(line)}, expected a line that begins with 'From '"
            )
        else:
            after_empty = line_start and line in _EMPTY
            growing.add(line, after_empty, largest)
        line_start = line.endswith(b"\n")
    if offset + len(line) < end:
        raise NoMbox(f"it ended at byte {offset + len(line)} and had {end} bytes before")
    if growing is not None:
        yield growing.ended(end, quoting, largest)


def _lines(file: BinaryIO, at: int, end: int) -> Iterator[tuple[int, bytes, bytes]]:
    """Each line with its offset and with the one after it; a long one comes in parts."""
    file.seek(at)
    line = file.readline(min(_CHUNK, end - at))
    while line:
        following = file.readline(min(_CHUNK, end - at - len(line)))
        yield at, line, following
        at, line = at + len(line), following


def looks_like_one(line: bytes, following: bytes) -> bool:
    """Whether a line that begins with ``From `` begins a message, by itself or by the line after it."""
    return bool(_DATE.match(line) or _FIELD.match(following))


def unquoted(message: bytes, quoting: Quoting) -> bytes:
    """The message as it was before somebody made it a part of an mbox."""
    pattern = QUOTED.get(quoting)
    return pattern.sub(b"", message) if pattern is not None and b">From " in message else message


def sender_of(from_line: bytes) -> str | None:
    """The envelope sender that a ``From `` line names; None: it names none, as those of git do."""
    found = _SENDER.match(from_line)
    word = found[1].decode("utf-8", "surrogateescape") if found else ""
    if word == "<>" or word.upper() == "MAILER-DAEMON":
        return ""
    return word if "@" in word else None


def _shown(line: bytes) -> str:
    return repr(line[:_SHOWN])[1:] + ("…" if len(line) > _SHOWN else "")
