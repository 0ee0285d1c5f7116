"""Every key there is: how it is read, what it is when left out. Data: a new stock runner is an entry of STOCK."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qrunner.config import compounds as c
from qrunner.config import values as v
from qrunner.config.reading import Key, Keys, Spot, read_given

SECTIONS = ("site", "smtp", "runner", "balance", "route")

# Of a table that is laid over another one, what is left out shows through: no defaults.
RETRY: Keys = {
    "first": Key(v.positive_duration, field="first_s"),
    "factor": Key(v.number(1, 1000)),
    "max": Key(v.positive_duration, field="max_s"),
    "jitter": Key(v.number(0, 0.9)),
    "lifetime": Key(v.duration, field="lifetime_s"),
    "warn": Key(v.positive_duration, field="warn_s"),
}


def _retry(value: Any, spot: Spot) -> dict[str, Any]:
    return read_given(value, spot, RETRY)


SITE: Keys = {
    "hostname": Key(v.hostname),
    "node": Key(v.node),
    "queue_dir": Key(v.path),
    "state_dir": Key(v.path),
    "postmaster": Key(v.address),
    "report_queue": Key(v.queue, "out"),
    "python_path": Key(v.list_of(v.path, single=True), ()),
    "durability": Key(v.choice("full", "none"), "full"),
    "min_free": Key(v.size, 64 << 20),
    "retry": Key(_retry, {}),
}

# Defaults are those of HostConfig.
SMTP: Keys = {
    "host": Key(v.server),
    "port": Key(v.integer(1, 65535)),
    "mode": Key(v.choice("host", "mx")),
    "family": Key(v.choice("any", "ipv4", "ipv6")),
    "tls": Key(v.choice("none", "may", "require", "implicit")),
    "ca_file": Key(v.path),
    "client_cert": Key(v.path),
    "username": Key(v.plain_text),
    "password_file": Key(v.path),
    "source_address": Key(v.ip_address),
    "max_connections": Key(v.integer(1)),
    "max_recipients": Key(v.integer(1)),
    "rate": Key(v.rate),
    "idle_timeout": Key(v.duration, field="idle_timeout_s"),
    "max_messages": Key(v.integer(1)),
    "connect_timeout": Key(v.positive_duration, field="connect_timeout_s"),
    "greeting_timeout": Key(v.positive_duration, field="greeting_timeout_s"),
    "command_timeout": Key(v.positive_duration, field="command_timeout_s"),
    "data_timeout": Key(v.positive_duration, field="data_timeout_s"),
    "final_timeout": Key(v.positive_duration, field="final_timeout_s"),
    "on_ambiguous": Key(v.choice("retry", "hold", "assume")),
    "failures_to_open": Key(v.integer(1)),
    "probe_after": Key(v.positive_duration, field="probe_after_s"),
    "allow_private": Key(v.boolean),
}

# What a slice may say of its own. Left out, it is the runner's.
SLICE: Keys = {
    "weight": Key(v.integer(1)),
    "node": Key(v.node),
    "concurrency": Key(v.integer(1)),
    "nice": Key(v.integer(-20, 19)),
    "enabled": Key(v.boolean),
    "options": Key(c.free_table),
}
HOSTS: Keys = {"smtp": Key(v.hosts, ())}

# Of every runner. `slices` is read apart, because its keys depend on the class.
RUNNER: Keys = {
    "class": Key(v.plain_text, "", "class_name", required='a stock runner or "package.module:Class"'),
    "queue": Key(v.new_queue),
    "enabled": Key(v.boolean, True),
    "slices": Key(lambda value, spot: None),
    "instances": Key(v.integer(1, 10_000)),
    "node": Key(v.node),
    "concurrency": Key(v.integer(1)),
    "poll_interval": Key(v.positive_duration, 30.0, "poll_interval_s"),
    "nice": Key(v.integer(-20, 19), 0),
    "grace": Key(v.duration, 30.0, "grace_s"),
    "timeout": Key(v.positive_duration, None, "timeout_s"),
    "max_crashes": Key(v.integer(1), 3),
    "retry": Key(_retry, {}),
    "report": Key(v.choice("sender", "postmaster", "none"), "sender"),
    "handlers": Key(v.functions, ()),
    "bounced": Key(v.functions, ()),
    "next": Key(v.queues, ()),
    "only_when_idle": Key(c.when_idle),
    "periodic": Key(v.positive_duration, None, "periodic_s"),
    "options": Key(c.free_table, {}),
}


@dataclass(frozen=True, slots=True)
class Stock:
    """A class that comes with qrunner: the keys of its own, and in what it differs from others."""

    keys: Keys = field(default_factory=dict)
    door: bool = False
    delivers: bool = False
    concurrency: int = 1
    wants_next: bool = False


STOCK: Mapping[str, Stock] = {
    "incoming": Stock(wants_next=True),
    "outgoing": Stock(
        {
            "on_down": Key(v.queues),
            "defer_to": Key(v.queue),
            "verp": Key(c.verp, ""),
            "max_hops": Key(v.integer(1), 50),
        },
        delivers=True,
        concurrency=20,
    ),
    "lmtp": Stock(
        {
            "listen": Key(c.listen, required='a place to listen, such as "127.0.0.1:8024"'),
            "protocol": Key(v.choice("lmtp", "smtp"), "lmtp"),
            "accept": Key(v.patterns),
        },
        door=True,
        wants_next=True,
    ),
    "maildir": Stock(
        {
            "path": Key(v.path, required="a folder"),
            "recipients": Key(v.addresses, ()),
            "sender": Key(v.sender),
        },
        door=True,
        wants_next=True,
    ),
    "fanout": Stock({"subscribers": Key(c.subscribers, (), required="a table of queues, each with a match")}),
    "command": Stock(
        {
            "command": Key(c.command, (), required="a program and its arguments, in a list"),
            "exits": Key(c.exits, c.EXITS),
            "output": Key(v.queue),
        }
    ),
    "archive": Stock(
        {
            "format": Key(v.choice("mbox", "maildir", "eml"), "mbox"),
            "path": Key(c.dated_path, required="a path"),
        }
    ),
    "bounce": Stock({"hook": Key(v.function, required='"package.module:function"')}),
}

# A site's class may extend any stock one: it may say what that may say, and must say nothing. Of a name that several
# have (``path``), the first one reads it: the least is asked of it.
SITE_CLASS = Stock(
    {
        name: Key(key.read, key.default)
        for stock in reversed([*STOCK.values()])
        for name, key in stock.keys.items()
    },
    delivers=True,
)

BALANCE: Keys = {
    "choose": Key(v.choice("random", "sequence"), "random"),
    "members": Key(c.members, (), required="a table of queues, each with a weight"),
}
RULE: Keys = {"queue": Key(v.queue, "", required="a queue"), **c.MATCH}
ROUTE: Keys = {"rules": Key(c.free_list, (), required="a list of rules")}
