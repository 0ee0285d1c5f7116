"""A maildir as mailers fill it."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

_numbers = itertools.count(1)


class Box:
    """A maildir of a test's own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in ("tmp", "new", "cur"):
            (path / name).mkdir(parents=True)

    def deliver(
        self, message: bytes, *, to: str = "list@example.org", name: str = "", link: bool = False
    ) -> str:
        """As a mailer does: written elsewhere, then moved or linked into place; its name."""
        envelope = f"Return-Path: <ann@example.org>\nDelivered-To: {to}\n".encode() if to else b""
        return self.put(envelope + message, name=name, link=link)

    def put(self, data: bytes, *, name: str = "", link: bool = False) -> str:
        """The very bytes, in the same way."""
        name = name or f"{1_700_000_000 + next(_numbers)}.M1P2.host"
        temporary = self.path / "tmp" / name
        temporary.write_bytes(data)
        if link:
            os.link(temporary, self.path / "new" / name)
            temporary.unlink()
        else:
            temporary.rename(self.path / "new" / name)
        return name

    def new(self) -> list[str]:
        return sorted(os.listdir(self.path / "new"))

    def cur(self) -> list[str]:
        return sorted(os.listdir(self.path / "cur"))
