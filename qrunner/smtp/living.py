"""Which hosts stand behind a queue, and whether one of them lives."""

from __future__ import annotations

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
