"""Traces of file operations: recorded in this process, or read from what strace says of another one."""

from __future__ import annotations

import ctypes
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from qrunner.switchboard import disk as disk_module
from tests.crash.power import Cut, Mark, Name, Rename, Sync, SyncDirectory, Trace, Unlink, Write


@dataclass(slots=True)
class _Open:
    """A descriptor: of a file, or of a directory."""

    path: str
    file: int | None
    at: int = 0
    appends: bool = False


@dataclass(slots=True)
class Ledger:
    """Turns calls into operations on files under one directory; leases are not mail and are left out."""

    root: str
    trace: Trace = field(default_factory=Trace)
    _names: dict[str, int] = field(default_factory=dict)
    _sizes: dict[int, int] = field(default_factory=dict)
    _open: dict[int, _Open] = field(default_factory=dict)
    _files: int = 0

    def within(self, path: str, directory: int | None = None) -> str | None:
        """The path relative to the root; None: it is none of ours."""
        if directory is not None and directory in self._open and not path.startswith("/"):
            path = os.path.normpath(f"{self.root}/{self._open[directory].path}/{path}")
        if not path.startswith(self.root + "/") or path.startswith(self.root + "/.lease"):
            return None
        return path[len(self.root) + 1 :]

    def opened(self, path: str, directory: int | None, flags: int, fd: int) -> None:
        self._open.pop(fd, None)
        inside = self.within(path, directory)
        if inside is None:
            return
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            self._open[fd] = _Open(inside, self._new())
        elif flags & os.O_DIRECTORY:
            self._open[fd] = _Open(inside, None)
        else:
            if inside not in self._names:
                if not flags & os.O_CREAT:
                    return
                self._names[inside] = self._new()
                self.trace.operations.append(Name(inside, self._names[inside]))
            self._open[fd] = _Open(inside, self._names[inside], appends=bool(flags & os.O_APPEND))
            if flags & os.O_TRUNC:
                self.cut(fd, 0)

    def _new(self) -> int:
        self._files += 1
        self._sizes[self._files] = 0
        return self._files

    def closed(self, fd: int) -> None:
        self._open.pop(fd, None)

    def wrote(self, fd: int, data: bytes) -> None:
        one = self._open.get(fd)
        if one is None or one.file is None or not data:
            return
        if one.appends:
            one.at = self._sizes[one.file]
        self.trace.operations.append(Write(one.file, one.at, data))
        one.at += len(data)
        self._sizes[one.file] = max(self._sizes[one.file], one.at)

    def sought(self, fd: int, at: int) -> None:
        if fd in self._open:
            self._open[fd].at = at

    def cut(self, fd: int, size: int) -> None:
        one = self._open.get(fd)
        if one is not None and one.file is not None:
            self.trace.operations.append(Cut(one.file, size))
            self._sizes[one.file] = size

    def cut_by_name(self, path: str, size: int) -> None:
        inside = self.within(path)
        if inside is not None:
            self.trace.operations.append(Cut(self._names[inside], size))
            self._sizes[self._names[inside]] = size

    def synced(self, fd: int) -> None:
        one = self._open.get(fd)
        if one is not None:
            self.trace.operations.append(SyncDirectory(one.path) if one.file is None else Sync(one.file))

    def linked(self, source: str, source_fd: int | None, target: str, target_fd: int | None) -> None:
        inside = self.within(target, target_fd)
        if inside is None:
            return
        descriptor = re.fullmatch(r"/proc/self/fd/(\d+)", source)
        if descriptor:
            file = self._open[int(descriptor[1])].file
            assert file is not None
        else:
            file = self._names[self.within(source, source_fd) or ""]
        self._names[inside] = file
        self.trace.operations.append(Name(inside, file))

    def renamed(self, source: str, target: str) -> None:
        inside, to = self.within(source), self.within(target)
        if inside is not None and to is not None:
            self._names[to] = self._names.pop(inside)
            self.trace.operations.append(Rename(inside, to))

    def unlinked(self, path: str, directory: int | None = None) -> None:
        inside = self.within(path, directory)
        if inside is not None:
            del self._names[inside]
            self.trace.operations.append(Unlink(inside))

    def mark(self, what: str, key: str, value: object = None) -> None:
        """A promise is given now."""
        self.trace.operations.append(Mark(what, key, value))


