"""The retry schedule: which delay follows which attempt, when that is, and when an entry was tried for long enough.

Pure: the caller brings the clock and the dice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from qrunner.format import LAST_DUE_NS

MINUTE_S = 60.0
HOUR_S = 60 * MINUTE_S
DAY_S = 24 * HOUR_S
LONGEST_S = LAST_DUE_NS / 1e9


@dataclass(frozen=True, slots=True)
class Retry:
    """A schedule: the first delay, by what it grows, where it stops growing, and how long all of it may last.

    ``jitter`` is a share: 0.25 makes each delay up to a quarter shorter or longer. ``warn_s``, if not None, is
    the age at which the sender hears that the message is late.
    """

    first_s: float = 5 * MINUTE_S
    factor: float = 2.0
    max_s: float = 4 * HOUR_S
    jitter: float = 0.25
    lifetime_s: float = 5 * DAY_S
    warn_s: float | None = None


USUAL = Retry()


def delay_s(retry: Retry, attempt: int, random: float) -> float:
    """Seconds to wait after failed attempt number ``attempt`` (the first is 1); ``random`` is in [0, 1).

    The cap comes before the jitter, so that mail which has reached the cap together does not stay together: the
    longest delay is ``max_s * (1 + jitter)``.
    """
    return _plain_delay_s(retry, max(attempt, 1) - 1) * (1 + retry.jitter * (2 * random - 1))


def _plain_delay_s(retry: Retry, doublings: int) -> float:
    if retry.factor <= 1 or retry.first_s <= 0:
        return min(retry.first_s, retry.max_s)
    # Compared as logarithms: a power of a high attempt number overflows a float long before it is capped.
    if doublings * math.log(retry.factor) >= math.log(max(retry.max_s / retry.first_s, 1.0)):
        return retry.max_s
    return min(retry.first_s * retry.factor**doublings, retry.max_s)


def expired(retry: Retry, arrival_ns: int, now_ns: int) -> bool:
    """Whether an entry that arrived at ``arrival_ns`` has used up its lifetime.

    A clock that was set back makes an entry younger, never expired.
    """
    return now_ns - arrival_ns >= round(retry.lifetime_s * 1e9)


def checked_delay_s(delay: float) -> float:
    """A delay that a site's code gives, in seconds: at least 0, at most some centuries.

    :raises TypeError, ValueError: it is no finite number.
    """
    if not isinstance(delay, (int, float)):
        raise TypeError(f"a delay must be a number of seconds, not {type(delay).__name__}")
    if isinstance(delay, float) and not math.isfinite(delay):
        raise ValueError(f"a delay must be a finite number of seconds, not {delay}")
    return float(min(max(0, delay), LONGEST_S))


def due_after(now_ns: int, delay: float) -> int:
    """The moment so many seconds from now, at most the last that a name can hold. Raises as ``checked_delay_s``.

    A later one would be the name of a stranger, which no runner ever looks at.
    """
    return min(now_ns + int(checked_delay_s(delay) * 1e9), LAST_DUE_NS)
