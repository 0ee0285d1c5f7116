"""A file into a folder, whole or not at all, and once: Maildir, and files in plain folders.

The file is written and synced under a name that readers leave alone, then renamed to its own. Both names are made of the
entry's id, so whoever tries again after a death finds what there is. A reader may take the file away the moment it has its
name; that it was there shows then from the name that is gone: see ``Drop.publish``.

Guarantees: no name is ever overwritten; what ``publish`` returns from is on stable storage, name and content.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from datetime import datetime

from qrunner.switchboard.disk import HIDDEN, Disk, make_directories, rename_new, write_all

_MAILDIR = ("tmp", "new", "cur")


@dataclass(frozen=True, slots=True)
class Drop:
    """A file on its way: where it is written, and where it then is.

    :param moves: readers rename it, into ``cur`` and with flags behind a colon.
    """

    staged: str
    final: str
    moves: bool = False

    @classmethod
    def into_maildir(cls, folder: str, id: str, arrival: datetime, host: str) -> Drop:
        """A message for a Maildir, under a name as its rules want it: a time, what makes it unique, the host."""
        place = host.replace("/", r"\057").replace(":", r"\072")
        name = f"{int(arrival.timestamp())}.Q{id}.{place}"
        return cls(f"{folder}/tmp/{name}", f"{folder}/new/{name}", moves=True)

    @classmethod
    def into_folder(cls, folder: str, id: str, arrival: datetime) -> Drop:
        """A file whose name begins with the time of arrival, UTC."""
        name = f"{arrival:%Y%m%dT%H%M%SZ}-{id}"
        return cls(f"{folder}/{HIDDEN}{name}", f"{folder}/{name}.eml")

    def is_staged(self) -> bool:
        """Whether it is written, and has not got its name."""
        return os.path.lexists(self.staged)

    def is_there(self) -> bool:
        """Whether it has its name."""
        return os.path.lexists(self.final)

    def was_moved(self) -> bool:
        """Whether a reader has given it another name since."""
        if not self.moves:
            return False
        folder, name = os.path.dirname(os.path.dirname(self.final)), os.path.basename(self.final)
        with contextlib.suppress(FileNotFoundError):
            return any(one == name or one.startswith(f"{name}:") for one in os.listdir(f"{folder}/cur"))
        return False

    def stage(self, message: bytes, disk: Disk) -> None:
        """Writes it, synced; what a try of before left is replaced. :raises OSError: nothing is there."""
        make_directories(self._folders(), disk)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.staged)
        fd = os.open(self.staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            write_all(fd, [message])
            disk.sync_file(fd)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(self.staged)
            raise
        finally:
            os.close(fd)

    def publish(self, disk: Disk) -> None:
        """Gives what is staged its name. From here on ``staged`` is gone, whatever becomes of ``final``.

        :raises OSError: it is still staged; or its name is not on stable storage, and ``settle`` makes sure of that.
        """
        rename_new(self.staged, self.final)
        self.settle(disk)

    def settle(self, disk: Disk) -> None:
        """Its name is on stable storage, as far as it has one still."""
        disk.sync_directory(os.path.dirname(self.final))

    def _folders(self) -> list[str]:
        folder = os.path.dirname(self.final)
        if not self.moves:
            return [folder]
        return [f"{os.path.dirname(folder)}/{part}" for part in _MAILDIR]
