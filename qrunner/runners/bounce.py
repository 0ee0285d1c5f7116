"""``bounce``: reads the bounces that come back, and tells the site's ``hook`` whom they are about and why.

Who it is about: the recipient that the bounce's own address names (VERP), else the original recipient of its delivery
status notification, else whom flufl.bounce finds in it. Why: the status and the words of the notification, or those
that stand near the address. The hook is given a ``Bounce`` for each address, with its score: bounces of kind *address*
count, one a day, and each half as much after ``half_life``.

Guarantees: an entry is never counted twice. A report of a delay, or of success, is no bounce. What is not recognised
is not lost: it goes to ``next``, or is held. A hook that raises ``TemporaryFailure`` is called again, for the
addresses that it has not heard of.

Not guaranteed: that a bounce is true. Anybody can write one; only VERP makes it a little harder, and only a message of
one's own to the address tells. After a crash the hook may be called again for the same bounce.

*Configuration*: ``hook``; ``next``, for what is no bounce; of ``options``: ``half_life`` ("7d"), ``threshold`` (5),
``verp`` (the delimiters of the site's ``outgoing`` runners, else ``+=``), ``senders`` (the addresses that bounces come
to, without the recipient's part, for delimiters that names have, too). It needs the extra ``qrunner[bounce]``.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from qrunner.bounce import Bounce, kind_of
from qrunner.config import duration_s
from qrunner.dsn import (
    LOOKED_AT,
    Notice,
    is_from_a_daemon,
    notices,
    parsed,
    status_in,
    text_of,
    without_returned,
    words_near,
)
from qrunner.engine.disposal import called
from qrunner.errors import ConfigError
from qrunner.fate import Done, Fate, Hold, Requeue
from qrunner.loading import load_function
from qrunner.log import event
from qrunner.message import Entry
from qrunner.runner import Desk, Runner
from qrunner.scores import score
from qrunner.threads import in_thread
from qrunner.verp import USUAL, delimiters, readings

try:
    from flufl.bounce import all_failures
except ImportError as error:
    raise ConfigError(f"this runner wants flufl.bounce: pip install 'qrunner[bounce]' ({error})") from None

TOLD = "told"
# A message about more addresses than one delivery has, is no host's.
_MOST_ADDRESSES = 100
# Of each line, what flufl.bounce is shown: its patterns look again and again at long ones, and while they do, nothing
# else in the process goes on.
_LINE = 300
_PAUSE_S = 30.0
_PUT_OFF = 0.5


@dataclass(frozen=True, slots=True)
class Settings:
    """The options, converted."""

    half_life_s: float = 7 * 86_400.0
    threshold: float = 5.0
    pairs: tuple[str, ...] = (USUAL,)
    senders: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Reading:
    """What a message is: bounces, or why it has none. ``recognised``: it is a report all the same."""

    bounces: tuple[Bounce, ...] = ()
    reason: str = ""
    recognised: bool = True


class BounceRunner(Runner):
    """Tells the site's hook of each address that a bounce is about."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(desk)
        self.hook = load_function(desk.config.settings["hook"])
        self.settings = settings_of(desk)
        # Every detector that it tries is a line to it, and what it fails at is one of ours.
        logging.getLogger("flufl.bounce").setLevel(logging.CRITICAL + 1)

    async def dispose(self, entry: Entry) -> Fate:
        """Reads it, counts, and calls the hook."""
        found = await in_thread(self.read, entry)
        if not found.recognised:
            if self.desk.config.next:
                return [entry.forward(queue) for queue in self.desk.config.next]
            return Hold(found.reason)
        told = told_already(entry)
        for bounce in found.bounces:
            if bounce.address not in told:
                try:
                    scored = await in_thread(self.scored, bounce)
                except OSError as error:
                    return Requeue(_PAUSE_S, f"the bounce could not be counted: {error}")
                await self.tell(scored)
                if len(found.bounces) > 1:
                    # If that can't be written, the hook may hear of it again.
                    with contextlib.suppress(OSError):
                        await self.desk.progress.note(entry, {"what": TOLD, "of": bounce.address})
        return Done(found.reason)

    async def tell(self, bounce: Bounce) -> None:
        """Calls the hook."""
        event(
            self.log,
            "bounce",
            id=bounce.entry.id,
            to=bounce.address,
            kind=bounce.kind,
            status=bounce.status,
            score=round(bounce.score, 2),
            reason=bounce.text,
        )
        await called(self.hook, bounce)

    def scored(self, bounce: Bounce) -> Bounce:
        """The bounce with the score of its address; if it is of kind *address*, it counts from now on.

        :raises OSError: it could not be counted.
        """
        now_ns, half_life_s = self.clock.now_ns(), self.settings.half_life_s
        if bounce.kind == "address":
            weight = 1.0 if bounce.permanent else _PUT_OFF
            at_ns = min(now_ns, bounce.entry.arrival_ns)
            days = self.site.scores.count(self.name, bounce.address, at_ns, weight, half_life_s)
        else:
            days = self.site.scores.days(self.name, bounce.address)
        total = score(days, now_ns, half_life_s)
        return replace(bounce, score=total, over_threshold=total >= self.settings.threshold)

    def read(self, entry: Entry) -> Reading:
        """What the message is. It may be overridden, and is called in a thread."""
        message = parsed(entry.message)
        text = text_of(message)
        found = notices(message) or self._scanned(entry, text)
        failed = list({one.address.lower(): one for one in found if one.action == "failed"}.values())
        named = self._named(entry, [one.address for one in failed])
        if not found and named and is_from_a_daemon(message):
            # Of no format that is known; but it came to an address that was made for one message to one recipient.
            failed = [_failure(text, "")]
        if len(failed) > _MOST_ADDRESSES:
            return Reading((), f"a bounce of {len(failed)} addresses", recognised=False)
        if not failed:
            kinds = " and ".join(sorted({one.action or "unknown" for one in found}))
            return Reading(
                (), f"a report, {kinds}" if found else "no bounce was recognised in it", bool(found)
            )
        if named is not None:
            sender, address = named
            notice = next((one for one in failed if one.address.lower() == address.lower()), failed[0])
            failed = [replace(notice, address=address)]
        else:
            sender = entry.recipients[0] if entry.recipients else ""
        bounces = tuple(_bounce(entry, sender, one, text) for one in failed if one.address)
        if not bounces:
            return Reading((), "a bounce that names no address", recognised=False)
        said = (f"{one.address} ({one.kind}, {one.status or 'no status'})" for one in bounces)
        return Reading(bounces, "bounce of " + ", ".join(said))

    def _named(self, entry: Entry, reported: Sequence[str]) -> tuple[str, str] | None:
        """Sender and recipient by the address that the bounce came to; None: it names nobody."""
        known = {address.lower() for address in reported}
        for own in entry.recipients:
            for pair in self.settings.pairs:
                found = readings(own, pair)
                if self.settings.senders:
                    found = [one for one in found if one[0].lower() in self.settings.senders]
                if found:
                    return next((one for one in found if one[1].lower() in known), found[0])
        return None

    def _scanned(self, entry: Entry, text: str) -> tuple[Notice, ...]:
        """What flufl.bounce makes of it."""
        message = parsed(b"\n".join(line[:_LINE] for line in entry.message[:LOOKED_AT].splitlines()))
        try:
            # Some gateways wrap a bounce in another message, and people send on what came to themselves: these have a
            # sender.
            put_off, failed = all_failures(without_returned(message) if entry.sender else message)
        except Exception as error:  # heuristics for odd mail, met by odder mail
            event(self.log, "not understood", level=logging.WARNING, id=entry.id, reason=repr(error))
            return ()
        delays = [Notice(address, "delayed", "", "") for address in _addresses(put_off)]
        return (*delays, *(_failure(text, address) for address in _addresses(failed)))


