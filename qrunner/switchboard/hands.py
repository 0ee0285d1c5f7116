"""An operator's hand: ends an entry that nobody has, in a queue or set aside, in one commit with what follows from it.

A verb has no lease. For as long as it has the one entry it has a name among the claimants all the same: a lock of
its own beside those of the leases, and a note that says which file it has::

    .lease/QUEUE/<nonce>.lock    locked, for as long as the verb lives
    .lease/QUEUE/<nonce>.hand    the claimed file's path; there from before the claim until after its end

The claim is one rename in the entry's own directory, the end a compound commit (``hops``).

Guarantees: those of a commit. A verb that dies before it leaves the entry claimed, one that dies after it leaves work to
do; whoever looks through a range of the queue next, or acts on what is set aside from it, puts the entry back where
it was, or does the work. Nobody is blamed for that death.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from qrunner.errors import CorruptEntry
from qrunner.format import Claimant, Name, parse_name, seal
from qrunner.message import Entry
from qrunner.switchboard import Add, Ref
from qrunner.switchboard.disk import HIDDEN, Disk, write_all
from qrunner.switchboard.hops import Child, Hops, Parent, move
from qrunner.switchboard.layout import Layout
from qrunner.switchboard.leases import HAND, forget, is_live, lock, registry
from qrunner.switchboard.reading import open_path, read_path

_LONGEST = 4096


def conclude(
    layout: Layout,
    disk: Disk,
    claimant: Claimant,
    ref: Ref,
    follow: Callable[[Entry], Sequence[Add]],
    now_ns: int,
) -> tuple[str, ...] | None:
    """Ends the entry, with what follows from it; the ids of that, or None: somebody else has it, or it has gone.

    :param claimant: us, under a nonce that nobody has had.
    :raises CorruptEntry: it is none. OSError: nothing was done.
    """
    directory = layout.leases(ref.queue)
    mine = lock(directory / f"{claimant.nonce}.lock", 0)
    with registry(directory):
        # Whoever tidies up takes a lock that nobody holds yet for one that nobody holds any more.
        mine.acquire()
    try:
        path = _claimed(layout, claimant, ref)
        if path is None:
            _withdraw(directory, claimant.nonce)
            return None
        ids, intent = _committed(Hops(layout, disk, ref.queue), path, claimant, ref, follow, now_ns)
        # It has happened. What can't be done of it now is done by who comes next: our note says that it is there.
        with contextlib.suppress(OSError):
            if intent is not None:
                Hops(layout, disk, ref.queue).roll_forward(intent)
            _withdraw(directory, claimant.nonce)
        return ids
    finally:
        mine.release()


def _claimed(layout: Layout, claimant: Claimant, ref: Ref) -> str | None:
    """The entry's path in our hand, written down before it is there; None: it has gone."""
    path = f"{os.path.dirname(ref.token)}/{Name(ref.due_ns, ref.id, claimant)}"
    directory = layout.leases(ref.queue)
    temporary = directory / f"{HIDDEN}{claimant.nonce}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        write_all(fd, [os.fsencode(path[len(layout.root) + 1 :])])
    finally:
        os.close(fd)
    temporary.replace(directory / f"{claimant.nonce}{HAND}")
    try:
        os.rename(ref.token, path)
    except FileNotFoundError:
        return None
    return path


def _committed(
    hops: Hops,
    path: str,
    claimant: Claimant,
    ref: Ref,
    follow: Callable[[Entry], Sequence[Add]],
    now_ns: int,
) -> tuple[tuple[str, ...], str | None]:
    """The ids of what follows, and the intent in effect; None: nothing follows, and the entry is gone."""
    try:
        adds = follow(open_path(path, ref.queue, Name(ref.due_ns, ref.id, claimant)).entry)
        if not adds:
            os.unlink(path)
            return (), None
        sealed = [seal(add.draft, now_ns, records=add.records) for add in adds]
        children = [
            Child(one.id, add.queue, add.area, add.due_ns, one.parts)
            for one, add in zip(sealed, adds, strict=True)
        ]
        txn = f"{ref.id}.{claimant.nonce}-{claimant.serial}"
        return tuple(one.id for one in sealed), hops.commit(txn, children, [Parent(path, ref.id)])
    except Exception:
        # After an interruption nobody knows how far we were, but the note does.
        move(path, os.path.dirname(path), ref.due_ns, ref.id)
        raise


def _withdraw(directory: Path, nonce: str) -> None:
    (directory / f"{nonce}{HAND}").unlink(missing_ok=True)
    forget(directory, nonce)


def settle(layout: Layout, disk: Disk, queue: str, is_alive: Callable[[str], bool] | None = None) -> int:
    """Finishes, or takes back, what verbs were doing that have died; how many of them had committed.

    :param is_alive: whether the process of a nonce still runs; None: by its lock.
    """
    directory = layout.leases(queue)
    ask = is_alive or (lambda nonce: is_live(directory, nonce))
    dead = [nonce for nonce in _nonces(directory) if not ask(nonce)]
    if not dead:
        return 0
    with registry(directory):
        rolled = Hops(layout, disk, queue).recover(ask)
        for nonce in dead:
            with contextlib.suppress(FileNotFoundError):
                _take_back(layout, directory, nonce)
            _withdraw(directory, nonce)
    return rolled


def _nonces(directory: Path) -> list[str]:
    return [name.removesuffix(HAND) for name in os.listdir(directory) if name.endswith(HAND)]


def _take_back(layout: Layout, directory: Path, nonce: str) -> None:
    """:raises FileNotFoundError: there is nothing to take back."""
    try:
        path = os.fsdecode(read_path(str(directory / f"{nonce}{HAND}"), _LONGEST))
    except CorruptEntry:
        return
    name = parse_name(os.path.basename(path))
    # Our own note, but a file all the same: it names nothing outside, and nobody else's claim.
    inside = not path.startswith("/") and ".." not in path.split("/")
    if inside and name is not None and name.claimant is not None and name.claimant.nonce == nonce:
        move(f"{layout.root}/{path}", f"{layout.root}/{os.path.dirname(path)}", name.due_ns, name.id)
