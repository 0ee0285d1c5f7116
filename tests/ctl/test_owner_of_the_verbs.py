"""Whoever types a verb, what it leaves behind belongs to the owner of the queues."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from qrunner.site import Site

from .conftest import TOML, Place

# Who is not root can be no other, and finds that all is its own.
OWNER = 65534 if os.geteuid() == 0 else os.geteuid()


@pytest.fixture
def foreign() -> Iterator[Place]:
    """A site that another user owns, where that user can reach it."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="qrunner-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "etc").mkdir(mode=0o755)
        (folder / "qfiles").mkdir(mode=0o700)
        (folder / "var").mkdir(mode=0o700)
        (folder / "etc/qrunner.toml").write_text(TOML)
        (folder / "etc/qrunner.toml").chmod(0o644)
        site = Site.load(folder / "etc/qrunner.toml")
        site.spool.prepare(site.config.queues())
        for path in [
            folder / "qfiles",
            folder / "var",
            *folder.glob("qfiles/**/*"),
            *folder.glob("qfiles/.lease/**"),
        ]:
            os.chown(path, OWNER, -1)
        yield Place(folder, site)


def test_root_becomes_the_owner_before_it_touches_anything(foreign: Place) -> None:
    def run(*words: str, given: bytes = b"") -> bytes:
        result = foreign.process(*words, input=given)
        assert result.returncode == 0, result.stderr
        return result.stdout  # type: ignore[no-any-return]

    id = run("inject", "-q", "in", "-t", given=b"To: a@x\n\n").decode().strip()
    run("hold", id)
    run("release", id)
    run("requeue", id, "--to", "out", "--now")
    run("show", id, "--json")
    run("list", "--json")
    run("slices", "out")
    files = [*foreign.folder.glob("qfiles/**/*"), *foreign.folder.glob("var/**/*")]
    assert {path.stat().st_uid for path in files} == {OWNER}
    assert {path.stat().st_mode & 0o777 for path in files if path.is_file()} == {0o600}
    run("delete", id)
    assert foreign.ids("out") == []
