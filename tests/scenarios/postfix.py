"""A Postfix of a test's own: configuration, queue, ports and log apart from the machine's, stopped at the end.

It runs as root, as Postfix has to; for anybody else the test is left out.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import smtplib
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

LIMIT_S = 60.0
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}

MAIN = """\
compatibility_level = 3.6
queue_directory = {root}/spool
data_directory = {root}/data
maillog_file = {root}/mail.log
maillog_file_prefixes = {root}
inet_interfaces = loopback-only
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
myhostname = mta.example.org
mydestination = localhost, mta.example.org
recipient_delimiter = +
alias_database =
alias_maps =
default_transport = error:this Postfix sends nothing away
minimal_backoff_time = 1s
maximal_backoff_time = 1s
queue_run_delay = 1s
smtpd_peername_lookup = no
allow_min_user = yes
notify_classes =
enable_long_queue_ids = yes
"""

# Nothing is jailed: the jail would want copies of the machine's files.
MASTER = """\
{port}     inet  n  -  n  -  -  smtpd
pickup     unix  n  -  n  60  1  pickup
cleanup    unix  n  -  n  -  0  cleanup
qmgr       unix  n  -  n  1  1  qmgr
rewrite    unix  -  -  n  -  -  trivial-rewrite
bounce     unix  -  -  n  -  0  bounce
defer      unix  -  -  n  -  0  bounce
trace      unix  -  -  n  -  0  bounce
verify     unix  -  -  n  -  1  verify
flush      unix  n  -  n  1000?  0  flush
proxymap   unix  -  -  n  -  -  proxymap
proxywrite unix  -  -  n  -  1  proxymap
smtp       unix  -  -  n  -  -  smtp
relay      unix  -  -  n  -  -  smtp
showq      unix  n  -  n  -  -  showq
error      unix  -  -  n  -  -  error
retry      unix  -  -  n  -  -  error
discard    unix  -  -  n  -  -  discard
local      unix  -  n  n  -  -  local
virtual    unix  -  n  n  -  -  virtual
lmtp       unix  -  -  n  -  -  lmtp
anvil      unix  -  -  n  -  1  anvil
scache     unix  -  -  n  -  1  scache
tlsmgr     unix  -  -  n  1000?  1  tlsmgr
postlog    unix-dgram n - n  -  1  postlogd
"""


@dataclass(frozen=True)
class Postfix:
    """A Postfix that runs: where it listens, where its files are, and the names of the messages it has taken."""

    root: Path
    port: int
    taken: set[str] = field(default_factory=set)

    @property
    def configuration(self) -> Path:
        """The directory of main.cf."""
        return self.root / "etc"

    def log(self) -> str:
        """What it has logged."""
        path = self.root / "mail.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def send(self, message: bytes, sender: str, *recipients: str) -> None:
        """Hands a message in by SMTP, the addresses as they stand."""
        with self.session() as session:
            self.say(session, message, sender, *recipients)

    def session(self) -> smtplib.SMTP:
        """A connection to it that has said hello."""
        session = smtplib.SMTP("127.0.0.1", self.port, timeout=60)
        session.ehlo("client.example.org")
        return session

    def say(self, session: smtplib.SMTP, message: bytes, sender: str, *recipients: str) -> None:
        """Hands a message in by a connection."""
        for command in (f"MAIL FROM:<{sender}>", *(f"RCPT TO:<{recipient}>" for recipient in recipients)):
            code, reply = session.docmd(command)
            assert code == 250, (command, code, reply)
        code, reply = session.data(message)
        queued = re.search(rb"queued as (\w+)", reply)
        assert code == 250, (code, reply)
        assert queued, reply
        self.taken.add(queued[1].decode())

    def waiting(self) -> list[str]:
        """Messages it still has, as `postqueue -j` tells of them: one that it tries again in this moment may be missing,
        since it moves from one directory to another while they are looked through."""
        command = ["postqueue", "-c", str(self.configuration), "-j"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()

    def left(self) -> set[str]:
        """What it has taken and not said to be done with."""
        return self.taken - set(re.findall(r": (\w+): removed$", self.log(), re.MULTILINE))

    def settle(self, limit_s: float = LIMIT_S) -> None:
        """Waits until it has nothing left."""
        until(
            lambda: not self.left() and not self.waiting(),
            lambda: "\n".join([*self.left(), *self.waiting()[:20], self.log()[-4000:]]),
            limit_s,
        )


def until(done: Callable[[], object], tell: Callable[[], str], limit_s: float = LIMIT_S) -> None:
    """Waits for a condition, with a limit."""
    deadline = time.monotonic() + limit_s
    pause = 0.01
    while not done():
        assert time.monotonic() < deadline, tell()
        time.sleep(pause)
        pause = min(pause * 1.5, 0.25)


def free_port() -> int:
    """A port of the loopback that nobody has just now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@contextmanager
