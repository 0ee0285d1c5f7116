"""A piece of a test in a process of its own: as nobody in particular, or with mounts that nobody else sees."""

from __future__ import annotations

import ctypes
import os
import subprocess
import traceback
from collections.abc import Callable
from pathlib import Path

NOBODY = 65_534
_NEW_MOUNTS, _NEW_USERS = 0x00020000, 0x10000000


def in_a_child(work: Callable[[], None]) -> None:
    """Runs it in a fork of this process. AssertionError: what it raised."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        try:
            work()
        except BaseException:
            os.write(write, traceback.format_exc()[-60_000:].encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        said = pipe.read().decode()
    assert os.waitpid(pid, 0)[1] == 0
    assert not said, said


def become_nobody() -> None:
    """From here on modes are something to this process; root has no need of them."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def give_to_nobody(top: Path) -> None:
    """Everything from here down is nobody's, as far as it is ours to give."""
    if os.geteuid() == 0:
        for directory, _, names in os.walk(top):
            for name in [".", *names]:
                os.lchown(os.path.join(directory, name), NOBODY, NOBODY)


def with_mounts_of_its_own() -> None:
    """What this process mounts is seen by nobody else, and is gone when it ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(_NEW_MOUNTS | (_NEW_USERS if user else 0)) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    mount("--make-rprivate", "/")


def mount(*words: str) -> None:
    """mount(8)."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    subprocess.run(["mount", *words], check=True, env={"PATH": path})


def mount_tmpfs(at: Path) -> None:
    """Four megabytes of memory."""
    at.mkdir()
    mount("-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs", str(at))


def mount_ext4(at: Path) -> None:
    """Sixteen megabytes of a file, with a journal."""
    image = at.with_suffix(".image")
    with image.open("wb") as file:
        file.truncate(16 << 20)
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True, env={"PATH": path})
    at.mkdir()
    mount("-o", "loop", str(image), str(at))
