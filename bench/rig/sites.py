"""A site of qrunner's under its real master, started and stopped by the commands that its users have."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qrunner.site import Site

REPOSITORY = Path(__file__).resolve().parent.parent.parent
HEAD = """\
[site]
hostname = "lists.example.org"
queue_dir = "../qfiles"
state_dir = "../var"
min_free = "0"
"""


@dataclass(frozen=True)
class Place:
    """A site on the disk."""

    root: Path

    @property
    def file(self) -> Path:
        """Its configuration."""
        return self.root / "etc" / "qrunner.toml"

    def configure(self, text: str) -> Site:
        """Writes the configuration and makes its queues."""
        for name in ("etc", "qfiles", "var"):
            (self.root / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        self.file.write_text(HEAD + text)
        site = Site.load(self.file)
        site.spool.prepare(site.config.queues())
        return site

    def command(self, *words: str) -> list[str]:
        """A verb, as a command of its own."""
        program = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); from qrunner.ctl import main; sys.exit(main())"
        return [sys.executable, "-c", program, "-c", str(self.file), *words]

    def ctl(self, *words: str) -> str:
        """What a verb prints."""
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        found = subprocess.run(
            self.command(*words), capture_output=True, text=True, env=environment, check=False
        )
        if found.returncode:
            raise RuntimeError(f"qrunner-ctl {' '.join(words)}: {found.stderr}")
        return found.stdout

    @contextmanager
    def started(self) -> Iterator[None]:
        """While its master runs."""
        self.ctl("start")
        try:
            yield
        finally:
            self.ctl("stop")


def fill(
    site: Site, queue: str, count: int, *, size: int = 4096, recipients: int = 1, threads: int = 16
) -> None:
    """Enqueues so many messages."""
    addresses = [f"bob{number}@b.example" for number in range(recipients)]

    def one(number: int) -> None:
        head = b"From: ann@a.example\nSubject: %d\n\n" % number
        lines = b"x" * 71 + b"\n"
        body = lines * (max(0, size - len(head)) // len(lines))
        site.enqueue(queue, message=head + body, sender="ann@a.example", recipients=addresses)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, range(count)))
