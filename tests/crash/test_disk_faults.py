"""A disk that fails at any call of a transition: nothing was done and the claim is still in hand, or all of it."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest

from qrunner.errors import QueueError
from qrunner.format import parse_name
from qrunner.message import Entry
from qrunner.switchboard import AREAS, Claim, Hop, Move
from qrunner.switchboard.claims import FilesLease
from qrunner.switchboard.disk import Disk
from tests.crash.calls import some_or_all
from tests.crash.power_faults import FAULTS, FailingDisk, Fault
from tests.crash.power_recording import files_under
from tests.crash.power_stories import ATTEMPT, BOB, CORNER, EVE, QUEUES, Site, cornered, key_of

MEMORY = "/dev/shm"
FEW = tuple(fault for fault in FAULTS if fault.code in (errno.EIO, errno.EROFS))
# Trouble that lasts is what the two tests of FEW are about; here it is left to the heavy tests.
EVERY = [
    *(pytest.param(fault, 3, id=f"{fault}-some") for fault in FAULTS if not fault.lasting),
    *(pytest.param(fault, 1, id=f"{fault}-all", marks=pytest.mark.stress) for fault in FAULTS),
]
Places = dict[str, list[tuple[str, str]]]


@pytest.fixture(autouse=True)
def _corner() -> Iterator[None]:
    with cornered():
        yield


@pytest.fixture
def root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY if os.path.isdir(MEMORY) else None) as made:
        yield Path(made)


def look(site: Site) -> tuple[Places, dict[str, Entry]]:
    """Where each entry is, and what it is."""
    places: Places = {}
    entries: dict[str, Entry] = {}
    for queue in QUEUES:
        for area in AREAS:
            for ref in site.spool.peek(queue, area):
                entry = site.spool.read(ref)
                key = key_of(entry.message)
                places.setdefault(key, []).append((f"{area}{' in hand' if ref.active else ''}", queue))
                entries[key] = entry
    return places, entries


def strangers(site: Site) -> list[str]:
    """Files that are no entries, and what lies among the compound commits."""
    names = [path for path in files_under(site.root) if not path.startswith(".")]
    return [path for path in names if parse_name(os.path.basename(path)) is None]


def descriptors(root: Path) -> list[str]:
    """Which files under a directory this process has open, leases left out."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return [path for path in found if path.startswith(f"{root}/") and "/.lease/" not in path]


# Taking in


@dataclass
class Enqueueing:
    """Several drafts that belong together."""

    keys: Sequence[str]

    def __call__(self, site: Site) -> None:
        site.spool.enqueue_all(site.adds(*self.keys))


