"""What a site does between two power cuts: one story a transition, with the promises that it gives on the way.

A promise is a mark in the trace. ``accepted``: an enqueue has returned. ``may end``, ``may become``: from here on the
entry may be gone, or its children may stand in its place. ``may read``: from here on its message may be another.
``delivered``: a recipient has it, and that was noted. ``noted``: and the note was synced.
"""

from __future__ import annotations

import itertools
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import patch

from qrunner.format import Sealed, seal
from qrunner.message import Draft, Envelope
from qrunner.slices import DIGITS, Range
from qrunner.switchboard import Add, Claim, Hop, Move
from qrunner.switchboard.claims import FilesLease
from qrunner.switchboard.disk import Disk, Staged
from qrunner.switchboard.files import FilesSpool
from qrunner.switchboard.hops import INTENT
from qrunner.switchboard.layout import Layout
from qrunner.testing.clock import FakeClock
from tests.crash.power_recording import Recorder

QUEUES = ("in", "out", "reports")
# Every id of a story begins with 00: one sub-directory a queue is enough, and thousands of states are quickly laid out.
CORNER = Range(0, 16 ** (DIGITS - 2))
ANN, BOB, EVE = "ann@example.org", "bob@example.net", "eve@example.net"


def message_of(key: str) -> bytes:
    """A message that says who it is, and does not end in a newline."""
    return b"Subject: %s\n\n<<%s>> %s end" % (key.encode(), key.encode(), b"text " * 20)


def key_of(message: bytes) -> str:
    """Who a message says it is."""
    found = re.search(rb"<<(\w+)>>", message)
    assert found, message
    return found[1].decode()


def near(draft: Draft, arrival_ns: int, records: Sequence[Any] = ()) -> Sealed:
    """``seal``, with a nonce that makes the id begin with 00."""
    for number in itertools.count():
        sealed = seal(draft, arrival_ns, nonce=f"{number:016x}", records=records)
        if sealed.id.startswith("00"):
            return sealed
    raise AssertionError


@contextmanager
def cornered() -> Iterator[None]:
    """While this lasts ids begin with 00, and the directories are those that ``lay_out`` made."""
    with ExitStack() as stack:
        for module in ("files", "claims", "hands", "staging"):
            stack.enter_context(patch(f"qrunner.switchboard.{module}.seal", near))
        stack.enter_context(patch.object(Layout, "prepare", lambda *_: None))
        yield


def lay_out(root: Path) -> None:
    """The directories of the queues, as far as they are used here."""
    for queue in QUEUES:
        for part in (f"{queue}/00", f"{queue}/.hops", f".lease/{queue}", *(f"{a}/{queue}" for a in ASIDE)):
            (root / part).mkdir(parents=True, mode=0o700)


ASIDE = ("hold", "shunt", "bad")


@dataclass
class Site:
    """A spool whose every operation is written down, and the promises."""

    root: Path
    recorder: Recorder
    spool: FilesSpool
    clock: FakeClock

    @classmethod
    def at(cls, root: Path) -> Site:
        lay_out(root)
        clock = FakeClock(datetime.now(UTC))
        return cls(root, Recorder(str(root)), FilesSpool(root, clock, node="a"), clock)

    def draft(self, key: str, *recipients: str) -> Draft:
        return Draft(message_of(key), Envelope.of(ANN, recipients or (BOB, EVE)), {"key": key})

    def accept(self, key: str, queue: str = "in") -> str:
        id = self.spool.enqueue(queue, self.draft(key))
        self.recorder.mark("accepted", key, id)
        return id

    def lease(self, queue: str = "in") -> FilesLease:
        lease = self.spool.lease(queue, CORNER, queue, 0)
        lease.refresh()
        return lease

    def claims(self, lease: FilesLease) -> list[Claim]:
        refs = lease.due(self.clock.now_ns(), 100)
        claims = [claim for ref in refs if (claim := lease.claim(ref)) is not None]
        assert len(claims) == len(refs) > 0
        return claims

    def claim(self, key: str, queue: str = "in") -> tuple[FilesLease, Claim]:
        self.accept(key, queue)
        lease = self.lease(queue)
        (claim,) = self.claims(lease)
        return lease, claim

    def adds(self, *keys: str, queues: Sequence[str] = ("out", "in", "reports")) -> tuple[Add, ...]:
        now = self.clock.now_ns()
        return tuple(Add(self.draft(key), queue, now) for key, queue in zip(keys, queues, strict=False))

    def becomes(self, claims: Sequence[Claim], *children: str) -> None:
        for claim in claims:
            self.recorder.mark("may become", key_of(claim.entry.message), children)

    def delivers(self, lease: FilesLease, claim: Claim, to: str, *, sync: bool = False) -> None:
        """As a delivery does it: a mark before the "." and an outcome after it."""
        lease.note(claim, {"what": "sending", "to": [to], "host": "h"})
        lease.note(claim, {"what": "delivered", "to": [to], "host": "h", "reply": "250 ok"}, sync=sync)
        self.recorder.mark("noted" if sync else "delivered", key_of(claim.entry.message), to)

    def waits(self, claim: Claim, *records: dict[str, Any]) -> Move:
        return Move(claim, claim.entry.queue, self.clock.now_ns() + 5 * 10**9, records=records)

    def dies(self, lease: FilesLease) -> None:
        """The process, not the machine."""
        lease._held.lock.release()


