"""Who a program becomes before it touches anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qrunner.errors import QRunnerError
from qrunner.owner import become_owner
from tests.sites import ROOT

NOBODY = 65534
SHOW = """
import os, sys
from pathlib import Path
from qrunner.owner import become_owner
become_owner(Path(sys.argv[1]))
Path(sys.argv[1], "file").touch()
print(os.getresuid(), os.getgroups(), os.environ["USER"])
"""


def test_the_owner_stays_who_it_is(tmp_path: Path) -> None:
    before = os.getresuid(), os.getresgid(), os.environ.get("HOME")
    become_owner(tmp_path)
    become_owner(tmp_path / "not" / "there" / "yet")
    assert (os.getresuid(), os.getresgid(), os.environ.get("HOME")) == before


def test_who_is_neither_root_nor_the_owner_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stranger = os.getuid() + 12345
    monkeypatch.setattr(os, "geteuid", lambda: stranger)
    with pytest.raises(QRunnerError, match=f"belongs to .* and you are user {stranger}: run this as"):
        become_owner(tmp_path)


def test_root_gives_up_its_groups_before_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    place = tmp_path / "qfiles"
    place.mkdir()
    owner = os.stat_result((0o40700, 1, 1, 1, NOBODY - 7, NOBODY - 7, 0, 0, 0, 0))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(Path, "stat", lambda self, **options: owner)
    for name in ("setgroups", "setgid", "setuid"):
        monkeypatch.setattr(os, name, lambda *_, name=name: steps.append(name))
    monkeypatch.setattr(os, "environ", {})
    become_owner(place)
    assert steps == ["setgroups", "setgid", "setuid"]
    assert os.environ == {"HOME": "/", "USER": str(NOBODY - 7), "LOGNAME": str(NOBODY - 7)}


def test_root_becomes_the_owner_for_good(tmp_path: Path) -> None:
    place = tmp_path / "qfiles"
    place.mkdir()
    owner = os.getuid()
    if owner == 0:  # else we are the owner already, and stay so
        owner = NOBODY
        os.chown(place, NOBODY, NOBODY)
        for folder in (tmp_path, *tmp_path.parents):
            folder.chmod(folder.stat().st_mode | 0o011)
    run = subprocess.run(
        [sys.executable, "-c", SHOW, str(place)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "USER": "whoever"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.startswith(f"({owner}, {owner}, {owner})")
    made = (place / "file").stat()
    assert (made.st_uid, made.st_mode & 0o777) == (owner, 0o600)
