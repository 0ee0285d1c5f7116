"""Virtual queues: ``[balance.NAME]`` and ``[route.NAME]`` resolved into real ones.

A route's first rule that fits decides, for each recipient by itself where rules ask for recipients; a balance
chooses one of its members by weight.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from qrunner.config import BalanceConfig, Config, RouteConfig
from qrunner.message import Entry


@dataclass(slots=True)
class Routing:
    """Resolves names of queues. ``is_living`` says of a real queue whether it has a host that lives."""

    balance: Mapping[str, BalanceConfig]
    routes: Mapping[str, RouteConfig]
    is_living: Callable[[str], bool] = lambda queue: True
    dice: random.Random = field(default_factory=random.Random)
    _turns: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, config: Config) -> Routing:
        """The virtual queues of a configuration."""
        return cls(config.balance, config.routes)

    def resolve(self, queue: str, entry: Entry) -> list[tuple[str, Entry]]:
        """The real queues that a queue's name stands for, each with the part of the entry that goes there."""
        if queue in self.balance:
            return self.resolve(self._member(self.balance[queue]), entry)
        if queue in self.routes:
            return self._split(self.routes[queue], entry)
        return [(queue, entry)]

    def _member(self, balance: BalanceConfig) -> str:
        living = [pair for pair in balance.members if self.is_living(pair[0])] or list(balance.members)
        if balance.choose == "random":
            return self.dice.choices([name for name, _ in living], [weight for _, weight in living])[0]
        turns = [name for name, weight in living for _ in range(weight)]
        self._turns[balance.name] = turn = self._turns.get(balance.name, -1) + 1
        return turns[turn % len(turns)]

    def _split(self, route: RouteConfig, entry: Entry) -> list[tuple[str, Entry]]:
        if not entry.recipients:
            return self.resolve(self._choose(route, entry, ""), entry)
        parts: dict[str, list[str]] = {}
        for recipient in entry.recipients:
            parts.setdefault(self._choose(route, entry, recipient), []).append(recipient)
        if len(parts) == 1:
            return self.resolve(next(iter(parts)), entry)
        return [
            found
            for queue, recipients in parts.items()
            for found in self.resolve(queue, entry.replace(recipients=recipients))
        ]

    def _choose(self, route: RouteConfig, entry: Entry, recipient: str) -> str:
        return route.rules[self.rule(route, entry, recipient)[0]].queue

    def rule(self, route: RouteConfig, entry: Entry, recipient: str) -> tuple[int, bool]:
        """The rule, counted from 0, that decides about a recipient, and whether it fits: if none does, it is the last."""
        for number, rule in enumerate(route.rules):
            if rule.match.fits(
                sender=entry.sender, recipient=recipient, header=entry.header, meta=entry.meta
            ):
                return number, True
        return len(route.rules) - 1, False
