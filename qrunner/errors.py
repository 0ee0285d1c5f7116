"""What can go wrong, one class a fate.

The class of an exception decides what becomes of the entry in hand, which exit code the pipe ends with
and what an SMTP client is told:

=================  =========================  =====  =======
class              fate of the entry          pipe   SMTP in
=================  =========================  =====  =======
ConfigError        nothing is claimed         75     4xx
QueueError         not accepted, the caller   75     4xx
                   keeps its message
CorruptEntry       ``bad``, untouched
TemporaryFailure   deferred on the schedule   75     4xx
PermanentFailure   reported                   65     5xx
Unready            waits at no cost, and its
                   runner is ``waiting``
Shunted            ``shunt``
any other          ``shunt``, with traceback
=================  =========================  =====  =======
"""

from __future__ import annotations

import errno

# A full disk, a failing disk, too many open files, a lost permission: the condition ends by itself or by an
# operator's hand, so whoever meets one waits and tries again (guarantee G9).
TEMPORARY_ERRNOS = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
    }
)


class QRunnerError(Exception):
    """Every error that is ours."""


class ConfigError(QRunnerError):
    """The configuration can't be used; nothing was started and nothing claimed."""


class QueueError(QRunnerError):
    """The queue did not take, or did not give, a message: whoever had it still has it."""


class HandlerFailed(QueueError):
    """A handler of a door has a bug, or returned what is no decision. The message is whose it was.

    :param text: what happened, in a line.
    :param traceback: where, for who is to mend it.
    """

    def __init__(self, text: str, traceback: str = "") -> None:
        super().__init__(text)
        self.text, self.traceback = text, traceback


class LeaseHeld(QueueError):
    """Another live runner owns a part of the range that was asked for; the message names it."""


class CorruptEntry(QRunnerError):
    """A file that is named like an entry and is none."""


class TemporaryFailure(QRunnerError):
    """Raised by a runner or a handler: try this entry again later.

    :param text: what happened, in words for the sender.
    :param delay: seconds until the next attempt; None follows the runner's schedule.
    :param status: enhanced status code (RFC 3463), class 4.
    """

    def __init__(self, text: str, *, delay: float | None = None, status: str = "4.0.0") -> None:
        super().__init__(text)
        self.text, self.delay_s, self.status = text, delay, status


class PermanentFailure(QRunnerError):
    """Raised by a runner or a handler: this entry will never succeed; its sender is told.

    :param text: what the sender reads.
    :param status: enhanced status code (RFC 3463), class 5.
    """

    def __init__(self, text: str, *, status: str = "5.0.0") -> None:
        super().__init__(text)
        self.text, self.status = text, status


class Unready(QRunnerError):
    """Raised by a runner that can't work now, whatever the entry: this one waits at no cost, and so does the runner.

    :param text: what is missing, for `status`.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


class Shunted(QRunnerError):
    """Raised by a runner: a person looks at this entry.

    :param text: why.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text
