"""What docs/COMMAND.md shows: the sandbox, a message of a program's own, and a class of a site's own."""

from __future__ import annotations

import os
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from qrunner.config import parse
from qrunner.programs.survivors import marked
from qrunner.testing import FakeSite
from tests.documents import Block, blocks, write
from tests.runners.test_command import end_of, executable, the_one, toml

pytest_plugins = ["qrunner.testing.plugin"]

DOCUMENT = "docs/COMMAND.md"
MakeSite = Callable[..., FakeSite]


def configurations() -> list[Block]:
    return [block for block in blocks(DOCUMENT) if block.language == "toml"]


def test_every_configuration_that_is_shown_is_a_right_one(tmp_path: Path) -> None:
    assert len(configurations()) == 3
    for block in configurations():
        parse(block.text, tmp_path / "etc" / "qrunner.toml")


def sandboxed(folder: Path, script: str, more: str = "") -> str:
    """The site of the document, with this script in the place of its program."""
    program = executable(folder / "check", f"#!/bin/sh\n{script}\n")
    (shown,) = [block for block in configurations() if "bwrap" in block.text]
    command = tomllib.loads(shown.text)["runner"]["check"]["command"]
    return toml([word.replace("/srv/lists/check", str(program)) for word in command], more)


LOOK = """\
cat
echo "-- $1 $SENDER $$"
for place in / /usr /proc /dev/shm /tmp; do touch $place/x 2>/dev/null && echo "can write to $place"; done
test -e {folder} && echo "sees the site"
test -e "$HOME" && echo "sees its home"
sed -n '3,$s/:.*//p' /proc/net/dev
ls /proc | grep -c '^[0-9]' | grep -qx '[0-9]' && echo "sees few processes"
echo oops >&2
exit 9
"""


@pytest.mark.needs("bwrap")
def test_in_the_sandbox_it_has_its_message_and_little_else(fake_site: MakeSite, tmp_path: Path) -> None:
    site = fake_site(sandboxed(tmp_path, LOOK.format(folder=tmp_path)))
    site.enqueue("check", message=b"X: y\r\n\r\nbody\n", sender="ann@example.org")
    site.run_until_idle(30)
    end = end_of(the_one(site, "shunt"))
    message, _, rest = end["stdout"].partition("-- ")
    assert message == "X: y\r\n\r\nbody\n"
    first, *seen = rest.splitlines()
    assert first.split()[:2] == ["--strict", "ann@example.org"]
    # A shell of the smallest number there is, and no network but its own loopback.
    assert [line.strip() for line in seen] == [
        "can write to /dev/shm",
        "can write to /tmp",
        "lo",
        "sees few processes",
    ]
    assert (end["exit"], end["stderr"]) == (9, "oops\n")
    assert list(tmp_path.iterdir()) == [tmp_path / "check"]


@pytest.mark.needs("bwrap")
def test_the_sandbox_ends_at_the_timeout_with_all_that_is_in_it(fake_site: MakeSite, tmp_path: Path) -> None:
    script = "trap '' TERM; for n in 1 2 3; do (trap '' TERM; setsid sleep 1000 &); done; sleep 1000"
    site = fake_site(sandboxed(tmp_path, script, 'timeout = "1s"'))
    id = site.enqueue("check")
    site.run_until_idle(30)
    assert the_one(site, "check").history[-1]["text"] == "not done within 1 s"
    assert list(marked(id, "check")) == []


@pytest.mark.needs("bwrap")
def test_a_sandbox_that_cannot_be_had_shunts_with_its_words(fake_site: MakeSite, tmp_path: Path) -> None:
    site = fake_site(sandboxed(tmp_path, "exit 0").replace("'''/usr'''", "'''/no/such/folder'''"))
    site.enqueue("check")
    site.run_until_idle(30)
    reason = the_one(site, "shunt").history[-1]["reason"]
    assert reason.startswith("bwrap: exit code 1: bwrap: Can't find source path /no/such/folder")


def test_the_class_of_the_document_runs(
    fake_site: MakeSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = [block for block in blocks(DOCUMENT) if block.title]
    write(code, tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "mysite"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    (shown,) = [block for block in configurations() if "mysite" in block.text]
    program = executable(tmp_path / "check", '#!/bin/sh\necho "$1 $CHECK_LEVEL" >&2\n')
    talking = shown.text.replace("./check", str(program))
    site = fake_site(f'[site]\nreport_queue = "reports"\n{talking}')
    site.enqueue("check", meta={"list": "dev"})
    site.run_until_idle(30)
    assert the_one(site, "hold").history[-1]["reason"] == "--list=dev strict"


def test_the_how_to_has_a_program_that_does_what_it_says(fake_site: MakeSite, tmp_path: Path) -> None:
    (code,) = [one for one in blocks("docs/HOWTO.md") if "message_from_binary_file" in one.text]
    (shown,) = [one for one in blocks("docs/HOWTO.md") if "./check" in one.text]
    program = executable(tmp_path / "check", f"#!{sys.executable}\n{code.text}")
    text = shown.text.replace("./check", str(program))
    site = fake_site(f'[site]\nreport_queue = "reports"\n{text}')
    good = site.enqueue("check", message=b"Subject: x\n\ny\n")
    site.enqueue("check", message=b"X: x\n\ny\n")
    site.run_until_idle(30)
    assert the_one(site, "out").id == good
    report = the_one(site, "reports").message
    assert b"Status: 5.7.1" in report
    assert b"give it a subject" in report


def test_the_document_names_every_variable(fake_site: MakeSite) -> None:
    text = Path(__file__).parents[2].joinpath(DOCUMENT).read_text("utf-8")
    site = fake_site(toml(["/usr/bin/env", "-0"], 'exits = { 0 = "shunt" }'))
    site.enqueue("check")
    site.run_until_idle(30)
    printed = end_of(the_one(site, "shunt"))["stdout"]
    names = [line.partition("=")[0] for line in printed.split("\0") if line]
    assert len(names) == 7
    assert [name for name in names if f"`{name}`" not in text] == []
    assert os.environ.keys() - set(names)
