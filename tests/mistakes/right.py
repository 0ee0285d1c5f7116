"""The site code of wrong.py as it should be."""

from __future__ import annotations

from qrunner import Entry, Fate, Runner


class NoReturn(Runner):
    async def dispose(self, entry: Entry) -> Fate:
        return entry.forward("out")


class Truth(Runner):
    async def dispose(self, entry: Entry) -> Fate:
        return [entry.forward("out")]


class WritesMeta(Runner):
    async def dispose(self, entry: Entry) -> Fate:
        return entry.replace(meta={"seen": True}).forward("out")


class WritesRecipients(Runner):
    async def dispose(self, entry: Entry) -> Fate:
        return entry.replace(recipients=("carol@example.org",)).forward("out")


class Misspells(Runner):
    async def dispose(self, entry: Entry) -> Fate:
        return entry.replace(recipients=["carol@example.org"]).forward("out")
