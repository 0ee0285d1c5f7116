"""Entries for tests, as a runner would be given them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from qrunner.clock import to_ns
from qrunner.format import seal
from qrunner.message import Draft, Entry, Envelope, checked_addresses, checked_meta, still_owed
from qrunner.testing.clock import START_NS

MESSAGE = b"From: ann@example.org\nTo: bob@example.net\nSubject: hello\n\nHello, world.\n"
SENDER = "ann@example.org"
RECIPIENTS = ("bob@example.net",)

_numbers = itertools.count(1)


def make_entry(
    message: bytes = MESSAGE,
    *,
    headers: Mapping[str, str] | None = None,
    sender: str = SENDER,
    recipients: Iterable[str] = RECIPIENTS,
    meta: Mapping[str, Any] | None = None,
    queue: str = "in",
    id: str | None = None,
    arrival: datetime | None = None,
    due: datetime | None = None,
    attempts: int = 0,
    history: Iterable[Mapping[str, Any]] = (),
    parents: Iterable[str] = (),
) -> Entry:
    """An entry; whatever is left out has a value that a real one could have.

    :param headers: are put on top of the message, the last one first.
    :param id: None: that of its content, another one each time.
    :param arrival: None: the moment at which a ``FakeClock`` starts. ``due`` None: at arrival.
    :param attempts: so many failed ones stand in the history, before ``history``.
    :raises TypeError, ValueError: an argument that no real entry could have.
    """
    if not isinstance(message, bytes):
        raise TypeError(f"message must be bytes, not {type(message).__name__}")
    envelope = Envelope.of(sender, checked_addresses(recipients))
    arrival_ns = START_NS if arrival is None else to_ns(arrival)
    draft = Draft(message, envelope, checked_meta(meta or {}), tuple(parents))
    failed = {"what": "attempt", "queue": queue, "text": "it did not work", "status": "4.0.0"}
    lines = (*({"t": arrival_ns + n, **failed} for n in range(attempts)), *history)
    entry = Entry(
        id=id or seal(draft, arrival_ns, nonce=f"{next(_numbers):016x}").id,
        queue=queue,
        envelope=envelope,
        message=message,
        recipients=still_owed(envelope, lines),
        meta=draft.meta,
        arrival_ns=arrival_ns,
        due_ns=arrival_ns if due is None else to_ns(due),
        history=lines,
        parents=draft.parents,
    )
    for name, value in (headers or {}).items():
        entry = entry.with_header(name, value)
    return entry
