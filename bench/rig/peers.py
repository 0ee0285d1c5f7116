"""A Postfix of the benchmark's own. It wants root, as Postfix does."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rig.crowds import in_shares, write_new
from rig.sinks import PATH, free_port, listens, until

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
mydestination =
alias_database =
alias_maps =
relayhost = [127.0.0.1]:{sink}
smtp_destination_concurrency_limit = {connections}
initial_destination_concurrency = {connections}
smtpd_peername_lookup = no
smtp_tls_security_level = none
# Without its queue manager it would take one message a second.
in_flow_delay = 0
allow_min_user = yes
"""

MASTER = """\
{port}     inet  n  -  n  -  -  smtpd
pickup     unix  n  -  n  60  1  pickup
cleanup    unix  n  -  n  -  0  cleanup
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
anvil      unix  -  -  n  -  1  anvil
scache     unix  -  -  n  -  1  scache
tlsmgr     unix  -  -  n  1000?  1  tlsmgr
postlog    unix-dgram n - n  -  1  postlogd
"""
QUEUE_MANAGER = "qmgr       unix  n  -  n  1  1  qmgr\n"


@dataclass(frozen=True)
class Postfix:
    """One that runs."""

    root: Path
    port: int

    def queue_manager(self, *, on: bool) -> None:
        """Whether it delivers. Off, what it takes stays in its incoming queue: a backlog."""
        lines = MASTER.format(port=self.port) + (QUEUE_MANAGER if on else "")
        (self.root / "etc" / "master.cf").write_text(lines)
        self.tell("reload")

    def tell(self, what: str) -> None:
        """``postfix WHAT``."""
        command = ["postfix", "-c", str(self.root / "etc"), what]
        found = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
        if found.returncode:
            raise RuntimeError(found.stdout + found.stderr)

    def waiting(self) -> int:
        """Messages in its queues."""
        spool = self.root / "spool"
        return sum(
            1
            for queue in ("incoming", "active", "deferred", "maildrop")
            for path in (spool / queue).rglob("*")
            if re.fullmatch(r"[0-9A-Za-z]{8,}", path.name) and path.is_file()
        )

    def copies(self, count: int) -> None:
        """So many copies of the one message that is in its incoming queue, in its deferred queue, without having been
        through Postfix: it would take them in one by one. A queue id is the file's name, and no part of the file."""
        (one,) = (path for path in (self.root / "spool" / "incoming").iterdir() if path.is_file())
        data, about, deferred = one.read_bytes(), one.stat(), self.root / "spool" / "deferred"
        owner = about.st_uid, about.st_gid
        for digit in "0123456789ABCDEF":
            (deferred / digit).mkdir(mode=0o700, exist_ok=True)
            os.chown(deferred / digit, *owner)

        def share(first: int, after: int) -> None:
            for number in range(first, after):
                # As a short queue id is made: microseconds, by whose first digit the queue is hashed, and an inode.
                id = f"{number * 7919 % 1_000_000:05X}{number:X}"
                write_new(f"{deferred}/{id[0]}/{id}", data, about.st_mode & 0o777, owner)

        in_shares(share, count)


@contextmanager
def postfix(
    root: Path, sink: int, *, connections: int = 20, delivers: bool = True, more: str = ""
) -> Iterator[Postfix]:
    """Starts one in this directory, which relays everything to a port.

    :param more: lines of main.cf.
    """
    if os.geteuid() != 0 or shutil.which("postfix", path=PATH) is None:
        raise PermissionError("Postfix is the peer: it has to be here, and is started by root")
    for directory in ("etc", "data", "spool"):
        (root / directory).mkdir(parents=True)
        (root / directory).chmod(0o755)
    shutil.chown(root / "data", "postfix")
    mta = Postfix(root, free_port())
    text = MAIN.format(root=root, sink=sink, connections=connections) + more
    (root / "etc" / "main.cf").write_text(text)
    (root / "etc" / "master.cf").write_text(
        MASTER.format(port=mta.port) + (QUEUE_MANAGER if delivers else "")
    )
    mta.tell("start")
    try:
        until(lambda: listens(mta.port), what="Postfix")
        yield mta
    finally:
        _stop(root)


def _stop(root: Path) -> None:
    pid = int((root / "spool" / "pid" / "master.pid").read_text())
    os.killpg(pid, signal.SIGTERM)
    until(lambda: not Path(f"/proc/{pid}").exists(), what="the end of Postfix")


def feed(
    port: int, count: int, *, sessions: int = 10, size: int = 4096, recipients: int = 1, lmtp: bool = False
) -> None:
    """Sends so many messages by smtp-source."""
    command = [
        "smtp-source",
        "-c",
        "-m",
        str(count),
        "-s",
        str(sessions),
        "-l",
        str(size),
        "-r",
        str(recipients),
    ]
    command += ["-f", "ann@a.example", "-t", "bob@b.example", *(["-L"] if lmtp else []), f"127.0.0.1:{port}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=ENVIRONMENT)
