"""The configuration as values: frozen, complete (every default filled in), converted.

Durations are float seconds, sizes bytes, paths absolute, queue and host names known to exist.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qrunner.match import Match
from qrunner.schedule import USUAL, Retry

Names = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SiteConfig:
    """``[site]``: what holds for every runner."""

    hostname: str
    node: str
    queue_dir: Path
    state_dir: Path
    postmaster: str
    report_queue: str = "out"
    python_path: tuple[Path, ...] = ()
    durability: str = "full"
    min_free: int = 64 << 20
    retry: Retry = USUAL


@dataclass(frozen=True, slots=True)
class HostConfig:
    """``[smtp.NAME]``: a host that mail may be handed to, or, in mode ``mx``, each recipient's own.

    ``rate`` is (messages, per so many seconds). ``max_messages`` of one session; None: as many as come.
    """

    name: str
    host: str = ""
    port: int = 25
    mode: str = "host"
    family: str = "any"
    tls: str = "may"
    ca_file: Path | None = None
    client_cert: Path | None = None
    username: str | None = None
    password_file: Path | None = None
    source_address: str | None = None
    max_connections: int = 20
    max_recipients: int = 50
    rate: tuple[int, float] | None = None
    idle_timeout_s: float = 30.0
    max_messages: int | None = None
    connect_timeout_s: float = 30.0
    greeting_timeout_s: float = 300.0
    command_timeout_s: float = 300.0
    data_timeout_s: float = 180.0
    final_timeout_s: float = 600.0
    on_ambiguous: str = "retry"
    failures_to_open: int = 5
    probe_after_s: float = 60.0
    allow_private: bool = False


@dataclass(frozen=True, slots=True)
class SliceConfig:
    """One slice of a runner, with the runner's values wherever it says nothing of its own.

    ``node`` None: whichever machine starts it. ``smtp``: names of hosts, empty for a class that delivers nothing.
    """

    weight: int = 1
    node: str | None = None
    smtp: Names = ()
    concurrency: int = 1
    nice: int = 0
    enabled: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WhenIdle:
    """``only_when_idle``: begin nothing while programs wait for a CPU for more than ``pressure`` percent of the time, or
    while something is due or in hand in these queues.

    ``queues`` empty: those of all other runners.
    """

    pressure: float = 10.0
    queues: Names = ()


@dataclass(frozen=True, slots=True)
class Listen:
    """Where a door listens: a TCP address, or a Unix socket (``path`` is not None)."""

    host: str = ""
    port: int = 0
    path: Path | None = None

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return self.path is not None or is_loopback(self.host)

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def is_loopback(host: str) -> bool:
    """Whether a host's name or address says by itself that it is this machine; nothing is looked up."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


@dataclass(frozen=True, slots=True)
class RunnerConfig:
    """``[runner.NAME]``.

    ``class_name`` is a stock runner's name or ``package.module:Class``. ``queue`` is empty for a door, which owns
    none. ``slices`` holds one at least. ``settings`` are the keys that only some classes have, converted; a stock
    class finds all of its own there, with defaults.
    """

    name: str
    class_name: str
    queue: str
    enabled: bool = True
    slices: tuple[SliceConfig, ...] = (SliceConfig(),)
    node: str | None = None
    concurrency: int = 1
    poll_interval_s: float = 30.0
    nice: int = 0
    grace_s: float = 30.0
    timeout_s: float | None = None
    max_crashes: int = 3
    retry: Retry = USUAL
    report: str = "sender"
    handlers: Names = ()
    bounced: Names = ()
    next: Names = ()
    only_when_idle: WhenIdle | None = None
    periodic_s: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    door: bool = False


@dataclass(frozen=True, slots=True)
class BalanceConfig:
    """``[balance.NAME]``: a virtual queue that feeds several. ``members`` are pairs of a queue and its weight."""

    name: str
    members: tuple[tuple[str, int], ...]
    choose: str = "random"


@dataclass(frozen=True, slots=True)
class RuleConfig:
    """One rule of a route: what fits goes to ``queue``."""

    match: Match
    queue: str


@dataclass(frozen=True, slots=True)
class RouteConfig:
    """``[route.NAME]``: a virtual queue; the first rule that fits decides."""

    name: str
    rules: tuple[RuleConfig, ...]


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration, checked. ``text`` is what it was read from, to be kept as a snapshot."""

    path: Path
    site: SiteConfig
    smtp: Mapping[str, HostConfig]
    runners: Mapping[str, RunnerConfig]
    balance: Mapping[str, BalanceConfig]
    routes: Mapping[str, RouteConfig]
    text: str = ""
    named: Names = ()

    def queues(self) -> Names:
        """Every real queue that is named anywhere: those of the runners first, each once."""
        owned = [runner.queue for runner in self.runners.values() if not runner.door]
        every = dict.fromkeys([*owned, *self.named, self.site.report_queue])
        return tuple(name for name in every if not self.is_virtual(name))

    def is_virtual(self, queue: str) -> bool:
        """Whether the name stands for a choice among queues, not for a directory."""
        return queue in self.balance or queue in self.routes

    def behind(self, queue: str) -> Names:
        """The real queues that a name may stand for, each once."""
        if queue in self.balance:
            members = [name for name, _ in self.balance[queue].members]
        elif queue in self.routes:
            members = [rule.queue for rule in self.routes[queue].rules]
        else:
            return (queue,)
        return tuple(dict.fromkeys(real for name in members for real in self.behind(name)))

    def watched(self, runner: RunnerConfig) -> Names:
        """The real queues that must have nothing to do before the runner works.

        Unless some are named: those of all other runners, but for one that is off, whose mail waits for ever, or that
        itself waits for idle times, since the two would wait for each other.
        """
        when = runner.only_when_idle
        if when is None:
            return ()
        if when.queues:
            return tuple(dict.fromkeys(real for name in when.queues for real in self.behind(name)))
        return tuple(
            other.queue
            for other in self.runners.values()
            if not other.door
            and other.name != runner.name
            and other.only_when_idle is None
            and any(part.enabled for part in other.slices)
        )

    def verps(self) -> Names:
        """The delimiters by which deliveries of this site name their recipients, each pair once."""
        written = (one.settings.get("verp") for one in self.runners.values())
        return tuple(dict.fromkeys(pair for pair in written if pair))
