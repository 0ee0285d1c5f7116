"""What a door has taken and not yet published: ``qfiles/.door/DOOR/``.

::

    <sha1 of the key>.<nonce>-<serial>.<number>    an entry to be
    <sha1 of the key>.<nonce>-<serial>.staged      the key, and where its entries are to go
    <sha1 of the key>.<nonce>-<serial>.intent      the same file, from the moment on at which they go there

The file ``.staged`` is that of a compound commit (``hops``) which is not in effect yet; to publish is to rename it
and to carry it out. Whoever takes the door next carries out what has that name, and sweeps what has neither.

Guarantees: those of the contract, across the death of any process at any instruction, and across power loss: what
was synced as ``.staged`` comes back as such, or as published.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha1
from typing import TYPE_CHECKING

from qrunner.errors import CorruptEntry
from qrunner.format import Sealed, seal
from qrunner.switchboard import Add
from qrunner.switchboard.disk import HIDDEN, Disk
from qrunner.switchboard.hops import BROKEN, INTENT, Child, Hops, read_intent
from qrunner.switchboard.leases import HeldLease
from qrunner.switchboard.reading import names_in

if TYPE_CHECKING:
    from qrunner.switchboard.files import FilesSpool

STAGED = ".staged"
_File = tuple[str, Sequence[bytes]]
_OURS = re.compile(r"(?P<txn>[0-9a-f]{40}\.[0-9a-f]+-[0-9]+)(?P<what>\.[0-9]+|\.staged|\.intent|\.broken)\Z")


class _Steps(Hops):
    """Compound commits that lie with a door, not with a queue."""

    __slots__ = ()

    @property
    def directory(self) -> str:
        return self.layout.door(self.queue)


@dataclass(eq=False, slots=True)
class _Kept:
    """What is staged under one key.

    :param begun: it has been renamed into effect, and only has to be carried out.
    """

    txn: str
    children: int
    begun: bool = False


class FilesStaging:
    """A door of a spool of files, for as long as its lease is held."""

    def __init__(self, spool: FilesSpool, door: str, held: HeldLease) -> None:
        """:raises OSError: what was left could not be looked through; the lease is given up again."""
        self.door = door
        self._spool, self._held = spool, held
        self._disk: Disk = spool.disk
        self._log: logging.Logger = spool.log
        self._steps = _Steps(spool.layout, spool.disk, door)
        self._directory = self._steps.directory
        self._kept: dict[str, _Kept] = {}
        # What a failing disk did not let us take back. It must not be found beside what is staged in its place.
        self._left: list[_Kept] = []
        self._serials = itertools.count(1)
        try:
            self._look_through()
        except BaseException:
            self.release()
            raise

    # What is left of former holders

    def _look_through(self) -> None:
        found: dict[str, set[str]] = {}
        for name in names_in(self._directory):
            if (match := _OURS.match(name)) is not None:
                found.setdefault(match["txn"], set()).add(match["what"])
            elif name.startswith(HIDDEN):
                self._sweep(f"{self._directory}/{name}")
            else:
                self._log.warning("a stranger is left alone path=%s/%s", self._directory, ascii(name))
        for txn, whats in found.items():
            self._take_up(txn, whats)

    def _take_up(self, txn: str, whats: set[str]) -> None:
        numbers = {what for what in whats if what[1:].isdigit()}
        if INTENT in whats:
            with self._set_aside_if_broken(txn, INTENT):
                self._steps.roll_forward(self._path(txn, INTENT))
        elif STAGED in whats:
            with self._set_aside_if_broken(txn, STAGED):
                head, *steps = read_intent(self._path(txn, STAGED))
                self._kept[str(head.get("key"))] = _Kept(txn, len(steps))
        elif BROKEN not in whats:
            for number in numbers:
                self._sweep(self._path(txn, number))

    @contextlib.contextmanager
    def _set_aside_if_broken(self, txn: str, what: str) -> Iterator[None]:
        try:
            yield
        except CorruptEntry as error:
            # It was synced before it had its name, so this is a failing disk or a stranger's file. The entries are
            # kept beside it, for a person to look at.
            os.rename(self._path(txn, what), self._path(txn, BROKEN))
            self._log.error(
                "what a door has staged can't be read path=%s: %s", self._path(txn, BROKEN), error
            )

    def _sweep(self, path: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(path)

    def _path(self, txn: str, what: str) -> str:
        return f"{self._directory}/{txn}{what}"

    # The contract

    def staged(self) -> Sequence[str]:
        return tuple(self._kept)

    def stage(self, batch: Mapping[str, Sequence[Add]]) -> Mapping[str, tuple[str, ...]]:
        now = self._spool.clock.now_ns()
        sealed = {
            key: [seal(add.draft, now, records=add.records) for add in adds] for key, adds in batch.items()
        }
        every = [add for adds in batch.values() for add in adds]
        laid: dict[str, _Kept] = {}
        children: list[_File] = []
        intents: list[_File] = []
        try:
            self._take_back()
            self.drop(batch)
            self._spool.check(every)
            self._expect(every)
            for key, adds in batch.items():
                laid[key] = self._described(key, adds, sealed[key], children, intents)
            # What makes them staged comes last.
            self._steps.lay([*children, *intents], [])
            self._disk.sync_directory(self._directory)
        except BaseException as error:
            self._left.extend(laid.values())
            with contextlib.suppress(OSError):
                self._take_back()
            if isinstance(error, OSError):
                raise self._spool.refusal(every, error) from error
            raise
        self._kept |= laid
        return {key: tuple(one.id for one in ones) for key, ones in sealed.items()}

    def _expect(self, adds: Sequence[Add]) -> None:
        """:raises FileNotFoundError: a queue is not there, and to publish must not make it."""
        layout = self._spool.layout
        for directory in {layout.destination(add.area, add.queue, "00") for add in adds}:
            os.stat(directory)

    def _described(
        self,
        key: str,
        adds: Sequence[Add],
        sealed: Sequence[Sealed],
        children: list[_File],
        intents: list[_File],
    ) -> _Kept:
        """What is to be written for one key is added to ``children`` and ``intents``."""
        name = sha1(key.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()
        txn = f"{name}.{self._held.holder.nonce}-{next(self._serials)}"
        family = [
            Child(one.id, add.queue, add.area, add.due_ns, one.parts)
            for one, add in zip(sealed, adds, strict=True)
        ]
        children += [(f"{txn}.{number}", child.parts) for number, child in enumerate(family)]
        intents.append((f"{txn}{STAGED}", [self._steps.intent(txn, family, (), key=key)]))
        return _Kept(txn, len(family))

    def publish(self, keys: Collection[str]) -> None:
        wanted = {key: self._kept[key] for key in keys if key in self._kept}
        for kept in wanted.values():
            if not kept.begun:
                # From here on it is to be done, whoever does it.
                os.rename(self._path(kept.txn, STAGED), self._path(kept.txn, INTENT))
                kept.begun = True
        txns = [kept.txn for kept in wanted.values()]
        try:
            self._steps.roll_forward(*(self._path(txn, INTENT) for txn in txns))
        except CorruptEntry:
            for txn in txns:
                with self._set_aside_if_broken(txn, INTENT):
                    self._steps.roll_forward(self._path(txn, INTENT))
        for key in wanted:
            del self._kept[key]

    def drop(self, keys: Collection[str]) -> None:
        for key in keys:
            kept = self._kept.get(key)
            if kept is None or kept.begun:
                continue
            self._unlink(kept)
            del self._kept[key]

    def _take_back(self) -> None:
        while self._left:
            self._unlink(self._left[-1])
            self._left.pop()

    def _unlink(self, kept: _Kept) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(kept.txn, STAGED))
        # What is left of it now are files that belong to nothing, and are swept by who comes next.
        for number in range(kept.children):
            self._sweep(self._path(kept.txn, f".{number}"))

    def release(self) -> None:
        self._held.release()
