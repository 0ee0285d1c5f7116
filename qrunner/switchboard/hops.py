"""Compound commits: one to many, many to one, an entry and its report.

Children are written and synced, and with them an intent, which names the parents with their fates and the children
with their queues. The children get hidden names, then the intent gets its own, and these are synced: that is the commit.
Then the children are renamed into their queues, the parents meet their fates, and the intent is unlinked.

Guarantees: wholly or not at all, and once, whichever instruction the process dies at and however fast the next
runner is. A child is renamed, never linked: when its hidden name is gone it has been handed on, and is not made
again even if it was finished meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qrunner.errors import CorruptEntry
from qrunner.format import LAST_DUE_NS, due_within, history_line, parse_history, ready_name
from qrunner.switchboard.disk import Disk, Staged, append, rename_new
from qrunner.switchboard.layout import Layout
from qrunner.switchboard.reading import LONGEST_TAIL, read_path

INTENT = ".intent"
BROKEN = ".broken"
# Files that are open at a time: a fan-out is synced in one go, and one into thousands keeps within its descriptors.
_TOGETHER = 64
_OURS = re.compile(
    r"(?P<txn>[0-9a-f]{40}\.(?P<nonce>[0-9a-f]+)-[0-9]+)(?P<what>\.[0-9]+|\.intent(?:\.broken)?)\Z"
)


@dataclass(frozen=True, slots=True)
class Child:
    """A file that will be an entry: its bytes, and where it goes."""

    id: str
    queue: str
    area: str
    due_ns: int
    parts: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Parent:
    """A claimed file and its fate: gone (``queue`` None), or moved with lines for its history."""

    path: str
    id: str
    queue: str | None = None
    area: str = "queue"
    due_ns: int = 0
    records: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Hops:
    """The compound commits of one queue."""

    layout: Layout
    disk: Disk
    queue: str

    @property
    def directory(self) -> str:
        """Where they lie."""
        return self.layout.hops(self.queue)

    def commit(self, txn: str, children: Sequence[Child], parents: Sequence[Parent]) -> str:
        """Lays down and commits; the intent's path, to be rolled forward.

        :raises OSError: nothing was done.
        """
        intent = f"{txn}{INTENT}"
        files = [(f"{txn}.{number}", child.parts) for number, child in enumerate(children)]
        files.append((intent, [self.intent(txn, children, parents)]))
        laid: list[str] = []
        try:
            self.lay(files, laid)
            self.disk.sync_directory(self.directory)
        except BaseException:
            if intent in laid and not _withdrawn(f"{self.directory}/{intent}"):
                return f"{self.directory}/{intent}"
            for name in laid:
                with contextlib.suppress(OSError):
                    os.unlink(f"{self.directory}/{name}")
            raise
        return f"{self.directory}/{intent}"

    def lay(self, files: Sequence[tuple[str, Sequence[bytes]]], laid: list[str]) -> None:
        """Lays these files down, each synced before it has its name, and named in this order; adds to ``laid`` what has
        one. The directory is not synced.

        :raises OSError: what is in ``laid`` is there all the same.
        """
        for start in range(0, len(files), _TOGETHER):
            self._lay(files[start : start + _TOGETHER], laid)

    def _lay(self, files: Sequence[tuple[str, Sequence[bytes]]], laid: list[str]) -> None:
        staged: list[Staged] = []
        try:
            for name, parts in files:
                staged.append(self.disk.stage(self.directory, name, parts))
            self.disk.sync_files([one.fd for one in staged])
            for one in staged:
                one.link()
                laid.append(one.name)
        except BaseException:
            for one in staged:
                if not one.linked:
                    one.withdraw()
            raise
        finally:
            for one in staged:
                one.close()

    def intent(self, txn: str, children: Sequence[Child], parents: Sequence[Parent], **head: Any) -> bytes:
        """What an intent's file says.

        :param head: what its first line says besides.
        """
        lines: list[dict[str, Any]] = [{"intent": 1, "steps": len(children) + len(parents), **head}]
        lines += [
            {"child": f"{txn}.{number}", "id": c.id, "queue": c.queue, "area": c.area, "due": c.due_ns}
            for number, c in enumerate(children)
        ]
        for parent in parents:
            line: dict[str, Any] = {"parent": parent.path[len(self.layout.root) + 1 :], "id": parent.id}
            if parent.queue is not None:
                line |= {"queue": parent.queue, "area": parent.area, "due": parent.due_ns}
                line["records"] = [dict(record) for record in parent.records]
            lines.append(line)
        return b"".join(history_line(line) for line in lines)

    def roll_forward(self, *intents: str) -> None:
        """Does what committed intents say, as far as it is not done yet; any number of times.

        :raises OSError: not all of it could be done; it can be called again.
        """
        touched = {directory for intent in intents for directory in self._carried_out(intent)}
        self.disk.sync_directories(sorted(touched))
        for intent in intents:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(intent)

    def _carried_out(self, intent: str) -> set[str]:
        """The directories in which something was changed."""
        try:
            steps = read_intent(intent)[1:]
        except FileNotFoundError:
            return set()  # it was carried out, and then something else failed
        touched: set[str] = set()
        for step in steps:
            if "child" in step:
                touched.add(self._hand_on(step))
        for step in steps:
            if "parent" in step:
                touched.update(self._meet_fate(step))
        return touched

    def _hand_on(self, step: Mapping[str, Any]) -> str:
        target = self._target(step)
        with contextlib.suppress(FileNotFoundError):
            move(f"{self.directory}/{step['child']}", target, step["due"], step["id"])
        return target

    def _meet_fate(self, step: Mapping[str, Any]) -> list[str]:
        source = f"{self.layout.root}/{step['parent']}"
        touched = [os.path.dirname(source)]
        with contextlib.suppress(FileNotFoundError):
            if "queue" not in step:
                os.unlink(source)
                return touched
            lines = b"".join(history_line(record) for record in step["records"])
            # Who died between this and the move has appended them already.
            append(source, lines, disk=self.disk, once=True)
            touched.append(self._target(step))
            move(source, touched[-1], step["due"], step["id"])
        return touched

    def _target(self, step: Mapping[str, Any]) -> str:
        target = self.layout.destination(step["area"], step["queue"], step["id"])
        if not os.path.isdir(target):
            self.layout.prepare([step["queue"]], self.disk)
        return target

    def recover(self, is_live: Callable[[str], bool]) -> int:
        """Rolls forward what dead processes committed, and sweeps what they did not; how many were committed.

        :param is_live: whether the process of this nonce still runs.
        """
        # Listed anew once they are known to be dead: what was a child without an intent may have been committed since.
        nonces = {match["nonce"] for match in self._ours() if not is_live(match["nonce"])}
        found = self._ours()
        dead = [match for match in found if match["nonce"] in nonces]
        rolled = 0
        for match in dead:
            if match["what"] == INTENT:
                rolled += self._roll_or_keep(f"{self.directory}/{match[0]}")
        kept = {match["txn"] for match in found if match["what"].startswith(INTENT + BROKEN)}
        for match in dead:
            if match["what"][1:].isdigit() and match["txn"] not in kept:
                with contextlib.suppress(OSError):
                    os.unlink(f"{self.directory}/{match[0]}")
        return rolled

    def _ours(self) -> list[re.Match[str]]:
        return [match for name in os.listdir(self.directory) if (match := _OURS.match(name))]

    def _roll_or_keep(self, intent: str) -> bool:
        try:
            self.roll_forward(intent)
        except CorruptEntry:
            # It was synced before it had its name, so this is a failing disk or a stranger's file. Its children are
            # kept beside it, for a person to look at, and it stops nothing.
            os.rename(intent, intent + BROKEN)
            return False
        return True


def _withdrawn(intent: str) -> bool:
    """Whether the intent is out of effect; one that can't be unlinked stands, and is rolled forward."""
    try:
        os.unlink(intent)
    except FileNotFoundError:
        pass
    except OSError:
        return False
    return True


def is_ours(name: str) -> bool:
    """Whether a name among the compound commits is that of one."""
    return _OURS.match(name) is not None


def read_intent(intent: str) -> Sequence[Mapping[str, Any]]:
    """An intent's lines, its head first. :raises CorruptEntry: it is not whole."""
    lines = parse_history(read_path(intent, LONGEST_TAIL))
    if not lines or lines[0].get("steps") != len(lines) - 1:
        raise CorruptEntry(f"the intent is not whole: {intent}")
    return lines


def move(source: str, directory: str, due_ns: int, id: str) -> str:
    """Renames into a directory under the entry's ready name, never over another; the path it has now.

    :raises FileNotFoundError: the source is gone.
    """
    due_ns = due_within(due_ns)
    step = 1 if due_ns < LAST_DUE_NS // 2 else -1
    while True:
        target = f"{directory}/{ready_name(due_ns, id)}"
        try:
            rename_new(source, target)
            return target
        except FileExistsError:
            # A stranger's copy of the same entry: it is left alone, and we are due a moment later.
            due_ns += step
        except FileNotFoundError:
            if not os.path.lexists(source):
                raise
            raise NotADirectoryError(errno.ENOTDIR, "there is no such queue", directory) from None