Story = Callable[[Site], None]
ATTEMPT = {"what": "attempt", "queue": "in", "text": "451 later", "status": "4.0.0"}


def enqueue_alone(site: Site) -> None:
    site.accept("one")


def enqueue_under_a_hidden_name(site: Site) -> None:
    def no_unnamed_files(disk: Disk, directory: str, name: str) -> Any:
        return disk._open_hidden(directory, name)

    with patch.object(Disk, "_open", no_unnamed_files):
        site.accept("one")


def enqueue_several_together(site: Site) -> None:
    ids = site.spool.enqueue_all(site.adds("one", "two", "three"))
    for key, id in zip(("one", "two", "three"), ids, strict=True):
        site.recorder.mark("accepted", key, id)


def enqueue_at_the_same_time(site: Site) -> None:
    """All have written before the first of them syncs."""
    callers = 5
    sync = Disk.sync_file
    written = threading.Barrier(callers)

    def late(one: Disk, fd: int) -> None:
        written.wait(30)
        sync(one, fd)

    with patch.object(Disk, "sync_file", late):
        keys = [f"letter{number}" for number in range(callers)]
        queues = itertools.cycle(("in", "out"))
        threads = [threading.Thread(target=site.accept, args=(key, next(queues))) for key in keys]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def claim(site: Site) -> None:
    site.claim("one")


def plain_hop(site: Site) -> None:
    lease, claim = site.claim("one")
    lease.commit(Hop(moved=(Move(claim, "out", site.clock.now_ns()),)))


def hop_with_a_record(site: Site) -> None:
    lease, claim = site.claim("one")
    record = {"what": "shunt", "reason": "a bug"}
    lease.commit(Hop(moved=(Move(claim, "in", site.clock.now_ns(), "shunt", records=(record,)),)))


def rewrites(site: Site, claim: Claim, queue: str) -> Move:
    content = claim.entry.with_header("X-Seen", "1")
    site.recorder.mark("may read", key_of(content.message), content.message)
    return Move(claim, queue, site.clock.now_ns(), content=content)


def content_changing_hop(site: Site) -> None:
    lease, claim = site.claim("one")
    lease.commit(Hop(moved=(rewrites(site, claim, "out"),)))


def content_changing_hop_after_a_delivery(site: Site) -> None:
    lease, claim = site.claim("one")
    site.delivers(lease, claim, BOB)
    lease.commit(Hop(moved=(rewrites(site, claim, "in"),)))


def one_to_three(site: Site) -> None:
    lease, claim = site.claim("one")
    site.becomes([claim], "a", "b", "c")
    lease.commit(Hop((claim,), (), site.adds("a", "b", "c")))


def one_to_twenty(site: Site) -> None:
    lease, claim = site.claim("one")
    children = [f"child{number}" for number in range(20)]
    site.becomes([claim], *children)
    lease.commit(Hop((claim,), (), site.adds(*children, queues=("out", "reports") * 10)))


def three_to_one(site: Site) -> None:
    for key in ("one", "two", "three"):
        site.accept(key)
    lease = site.lease()
    claims = site.claims(lease)
    site.becomes(claims, "digest")
    lease.commit(Hop(tuple(claims), (), site.adds("digest")))


def an_entry_and_its_report(site: Site) -> None:
    lease, claim = site.claim("one")
    site.becomes([claim], "report")
    lease.commit(Hop((claim,), (), site.adds("report", queues=["reports"])))


def a_report_beside_an_entry_that_waits(site: Site) -> None:
    lease, claim = site.claim("one")
    site.delivers(lease, claim, BOB)
    records = ({"what": "failed", "to": [EVE], "reply": "550 no", "status": "5.0.0"}, ATTEMPT)
    move = replace(site.waits(claim), records=records)
    lease.commit(Hop((), (move,), site.adds("report", queues=["reports"])))
    site.recorder.mark("noted", "one", EVE)


def a_rewritten_entry_and_a_report(site: Site) -> None:
    lease, claim = site.claim("one")
    site.delivers(lease, claim, BOB)
    lease.commit(Hop((), (rewrites(site, claim, "out"),), site.adds("report", queues=["reports"])))


def deferral_after_a_partial_delivery(site: Site) -> None:
    lease, claim = site.claim("one")
    site.delivers(lease, claim, BOB)
    lease.commit(Hop(moved=(site.waits(claim, ATTEMPT),)))


def deferral_after_a_synced_delivery(site: Site) -> None:
    lease, claim = site.claim("one")
    site.delivers(lease, claim, BOB, sync=True)
    lease.commit(Hop(moved=(site.waits(claim, ATTEMPT),)))


