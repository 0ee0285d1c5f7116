"""Site code with the five usual mistakes, each on a line that ends in ``MISTAKE``. A test reads it; see right.py."""

from __future__ import annotations

from qrunner import Entry, Fate, Runner


class NoReturn(Runner):
    async def dispose(self, entry: Entry) -> Fate:  # MISTAKE
        entry.forward("out")


class Truth(Runner):
    async def dispose(self, entry: Entry) -> Fate:
        return True  # MISTAKE


class WritesMeta(Runner):
    async def dispose(self, entry: Entry) -> Fate:
        entry.meta["seen"] = True  # MISTAKE
        return entry.forward("out")


class WritesRecipients(Runner):
    async def dispose(self, entry: Entry) -> Fate:
        entry.recipients = ("carol@example.org",)  # MISTAKE
        return entry.forward("out")


class Misspells(Runner):
    async def dispose(self, entry: Entry) -> Fate:
        return entry.replace(recipient=["carol@example.org"]).forward("out")  # MISTAKE
