"""Postfix's smtp-sink, failing at each command in each way, from the queue to the end of it all.

Every recipient gets the message once, or the history calls it ambiguous, or a report says why not. What is seen is the
table of docs/DELIVERY.md; with QRUNNER_WRITE_TABLE=1 it is written there.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

import qrunner.smtp.client
from tests.documents import ROOT
from tests.runners.live import MESSAGE, RUNNER, Live, host, lines, live
from tests.smtp.hosts import free_port, smtp_sink

pytestmark = pytest.mark.needs("smtp-sink")

TO = ("a@x", "b@x", "c@x")
FAULTS = {"4xx": "-r", "5xx": "-f", "hangs up": "-q", "421": "-Q", "says nothing": "-W"}
COMMANDS = ("connect", "EHLO", "MAIL", "RCPT", "DATA", ".", "RSET", "QUIT")
BODY = {"answers in the middle of the message and hangs up": ("-A", "0"), "stops reading it": ("-H", "60")}
# More than lies in the buffers between two sockets.
LONG = MESSAGE + (b"x" * 70 + b"\n") * 100_000
PLACES = {"connect": "the connection", ".": "the end of the message"}
AT_ONCE = 12
DOCUMENT = ROOT / "docs" / "DELIVERY.md"
TABLE = re.compile(r"(?<=<!-- what a host says -->\n).*?(?=<!-- end -->)", re.DOTALL)


@dataclass(frozen=True)
class Seen:
    """What became of one message in one cell of the matrix.

    :param taken: how often each recipient stands in the messages that the host said it took, or said nothing of.
    """

    first: str
    doubted: frozenset[str]
    reported: frozenset[str]
    taken: Counter[str]


def options(fault: str, command: str) -> tuple[str, ...]:
    """Of smtp-sink. Without a recipient that is refused there is no RSET."""
    wrong = (fault, f"{command}:60" if fault == "-W" else command)
    return ("-f", "rcpt", *wrong) if command == "RSET" else wrong


def section(port: int, fault: str, command: str) -> str:
    """Only the limit in question is short: the machine may be slow."""
    limits = {"greeting": command == "connect", "command": command in (*COMMANDS[1:5], "RSET")}
    limits |= {"final": command == ".", "data": command == "-H"}
    short = [
        f'{name}_timeout = "1s"' for name, is_meant in limits.items() if is_meant and fault in ("-W", "-H")
    ]
    return host(port, "\n".join([*short, "failures_to_open = 1", "max_connections = 4"])) + RUNNER


async def play(wrong: tuple[str, ...], fault: str, command: str) -> Seen:
    """One message to a host that fails so, which is well again afterwards."""
    with TemporaryDirectory(prefix="sink-") as folder:
        dump, port = Path(folder), free_port()
        dump.chmod(0o777)
        async with live(section(port, fault, command)) as one:
            async with smtp_sink(*wrong, dump=dump, port=port):
                one.send(*TO, message=MESSAGE if command in COMMANDS else LONG)
                await one.settle()
                first, doubted = described(one), in_doubt(one)
                if command == "QUIT":
                    await one.engines["out"].runner.cleanup()
                    await one.engines["out"].runner.start()
            # smtp-sink dumps what it then refuses, too.
            before = taken(dump) if doubted or not one.entries() and not one.reports else Counter[str]()
            for path in dump.iterdir():
                path.unlink()
            async with smtp_sink(dump=dump, port=port):
                await one.until_empty()
        reported = re.findall(
            rb"^Final-Recipient: rfc822; ?(\S+)", b"".join(r.message for r in one.reports), re.M
        )
        return Seen(first, doubted, frozenset(map(bytes.decode, reported)), before + taken(dump))


def described(one: Live) -> str:
    """In the words of the table."""
    health = one.health()
    of_host = [("down", health.state != "up"), ("slower", health.limit is not None)]
    words = [
        _of_message(one),
        *(f"host {word}" if word == "down" else word for word, is_so in of_host if is_so),
    ]
    return ", ".join(words)


def _of_message(one: Live) -> str:
    if one.reports:
        return "reported"
    if not one.entries():
        return "delivered"
    (entry,) = one.entries()
    if lines(entry, "ambiguous"):
        return "ambiguous"
    return "waits" if entry.attempts else "no attempt"


def in_doubt(one: Live) -> frozenset[str]:
    found = [line["to"] for entry in one.entries() for line in lines(entry, "ambiguous")]
    return frozenset(address for addresses in found for address in addresses)


def taken(dump: Path) -> Counter[str]:
    """The recipients of every message in the dumps."""
    texts = [path.read_text("latin-1") for path in dump.iterdir()]
    said = [line for text in texts for line in text.splitlines() if line.startswith("X-Rcpt-Args")]
    return Counter(line.split("<")[1].split(">")[0] for line in said)


async def play_all() -> dict[tuple[str, str], Seen]:
    """By place and fault."""
    room = asyncio.Semaphore(AT_ONCE)

    async def cell(wrong: tuple[str, ...], fault: str, command: str) -> Seen:
        async with room:
            return await play(wrong, fault, command)

    cells = {
        (command, said): cell(options(fault, command), fault, command)
        for command in COMMANDS
        for said, fault in FAULTS.items()
    }
    cells |= {("body", said): cell(wrong, wrong[0], wrong[0]) for said, wrong in BODY.items()}
    return dict(zip(cells, await asyncio.gather(*cells.values()), strict=True))


@pytest.fixture(scope="module")
def matrix() -> Iterator[Mapping[tuple[str, str], Seen]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qrunner.smtp.client, "_QUIT_S", 1.0)
        yield asyncio.run(play_all())


@pytest.mark.parametrize("said", FAULTS)
@pytest.mark.parametrize("command", COMMANDS)
def test_everybody_gets_it_once_or_it_is_known_why_not(
    command: str, said: str, matrix: Mapping[tuple[str, str], Seen]
) -> None:
    check(matrix[command, said])


@pytest.mark.parametrize("said", BODY)
def test_and_so_it_is_when_the_message_is_under_way(
    said: str, matrix: Mapping[tuple[str, str], Seen]
) -> None:
    check(matrix["body", said])


def check(seen: Seen) -> None:
    for address in TO:
        if address in seen.reported:
            assert seen.taken[address] == 0, seen
        elif address in seen.doubted:
            assert 1 <= seen.taken[address] <= 2, seen
        else:
            assert seen.taken[address] == 1, seen


def test_the_document_says_what_was_seen(matrix: Mapping[tuple[str, str], Seen]) -> None:
    table = rendered(matrix)
    if os.environ.get("QRUNNER_WRITE_TABLE"):
        DOCUMENT.write_text(TABLE.sub(lambda _: table, DOCUMENT.read_text("utf-8")), "utf-8")
    found = TABLE.search(DOCUMENT.read_text("utf-8"))
    assert found is not None
    assert found[0] == table, f"QRUNNER_WRITE_TABLE=1 writes it:\n{table}"


def rendered(matrix: Mapping[tuple[str, str], Seen]) -> str:
    rows = [["at", *FAULTS], ["---"] * (1 + len(FAULTS))]
    rows += [[PLACES.get(one, one), *(matrix[one, said].first for said in FAULTS)] for one in COMMANDS]
    text = "".join("| " + " | ".join(row) + " |\n" for row in rows)
    text += "\n| in the message, a host that |  |\n| --- | --- |\n"
    text += "".join(f"| {said} | {matrix['body', said].first} |\n" for said in BODY)
    return f"\n{text}\n"