def put_back_after_a_partial_delivery(site: Site) -> None:
    lease, claim = site.claim("one")
    site.delivers(lease, claim, BOB)
    lease.put_back(claim)


def put_back(site: Site) -> None:
    lease, claim = site.claim("one")
    lease.put_back(claim)


def finish(site: Site) -> None:
    lease, claim = site.claim("one")
    site.recorder.mark("may end", "one")
    lease.commit(Hop(finished=(claim,)))


def shift_by_an_operator(site: Site) -> None:
    site.accept("one")
    for area, record in (("hold", {"what": "hold", "reason": "wait"}), ("queue", {"what": "release"})):
        (ref,) = [ref for part in ("queue", "hold") for ref in site.spool.peek("in", part)]  # type: ignore[arg-type]
        assert site.spool.shift(ref, area=area, record=record)  # type: ignore[arg-type]


def end_by_an_operator(site: Site) -> None:
    """Of what waits, and of what is held, with reports on both."""
    for key in ("one", "two"):
        site.accept(key)
        (ref,) = site.spool.peek("in")
        if key == "two":
            assert site.spool.shift(ref, area="hold")
            (ref,) = site.spool.peek("in", "hold")
        site.recorder.mark("may become", key, (f"{key}s",))
        assert site.spool.conclude(ref, lambda entry: site.adds(f"{key_of(entry.message)}s"))


def recovery_of_claims(site: Site) -> None:
    """A process dies with two entries in hand, one of them partly delivered; its successor puts them back."""
    site.accept("one")
    site.accept("two")
    lease = site.lease()
    claims = site.claims(lease)
    site.delivers(lease, claims[0], BOB)
    site.dies(lease)
    assert len(site.lease().refresh().suspects) == 0
    assert len(list(site.spool.peek("in"))) == 2


def recovery_of_a_finished_entry(site: Site) -> None:
    lease, claim = site.claim("one")
    site.delivers(lease, claim, BOB)
    site.recorder.mark("may end", "one")
    site.delivers(lease, claim, EVE)
    site.dies(lease)
    site.lease()


def recovery_of_a_rewrite(site: Site) -> None:
    """A process dies between the commit of a content change and the move onward."""
    lease, claim = site.claim("one")
    with patch.object(FilesLease, "_onward", lambda *_: None):
        lease.commit(Hop(moved=(rewrites(site, claim, "out"),)))
    site.dies(lease)
    site.lease()
    assert len(list(site.spool.peek("out"))) == 1


def recovery_of_compound_hops(site: Site) -> None:
    """A process dies with a committed hop that is not rolled forward, and another that is not committed."""
    site.accept("one")
    site.accept("two")
    lease = site.lease()
    first, second = site.claims(lease)
    site.delivers(lease, first, BOB)
    site.becomes([first], "a", "b", "c")
    with patch.object(lease, "_finish", lambda *_: None):
        lease.commit(Hop((first,), (), site.adds("a", "b", "c")))
    link = Staged.link

    def dies_at_the_intent(staged: Staged) -> None:
        if staged.name.endswith(INTENT):
            raise KeyboardInterrupt
        link(staged)

    with (
        patch.object(Staged, "link", dies_at_the_intent),
        patch.object(os, "unlink"),
        suppress(KeyboardInterrupt),
    ):
        lease.commit(Hop((second,), (), site.adds("never", "nor")))
    site.dies(lease)
    assert len(os.listdir(site.root / "in" / ".hops")) == 6
    site.lease()


def a_whole_life(site: Site) -> None:
    """From hand to hand: in, changed, on to out, to one recipient, later to the other, finished."""
    lease, claim = site.claim("one")
    lease.commit(Hop(moved=(rewrites(site, claim, "out"),)))
    out = site.lease("out")
    (claim,) = site.claims(out)
    site.delivers(out, claim, BOB)
    out.commit(Hop(moved=(site.waits(claim, ATTEMPT),)))
    site.clock.advance(5)
    out.refresh()
    (claim,) = site.claims(out)
    assert claim.entry.recipients == (EVE,)
    site.recorder.mark("may end", "one")
    site.delivers(out, claim, EVE)
    out.commit(Hop(finished=(claim,)))


STORIES: tuple[Story, ...] = (
    enqueue_alone,
    enqueue_under_a_hidden_name,
    enqueue_several_together,
    enqueue_at_the_same_time,
    claim,
    plain_hop,
    hop_with_a_record,
    content_changing_hop,
    content_changing_hop_after_a_delivery,
    one_to_three,
    one_to_twenty,
    three_to_one,
    an_entry_and_its_report,
    a_report_beside_an_entry_that_waits,
    a_rewritten_entry_and_a_report,
    deferral_after_a_partial_delivery,
    deferral_after_a_synced_delivery,
    put_back_after_a_partial_delivery,
    put_back,
    finish,
    shift_by_an_operator,
    end_by_an_operator,
    recovery_of_claims,
    recovery_of_a_finished_entry,
    recovery_of_a_rewrite,
    recovery_of_compound_hops,
    a_whole_life,
)
