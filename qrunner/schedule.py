"""The retry schedule: which delay follows which attempt, and when an entry has been tried for long enough.

Pure: the caller brings the clock and the dice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

MINUTE_S = 60.0
HOUR_S = 60 * MINUTE_S
DAY_S = 24 * HOUR_S


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
