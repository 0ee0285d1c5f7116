"""What a disk may hold after the power was cut: every state of it, laid out from a trace of file operations.

The method is that of the ALICE study (Pillai and others, "All File Systems Are Not Created Equal", OSDI 2014). A
trace is cut after each of its operations. For each cut, a state is a choice of two things that are independent:

*Names.* The file system keeps a journal: directory operations (a name given, a rename, an unlink) survive as a
prefix of their order, each whole. Any prefix will do that is long enough for the syncs before the cut: a sync of a
directory makes durable the last operation that touched this directory and, the journal being in order, all before
it. A sync of a file makes no name durable. (ext4 and xfs promise more: there a sync of either kind commits all
operations before it. Their states are among those of this model, which allows every shorter prefix besides.)

*Data.* A file has what its last sync saw. Each write since then has, independently of the names and of the other
files, arrived whole, not at all, in part (nothing, half, all but the last byte), or as zeros of its full length (the
size was written down, the blocks were not). Of several unsynced writes to a file any first few arrived, or one of
them went wrong between others that arrived.

Not modelled: a disk that lies about syncs, blocks that go bad later, names that survive out of order.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes into a file, at an offset."""

    file: int
    at: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Cut:
    """ftruncate."""

    file: int
    size: int


@dataclass(frozen=True, slots=True)
class Sync:
    """fsync of a file."""

    file: int


@dataclass(frozen=True, slots=True)
class SyncDirectory:
    """fsync of a directory."""

    path: str


@dataclass(frozen=True, slots=True)
class Name:
    """A file gets a name: by its creation, or by a link."""

    path: str
    file: int


@dataclass(frozen=True, slots=True)
class Rename:
    """A name becomes another, over whatever had it."""

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class Unlink:
    """A name goes."""

    path: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A promise given at this point; what it says is the business of who checks it."""

    what: str
    key: str
    value: object = None


DirectoryOperation = Name | Rename | Unlink
Operation = Write | Cut | Sync | SyncDirectory | DirectoryOperation | Mark
Files = Mapping[str, bytes]


@dataclass(slots=True)
class Trace:
    """Operations in their order, and what there was, durably, before the first of them."""

    before: dict[str, bytes] = field(default_factory=dict)
    operations: list[Operation] = field(default_factory=list)

    def after(self) -> Files:
        """What a machine sees that keeps its power."""
        disk = _Disk(self.before)
        for operation in self.operations:
            disk.do(operation)
        return {path: disk.data[file].now() for path, file in disk.names(len(disk.journal)).items()}


@dataclass(frozen=True, slots=True)
class State:
    """One state of the disk, and where it comes from.

    :param cut: how many operations had been done.
    :param names: how many directory operations survived.
    """

    files: Files
    cut: int
    names: int


@dataclass(slots=True)
class _Data:
    """A file's bytes: those of the last sync, and what was written since."""

    synced: bytes = b""
    since: list[Write | Cut] = field(default_factory=list)

    def now(self) -> bytes:
        return _applied(self.synced, self.since)

    def possible(self) -> list[bytes]:
        """Every content that a cut may leave; what is there first."""
        found = {self.now(): None}
        for count, change in enumerate(self.since):
            first, rest = self.since[:count], self.since[count + 1 :]
            found[_applied(self.synced, first)] = None
            for torn in _torn(change):
                found[_applied(self.synced, [*first, *torn])] = None
                found[_applied(self.synced, [*first, *torn, *rest])] = None
        return list(found)


def _torn(change: Write | Cut) -> Iterator[list[Write]]:
    if isinstance(change, Write):
        whole = change.data
        for kept in (0, len(whole) // 2, len(whole) - 1):
            yield [Write(change.file, change.at, whole[:kept])]
        for kept in (0, len(whole) // 2):
            yield [Write(change.file, change.at, whole[:kept] + bytes(len(whole) - kept))]
    else:
        yield []


def _applied(data: bytes, changes: Sequence[Write | Cut]) -> bytes:
    for change in changes:
        if isinstance(change, Cut):
            data = data[: change.size].ljust(change.size, b"\0")
        elif change.data:
            data = data.ljust(change.at, b"\0")
            data = data[: change.at] + change.data + data[change.at + len(change.data) :]
    return data


class _Disk:
    """The disk at one moment."""

    def __init__(self, before: Files) -> None:
        self._before = {path: -1 - number for number, path in enumerate(before)}
        self.data = {self._before[path]: _Data(before[path]) for path in before}
        self.journal: list[DirectoryOperation] = []
        self.durable = 0

    def do(self, operation: Operation) -> None:
        if isinstance(operation, DirectoryOperation):
            self.journal.append(operation)
            if isinstance(operation, Name):
                self.data.setdefault(operation.file, _Data())
        elif isinstance(operation, (Write, Cut)):
            self.data.setdefault(operation.file, _Data()).since.append(operation)
        elif isinstance(operation, Sync):
            self.data[operation.file] = _Data(self.data[operation.file].now())
        elif isinstance(operation, SyncDirectory):
            touching = [n for n, one in enumerate(self.journal) if operation.path in _directories(one)]
            self.durable = max([self.durable, *(n + 1 for n in touching)])

    def names(self, count: int) -> dict[str, int]:
        names = dict(self._before)
        for operation in self.journal[:count]:
            if isinstance(operation, Name):
                names[operation.path] = operation.file
            elif isinstance(operation, Rename):
                names[operation.target] = names.pop(operation.source)
            else:
                del names[operation.path]
        return names


def _directories(operation: DirectoryOperation) -> list[str]:
    paths = [operation.source, operation.target] if isinstance(operation, Rename) else [operation.path]
    return [path.rpartition("/")[0] for path in paths]


def states(trace: Trace) -> Iterator[State]:
    """Every state after every cut; the same files may come again, from a later cut."""
    disk = _Disk(trace.before)
    yield from _states_now(disk, 0)
    for cut, operation in enumerate(trace.operations, 1):
        disk.do(operation)
        yield from _states_now(disk, cut)


def _states_now(disk: _Disk, cut: int) -> Iterator[State]:
    for count in range(disk.durable, len(disk.journal) + 1):
        names = disk.names(count)
        files = sorted(set(names.values()))
        for choice in itertools.product(*(disk.data[file].possible() for file in files)):
            content = dict(zip(files, choice, strict=True))
            yield State({path: content[file] for path, file in names.items()}, cut, count)
