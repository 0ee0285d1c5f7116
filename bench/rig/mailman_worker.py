"""Mailman 3's Switchboard at work, in an interpreter that has it: `mailman_worker.py DIRECTORY COUNT THREADS SIZE`.

Prints JSON: messages enqueued a second, and dequeued and finished a second. It syncs each file, and no directory.
"""

from __future__ import annotations

import email
import json
import sys
import threading
import time

from mailman.core.switchboard import Switchboard  # type: ignore[import-not-found]
from mailman.email.message import Message  # type: ignore[import-not-found]


def main() -> None:
    """Measure and print."""
    directory, count, threads, size = sys.argv[1], *map(int, sys.argv[2:5])
    board = Switchboard("bench", directory)
    raw = b"From: ann@a.example\nTo: bob@b.example\nSubject: hello\n\n" + (b"x" * 71 + b"\n") * (size // 72)

    def enqueue() -> None:
        for number in range(count // threads):
            message = email.message_from_bytes(raw, Message)
            message.original_size = len(raw)
            board.enqueue(message, recipients=["bob@b.example"], number=number, sender="ann@a.example")

    workers = [threading.Thread(target=enqueue) for _ in range(threads)]
    began_s = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    enqueued_s = time.perf_counter() - began_s
    files = board.files
    began_s = time.perf_counter()
    for file in board.files:
        board.dequeue(file)
        board.finish(file)
    finished_s = time.perf_counter() - began_s
    print(json.dumps({"enqueue": len(files) / enqueued_s, "finish": len(files) / finished_s}))


if __name__ == "__main__":
    main()
