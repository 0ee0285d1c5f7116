"""An operator's hand that dies with an entry in it: what the others see, and who puts things right."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from qrunner.clock import SystemClock
from qrunner.message import Entry
from qrunner.slices import WHOLE, cut
from qrunner.switchboard import Add, Area, Ref
from qrunner.switchboard.files import FilesSpool
from qrunner.testing.contract import draft, places


@pytest.fixture
def spool(tmp_path: Path) -> FilesSpool:
    spool = FilesSpool(tmp_path, SystemClock(), durable=False)
    spool.prepare(["in", "out"])
    return spool


def lie(spool: FilesSpool, area: Area) -> Ref:
    """An entry of ``in`` that lies there."""
    spool.enqueue("in", draft())
    (ref,) = spool.peek("in")
    assert area == "queue" or spool.shift(ref, area=area)
    (ref,) = spool.peek("in", area)
    return ref


def die_at(spool: FilesSpool, ref: Ref, *, committed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ends the entry dies before its commit, or right after it."""
    name = "qrunner.switchboard.hops.Hops.roll_forward"

    def follow(entry: Entry) -> Sequence[Add]:
        if not committed:
            os._exit(0)
        return [Add(draft(), "out", 0)]

    pid = os.fork()
    if not pid:
        monkeypatch.setattr(name, lambda *_: os._exit(0))
        spool.conclude(ref, follow)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


def leftovers(spool: FilesSpool) -> list[str]:
    lease = spool.lease("in", WHOLE, "in", 0)
    names = [name for name in os.listdir(spool.layout.leases("in")) if lease.holder.nonce not in name]
    lease.release()
    return sorted(name for name in names if not name.endswith(".explained"))


@pytest.mark.parametrize("committed", [False, True])
@pytest.mark.parametrize("area", ["queue", "hold", "shunt"])
def test_the_next_owner_of_any_range_puts_it_back_or_ends_it_and_blames_nobody(
    spool: FilesSpool, area: Area, committed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = lie(spool, area)
    die_at(spool, ref, committed=committed, monkeypatch=monkeypatch)
    parts = cut([1, 1])
    other = next(part for part in parts if not part.owns(ref.id))
    lease = spool.lease("in", other, "in", 0)
    assert (lease.refresh().rolled, lease.refresh().rolled) == (int(committed), 0)
    lease.release()
    where = [place for found in places(spool).values() for place in found]
    assert where == [("queue", "out") if committed else (area, "in")]
    if not committed:
        (back,) = spool.peek("in", area)
        assert back == ref
        assert [line["what"] for line in spool.read(back).history] == []
    assert leftovers(spool) == ["registry.lock"]


@pytest.mark.parametrize("committed", [False, True])
def test_the_next_verb_finds_what_is_held_as_it_was_or_gone(
    spool: FilesSpool, committed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = lie(spool, "hold")
    die_at(spool, ref, committed=committed, monkeypatch=monkeypatch)
    (left,) = spool.peek("in", "hold")
    assert (left.id, left.active) == (ref.id, False)
    # The one that it has seen is settled first, and has another name or none.
    assert not spool.shift(left, area="queue")
    again = list(spool.peek("in", "hold"))
    assert [spool.shift(one, area="queue") for one in again] == ([] if committed else [True])
    assert len(list(spool.peek("in"))) == (not committed)
    assert len(list(spool.peek("out"))) == committed


def test_what_is_in_a_living_hand_is_left_alone_by_every_verb(spool: FilesSpool) -> None:
    ref = lie(spool, "hold")

    def follow(entry: Entry) -> Sequence[Add]:
        (seen,) = spool.peek("in", "hold")
        assert (seen.id, seen.active) == (ref.id, True)
        assert not spool.shift(seen, area="queue")
        assert not spool.remove(ref)
        assert spool.conclude(seen, lambda entry: ()) is None
        lease = spool.lease("in", WHOLE, "in", 0)
        assert lease.refresh().rolled == 0
        lease.release()
        return [Add(draft(), "out", 0)]

    assert spool.conclude(ref, follow) is not None
    assert [place for found in places(spool).values() for place in found] == [("queue", "out")]
    assert leftovers(spool) == ["registry.lock"]


def test_a_note_of_a_hand_that_says_something_else_moves_nothing(spool: FilesSpool) -> None:
    ref = lie(spool, "hold")
    notes = spool.layout.leases("in")
    stranger = Path(spool.layout.root, "..", f"{os.path.basename(ref.token)}.1,abc,1,def,a")
    stranger.write_bytes(b"")
    for nonce, text in (("abc", f"../{stranger.name}"), ("abd", "in/xyz"), ("abe", ""), ("abf", "x" * 5000)):
        (notes / f"{nonce}.hand").write_text(text)
    lease = spool.lease("in", WHOLE, "in", 0)
    lease.refresh()
    lease.release()
    assert stranger.exists()
    assert list(spool.peek("in", "hold")) == [ref]
    assert leftovers(spool) == ["registry.lock"]
