"""Messages of all kinds, and what an mbox and a Maildir give back of them, as Python's ``mailbox`` reads them."""

from __future__ import annotations

import gzip
import mailbox
import re
from datetime import UTC, datetime
from pathlib import Path

CORPUS = Path(__file__).parents[1] / "corpus"
# Odd real mail, where there is some beside the project; not ours to keep in it.
SHARED = [above / "shared" / "mail" for above in CORPUS.parents]
ARRIVAL = datetime(2026, 2, 28, 23, 59, 58, tzinfo=UTC)


def letters() -> list[bytes]:
    """The corpus, and the shared mail as it is."""
    found = [path.read_bytes() for path in sorted(CORPUS.glob("*.eml"))]
    assert len(found) > 20
    shared = sorted(path for folder in SHARED for path in folder.rglob("*.gz"))
    return found + [gzip.decompress(path.read_bytes()) for path in shared]


def whole(message: bytes) -> bytes:
    """A message as an mbox gives it back: with a last line end."""
    return message if message.endswith(b"\n") or not message else message + b"\n"


def read_mbox(path: Path | str) -> list[bytes]:
    """The messages of an mboxrd."""
    box = mailbox.mbox(str(path), create=False)
    try:
        return [
            re.sub(rb"^>(>*From )", rb"\1", box.get_bytes(key), flags=re.MULTILINE) for key in range(len(box))
        ]
    finally:
        box.close()


def read_maildir(path: Path | str) -> list[bytes]:
    """The messages of a Maildir."""
    box = mailbox.Maildir(str(path), create=False)
    return [box.get_bytes(key) for key, _ in box.iteritems()]


def read(format: str, path: Path | str) -> list[bytes]:
    """The messages of an archive; none if it is not there."""
    if not Path(path).exists():
        return []
    if format == "mbox":
        return read_mbox(path)
    if format == "maildir":
        return read_maildir(path)
    return [file.read_bytes() for file in sorted(Path(path).glob("*.eml"))]
