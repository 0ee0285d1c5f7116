"""Where the configuration is, and who may write it."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Callable
from pathlib import Path

from qrunner.config.problems import ConfigErrors, Problem

SYSTEM_WIDE = Path("/etc/qrunner/qrunner.toml")
HERE = Path("etc/qrunner.toml")
VARIABLE = "QRUNNER_CONFIG"


def find(explicit: Path | None = None) -> Path:
    """The configuration file: the one named, ``$QRUNNER_CONFIG``, ``./etc/qrunner.toml``, the system's.

    Not the one here for root, who may stand in anybody's folder. ConfigErrors if nothing was named and none of the
    usual ones is there.
    """
    if explicit is not None:
        return explicit
    if named := os.environ.get(VARIABLE):
        return Path(named)
    places = [SYSTEM_WIDE] if os.geteuid() == 0 else [HERE, SYSTEM_WIDE]
    for place in places:
        if not _is_absent(place):
            return place
    looked = " and ".join(str(place) for place in places)
    raise unusable(
        places[-1], f"there is no configuration, expected -c FILE, ${VARIABLE}, or one of {looked}"
    )


def _is_absent(file: Path) -> bool:
    """Surely not there; what we may not even look at is there, and reading it will say why it can't be read."""
    try:
        file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def unusable(file: Path, text: str, line: int = 1) -> ConfigErrors:
    """The one problem of a file that could not be read so far as to find more."""
    return ConfigErrors([Problem(file, line, "configuration", text)])


def read(path: Path) -> tuple[str, os.stat_result]:
    """The text, and who could write it when it was read. ConfigErrors if it can't be read or is not UTF-8."""
    try:
        with path.open("rb") as file:
            status, content = os.fstat(file.fileno()), file.read()
    except OSError as error:
        raise unusable(path, f"cannot be read: {error.strerror}") from None
    try:
        return content.decode("utf-8"), status
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise unusable(
            path, f"byte {content[error.start]:#04x} is not UTF-8, expected a text in UTF-8", line
        ) from None


def trusted(queue_dir: Path) -> frozenset[int]:
    """Who may own what decides which code runs: root, we, and the owner of the queues, whom root becomes."""
    there = next((folder for folder in (queue_dir, *queue_dir.parents) if os.path.isdir(folder)), Path("/"))
    return frozenset({0, os.geteuid(), there.stat().st_uid})


def writable_by(status: os.stat_result, owners: frozenset[int]) -> str:
    """Which others may write it, in words; empty if none.

    A group that holds nobody but the owner is nobody else (many systems give each user one, and a umask of 002);
    root has no such group.
    """
    if status.st_mode & stat.S_IWOTH:
        return "everybody"
    if status.st_mode & stat.S_IWGRP and not _is_own_group(status.st_uid, status.st_gid):
        return "its group"
    return "" if status.st_uid in owners else f"its owner, uid {status.st_uid},"


def _is_own_group(uid: int, gid: int) -> bool:
    try:
        user, members = pwd.getpwuid(uid), set(grp.getgrgid(gid).gr_mem)
    except KeyError:
        return False
    alone = all(other.pw_uid == uid for other in pwd.getpwall() if other.pw_gid == gid)
    return uid != 0 and user.pw_gid == gid and alone and members <= {user.pw_name}


def check_file(status: os.stat_result, owners: frozenset[int], wrong: Callable[[str], object]) -> None:
    """Whoever may write the configuration decides which code runs."""
    if who := writable_by(status, owners):
        wrong(
            f"{who} may write this file, expected that nobody may but root or the queues' owner (chmod go-w)"
        )


def check_folder(folder: Path, owners: frozenset[int], wrong: Callable[[str], object]) -> None:
    """The same of a folder that code is imported from."""
    try:
        status = folder.stat()
    except OSError as error:
        wrong(f"{folder} cannot be read: {error.strerror}, expected a folder")
        return
    if not stat.S_ISDIR(status.st_mode):
        wrong(f"{folder} is not a folder, expected one")
    elif who := writable_by(status, owners):
        wrong(
            f"{who} may write {folder}, expected that nobody may but root or the queues' owner (chmod go-w)"
        )


def check_readable(file: Path, wrong: Callable[[str], object]) -> None:
    """A file that will be needed: it had better be there now."""
    if not os.path.isfile(file):
        wrong(f"{file} is not there, expected a file")


def check_kind(path: Path, is_folder: bool, wrong: Callable[[str], object]) -> None:
    """What mail is to be written to: where something is already, it had better be of that kind."""
    if is_folder and os.path.lexists(path) and not os.path.isdir(path):
        wrong(f"{path} is not a folder, expected one, or nothing yet")
    elif not is_folder and os.path.isdir(path):
        wrong(f"{path} is a folder, expected a file, or nothing yet")
