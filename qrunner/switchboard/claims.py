"""A lease on files: claiming, noting and committing in the range that is ours.

Guarantees: a claim is one rename, and so is a plain commit; a content change commits by one rename over the
claimed file; everything else is a compound commit (``hops``). An entry that has delivered to some of its
recipients is synced before its name changes.

Failures: ``OSError`` before the point of no return leaves everything as it was. After it, what could not be done
is kept and tried again at each refresh, by us or by the next owner.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from qrunner.clock import Clock
from qrunner.errors import CorruptEntry
from qrunner.format import Claimant, Name, crash_marks, history_line, ready_name, reseal, seal
from qrunner.message import SETTLED, Entry, noted, still_owed
from qrunner.switchboard import Claim, Holder, Hop, Move, Recovered, Ref
from qrunner.switchboard.bell import InotifyBell
from qrunner.switchboard.disk import Disk, Tail, append, cut_back
from qrunner.switchboard.hops import Child, Hops, Parent, move
from qrunner.switchboard.index import DueIndex, key_of, parts_of
from qrunner.switchboard.layout import Layout
from qrunner.switchboard.leases import HeldLease, mark_looking
from qrunner.switchboard.reading import open_path
from qrunner.switchboard.recovery import Recovery

# What becomes of it is written down next, in the same file.
_FOLLOWED = frozenset({"sending"})


class FilesLease:
    """The right to claim in one range of a queue of files."""

    def __init__(
        self,
        layout: Layout,
        disk: Disk,
        clock: Clock,
        queue: str,
        held: HeldLease,
        max_crashes: int,
        log: logging.Logger,
    ) -> None:
        assert held.holder.range is not None
        self.queue, self.range = queue, held.holder.range
        self.holder: Holder = held.holder
        self._layout, self._disk, self._clock, self._held, self._log = layout, disk, clock, held, log
        self._hops = Hops(layout, disk, queue)
        self._index = DueIndex()
        self._renewed: dict[bytes, int] = {}
        self._bell: InotifyBell | None = None
        self._in_hand: dict[str, Claim | None] = {}
        self._dirty: set[str] = set()
        self._tails: dict[str, Tail] = {}
        self._unfinished: list[Callable[[], None]] = []
        self._serial = 0
        self._serials = threading.Lock()
        self._recovery = Recovery(
            layout, disk, clock, queue, held, max_crashes, log, self._hops, self._in_hand
        )

    # Looking

    @property
    def stale(self) -> bool:
        return self._bell is not None and self._bell.lost_count

    def refresh(self) -> Recovered:
        self._finish_unfinished()
        self._index.begin()
        if self._bell is not None:
            self._bell.lost_count = False
        found, keys, rows = self._recovery.look_through()
        self._renewed.clear()
        self._index.replace(keys, rows)
        return found

    def due(self, now_ns: int, limit: int) -> Sequence[Ref]:
        return [self._ref(key) for key in self._index.take(now_ns, limit)]

    def peek(self, now_ns: int) -> Sequence[Ref]:
        return [self._ref(key) for key in self._index.peek(now_ns)]

    def renew(self, ref: Ref, due_ns: int | None = None) -> None:
        key = key_of(ref.due_ns if due_ns is None else due_ns, ref.id)
        if due_ns is not None and due_ns != ref.due_ns:
            # The file keeps its name, and it is by that name that it is claimed.
            self._renewed[key] = ref.due_ns
        self._index.add(key)

    def next_due_ns(self, after_ns: int = -1) -> int | None:
        return self._index.next_due_ns(after_ns)

    def _ref(self, key: bytes) -> Ref:
        due_ns, id = parts_of(key)
        due_ns = self._renewed.get(key, due_ns)
        return Ref(
            self.queue, id, due_ns, token=f"{self._layout.place(self.queue, id)}/{ready_name(due_ns, id)}"
        )

    def subscribe(self, bell: Callable[[], None] | None) -> bool:
        if self._bell is not None:
            self._bell.close()
            self._bell = None
        if bell is None:
            return False
        directories = self._layout.directories(self.queue, part=self.range)
        self._bell = InotifyBell.hang(directories, self.range, self._index, bell, asyncio.get_running_loop())
        return self._bell is not None

    # Claiming

    def read(self, ref: Ref) -> Entry | None:
        try:
            return open_path(ref.token, self.queue, Name(ref.due_ns, ref.id)).entry
        except FileNotFoundError:
            return None
        except CorruptEntry as error:
            self._recovery.set_aside(ref.token, str(error))
            return None

    def looking(self, on: bool) -> None:
        mark_looking(self._held.directory, self.holder.nonce, on)

    def claim(self, ref: Ref) -> Claim | None:
        name = Name(ref.due_ns, ref.id, self._claimant())
        path = f"{self._layout.place(self.queue, ref.id)}/{name}"
        # Known as ours before it has the name, so that a refresh in another thread leaves it alone.
        self._in_hand[path] = None
        try:
            if not self._take(ref, path):
                del self._in_hand[path]
                return None
            opened = open_path(path, self.queue, name)
        except CorruptEntry as error:
            self._recovery.set_aside(path, str(error))
            del self._in_hand[path]
            return None
        except OSError:
            self._give_up(path, ref)
            raise
        suspect = bool(crash_marks(self.queue, opened.entry.history))
        claim = Claim(opened.entry, path, suspect)
        self._in_hand[path] = claim
        return claim

    def _take(self, ref: Ref, path: str) -> bool:
        for source in (ref.token, f"{self._layout.queue(self.queue)}/{ready_name(ref.due_ns, ref.id)}"):
            try:
                os.rename(source, path)
                return True
            except FileNotFoundError:
                continue
            except OSError:
                # What stands in the way of an entry is everybody's trouble; a stranger that won't move is its own.
                if self._is_entry(source, ref):
                    raise
                return False
        return False

    def _is_entry(self, path: str, ref: Ref) -> bool:
        try:
            open_path(path, self.queue, Name(ref.due_ns, ref.id))
        except FileNotFoundError:
            return False
        except CorruptEntry as error:
            self._recovery.set_aside(path, str(error))
            return False
        return True

    def _give_up(self, path: str, ref: Ref) -> None:
        try:
            move(path, os.path.dirname(path), ref.due_ns, ref.id)
        except FileNotFoundError:
            pass
        except OSError as error:
            self._log.warning("entry stays claimed until the next look id=%s error=%s", ref.id, error)
        self._in_hand.pop(path, None)

    def _claimant(self) -> Claimant:
        with self._serials:
            self._serial += 1
            serial = self._serial
        mine = self.holder
        return Claimant(mine.pid, mine.nonce, serial, mine.boot, mine.node)

    def note(self, claim: Claim, record: Mapping[str, Any], *, sync: bool = False) -> None:
        line = {"t": self._clock.now_ns(), **record}
        tail = self._tails.pop(claim.token, None) or Tail(claim.token)
        try:
            tail.add(history_line(line), disk=self._disk if sync else None)
        except BaseException:
            tail.close()
            raise
        if line.get("what") in _FOLLOWED:
            self._tails[claim.token] = tail
        else:
            tail.close()
        self._remember(claim, line)

    def _remember(self, claim: Claim, line: Mapping[str, Any]) -> None:
        history, owed = (*claim.entry.history, line), claim.entry.recipients
        if line.get("what") in SETTLED:
            self._dirty.add(claim.token)
        if line.get("what") not in _FOLLOWED:
            owed = still_owed(claim.entry.envelope, history)
        claim.entry = noted(claim.entry, history, owed)

    # Committing

    def commit(self, hop: Hop) -> tuple[str, ...]:
        if hop.is_plain:
            self._plain(hop)
            return ()
        if len(hop.moved) == 1 and not hop.finished and not hop.added:
            self._rewrite(hop.moved[0])
            return ()
        return self._compound(hop)

    def put_back(self, claim: Claim) -> None:
        try:
            self._plain(Hop(moved=(Move(claim, self.queue, claim.entry.due_ns),)))
        except OSError:
            # The next look through the range finds a claim that is in nobody's hand, and puts it back.
            self._let_go(claim)
            raise

    def _plain(self, hop: Hop) -> None:
        try:
            for claim in hop.finished:
                # The file system has more to do for a file that is still open when its last name goes.
                self._close_tail(claim)
                os.unlink(claim.token)
                self._let_go(claim)
            for one in hop.moved:
                self._relocate(one)
        except FileNotFoundError as error:
            # Nobody but its owner touches a claimed file; if somebody did, there is nothing left to decide about.
            self._log.error("a claimed entry was taken away by somebody else: %s", error)
            for claim in (*hop.finished, *(one.claim for one in hop.moved)):
                self._let_go(claim)

    def _relocate(self, one: Move) -> None:
        claim, id = one.claim, one.claim.entry.id
        lines, size = self._lines(one.records), None
        if lines:
            settles = any(record.get("what") in SETTLED for record in one.records)
            dirty = settles or claim.token in self._dirty
            size = append(claim.token, lines, disk=self._disk if dirty else None)
        elif claim.token in self._dirty:
            self._sync(claim.token)
        try:
            move(claim.token, self._layout.destination(one.area, one.queue, id), one.due_ns, id)
        except OSError:
            # It is still in hand: an attempt that is written down at every try would count as often.
            if size is not None:
                cut_back(claim.token, size)
            raise
        self._let_go(claim)

    def _sync(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._disk.sync_file(fd)
        finally:
            os.close(fd)

    def _lines(self, records: Sequence[Mapping[str, Any]]) -> bytes:
        now = self._clock.now_ns()
        return b"".join(history_line({"t": now, **record}) for record in records)

    def _let_go(self, claim: Claim) -> None:
        self._in_hand.pop(claim.token, None)
        self._dirty.discard(claim.token)
        self._close_tail(claim)

    def _close_tail(self, claim: Claim) -> None:
        if (tail := self._tails.pop(claim.token, None)) is not None:
            tail.close()

    def _rewrite(self, one: Move) -> None:
        claim = one.claim
        hop = {
            "from": self.queue,
            "to": one.queue,
            "area": one.area,
            "due": one.due_ns,
            "claim": os.path.basename(claim.token),
        }
        sealed = reseal(self._content(one), self._rewritten(one), hop)
        temporary = self._disk.write_hidden(os.path.dirname(claim.token), sealed.parts)
        try:
            os.rename(temporary, claim.token)
        except OSError:
            os.unlink(temporary)
            raise
        self._dirty.discard(claim.token)
        self._finish(lambda: self._onward(one), claim)

    def _onward(self, one: Move) -> None:
        id = one.claim.entry.id
        target = self._layout.destination(one.area, one.queue, id)
        if not os.path.isdir(target):
            # As a recovery does: a queue that went away must not keep us from all the others.
            self._layout.prepare([one.queue], self._disk)
        with contextlib.suppress(FileNotFoundError):
            move(one.claim.token, target, one.due_ns, id)

    def _content(self, one: Move) -> Entry:
        assert one.content is not None
        return dataclasses.replace(one.content, history=one.claim.entry.history)

    def _rewritten(self, one: Move) -> list[Mapping[str, Any]]:
        now = self._clock.now_ns()
        return [{"t": now, **record} for record in ({"what": "rewrite"}, *one.records)]

    def _compound(self, hop: Hop) -> tuple[str, ...]:
        claims = [*hop.finished, *(one.claim for one in hop.moved)]
        now = self._clock.now_ns()
        children: list[Child] = []
        for add in hop.added:
            sealed = seal(add.draft, now, records=add.records)
            children.append(Child(sealed.id, add.queue, add.area, add.due_ns, sealed.parts))
        ids = tuple(child.id for child in children)
        parents = [Parent(claim.token, claim.entry.id) for claim in hop.finished]
        for one in hop.moved:
            id = one.claim.entry.id
            if one.rewrites:
                sealed = reseal(self._content(one), self._rewritten(one))
                children.append(Child(id, one.queue, one.area, one.due_ns, sealed.parts))
                parents.append(Parent(one.claim.token, id))
            else:
                records = tuple({"t": now, **record} for record in one.records)
                parents.append(Parent(one.claim.token, id, one.queue, one.area, one.due_ns, records))
        intent = self._hops.commit(self._txn(claims[0].entry.id), children, parents)
        self._finish(lambda: self._hops.roll_forward(intent), *claims)
        return ids

    def _txn(self, id: str) -> str:
        claimant = self._claimant()
        return f"{id}.{claimant.nonce}-{claimant.serial}"

    def _finish(self, step: Callable[[], None], *claims: Claim) -> None:
        """Past the point of no return: what can't be done now is done later, and the claims are in hand till then."""

        def whole() -> None:
            step()
            for claim in claims:
                self._let_go(claim)

        try:
            whole()
        except OSError as error:
            self._log.warning("a commit waits to be finished queue=%s error=%s", self.queue, error)
            self._unfinished.append(whole)

    def _finish_unfinished(self) -> None:
        waiting, self._unfinished = self._unfinished, []
        for position, whole in enumerate(waiting):
            try:
                whole()
            except OSError:
                self._unfinished.extend(waiting[position:])
                raise

    # Ending

    def stopping(self) -> None:
        self._held.stopping()

    def release(self) -> None:
        self.subscribe(None)
        self._held.release()