def _addresses(those: Iterable[bytes]) -> list[str]:
    found = {one.decode("ascii", "replace").strip() for one in those}
    return sorted(one for one in found if "@" in one)


def _failure(text: str, address: str) -> Notice:
    """One of which only words tell."""
    words = words_near(text, address)
    return Notice(address, "failed", status_in(words), words)


def _bounce(entry: Entry, sender: str, notice: Notice, text: str) -> Bounce:
    words = notice.text or words_near(text, notice.address)
    status = notice.status or status_in(words)
    kind = kind_of(status, words)
    if kind == "other":
        # The reason may stand above the address.
        kind = kind_of(status, words_near(text, ""))
    permanent = not status.startswith("4")
    return Bounce(notice.address, status, kind, words, sender, entry, permanent)


def told_already(entry: Entry) -> frozenset[str]:
    """The addresses that the hook has heard of in an attempt of before."""
    return frozenset(str(line.get("of")) for line in entry.history if line.get("what") == TOLD)


def settings_of(desk: Desk) -> Settings:
    """The options of the runner. :raises ConfigError: one makes no sense."""
    options, place = desk.slice_config.options, f"[runner.{desk.config.name}] options"
    try:
        half_life_s = duration_s(str(options.get("half_life", "7d")))
        threshold = float(options.get("threshold", 5))
        said = options.get("verp")
        # Deliveries may have written none, and yet an entry's metadata have asked for it.
        pairs = (delimiters(said),) if said is not None else desk.site.config.verps() or (USUAL,)
        senders = options.get("senders", [])
        if half_life_s <= 0 or threshold <= 0 or not isinstance(senders, (list, tuple)):
            raise ValueError("half_life and threshold are more than 0, senders is a list of addresses")
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{place}: {error}") from None
    return Settings(
        half_life_s, threshold, tuple(filter(None, pairs)), frozenset(str(one).lower() for one in senders)
    )
