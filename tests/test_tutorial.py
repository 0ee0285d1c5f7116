"""The tutorial and the page on tests: what stands in them is typed, and what they show is printed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.documents import Block, blocks, commands, fits, write

TUTORIAL = list(blocks("docs/TUTORIAL.md"))
_END = "-- end of output --"
_PORT = "8025"


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


class Shell:
    """A shell that goes on from command to command, as a reader's does."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            ["bash", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )

    def run(self, command: str) -> str:
        """What the command printed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{command}\necho; echo '{_END}'\n")
        self._process.stdin.flush()
        lines: list[str] = []
        while (line := self._process.stdout.readline()) != f"{_END}\n":
            assert line, f"the shell has ended after {command!r}: {''.join(lines)}"
            lines.append(line)
        return "".join(lines).removesuffix("\n")

    def close(self) -> None:
        """Ends it, and what it started beside it, wherever it was."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    environment = commands(tmp_path / "bin")
    shell = Shell(tmp_path, environment)
    yield shell
    shell.close()
    configuration = tmp_path / "site" / "etc" / "qrunner.toml"
    if configuration.exists():
        stop = [tmp_path / "bin" / "qrunner-ctl", "-c", configuration, "stop", "--now"]
        subprocess.run(stop, env=environment, capture_output=True)


def dialogue(block: Block) -> Iterator[tuple[str, str]]:
    """Each command of a block, and what is shown below it."""
    for part in block.text.removeprefix("$ ").split("\n$ "):
        command, _, shown = part.partition("\n")
        yield command, shown


def test_the_tutorial_does_what_it_says(shell: Shell, tmp_path: Path) -> None:
    port = free_port()
    for block in TUTORIAL:
        if block.title:
            text = block.text.replace(_PORT, port)
            write(Block(block.language, block.words, text, block.line), tmp_path / "site")
        elif block.language == "console":
            for command, shown in dialogue(block):
                printed = shell.run(command.replace(_PORT, port))
                assert fits(shown, printed), f"docs/TUTORIAL.md:{block.line}: {command}\n{printed}"


def test_the_page_on_tests_is_a_test_that_passes(tmp_path: Path) -> None:
    for block in blocks("docs/TESTING.md"):
        if block.title:
            write(block, tmp_path)
    run = subprocess.run(
        [
            "python",
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "qrunner.testing.plugin",
            "test_site.py",
        ],
        cwd=tmp_path,
        env=commands(tmp_path / "bin"),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "5 passed" in run.stdout


@pytest.mark.parametrize(
    ("shown", "real", "same"),
    [
        ("a … c\n", "a b c\n", True),
        ("a\n…\n", "a\nb\nc\n", True),
        ("a\n", "a\nb\n", False),
        ("", "", True),
        ("", "a\n", False),
        ("a (1)\n", "a (1)\n", True),
    ],
)
def test_an_ellipsis_stands_for_what_differs_and_for_nothing_else(shown: str, real: str, same: bool) -> None:
    assert fits(shown, real) is same
