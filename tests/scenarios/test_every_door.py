"""Every message that is odd, through every way in and out again: what arrives at a host, and what is kept, is what came.

The corpus of the project, and the real ones of people where they are at hand. *In*: the pipe, ``inject``, ``inject --mbox``,
the door that listens, the door that reads a maildir. *Out*: a host, and an archive.
"""

from __future__ import annotations

import gzip
import re
import smtplib
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.injecting import START
from tests.scenarios.sinkthread import Hosts, sinks
from tests.sites import ROOT, TinySite, tiny_site, wait_for

CONFIG = """\
[site]
hostname    = "lists.example.org"
queue_dir   = "../qfiles"
state_dir   = "../var"
postmaster  = "postmaster@lists.example.org"
durability  = "none"
min_free    = "0"

[smtp.mta]
host = "127.0.0.1"
port = {port}

[runner.door]
class  = "lmtp"
listen = "unix:../var/door"
next   = "in"

[runner.changes]
class      = "maildir"
path       = "../mail"
recipients = ["b@y.example"]
sender     = "a@x.example"
next       = "in"
poll_interval = "1s"

[runner.in]
class       = "fanout"
subscribers = {{ out = {{}}, keep = {{}} }}

[runner.out]
class = "outgoing"
smtp  = "mta"

[runner.keep]
class  = "archive"
format = "eml"
path   = "../kept"
"""
ENVELOPE = ["-f", "a@x.example", "b@y.example"]
FROM_LINE = re.compile(rb"\AFrom .*\n")


def messages() -> list[bytes]:
    """All of them, those that are equal once."""
    own = [path.read_bytes() for path in sorted((ROOT / "tests" / "corpus").glob("*.eml"))]
    real = sorted((ROOT.parent / "shared" / "mail").rglob("*.gz"))
    return list(dict.fromkeys([*own, *(gzip.decompress(path.read_bytes()) for path in real)]))


# Each way in, with what comes in of a message


def by_pipe(site: TinySite, given: Sequence[bytes]) -> list[bytes]:
    for message in given:
        subprocess.run([*START, "-Q", site.folder / "qfiles", *ENVELOPE], input=message, check=True)
    return [FROM_LINE.sub(b"", message) for message in given]


def by_inject(site: TinySite, given: Sequence[bytes]) -> list[bytes]:
    words = []
    for number, message in enumerate(given):
        path = site.folder / f"{number}.eml"
        path.write_bytes(message)
        words += ["--file", str(path)]
    site.ctl("inject", *words, *ENVELOPE)
    return [FROM_LINE.sub(b"", message) for message in given]


def by_mbox(site: TinySite, given: Sequence[bytes]) -> list[bytes]:
    box = b""
    for message in given:
        quoted = re.sub(rb"^(>*From )", rb">\1", message, flags=re.MULTILINE)
        end = b"" if message.endswith(b"\n") or not message else b"\n"
        box += b"From a@x.example Mon Jan  1 00:00:00 2024\n" + quoted + end + b"\n"
    (site.folder / "box").write_bytes(box)
    site.ctl("inject", "--mbox", str(site.folder / "box"), *ENVELOPE)
    return [message if message.endswith(b"\n") or not message else message + b"\n" for message in given]


def by_lmtp(site: TinySite, given: Sequence[bytes]) -> list[bytes]:
    with smtplib.LMTP(str(site.folder / "var" / "door")) as client:
        client.ehlo_or_helo_if_needed()
        # The client has no message without a line.
        sent = [on_the_wire(message) or b"\r\n" for message in given]
        for message in sent:
            client.mail("a@x.example")
            client.rcpt("b@y.example")
            assert client.data(message)[0] == 250
    return sent


def by_maildir(site: TinySite, given: Sequence[bytes]) -> list[bytes]:
    for number, message in enumerate(given):
        path = site.folder / "mail" / "tmp" / f"{number}.a.example"
        path.write_bytes(message)
        path.rename(site.folder / "mail" / "new" / path.name)
    return list(given)


WAYS = [by_pipe, by_inject, by_mbox, by_lmtp, by_maildir]


def on_the_wire(message: bytes) -> bytes:
    """What SMTP makes of it: a bare CR a space, each line end CR and LF, and one at the end."""
    text = re.sub(rb"\r(?!\n)", b" ", message)
    text = re.sub(rb"\r?\n", b"\r\n", text)
    return text if text.endswith(b"\r\n") or not text else text + b"\r\n"


def without_received(message: bytes) -> bytes:
    """Without the line that the door which listens puts on top."""
    # It ends with its date. A line behind it that begins with a blank is the message's.
    return re.sub(rb"\AReceived: from [^;]*;\s+[^\n]*\n", b"", message)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TinySite, Hosts]]:
    """One site for all the ways; when it has stopped, nothing more has come."""
    folder = tmp_path_factory.mktemp("doors")
    with sinks("mta") as hosts, tiny_site(folder) as site:
        site.write(CONFIG.format(port=hosts.ports["mta"]))
        for name in ("new", "cur", "tmp"):
            (folder / "mail" / name).mkdir(parents=True)
        site.ctl("start")
        yield site, hosts
        before = len(hosts.got), len(kept(site))
        site.ctl("stop")
        assert (len(hosts.got), len(kept(site))) == before


def kept(site: TinySite) -> set[Path]:
    return set((site.folder / "kept").rglob("*.eml"))


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_what_comes_in_goes_out_and_is_kept_byte_for_byte(
    running: tuple[TinySite, Hosts], way: Callable[[TinySite, Sequence[bytes]], list[bytes]]
) -> None:
    given = messages()
    assert len(given) > 30
    site, hosts = running
    got, before = len(hosts.got), kept(site)
    came = way(site, given)
    hosts.wait_for(lambda: len(hosts.got) >= got + len(given), site.log)
    wait_for(lambda: len(kept(site) - before) >= len(given))
    wait_for(lambda: [queue["name"] for queue in site.told()["queues"] if queue["depth"]] == [])
    strip = without_received if way is by_lmtp else bytes
    assert Counter(strip(received.message) for _, received in hosts.got[got:]) == Counter(
        map(on_the_wire, came)
    )
    assert Counter(strip(path.read_bytes()) for path in kept(site) - before) == Counter(came)
