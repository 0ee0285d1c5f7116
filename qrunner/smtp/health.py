"""The health of a host: what is known of it, and what each event makes of that. Pure values.

A host is ``up`` until ``failures_to_open`` failures in a row call it ``down``. Then one probe at a time is made,
at growing distances of at most five minutes, until one succeeds; then it is ``up`` with one connection, and one
more for each success. A host that asks for less is not down: its connections are halved.

What counts against a host: connect, greeting of 5xx, EHLO, TLS, AUTH; a connection lost inside a transaction
only if that happened to two different entries with no success between, since one poisonous message must not
close every host.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from qrunner.clock import rfc3339
from qrunner.config import HostConfig
from qrunner.suspension import Suspension

State = Literal["up", "down", "probing"]

PROBE_MAX_S = 300.0
_EARLY = 0.25
_LOST_KEPT = 8


@dataclass(frozen=True, slots=True)
class Health:
    """What the processes of this machine know of a host.

    :param failures: in a row. ``probes``: of them, since it went down.
    :param limit: how many connections it is given now; None: as many as configured.
    :param lost: ids of entries that lost a connection since the last success.
    :param suspension: an operator's, while there is one; it stands in a file of its own.
    """

    name: str
    state: State = "up"
    failures: int = 0
    retry_at_ns: int | None = None
    last_error: str = ""
    probes: int = 0
    limit: int | None = None
    lost: tuple[str, ...] = ()
    suspended: bool = False
    suspension: Suspension | None = None

    @property
    def is_up(self) -> bool:
        """Whether mail may be handed to it."""
        return self.state == "up" and not self.suspended

    @property
    def is_spotless(self) -> bool:
        """Whether a success would be no news."""
        return self.state == "up" and not (self.failures or self.lost) and self.limit is None

    def connections(self, host: HostConfig) -> int:
        """How many connections it may have now, from all processes together."""
        return host.max_connections if self.limit is None else min(self.limit, host.max_connections)

    def probe_in_s(self, now_ns: int) -> float:
        """Seconds until the next probe may be made; 0: now. A clock that was set back makes no host wait longer."""
        if self.retry_at_ns is None:
            return 0.0
        left_s = (self.retry_at_ns - now_ns) / 1e9
        return 0.0 if left_s > PROBE_MAX_S else max(0.0, left_s)

    def as_json(self) -> dict[str, Any]:
        """For a file: what ``status`` shows, and what it takes to go on from."""
        known = asdict(replace(self, suspension=None))
        del known["suspension"]
        return {**known, "retry_at": None if self.retry_at_ns is None else rfc3339(self.retry_at_ns)}

    @classmethod
    def of_json(cls, name: str, value: Mapping[str, Any]) -> Health:
        """From a file; what is missing or of the wrong kind is as if nothing had happened."""
        state, retry_at, limit, lost = (value.get(key) for key in ("state", "retry_at_ns", "limit", "lost"))
        return cls(
            name,
            state=state if state in ("down", "probing") else "up",
            failures=_count(value.get("failures")) or 0,
            retry_at_ns=_count(retry_at),
            last_error=str(value.get("last_error") or ""),
            probes=_count(value.get("probes")) or 0,
            limit=max(1, limit) if isinstance(limit, int) else None,
            lost=tuple(map(str, lost)) if isinstance(lost, list) else (),
            suspended=value.get("suspended") is True,
        )


def _count(value: object) -> int | None:
    return max(0, value) if isinstance(value, int) else None


def failed(
    health: Health, host: HostConfig, text: str, *, now_ns: int, random: float, at_once: bool = False
) -> Health:
    """After a failure that counts against the host. ``random`` is in [0, 1): a probe comes up to a quarter early,
    so that machines do not probe in step."""
    failures = health.failures + 1
    counted = replace(health, failures=failures, last_error=text)
    if health.state == "up" and not at_once and failures < host.failures_to_open:
        return counted
    if health.state == "down":
        # It had begun before the host went down: no probe has failed, so the next one comes no later for it.
        return counted
    # The exponent is bounded: a host may be down for months.
    wait_s = min(host.probe_after_s * 2 ** min(health.probes, 16), PROBE_MAX_S) * (1 - _EARLY * random)
    retry_at_ns = now_ns + round(wait_s * 1e9)
    return replace(counted, state="down", retry_at_ns=retry_at_ns, probes=health.probes + 1)


def least_wait_s(host: HostConfig) -> float:
    """How soon after it has gone down a host may be probed."""
    return min(host.probe_after_s, PROBE_MAX_S) * (1 - _EARLY)


def probing(health: Health) -> Health:
    """While somebody makes the probe."""
    return replace(health, state="probing")


def reached(health: Health, host: HostConfig) -> Health:
    """After a probe that went well, from connect to AUTH: one connection, and one failure closes it again."""
    failures = max(0, host.failures_to_open - 1)
    return replace(health, state="up", failures=failures, retry_at_ns=None, probes=0, limit=1)


def succeeded(health: Health, host: HostConfig) -> Health:
    """After a transaction that came to its end, whatever the host said in it."""
    limit = None if health.limit is None or health.limit + 1 >= host.max_connections else health.limit + 1
    if health.state != "up":
        return health
    return replace(health, failures=0, lost=(), limit=limit)


def slowed(health: Health, text: str, in_use: int) -> Health:
    """After 421 or a greeting of 4xx: half of the connections that there were."""
    before = in_use if health.limit is None else min(health.limit, in_use)
    return replace(health, limit=max(1, before // 2), last_error=text)


def lost(health: Health, host: HostConfig, entry_id: str, text: str, *, now_ns: int, random: float) -> Health:
    """After a connection that was lost inside a transaction of this entry."""
    if entry_id in health.lost:
        return health
    told = replace(health, lost=(*health.lost, entry_id)[-_LOST_KEPT:], last_error=text)
    if not health.lost:
        return told
    return failed(told, host, text, now_ns=now_ns, random=random)
