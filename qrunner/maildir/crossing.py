"""From a maildir into the queues of a spool: the one commit that both of them see.

Guarantees: each message is taken once, whatever dies at whatever moment. It is staged, durably; its file is moved to
``cur`` and that is synced; then it is published. What a dead process has staged is dropped if its file is still in
``new``, and published if it is not.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from qrunner.maildir.box import Letter, Maildir
from qrunner.switchboard import Add, Staging
from qrunner.switchboard.disk import Disk


@dataclass(frozen=True, slots=True)
class Taken:
    """What came of a batch: the ids of what each message became, and what could not be moved, with the reason."""

    ids: Mapping[Letter, tuple[str, ...]]
    stuck: Mapping[Letter, str]


class Crossing:
    """From a maildir into a spool's queues, each message once. Methods may be called by several threads, with messages
    that are not the same; ``settle`` by one, alone."""

    def __init__(self, maildir: Maildir, staging: Staging, disk: Disk) -> None:
        self.maildir, self.staging, self.disk = maildir, staging, disk
        self.is_settled = False

    def settle(self) -> int:
        """Decides about what was staged when somebody died, or the disk failed: what is still in ``new`` is dropped,
        and will be taken again; what is not was ours, or is the only copy that is left. How many are published.

        :raises OSError: it has to be called again.
        """
        self.maildir.check()
        keys = self.staging.staged()
        dropped = [key for key in keys if self.maildir.holds(*_parts(key))]
        self.staging.drop(dropped)
        taken = set(keys) - set(dropped)
        if taken:
            self._sync()
            self.staging.publish(taken)
        self.is_settled = True
        return len(taken)

    def take(self, batch: Mapping[Letter, Sequence[Add]]) -> Taken:
        """Takes these messages.

        :raises QueueError: none is taken. OSError: ``settle`` has to decide.
        """
        keys = {letter: self._key(letter) for letter in batch}
        ids = self.staging.stage({keys[letter]: adds for letter, adds in batch.items()})
        try:
            stuck = self._moved(batch)
            self._sync()
            self.staging.drop([keys[letter] for letter in stuck])
            self.staging.publish([key for letter, key in keys.items() if letter not in stuck])
        except BaseException:
            self.is_settled = False
            raise
        return Taken({letter: ids[key] for letter, key in keys.items() if letter not in stuck}, stuck)

    def _moved(self, letters: Iterable[Letter]) -> dict[Letter, str]:
        """Moves these; those that can't be moved, though others can, and why."""
        stuck = {}
        for letter in letters:
            try:
                # One that has gone meanwhile was seen by us all the same: it may not be anywhere else.
                self.maildir.take(letter.name)
            except PermissionError as error:
                if not self.maildir.may_move:
                    raise
                stuck[letter] = error.strerror or str(error)
        return stuck

    def _key(self, letter: Letter) -> str:
        return f"{letter.inode} {self.maildir.new}/{letter.name}"

    def _sync(self) -> None:
        self.disk.sync_directory(self.maildir.cur)
        self.disk.sync_directory(self.maildir.new)

    def close(self) -> None:
        """Lets go of both."""
        self.staging.release()
        self.maildir.close()


def _parts(key: str) -> tuple[str, int]:
    inode, _, path = key.partition(" ")
    return os.path.basename(path), int(inode)
