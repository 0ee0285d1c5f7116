"""Which hosts stand behind a queue, and whether one of them lives; and who is sent around in circles all the same."""

from __future__ import annotations

from collections import Counter

from qrunner.clock import Clock
from qrunner.config import Config
from qrunner.smtp.board import Board


def hosts_behind(config: Config, queue: str) -> tuple[str, ...]:
    """The hosts that the runner of a queue delivers to; of a virtual queue, those of all that it may choose.

    Empty for a queue whose runner delivers to no host.
    """
    if queue in config.balance:
        parts = [name for name, _ in config.balance[queue].members]
    elif queue in config.routes:
        parts = [rule.queue for rule in config.routes[queue].rules]
    else:
        runners = [one for one in config.runners.values() if one.queue == queue and not one.door]
        slices = [part for runner in runners if runner.enabled for part in runner.slices if part.enabled]
        return tuple(dict.fromkeys(name for part in slices for name in part.smtp))
    return tuple(dict.fromkeys(name for part in parts for name in hosts_behind(config, part)))


def is_living(config: Config, board: Board, queue: str) -> bool:
    """Whether mail may be sent to a queue now: one of its hosts is up, or it has none that could be down."""
    hosts = hosts_behind(config, queue)
    return not hosts or any(board.read(name).is_up for name in hosts)


class SentOn:
    """Entries that were lately sent on because their hosts were down.

    Where processes can't tell each other that a host is down, since its health can't be written, each of them may take
    the other's for a living one, and what they send there would come back at once, for ever.
    """

    TIMES = 3
    _KEPT_NS = 60 * 10**9

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._before: Counter[str] = Counter()
        self._now: Counter[str] = Counter()
        self._since_ns = clock.monotonic_ns()

    def again(self, id: str) -> bool:
        """Whether an entry may be sent on once more; counts it. What is a minute or two old is forgotten."""
        age_ns = self._clock.monotonic_ns() - self._since_ns
        if age_ns > self._KEPT_NS:
            self._before = self._now if age_ns < 2 * self._KEPT_NS else Counter()
            self._now, self._since_ns = Counter(), self._clock.monotonic_ns()
        if self._before[id] + self._now[id] >= self.TIMES:
            return False
        self._now[id] += 1
        return True
