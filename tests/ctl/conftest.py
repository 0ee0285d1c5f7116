"""A site of real files for the verbs, and the two ways to call one: in this process, or as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from qrunner.ctl import changes
from qrunner.ctl.program import program
from qrunner.format import ready_name, reseal
from qrunner.message import Entry, Envelope
from qrunner.site import Site
from qrunner.switchboard import Area

ROOT = Path(__file__).parents[2]
ENTRY_POINT = [sys.executable, "-c", "from qrunner.ctl import main; main()"]

TOML = """
[site]
hostname = "lists.example.org"
queue_dir = "../qfiles"
state_dir = "../var"
postmaster = "postmaster@lists.example.org"
durability = "none"
min_free = "0"

[smtp.mta1]
host = "127.0.0.1"
[smtp.mta2]
host = "127.0.0.1"

[runner.in]
class = "incoming"
next = "out"

[runner.out]
class = "outgoing"
slices = [{ weight = 3, smtp = "mta1" }, { weight = 1, smtp = "mta2" }]

[runner.slow]
class = "outgoing"
smtp = "mta2"

[balance.both]
members = { out = 1, slow = 1 }

[route.main]
rules = [{ domain = "slow.example", queue = "slow" }, { queue = "out" }]
"""


@dataclass
class Place:
    """A site and its verbs."""

    folder: Path
    site: Site

    @property
    def config(self) -> Path:
        return self.folder / "etc/qrunner.toml"

    def enqueue(
        self,
        queue: str = "in",
        *,
        message: bytes = b"Subject: hello\n\nbody\n",
        sender: str = "ann@example.org",
        to: str = "bob@example.net",
        meta: Mapping[str, Any] | None = None,
        delay: float = 0,
    ) -> str:
        return self.site.enqueue(
            queue, message=message, sender=sender, recipients=[to], meta=meta, delay=delay
        )

    def put(self, id: str, queue: str = "in", area: Area = "queue", **fields: Any) -> str:
        """An entry with the id and the history that a test wants."""
        now = self.site.clock.now_ns()
        values: dict[str, Any] = {
            "envelope": Envelope.of("ann@example.org", ["bob@example.net"]),
            "message": b"Subject: put\n\n",
            "recipients": ("bob@example.net",),
            "meta": {},
            "arrival_ns": now,
            "due_ns": now,
        }
        entry = Entry(id=id, queue=queue, **{**values, **fields})
        sealed = reseal(entry, ())
        self.file(area, queue, ready_name(entry.due_ns, id)).write_bytes(b"".join(sealed.parts))
        return id

    def file(self, area: Area, queue: str, name: str) -> Path:
        """Where an entry of that name lies."""
        if area == "queue":
            return self.folder / "qfiles" / queue / name.partition("+")[2][:2] / name
        return self.folder / "qfiles" / area / queue / name

    def ids(self, queue: str, area: Area = "queue") -> list[str]:
        return [ref.id for ref in self.site.spool.peek(queue, area)]

    def aside(self, area: Area, id: str, queue: str = "in") -> None:
        """An entry moved to hold, shunt or bad, as a runner would."""
        (ref,) = [ref for ref in self.site.spool.peek(queue) if ref.id == id]
        assert self.site.spool.shift(ref, area=area, record={"what": area, "reason": "for a test"})

    def call(self, *words: str, given: str | bytes | None = None, env: Any = None) -> Result:
        """A verb in this process, without a terminal."""
        return CliRunner().invoke(program, ["-c", str(self.config), *words], input=given, env=env)

    def list(self, *words: str) -> list[dict[str, Any]]:
        result = self.call("list", "--json", *words)
        assert result.exit_code == 0, result.stderr
        return [json.loads(line) for line in result.stdout.splitlines()]

    def process(self, *words: str, **options: Any) -> subprocess.CompletedProcess[Any]:
        """A verb as a process of a session of its own: it has no terminal."""
        command = [*ENTRY_POINT, "-c", str(self.config), *words]
        return subprocess.run(
            command,
            capture_output=True,
            start_new_session=True,
            env=self.environment(),
            timeout=60,
            **options,
        )

    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT)}

    def log(self) -> str:
        return (self.folder / "var/log/qrunner.log").read_text()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A site with the queues ``in``, ``out`` and ``slow``, and nothing in them."""
    (tmp_path / "etc").mkdir(mode=0o755)
    (tmp_path / "qfiles").mkdir()
    (tmp_path / "etc/qrunner.toml").write_text(TOML)
    (tmp_path / "etc/qrunner.toml").chmod(0o600)
    site = Site.load(tmp_path / "etc/qrunner.toml")
    site.spool.prepare(site.config.queues())
    return Place(tmp_path, site)


@pytest.fixture(autouse=True)
def nobody_at_the_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whoever runs the tests is not asked; and the umask that a verb sets is not that of the other tests."""
    monkeypatch.setattr(changes, "TERMINAL", "/nonexistent/tty")
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def fill(place: Place) -> Callable[[int], list[str]]:
    """So many entries in ``in``."""
    return lambda count: [place.enqueue(sender=f"a{number}@example.org") for number in range(count)]
