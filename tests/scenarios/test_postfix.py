"""Real Postfix hands its mail to `qrunner-inject` by the very lines that `mta-config postfix` prints."""

from __future__ import annotations

import pwd
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from qrunner.ctl.mta import postfix_lines
from qrunner.message import Entry
from tests.injecting import PROGRAM, files, lay_out, read
from tests.scenarios.installed import owner
from tests.scenarios.postfix import Postfix, folder_for_everyone, postfix, until

pytestmark = [pytest.mark.needs("postfix")]

DOMAIN = "lists.example.org"
ODD = "o'brien#&*?{}|~$+x=y.example"
SENDERS = [
    "ann@a.example",
    "",
    '"quoted local part"@a.example',
    '"with \\"quotes\\" and \\\\"@a.example',
    '"two..dots"@a.example',
    f"list-bounces+{ODD}@a.example",
    "under_score@a.example",
    "-f@a.example",
]
# With the headers that Postfix would add, so that what it adds stands on top.
MESSAGE = (
    b"Subject: odd\r\nFrom: ann@a.example\r\nDate: Thu, 1 Jan 1970 00:00:00 +0000\r\nMessage-Id: <1@a.example>\r\n"
    b"\r\n.\r\n..\r\nFrom here on\r\n\xe9\x00\x01\r\n\r\n"
)
both_ways = pytest.mark.parametrize(
    "recipient", [f"anyone@{DOMAIN}", "list@localhost"], ids=["pipe", "alias"]
)


@dataclass
class Site:
    """A Postfix, and the queues that it hands its mail to."""

    mta: Postfix
    queue_dir: Path
    inject: Path

    def entries(self) -> list[Entry]:
        """What has come, oldest first."""
        found = [read(path) for path in files(self.queue_dir)]
        return sorted(found, key=lambda entry: entry.arrival_ns)

    def comes_to(self, recipient: str, sender: str) -> Entry:
        """Sends one message and returns the entry that came of it."""
        before = {entry.id for entry in self.entries()}
        self.mta.send(MESSAGE, sender, recipient)
        self.mta.settle()
        (entry,) = [entry for entry in self.entries() if entry.id not in before]
        return entry


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """One Postfix for all of these tests."""
    with folder_for_everyone() as root:
        # As installed: the checkout itself may be where the owner of the queues can't read.
        inject, own = root / "bin" / "qrunner-inject", root / "site"
        inject.parent.mkdir()
        shutil.copy(PROGRAM, inject)
        lay_out(own / "qfiles" / "in")
        for path in (own, *own.rglob("*")):
            shutil.chown(path, owner())
        (root / "mta").mkdir()
        aliases = root / "mta" / "aliases"
        text = postfix_lines(
            own / "qfiles", inject, owner(), config_dir=root / "mta" / "etc", alias_maps=f"texthash:{aliases}"
        )
        aliases.write_text("other nobody\n")
        with postfix(root / "mta", text) as mta:
            yield Site(mta, own / "qfiles", inject)


@pytest.mark.parametrize("sender", SENDERS)
@both_ways
def test_the_sender_comes_through_unharmed(site: Site, recipient: str, sender: str) -> None:
    assert site.comes_to(recipient, sender).sender == sender


@pytest.mark.parametrize(
    "recipient",
    [
        f"list-bounces+{ODD}@{DOMAIN}",
        f'"quoted local part"@{DOMAIN}',
        f'"two..dots"@{DOMAIN}',
        f"--no-rcpt@{DOMAIN}",
        f"list+{ODD}@localhost",
        '"list+two words"@localhost',
        "list+under_score@localhost",
    ],
)
def test_the_recipient_comes_through_unharmed(site: Site, recipient: str) -> None:
    assert site.comes_to(recipient, "ann@a.example").recipients == (recipient,)


@both_ways
def test_the_message_comes_through_byte_for_byte(site: Site, recipient: str) -> None:
    message = site.comes_to(recipient, "ann@a.example").message
    assert not message.startswith(b"From ")
    assert message.endswith(b"\n" + MESSAGE.replace(b"\r\n", b"\n"))


def test_many_recipients_of_one_message_are_one_entry(site: Site) -> None:
    recipients = [f"anyone-{number}@{DOMAIN}" for number in range(20)]
    site.mta.send(MESSAGE, "many@a.example", *recipients)
    site.mta.settle()
    (entry,) = [entry for entry in site.entries() if entry.sender == "many@a.example"]
    assert sorted(entry.recipients) == sorted(recipients)


def test_what_lands_in_the_queue_is_the_owners_alone(site: Site) -> None:
    site.comes_to("list@localhost", "ann@a.example")
    user = pwd.getpwnam(owner())
    for path in files(site.queue_dir):
        status = path.stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (user.pw_uid, user.pw_gid, 0o600)


@pytest.mark.parametrize("what", ["queue", "program"])
@both_ways
def test_what_is_missing_makes_postfix_keep_the_message_and_try_again(
    site: Site, recipient: str, what: str
) -> None:
    missing = site.queue_dir / "in" if what == "queue" else site.inject
    sender = f"{what}-{recipient.partition('@')[0]}@a.example"
    missing.rename(missing.with_name("away"))
    try:
        site.mta.send(MESSAGE, sender, recipient)
        until(lambda: deferred(site.mta, sender), site.mta.log)
    finally:
        missing.with_name("away").rename(missing)
    site.mta.settle()
    (entry,) = [entry for entry in site.entries() if entry.sender == sender]
    assert entry.recipients == (recipient,)


def deferred(mta: Postfix, sender: str) -> bool:
    """Whether it has tried to deliver the message, and kept it."""
    return any(sender in line and "delay_reason" in line for line in mta.waiting())
