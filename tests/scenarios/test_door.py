"""Real Postfix, and its smtp-source, hand mail in at the door `lmtp`."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

import pytest

from qrunner.ctl.mta import postfix_lines
from qrunner.message import Entry, Recipient
from qrunner.site import Site
from tests.documents import ROOT
from tests.runners.doors import DOOR, door_process
from tests.scenarios.postfix import Postfix, folder_for_everyone, free_port, postfix, until
from tests.scenarios.sinks import WHERE
from tests.sites import wait_for

pytestmark = [pytest.mark.needs("postfix", "smtp-source")]

DOMAIN = "lists.example.org"
ACCEPT = f'accept = ["*@{DOMAIN}"]\nsocket_mode = "0660"\nmax_size = "9M"'
# With the headers that Postfix would add.
HEAD = b"From: ann@a.example\r\nDate: Thu, 1 Jan 1970 00:00:00 +0000\r\nMessage-Id: <1@a.example>\r\n"
MESSAGE = b"Subject: odd\r\n" + HEAD + b"\r\n.\r\n..\r\n...x\r\nFrom here on\r\n\xe9\x01\r\n\r\n"
WAYS = ["lmtp over tcp", "lmtp over unix", "smtp"]


@dataclass
class Reception:
    """A Postfix, and the site behind the door that it hands its mail to."""

    mta: Postfix
    folder: Path
    way: str

    @property
    def site(self) -> Site:
        return Site.load(self.folder / "etc" / "qrunner.toml")

    def log(self) -> str:
        """What the door has logged."""
        return (self.folder / "err").read_text()

    def entries(self) -> list[Entry]:
        return sorted(self.site.entries("in"), key=lambda entry: entry.arrival_ns)

    def comes_of(
        self, sender: str, *recipients: str, message: bytes = MESSAGE, options: str = ""
    ) -> list[Entry]:
        """Sends one message; the entries that came of it."""
        before = {entry.id for entry in self.entries()}
        self.send(sender, recipients, message, options)
        self.mta.settle()
        return [entry for entry in self.entries() if entry.id not in before]

    def send(self, sender: str, recipients: tuple[str, ...], message: bytes, options: str = "") -> None:
        with self.mta.session() as session:
            assert session.docmd(f"MAIL FROM:<{sender}>{options}")[0] == 250
            for recipient in recipients:
                assert (
                    session.docmd(f"RCPT TO:{recipient if ' ' in recipient else f'<{recipient}>'}")[0] == 250
                )
            self.taken(*session.data(message))

    def taken(self, code: int, reply: bytes) -> None:
        """Postfix has taken a message, under a name of its own."""
        queued = re.search(rb"queued as (\w+)", reply)
        assert code == 250
        assert queued
        self.mta.taken.add(queued[1].decode())


@contextmanager
def reception(way: str) -> Iterator[Reception]:
    with folder_for_everyone() as root:
        folder, port = root / "site", free_port()
        folder.mkdir()
        listen = f"unix:{root}/door/lmtp" if way == "lmtp over unix" else f"127.0.0.1:{port}"
        (root / "door").mkdir()
        # As docs/HOWTO.md has it: who may write to the socket is whoever is in the folder's group.
        shutil.chown(root / "door", group="postfix")
        (root / "door").chmod(0o2710)
        door = DOOR.replace("127.0.0.1:0", listen)
        if way == "smtp":
            door += 'protocol = "smtp"\n'
        process = door_process(folder, ACCEPT, door=door)
        try:
            with postfix(root / "mta", lines(root, listen, way)) as mta:
                yield Reception(mta, folder, way)
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0, (folder / "err").read_text()


def lines(root: Path, listen: str, way: str) -> str:
    """What `mta-config postfix` prints; for SMTP the same with another transport."""
    (root / "mta").mkdir()
    aliases = root / "mta" / "aliases"
    aliases.write_text("other nobody\n")
    text = postfix_lines(
        root / "site" / "qfiles",
        Path("/bin/true"),
        "root",
        lmtp=listen,
        config_dir=root / "mta" / "etc",
        alias_maps=f"texthash:{aliases}",
    )
    return text.replace("lmtp:inet:127.0.0.1:", "smtp:[127.0.0.1]:") if way == "smtp" else text


@pytest.fixture(scope="module", params=WAYS)
def place(request: pytest.FixtureRequest) -> Iterator[Reception]:
    """One Postfix and one door for all of these tests, a way."""
    with reception(request.param) as made:
        yield made


SENDERS = [
    "ann@a.example",
    "",
    '"quoted local part"@a.example',
    '"with \\"quotes\\" and \\\\"@a.example',
    '"two..dots"@a.example',
    "list-bounces+o'brien#&*?{}|~$+x=y.example@a.example",
    "-f@a.example",
]


@pytest.mark.parametrize("sender", SENDERS)
def test_the_sender_comes_through_unharmed(place: Reception, sender: str) -> None:
    (entry,) = place.comes_of(sender, f"any@{DOMAIN}")
    assert entry.sender == sender


@pytest.mark.parametrize(
    "recipient",
    [
        f"list-bounces+o'brien#&*?{{}}|~$+x=y.example@{DOMAIN}",
        f'"quoted local part"@{DOMAIN}',
        f'"two..dots"@{DOMAIN}',
        f"--no-rcpt@{DOMAIN}",
    ],
)
def test_the_recipient_comes_through_unharmed(place: Reception, recipient: str) -> None:
    (entry,) = place.comes_of("ann@a.example", *([recipient] if " " not in recipient else [f"<{recipient}>"]))
    assert entry.recipients == (recipient,)


def test_the_message_comes_through_byte_for_byte(place: Reception) -> None:
    (entry,) = place.comes_of("ann@a.example", f"any@{DOMAIN}")
    assert entry.message.endswith(b"\r\n" + MESSAGE)
    assert entry.message.startswith(b"Received: from mta.example.org (")


def test_many_recipients_of_one_message_are_one_entry_each_answered(place: Reception) -> None:
    recipients = [f"any-{number}@{DOMAIN}" for number in range(50)]
    (entry,) = place.comes_of("ann@a.example", *recipients)
    assert sorted(entry.recipients) == sorted(recipients)


def test_delivery_status_parameters_come_through(place: Reception) -> None:
    said = f"<bob@{DOMAIN}> NOTIFY=FAILURE,DELAY ORCPT=rfc822;bob+2Bold@a.example"
    (entry,) = place.comes_of("ann@a.example", said, options=" RET=HDRS ENVID=QQ+2B314")
    assert entry.envelope.recipients == (
        Recipient(f"bob@{DOMAIN}", "FAILURE,DELAY", "rfc822;bob+2Bold@a.example"),
    )
    assert (entry.envelope.ret, entry.envelope.envid) == ("HDRS", "QQ+2B314")


def test_utf8_addresses_come_through(place: Reception) -> None:
    with place.mta.session() as session:
        if not session.has_extn("smtputf8"):
            return  # this Postfix was built without
        before = {entry.id for entry in place.entries()}
        session.command_encoding = "utf-8"
        assert session.docmd("MAIL FROM:<ünal@bücher.example> SMTPUTF8")[0] == 250
        assert session.docmd(f"RCPT TO:<ünal@{DOMAIN}>")[0] == 250
        place.taken(*session.data("Subject: hellö\r\n\r\n".encode()))
    place.mta.settle()
    (entry,) = [entry for entry in place.entries() if entry.id not in before]
    assert (entry.sender, entry.recipients) == ("ünal@bücher.example", (f"ünal@{DOMAIN}",))
    assert entry.envelope.smtputf8


def test_an_odd_corpus_comes_through_as_postfix_has_it(place: Reception) -> None:
    """What Postfix makes of bare line ends and NULs is its own affair; the rest is compared byte by byte."""
    for path in sorted((ROOT / "tests" / "corpus").glob("*.eml")):
        body = path.read_bytes().replace(b"\0", b"").replace(b"\r", b"").replace(b"\n", b"\r\n")
        short = b"\r\n".join(line[:990] for line in body.split(b"\r\n"))
        message = (
            b"Subject: corpus\r\n" + HEAD + b"\r\n" + short + (b"" if short.endswith(b"\r\n") else b"\r\n")
        )
        (entry,) = place.comes_of("ann@a.example", f"any@{DOMAIN}", message=message)
        assert entry.message.endswith(b"\r\n" + message), path.name


def test_a_large_message_comes_through(place: Reception) -> None:
    message = (
        b"Subject: large\r\n" + HEAD + b"\r\n" + b"".join(b".%d\r\n" % number for number in range(900_000))
    )
    (entry,) = place.comes_of("ann@a.example", f"any@{DOMAIN}", message=message)
    assert entry.message.endswith(b"\r\n" + message)


def test_a_suspended_door_makes_postfix_keep_the_message(place: Reception) -> None:
    said = place.log().count(" suspended ")
    place.site.suspensions.suspend(("runner", "door"))
    until(lambda: place.log().count(" suspended ") > said, place.log)
    try:
        place.send("held@a.example", (f"any@{DOMAIN}",), MESSAGE)
        until(
            lambda: any("held@" in line and "delay_reason" in line for line in place.mta.waiting()),
            place.mta.log,
        )
        until(lambda: "451 4.3.2" in place.mta.log(), place.mta.log)
    finally:
        place.site.suspensions.resume(("runner", "door"))
    place.mta.settle()
    assert [entry.sender for entry in place.entries()].count("held@a.example") == 1


def test_what_is_too_large_is_returned_and_the_next_one_taken(place: Reception) -> None:
    """Postfix would pass it, we would not; it hears so before it sends it, from what was offered."""
    large = b"Subject: large\r\n" + HEAD + b"\r\n" + b"x" * 70 + (b"y" * 70 + b"\r\n") * 135_000
    assert place.comes_of("", f"any@{DOMAIN}", message=large) == []
    assert len(place.comes_of("", f"any@{DOMAIN}")) == 1


# Its own client


@pytest.fixture(scope="module", params=["lmtp", "smtp"])
def door(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, str, list[str]]]:
    """A door; where it is, and how smtp-source is to speak."""
    folder, port = tmp_path_factory.mktemp("door"), free_port()
    text = DOOR.replace("127.0.0.1:0", f"127.0.0.1:{port}") + f'protocol = "{request.param}"\n'
    process = door_process(folder, door=text)
    yield folder, f"127.0.0.1:{port}", ["-L"] if request.param == "lmtp" else []
    process.terminate()
    assert process.wait(60) == 0


@pytest.mark.parametrize("more", [["-r", "7"], ["-d", "-s", "20"], ["-s", "20", "-l", "200000"], ["-o"]])
def test_smtp_source_is_answered(door: tuple[Path, str, list[str]], more: list[str]) -> None:
    folder, place, speak = door
    if "-o" in more and speak:
        more = []  # without a hello there is SMTP only
    program = shutil.which("smtp-source", path=WHERE)
    assert program is not None
    command = [program, *speak, "-m", "100", "-f", "ann@a.example", "-t", "bob@b.example", *more, place]
    site = Site.load(folder / "etc" / "qrunner.toml")
    before = {entry.id for entry in site.entries("in")}
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=100, env={**os.environ, "LC_ALL": "C"}
    )
    assert (run.returncode, run.stderr) == (0, "")

    def came() -> list[Entry]:
        return [entry for entry in site.entries("in") if entry.id not in before]

    wait_for(lambda: len(came()) == 100)
    recipients = 7 if "-r" in more else 1
    assert {len(entry.recipients) for entry in came()} == {recipients}
    assert all(isinstance(entry.parsed(), Message) for entry in came())
