"""The letters of the demonstration: real messages (RFC 5322), no two the same, and among them what goes wrong elsewhere.

Dots at the start of lines, lines of the greatest length and far beyond it, UTF-8 in headers and bodies, attachments,
line ends of either kind, a last line without one.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email import policy
from email.message import EmailMessage
from email.utils import format_datetime

WORDS = [
    "queue",
    "letter",
    "host",
    "weight",
    "slice",
    "range",
    "digest",
    "post",
    "road",
    "rider",
    "night",
    "river",
    "harbour",
    "lamp",
    "station",
]
GREETINGS = (
    "Grüße aus Köln",
    "Привет из Риги",
    "京都からの手紙",
    "Χαιρετίσματα",
    "Plain greetings",
    "naïve café ☕",
)
FIRST_DAY = datetime(2026, 1, 1, 8, tzinfo=UTC)
_NUMBER = re.compile(rb"^Message-ID: <letter-(\d+)@", re.MULTILINE | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Letter:
    """A message and its envelope."""

    number: int
    sender: str
    recipient: str
    message: bytes

    @property
    def on_the_wire(self) -> bytes:
        """What an SMTP host must be given of it: lines that end with CRLF, the last one too."""
        text = self.message.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        return text if text.endswith(b"\r\n") else text + b"\r\n"


def letters(count: int) -> list[Letter]:
    """So many letters, no two the same."""
    return [_letter(number) for number in range(count)]


def number_of(message: bytes) -> int | None:
    """Which letter a message is; None: none of ours."""
    found = _NUMBER.search(message)
    return int(found[1]) if found else None


def _letter(number: int) -> Letter:
    dice = random.Random(number)
    message = EmailMessage()
    message["From"] = f"Ann Writer {number} <ann{number}@example.org>"
    message["To"] = f"reader {number} <reader{number}@example.net>"
    message["Date"] = format_datetime(FIRST_DAY + timedelta(minutes=37 * number))
    message["Subject"] = f"{dice.choice(GREETINGS)}, number {number}"
    message["Message-ID"] = f"<letter-{number}@example.org>"
    KINDS[number % len(KINDS)](message, dice)
    content = message.as_bytes(policy=policy.SMTP if number % 3 == 0 else policy.default)
    if number % 5 == 0:
        content = content.rstrip(b"\r\n")
    # A sender of its own for each, as a list has it that learns from bounces; every twentieth is itself a bounce.
    sender = "" if number % 20 == 0 else f"list-bounces+reader{number}=example.net@example.org"
    return Letter(number, sender, f"reader{number}@example.net", content)


def _prose(dice: random.Random, lines: int) -> str:
    return "".join(" ".join(dice.choices(WORDS, k=dice.randint(3, 12))) + ".\n" for _ in range(lines))


def _plain(message: EmailMessage, dice: random.Random) -> None:
    message.set_content(_prose(dice, dice.randint(1, 60)))


def _dots(message: EmailMessage, dice: random.Random) -> None:
    message.set_content(f".\n..\n.first\n{_prose(dice, 3)}\n.\n\n.. two dots\nFrom here on\n.\n")


def _eight_bit(message: EmailMessage, dice: random.Random) -> None:
    message.set_content("\n".join(GREETINGS) + "\n" + _prose(dice, 5), cte="8bit")


def _quoted_printable(message: EmailMessage, dice: random.Random) -> None:
    message.set_content("Größe = " + "ß" * 90 + "\n" + _prose(dice, 4), cte="quoted-printable")
    message.add_alternative(f"<p>{dice.choice(GREETINGS)}</p>\n", subtype="html")


def _attachment(message: EmailMessage, dice: random.Random) -> None:
    message.set_content(_prose(dice, 2))
    data = dice.randbytes(dice.randint(1, 20_000))
    message.add_attachment(data, maintype="application", subtype="octet-stream", filename="Übung.bin")


def _longest_lines(message: EmailMessage, dice: random.Random) -> None:
    """998 characters, the most that RFC 5322 allows."""
    message.set_content("".join(dice.choice("abc. ") * 997 + "x\n" for _ in range(3)), cte="7bit")


def _endless_line(message: EmailMessage, dice: random.Random) -> None:
    """What programs that write HTML send all the same."""
    line = "<td>" * dice.randint(5_000, 20_000)
    message.set_content("short\n", cte="8bit")
    message.set_payload(f"<table>\n{line}\n.\n</table>\n")


KINDS: tuple[Callable[[EmailMessage, random.Random], None], ...] = (
    _plain,
    _dots,
    _eight_bit,
    _quoted_printable,
    _attachment,
    _longest_lines,
    _endless_line,
)