@pytest.mark.parametrize("fault", FAULTS, ids=str)
@pytest.mark.parametrize("keys", [["one"], ["one", "two", "three"]], ids=["alone", "three"])
@some_or_all(3)
def test_an_enqueue_fails_without_remains_or_is_done(
    keys: list[str], fault: Fault, root: Path, every: int
) -> None:
    at, more = 1 - every, True
    while more:
        at += every
        site = Site.at(root / str(at))
        with FailingDisk(fault, at).mounted() as disk:
            try:
                Enqueueing(keys)(site)
                done = True
            except QueueError:
                done = False
        more = bool(disk.failed)
        assert descriptors(root) == []
        assert done == (not more), f"call {at} failed: {disk.failed}"
        if "unlink" not in disk.failed:
            assert sorted(look(site)[0]) == (sorted(keys) if done else [])
            assert strangers(site) == []
    assert at > 2 * len(keys)


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_of_enqueues_that_share_a_sync_those_that_returned_are_there(fault: Fault, root: Path) -> None:
    site = Site.at(root / "q")
    for at in range(1, 24, 2):
        results: dict[str, bool] = {}
        with FailingDisk(fault, at).mounted() as disk:
            threads = [
                threading.Thread(target=_try_enqueue, args=(site, f"k{at}x{n}", results)) for n in range(6)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        there = set(look(site)[0])
        assert {key for key, done in results.items() if done} <= there
        if "unlink" not in disk.failed:
            assert not {key for key, done in results.items() if not done} & there


def _try_enqueue(site: Site, key: str, results: dict[str, bool]) -> None:
    try:
        site.spool.enqueue("in", site.draft(key))
        results[key] = True
    except QueueError:
        results[key] = False


def test_a_name_that_can_not_be_withdrawn_is_not_told_as_accepted(root: Path) -> None:
    """The directory's sync fails and the file system goes read-only: every member of the batch hears of it."""
    site = Site.at(root / "q")
    fault = Fault(errno.EIO, frozenset({"fsync", "unlink"}), lasting=True)
    with FailingDisk(fault, 4).mounted(), pytest.raises(QueueError):
        site.spool.enqueue_all(site.adds("one", "two", "three"))


def test_a_batch_whose_sync_failed_is_refused_even_if_a_runner_has_a_part_of_it_already(root: Path) -> None:
    """It was called accepted, although the rest of it had just been withdrawn."""
    site = Site.at(root / "q")
    lease = site.lease("out")
    first = threading.Lock()

    def fails(disk: Disk, directory: str) -> None:
        # Several directories may be synced at once, each in a thread of its own.
        if first.acquire(blocking=False):
            lease.refresh()
            site.claims(lease)
        raise OSError(errno.EIO, "the disk")

    with patch.object(Disk, "sync_directory", fails), pytest.raises(QueueError):
        site.spool.enqueue_all(site.adds("one", "two"))
    assert set(look(site)[0]) <= {"one"}


# Handing on

Act = Callable[[Site, FilesLease, Sequence[Claim]], Hop]


def plain(site: Site, lease: FilesLease, claims: Sequence[Claim]) -> Hop:
    return Hop(moved=(Move(claims[0], "out", site.clock.now_ns()),))


def deferral(site: Site, lease: FilesLease, claims: Sequence[Claim]) -> Hop:
    return Hop(moved=(site.waits(claims[0], ATTEMPT),))


def aside(site: Site, lease: FilesLease, claims: Sequence[Claim]) -> Hop:
    record = {"what": "hold", "reason": "a person looks"}
    return Hop(moved=(Move(claims[0], "in", site.clock.now_ns(), "hold", records=(record,)),))


def change(site: Site, lease: FilesLease, claims: Sequence[Claim]) -> Hop:
    content = claims[0].entry.with_header("X-Seen", "1")
    return Hop(moved=(Move(claims[0], "out", site.clock.now_ns(), content=content),))


def fork(site: Site, lease: FilesLease, claims: Sequence[Claim]) -> Hop:
    return Hop((claims[0],), (), site.adds("a", "b", "c", queues=("out", "reports", "out")))


def merge(site: Site, lease: FilesLease, claims: Sequence[Claim]) -> Hop:
    return Hop(tuple(claims), (), site.adds("digest"))


def warning(site: Site, lease: FilesLease, claims: Sequence[Claim]) -> Hop:
    return Hop((), (site.waits(claims[0], ATTEMPT),), site.adds("report", queues=["reports"]))


def end(site: Site, lease: FilesLease, claims: Sequence[Claim]) -> Hop:
    return Hop(finished=(claims[0],))


OUT, REPORTS, IN = ("queue", "out"), ("queue", "reports"), ("queue", "in")
HELD = ("hold", "in")
ACTS: dict[Act, Places] = {
    plain: {"one": [OUT]},
    deferral: {"one": [IN]},
    aside: {"one": [HELD]},
    change: {"one": [OUT]},
    fork: {"a": [OUT], "b": [REPORTS], "c": [OUT]},
    merge: {"digest": [OUT]},
    warning: {"one": [IN], "report": [REPORTS]},
    end: {},
}


@dataclass
class Hand:
    """One or three entries in hand, the first of them delivered to one of its two recipients."""

    site: Site
    lease: FilesLease
    claims: list[Claim]
    before: dict[str, bytes]

    @classmethod
    def of(cls, root: Path, count: int) -> Hand:
        site = Site.at(root)
        for key in ("one", "two", "three")[:count]:
            site.accept(key)
        lease = site.lease()
        claims = sorted(site.claims(lease), key=lambda claim: key_of(claim.entry.message) != "one")
        site.delivers(lease, claims[0], BOB)
        return cls(site, lease, claims, files_under(root))

    def attempts(self) -> int:
        return look(self.site)[1]["one"].attempts


def hands_until_it_passes(
    root: Path, act: Act, fault: Fault, every: int
) -> Iterator[tuple[Hand, Hop, FailingDisk, bool]]:
    """The act with its first call failing, then ``every`` calls later, and so on; whether it was done all the same."""
    at, more = 1 - every, True
    while more:
        at += every
        hand = Hand.of(root / str(at), 3 if act is merge else 1)
        hop = act(hand.site, hand.lease, hand.claims)
        with FailingDisk(fault, at).mounted() as disk:
            try:
                hand.lease.commit(hop)
                done = True
            except OSError:
                done = False
        assert descriptors(root) == []
        more = bool(disk.failed)
        yield hand, hop, disk, done


def undoable(disk: FailingDisk) -> bool:
    """Whether the disk let go of a line that it had taken: one that fails at everything keeps it."""
    return disk.failed[-1:] != ["ftruncate"] and disk.failed[-2:] != ["rename", "open"]


def nothing_changed(hand: Hand, disk: FailingDisk) -> bool:
    """Every file is as it was; what could not be removed while the disk failed lies hidden."""
    now = files_under(hand.site.root)
    if not undoable(disk):
        now = {path: data[: len(hand.before[path])] for path, data in now.items()}
    if "unlink" in disk.failed:
        now = {path: data for path, data in now.items() if "/.hops/" not in path and "/.new." not in path}
    return now == hand.before


@pytest.mark.parametrize(("fault", "every"), EVERY)
@pytest.mark.parametrize("act", list(ACTS), ids=lambda act: act.__name__)
def test_a_commit_that_failed_changed_nothing_and_can_be_repeated(
    act: Act, fault: Fault, root: Path, every: int
) -> None:
    for hand, hop, disk, done in hands_until_it_passes(root, act, fault, every):
        if not done:
            assert nothing_changed(hand, disk), disk.failed
            hand.lease.commit(hop)
        hand.lease.refresh()
        places, entries = look(hand.site)
        assert places == ACTS[act]
        if "unlink" not in disk.failed:
            assert strangers(hand.site) == []
        if "one" in entries:
            assert entries["one"].recipients == (EVE,)
            if undoable(disk):
                assert entries["one"].attempts == (1 if act in (deferral, warning) else 0)


@pytest.mark.parametrize("fault", FEW, ids=str)
@pytest.mark.parametrize("act", list(ACTS), ids=lambda act: act.__name__)
@some_or_all(5)
def test_a_commit_that_failed_can_be_given_up(act: Act, fault: Fault, root: Path, every: int) -> None:
    for hand, _, disk, done in hands_until_it_passes(root, act, fault, every):
        if done:
            continue
        for claim in hand.claims:
            hand.lease.put_back(claim)
        places, entries = look(hand.site)
        assert places == {key_of(claim.entry.message): [IN] for claim in hand.claims}
        assert entries["one"].recipients == (EVE,)
        assert entries["one"].attempts == 0 or not undoable(disk)
        hand.lease.refresh()
        assert len(hand.site.claims(hand.lease)) == len(hand.claims), disk.failed


@pytest.mark.parametrize("fault", FEW, ids=str)
@pytest.mark.parametrize("act", list(ACTS), ids=lambda act: act.__name__)
@some_or_all(3)
def test_a_process_that_dies_of_a_failing_disk_leaves_it_to_the_next(
    act: Act, fault: Fault, root: Path, every: int
) -> None:
    for hand, _, disk, done in hands_until_it_passes(root, act, fault, every):
        hand.site.dies(hand.lease)
        hand.site.lease()
        places, _ = look(hand.site)
        untouched = {key_of(claim.entry.message): [IN] for claim in hand.claims}
        assert places == (ACTS[act] if done else untouched), disk.failed
        hops = os.listdir(hand.site.root / "in" / ".hops")
        assert [name for name in hops if not name.startswith(".new.")] == []


# Claiming, noting, recovering


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_claim_that_failed_can_be_had_again(fault: Fault, root: Path) -> None:
    at, more = 0, True
    while more:
        at += 1
        site = Site.at(root / str(at))
        site.accept("one")
        lease = site.lease()
        (ref,) = lease.due(site.clock.now_ns(), 10)
        claim = None
        with FailingDisk(fault, at).mounted() as disk:
            try:
                claim = lease.claim(ref)
            except OSError:
                lease.renew(ref)
        more = bool(disk.failed)
        if claim is None:
            lease.refresh()
            (claim,) = site.claims(lease)
        lease.commit(Hop(finished=(claim,)))
        assert (look(site)[0], strangers(site)) == ({}, [])


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_note_that_failed_is_not_there(fault: Fault, root: Path) -> None:
    at, more = 0, True
    while more:
        at += 1
        hand = Hand.of(root / str(at), 1)
        done = True
        with FailingDisk(fault, at).mounted() as disk:
            try:
                hand.lease.note(hand.claims[0], {"what": "attempt", "text": "x" * 300}, sync=True)
            except OSError:
                done = False
        more = bool(disk.failed)
        assert done == (not more)
        if "ftruncate" not in disk.failed:
            assert (files_under(hand.site.root) == hand.before) == (not done)
        hand.lease.note(hand.claims[0], {"what": "release"})
        assert look(hand.site)[1]["one"].history[-1]["what"] == "release"


@pytest.mark.parametrize("fault", FEW, ids=str)
@pytest.mark.parametrize("act", [change, fork, merge, warning, deferral], ids=lambda act: act.__name__)
@some_or_all(3)
def test_a_recovery_that_failed_is_done_at_the_next_look(
    act: Act, fault: Fault, root: Path, every: int
) -> None:
    """The process died after its commit and before the rest; the disk fails its successor."""
    at, more = 1 - every, True
    while more:
        at += every
        hand = Hand.of(root / str(at), 3 if act is merge else 1)
        if act is not deferral:
            hand.lease._finish = lambda *_: None  # type: ignore[method-assign]
            hand.lease.commit(act(hand.site, hand.lease, hand.claims))
        hand.site.dies(hand.lease)
        next_one = hand.site.spool.lease("in", hand.lease.range, "in", 0)
        with FailingDisk(fault, at).mounted() as disk, contextlib.suppress(OSError):
            next_one.refresh()
        more = bool(disk.failed)
        next_one.refresh()
        places, entries = look(hand.site)
        assert places == ACTS[act], disk.failed
        assert [name for name in os.listdir(hand.site.root / "in" / ".hops") if name[0] != "."] == []
        if "one" in entries:
            assert entries["one"].recipients == (EVE,)


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_shift_that_failed_can_be_repeated(fault: Fault, root: Path) -> None:
    at, more = 0, True
    while more:
        at += 1
        site = Site.at(root / str(at))
        site.accept("one")
        (ref,) = site.spool.peek("in")
        with FailingDisk(fault, at).mounted() as disk, contextlib.suppress(OSError):
            site.spool.shift(ref, area="hold", record={"what": "hold", "reason": "x"})
        more = bool(disk.failed)
        assert look(site)[0] in ({"one": [IN]}, {"one": [HELD]})


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_lease_that_can_not_be_written_down_is_not_held_and_leaves_nothing(
    fault: Fault, root: Path
) -> None:
    at, more = 0, True
    while more:
        at += 1
        site = Site.at(root / str(at))
        with FailingDisk(fault, at).mounted() as disk:
            try:
                site.spool.lease("in", CORNER, "in", 0)
                done = True
            except OSError:
                done = False
        more = bool(disk.failed)
        left = {
            path.suffix for path in (root / str(at) / ".lease" / "in").iterdir() if path.stem != "registry"
        }
        if "unlink" not in disk.failed:
            assert left == ({".json", ".lock"} if done else set()), disk.failed
        if not done:
            site.spool.lease("in", CORNER, "in", 0).release()
