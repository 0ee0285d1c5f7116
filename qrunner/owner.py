"""The owner of the queues: who every program becomes before it touches anything.

Whatever is in the queues belongs to one user. Root types commands too, and what root then made the owner could not
read; so root becomes the owner first. Anybody else is refused, before a half-done attempt leaves something behind.
"""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from qrunner.errors import QRunnerError


def become_owner(queue_dir: Path) -> None:
    """Makes this process the owner of ``queue_dir``, for good: user, groups, HOME; new files are the owner's alone.

    Of a directory that is not there yet, who owns the nearest one above it. Where root owns it, root stays root.

    :raises QRunnerError: we are neither its owner nor root.
    """
    os.umask(0o077)
    place = _nearest(queue_dir)
    owner, ours = place.stat(), os.geteuid()
    if owner.st_uid == ours:
        return
    if ours == 0:
        _become(owner.st_uid, owner.st_gid)
    elif place == queue_dir:
        who = _name(owner.st_uid)
        also = ", or as root, which becomes that user" if owner.st_uid else ""
        raise QRunnerError(f"{queue_dir} belongs to {who} and you are {_name(ours)}: run this as {who}{also}")


def _nearest(path: Path) -> Path:
    """The directory, or the nearest one above it that is there. What stands above is for whoever may write there
    to make the directory in, so its owner is not asked of anybody but root."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _become(uid: int, gid: int) -> None:
    try:
        user = pwd.getpwuid(uid)
        name, gid, home = user.pw_name, user.pw_gid, user.pw_dir
        os.initgroups(name, gid)
    except KeyError:  # a user without a name, as containers have
        name, home = str(uid), "/"
        os.setgroups([gid])
    # The user last: once it is set, the groups can't be.
    os.setgid(gid)
    os.setuid(uid)
    os.environ.update(HOME=home, USER=name, LOGNAME=name)


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"
