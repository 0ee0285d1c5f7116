"""The system calls of both switchboards, and nothing around them: `calls_worker.py DIRECTORY COUNT THREADS SIZE [file]`.

What a program in Python could do at best that makes the same calls: a file is written, synced, given its name, and its
directory synced, in 256 directories as qrunner has them; with `file` it is Mailman's, one directory that is not synced.
Prints JSON: files made a second, and renamed, read and removed a second.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path


def main() -> None:
    """Measure and print."""
    root, count, threads, size = Path(sys.argv[1]), *map(int, sys.argv[2:5])
    is_mailman = sys.argv[5:] == ["file"]
    folders = [str(root)] if is_mailman else [f"{root}/{number:02x}" for number in range(256)]
    for folder in folders:
        os.makedirs(folder)
    data, share = b"x" * (size + 300), count // threads
    make = _as_mailman if is_mailman else _as_qrunner
    paths = [_names(folders, share, thread) for thread in range(threads)]
    made_s = _timed([lambda mine=mine: [make(*path, data) for path in mine] for mine in paths])  # type: ignore[misc]
    finished_s = _timed([lambda: [_finish(*path) for mine in paths for path in mine]])
    print(json.dumps({"enqueue": share * threads / made_s, "finish": share * threads / finished_s}))


def _names(folders: list[str], count: int, thread: int) -> list[tuple[str, str]]:
    """As long as an entry's, in directories that change with each."""
    return [
        (folders[(number * 167 + thread) % len(folders)], f"{number:020d}+{thread:040x}")
        for number in range(count)
    ]


def _timed(works: list[Callable[[], object]]) -> float:
    threads = [threading.Thread(target=work) for work in works]
    began_s = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began_s


def _as_qrunner(folder: str, name: str, data: bytes) -> None:
    file = os.open(folder, os.O_WRONLY | os.O_TMPFILE, 0o600)
    os.write(file, data)
    os.fsync(file)
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    os.link(f"/proc/self/fd/{file}", name, dst_dir_fd=directory, follow_symlinks=True)
    os.fsync(directory)
    os.close(directory)
    os.close(file)


def _as_mailman(folder: str, name: str, data: bytes) -> None:
    hidden = f"{folder}/{name}.tmp"
    file = os.open(hidden, os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(file, data)
    os.fsync(file)
    os.close(file)
    os.rename(hidden, f"{folder}/{name}")


def _finish(folder: str, name: str) -> None:
    path, claimed = f"{folder}/{name}", f"{folder}/{name}.claimed"
    os.rename(path, claimed)
    file = os.open(claimed, os.O_RDONLY)
    os.read(file, 1 << 16)
    os.close(file)
    os.unlink(claimed)


if __name__ == "__main__":
    main()
