"""A fresh folder for each run of a program, and none that is left for ever.

::

    var/work/<runner>.<slice>.<random>/    one process's, locked by it and its warden for as long as either lives
    var/work/…/<random>/                   one run's

Guarantees: what a process left that died is removed when the runner starts next.

Not guaranteed: that a program's files outlive its run. What is to be kept belongs elsewhere.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path


class Folders:
    """The folders of one process.

    :param place: the folder of all of them, made if it is not there; None: one for these alone.
    :param prefix: what all folders of this runner's slice begin with.
    """

    def __init__(self, place: Path | None, prefix: str) -> None:
        self._is_temporary = place is None
        self._place = place or Path(tempfile.mkdtemp(prefix="qrunner-"))
        self._prefix = prefix
        self._own, self.lock = self._begin()

    def _begin(self) -> tuple[Path, int]:
        self._place.mkdir(mode=0o700, exist_ok=True)
        while True:
            own = Path(tempfile.mkdtemp(prefix=f"{self._prefix}.", dir=self._place))
            fd = os.open(own, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(fd, fcntl.LOCK_SH)
            if own.is_dir():
                return own, fd
            # Somebody tidied up before we had the lock.
            os.close(fd)

    def fresh(self) -> Path:
        """An empty folder."""
        try:
            return Path(tempfile.mkdtemp(dir=self._own))
        except FileNotFoundError:
            # Somebody has tidied up too well.
            self._own, self.lock = self._begin()
            return Path(tempfile.mkdtemp(dir=self._own))

    def sweep(self) -> None:
        """Removes what dead processes of this runner left."""
        for path in self._place.glob(f"{self._prefix}.*"):
            with contextlib.suppress(OSError):
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    remove(path)
                finally:
                    os.close(fd)

    def close(self) -> None:
        """Removes what is left."""
        remove(self._place if self._is_temporary else self._own)
        os.close(self.lock)


def remove(folder: Path) -> None:
    """Removes a folder with all that is in it; what can't be removed stays."""
    try:
        folder.rmdir()
        return
    except FileNotFoundError:
        return
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        # A program may have taken away its own folders' permissions.
        for parent, names, _ in os.walk(folder):
            for path in (f"{parent}/{name}" for name in names):
                if not os.path.islink(path):
                    os.chmod(path, 0o700)
        shutil.rmtree(folder, ignore_errors=True)
