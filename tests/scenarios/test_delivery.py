"""Messages from a real Postfix, through the default site, to three real SMTP hosts."""

from __future__ import annotations

import gzip
import json
import math
import re
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle

import pytest

from qrunner.slices import cut
from qrunner.slices import owner as slice_of
from tests.scenarios.installed import ROOT, Installed, install, lay_out_default_site, owner
from tests.scenarios.postfix import Postfix, folder_for_everyone, postfix, until
from tests.scenarios.sinks import Got, smtp_sinks

pytestmark = [pytest.mark.needs("postfix", "smtp-sink"), pytest.mark.timeout(400)]

PORTS, WEIGHTS = (8025, 8026, 8027), (70, 20, 10)
SHARES = {"pipe": 6, "alias": 2, "direct": 2}
LIMIT_S = 300.0
DOMAIN = "lists.example.org"
ODD = "o'brien#&*?{}|~$+x=y.example"
SENDERS = (
    "ann@a.example",
    "",
    '"quoted local part"@a.example',
    '"with \\"quotes\\" and \\\\"@a.example',
    '"two..dots"@a.example',
    f"list-bounces+{ODD}@a.example",
    "under_score@a.example",
    "-f@a.example",
)
# NUMBER makes each the name of its message.
RECIPIENTS = {
    "pipe": (
        f"anyone-NUMBER@{DOMAIN}",
        f"list-bounces+NUMBER={ODD}@{DOMAIN}",
        f'"quoted local part NUMBER"@{DOMAIN}',
        f'"two..dotsNUMBER"@{DOMAIN}',
        f"--no-rcpt=NUMBER@{DOMAIN}",
    ),
    "alias": (
        "list+NUMBER@localhost",
        f"list+NUMBER={ODD}@localhost",
        '"list+NUMBER two words"@localhost',
        "list+under_score_NUMBER@localhost",
    ),
    "direct": ("direct-NUMBER@example.net",),
}
# What this Postfix must not do for the messages to be compared: slow down who brings them, and improve their headers.
LEFT_ALONE = "in_flow_delay = 0s\nlocal_header_rewrite_clients =\nmessage_drop_headers =\nheader_size_limit = 1000000\n"
# What may stand on top of a message, besides the line of our handler.
FIELD = re.compile(rb"^(\S[^:\n]*)", re.MULTILINE)
ADDED: dict[str, set[bytes]] = {
    "pipe": {b"Received"},
    "alias": {b"Received", b"Return-Path", b"Delivered-To", b"X-Original-To"},
    "direct": set(),
}


@dataclass(frozen=True)
class Mail:
    """A message on its way; its recipient is its name."""

    way: str
    sender: str
    recipient: str
    message: bytes

    @property
    def arrives_as(self) -> bytes:
        """What SPEC calls byte for byte, the line ends as LF."""
        text = re.sub(rb"\r(?!\n)", b" ", self.message).replace(b"\r\n", b"\n")
        return text if text.endswith(b"\n") or not text else text + b"\n"


def real_messages() -> list[bytes]:
    """Odd ones that people have sent; where they are not at hand, none."""
    found = sorted((ROOT.parent / "shared" / "mail" / "patchew").glob("*.gz"))
    # The line that an mbox puts on top is not the message's.
    return [re.sub(rb"\AFrom .*\n", b"", gzip.decompress(path.read_bytes())) for path in found]


def corpus() -> list[bytes]:
    """The project's own odd ones."""
    paths = sorted((ROOT / "tests" / "corpus").glob("*.eml"))
    return [content for path in paths if not (content := path.read_bytes()).startswith(b"From ")]


def made_up(number: int) -> bytes:
    """A message that no other is like."""
    lines = "".join(f".{'x' * (number * line % 700)} {number}\r\n" for line in range(number % 50))
    return f"From: ann@a.example\r\nSubject: number {number}\r\n\r\n{lines}.\r\n\r\n".encode()


def mails(total: int) -> list[Mail]:
    """All of them: by each way the odd ones, and then as many others as are wanted."""
    found = []
    for way, share in SHARES.items():
        count = total * share // sum(SHARES.values())
        odd = corpus() if way == "direct" else real_messages()
        contents = [*odd, *(made_up(number) for number in range(count))][:count]
        forms = zip(contents, cycle(SENDERS), cycle(RECIPIENTS[way]), strict=False)
        found += [
            Mail(way, sender, recipient.replace("NUMBER", str(number)), content)
            for number, (content, sender, recipient) in enumerate(forms)
        ]
    return found


