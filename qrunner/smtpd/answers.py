"""What a client is told of a message, and in which words.

Guarantees: a reply is one line of ASCII that fits (RFC 5321 section 4.5.3.1.5), whatever a handler, or a client, has
put into it; what may end by itself is a 4xx, so that whoever has the message keeps it. Paths of ours are for the log,
not for strangers.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence

from qrunner.errors import PermanentFailure, QueueError, TemporaryFailure
from qrunner.log import visible

NOT_NOW = "451 4.3.0 not taken, for now: try again later"
NO_ROOM = "452 4.3.1 there is no room: try again later"

_STATUS = re.compile(r"([45])\.[0-9]{1,3}\.[0-9]{1,3}\Z")
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_LONGEST = 500


def line(text: str) -> bytes:
    """The reply as it goes out, without its line end."""
    return visible(text).encode("ascii", "backslashreplace")[:_LONGEST]


def taken(ids: Sequence[str]) -> str:
    """The reply to a message that is ours now."""
    if not ids:
        return "250 2.0.0 taken"
    more = f" and {len(ids) - 1} more" if len(ids) > 1 else ""
    return f"250 2.0.0 taken as {ids[0]}{more}"


def not_taken(error: Exception) -> str:
    """The reply to a message that is not."""
    if isinstance(error, PermanentFailure):
        return f"554 {_status(error.status, '5', '5.0.0')} {error.text}"
    if isinstance(error, TemporaryFailure):
        return f"451 {_status(error.status, '4', '4.0.0')} {error.text}"
    cause = error.__cause__ if isinstance(error, QueueError) else error
    if isinstance(cause, MemoryError) or isinstance(cause, OSError) and cause.errno in _FULL:
        return NO_ROOM
    return NOT_NOW


def _status(given: str, kind: str, otherwise: str) -> str:
    match = _STATUS.match(given)
    return given if match and match[1] == kind else otherwise