class Recorder:
    """Records what this process does. One call at a time, so that the trace has the order of the kernel."""

    def __init__(self, root: str) -> None:
        self.ledger = Ledger(root)
        self._lock = threading.RLock()

    def mark(self, what: str, key: str, value: object = None) -> None:
        with self._lock:
            self.ledger.mark(what, key, value)

    @contextmanager
    def recording(self) -> Iterator[Trace]:
        """While this lasts, every call is written down; at its end the trace is held against the real files."""
        ledger = self.ledger
        told: dict[str, Callable[..., None]] = {
            "open": lambda fd, path, flags, mode=0o777, *, dir_fd=None: ledger.opened(
                os.fspath(path), dir_fd, flags, fd
            ),
            "close": lambda _, fd: ledger.closed(fd),
            "write": lambda count, fd, data: ledger.wrote(fd, bytes(data)[:count]),
            "ftruncate": lambda _, fd, size: ledger.cut(fd, size),
            "truncate": lambda _, path, size: ledger.cut_by_name(os.fspath(path), size),
            "lseek": lambda at, fd, *_: ledger.sought(fd, at),
            "fsync": lambda _, fd: ledger.synced(fd),
            "link": lambda _, source, target, *, dst_dir_fd=None, follow_symlinks=True: ledger.linked(
                source, None, target, dst_dir_fd
            ),
            "rename": lambda _, source, target: ledger.renamed(source, target),
            "unlink": lambda _, path: ledger.unlinked(os.fspath(path)),
        }
        patches = [
            patch.object(os, name, self._telling(getattr(os, name), tell)) for name, tell in told.items()
        ]
        patches.append(patch.object(disk_module, "_libc", self))
        for one in patches:
            one.start()
        try:
            yield ledger.trace
        finally:
            for one in reversed(patches):
                one.stop()
        assert ledger.trace.after() == files_under(ledger.root), "the trace does not tell all that was done"

    def _telling(self, call: Callable[..., Any], tell: Callable[..., None]) -> Callable[..., Any]:
        def told(*arguments: Any, **more: Any) -> Any:
            with self._lock:
                result = call(*arguments, **more)
                tell(result, *arguments, **more)
                return result

        return told

    def renameat2(self, old: int, source: bytes, new: int, target: bytes, flags: int) -> int:
        """Stands in for the C library's."""
        with self._lock:
            result = _renameat2(old, source, new, target, flags)
            if result == 0:
                self.ledger.renamed(os.fsdecode(source), os.fsdecode(target))
            return result


_libc = ctypes.CDLL(None, use_errno=True)
_renameat2: Callable[..., int] = _libc.renameat2


def files_under(root: str | Path) -> dict[str, bytes]:
    """Every file below a directory with its bytes, leases left out."""
    found = {}
    for path in Path(root).rglob("*"):
        inside = str(path.relative_to(root))
        if path.is_file() and not inside.startswith(".lease"):
            found[inside] = path.read_bytes()
    return found


# What strace says

TRACED = (
    "open,openat,close,write,pwrite64,lseek,fsync,fdatasync,link,linkat,rename,renameat,renameat2,"
    "unlink,unlinkat,ftruncate,mkdir,mkdirat,exit_group"
)
_CALL = re.compile(r"(?:\d+ +)?(\w+)\((.*)\) += (-?\d+|\?)")
_FLAGS = {name: getattr(os, name) for name in ("O_TMPFILE", "O_DIRECTORY", "O_CREAT", "O_APPEND")}


def read_strace(lines: list[str], root: str) -> Trace:
    """The trace of one process of one thread, run under ``strace -f -xx -s … -e trace=TRACED``."""
    ledger = Ledger(root)
    for line in lines:
        found = _CALL.match(line)
        if found and found[3] != "?" and int(found[3]) >= 0:
            _take(ledger, found[1], [_argument(word) for word in found[2].split(", ")], int(found[3]))
    return ledger.trace


def _argument(word: str) -> Any:
    if word.startswith('"'):
        assert word.endswith('"'), "strace cut a string short"
        return bytes.fromhex(word[1:-1].replace("\\x", ""))
    if word == "AT_FDCWD":
        return None
    return int(word) if re.fullmatch(r"-?\d+", word) else word


def _take(ledger: Ledger, call: str, words: list[Any], result: int) -> None:
    text = [os.fsdecode(word) if isinstance(word, bytes) else word for word in words]
    if call == "openat":
        flags = sum(bit for name, bit in _FLAGS.items() if name in text[2].split("|"))
        ledger.opened(
            text[1], text[0], flags | (_FLAGS["O_TMPFILE"] if "O_TMPFILE" in text[2] else 0), result
        )
    elif call == "close":
        ledger.closed(words[0])
    elif call == "write":
        ledger.wrote(words[0], words[1][:result])
    elif call == "lseek":
        ledger.sought(words[0], result)
    elif call in ("fsync", "fdatasync"):
        ledger.synced(words[0])
    elif call == "ftruncate":
        ledger.cut(words[0], words[1])
    elif call == "linkat":
        ledger.linked(text[1], text[0], text[3], text[2])
    elif call == "unlink":
        ledger.unlinked(text[0])
    elif call == "unlinkat":
        ledger.unlinked(text[1], text[0])
    elif call in ("rename", "renameat", "renameat2", "pwrite64", "link", "open", "mkdir", "mkdirat"):
        raise AssertionError(f"a call that this reader does not know how to take: {call}")