def folder_for_everyone() -> Iterator[Path]:
    """A temporary directory that other users may pass through, as Postfix and the owner of the queues must."""
    if os.geteuid() != 0:
        pytest.skip("Postfix is started by root")
    path = Path(tempfile.mkdtemp(prefix="qrunner-postfix-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def postfix(root: Path, text: str = "", *, main: str = "") -> Iterator[Postfix]:
    """Starts a Postfix in `root`, an existing directory, and stops it.

    :param text: what `mta-config postfix` prints; pasted as it tells, its commands run.
    :param main: more lines for main.cf.
    """
    mta = Postfix(root, free_port())
    for directory in ("etc", "data", "spool"):
        (root / directory).mkdir(exist_ok=True)
        (root / directory).chmod(0o755)
    shutil.chown(root / "data", "postfix")
    sections = pasted(text)
    sections[mta.configuration / "main.cf"] = sections.get(mta.configuration / "main.cf", "") + main
    _lay_down(mta, sections)
    for command in re.findall(r"\(Then: (.*)\)$", text, re.MULTILINE):
        environment = {**ENVIRONMENT, "MAIL_CONFIG": str(mta.configuration)}
        subprocess.run(["sh", "-c", command], env=environment, check=True)
    _start(mta)
    try:
        until(lambda: _listens(mta.port), mta.log)
        yield mta
    finally:
        _stop(mta)


def pasted(text: str) -> dict[Path, str]:
    """File by file what `mta-config` wants to be added to it."""
    sections: dict[Path, str] = {}
    for section in re.split(r"^### ", text, flags=re.MULTILINE)[1:]:
        file, _, lines = section.partition("\n")
        sections[Path(file)] = sections.get(Path(file), "") + lines
    return sections


def _lay_down(mta: Postfix, sections: dict[Path, str]) -> None:
    main, master = mta.configuration / "main.cf", mta.configuration / "master.cf"
    ours = MAIN.format(root=mta.root)
    # A setting twice is a warning in the log at every start of a process.
    for key in re.findall(r"^(\w+) =", sections[main], re.MULTILINE):
        ours = re.sub(rf"^{key} =.*\n", "", ours, flags=re.MULTILINE)
    main.write_text(ours + sections.pop(main))
    master.write_text(MASTER.format(port=mta.port) + sections.pop(master, ""))
    for path, lines in sections.items():
        path.write_text(lines)


def _start(mta: Postfix) -> None:
    command = ["postfix", "-c", str(mta.configuration), "start"]
    result = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    spool = subprocess.run(
        ["ls", "-la", mta.root / "spool"], capture_output=True, text=True, check=True
    ).stdout
    assert result.returncode == 0, result.stdout + result.stderr + mta.log() + spool


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def _stop(mta: Postfix) -> None:
    """Ends the master by its pid, and with it all that it has started."""
    pid_file = mta.root / "spool" / "pid" / "master.pid"
    pid = int(pid_file.read_text())
    os.killpg(pid, signal.SIGTERM)
    until(lambda: not Path(f"/proc/{pid}").exists(), lambda: f"the master, {pid}, does not end")