def send_all(mta: Postfix, mail: Sequence[Mail]) -> None:
    """One session after another message, as a busy client has it."""
    with mta.session() as session:
        for one in mail:
            mta.say(session, re.sub(rb"\r?\n", b"\r\n", one.message), one.sender, one.recipient)


def inject_all(made: Installed, mail: Sequence[Mail]) -> None:
    """A process each, by the owner of the queues."""
    for one in mail:
        command = [str(made.inject), "-Q", str(made.queue_dir), "-f", one.sender, "--", one.recipient]
        subprocess.run(command, input=one.message, user=owner(), check=True)


def feed(made: Installed, mta: Postfix, mail: Sequence[Mail]) -> None:
    """Brings all of them, several at once."""
    direct = [one for one in mail if one.way == "direct"]
    by_smtp = [one for one in mail if one.way != "direct"]
    with ThreadPoolExecutor() as pool:
        works = [pool.submit(inject_all, made, direct)]
        works += [pool.submit(send_all, mta, by_smtp[start::6]) for start in range(6)]
        for work in works:
            work.result()


@contextmanager
def running(made: Installed) -> Iterator[None]:
    """The site, started, and stopped at the end."""
    made.ctl("start")
    try:
        yield
    finally:
        made.ctl("stop")


@contextmanager
def postfix_in_front(made: Installed) -> Iterator[Postfix]:
    """A Postfix with the lines that `mta-config` prints for the site."""
    root = made.root / "mta"
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "main.cf").write_text(f"alias_maps = texthash:{root}/aliases\n")
    words = ("mta-config", "postfix", "--domain", DOMAIN, "--inject", str(made.inject))
    text = made.ctl(*words, MAIL_CONFIG=str(root / "etc"))
    (root / "aliases").write_text("other nobody\n")
    with postfix(root, text, main=LEFT_ALONE) as mta:
        yield mta


def depths(made: Installed) -> dict[str, int]:
    """How much is in each queue."""
    return {queue["name"]: queue["depth"] for queue in json.loads(made.ctl("status", "--json"))["queues"]}


@pytest.mark.parametrize("total", [200, pytest.param(3_000, marks=pytest.mark.stress)])
def test_messages_from_postfix_arrive_once_byte_for_byte_and_shared_out_by_weight(total: int) -> None:
    mail = mails(total)
    assert len({one.recipient for one in mail}) == len(mail) == total
    with folder_for_everyone() as root, smtp_sinks(root, 3) as sinks:
        made = install(root)
        lay_out_default_site(made, dict(zip(PORTS, [sink.port for sink in sinks], strict=True)))
        with running(made), postfix_in_front(made) as mta:
            feed(made, mta, mail)
            mta.settle(LIMIT_S)
            until(lambda: not any(depths(made).values()), lambda: f"{depths(made)}\n{made.log()}", LIMIT_S)
        arrived = [sink.messages() for sink in sinks]
        check_each(mail, [got for part in arrived for got in part])
        check_shares(arrived)


def check_each(mail: Sequence[Mail], arrived: Sequence[Got]) -> None:
    """Every message is there, once, unharmed; and nothing else."""
    sent = {one.recipient: one for one in mail}
    assert Counter(got.recipients for got in arrived) == Counter((recipient,) for recipient in sent)
    for got in arrived:
        one = sent[got.recipients[0]]
        assert got.sender == one.sender
        assert got.message.endswith(one.arrives_as), (one, got)
        added = got.message[: len(got.message) - len(one.arrives_as)]
        assert FIELD.findall(added)[0] == b"X-Passed"
        assert set(FIELD.findall(added)[1:]) <= ADDED[one.way], (one, added)


def check_shares(arrived: Sequence[Sequence[Got]]) -> None:
    """Each host was given what is its slice's, and the slices are as large as the weights say."""
    ranges = cut(WEIGHTS)
    for host, part in enumerate(arrived):
        ids = [got.message.partition(b"\n")[0][-40:].decode() for got in part]
        assert {slice_of(ranges, id) for id in ids} == {host}
    total = sum(map(len, arrived))
    expected = [total * weight / sum(WEIGHTS) for weight in WEIGHTS]
    chi_square = sum((len(part) - share) ** 2 / share for part, share in zip(arrived, expected, strict=True))
    # Of two degrees of freedom. By chance alone it is this large once in a million runs.
    assert chi_square < -2 * math.log(1e-6), [len(part) for part in arrived]
