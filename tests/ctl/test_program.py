"""The program that the verbs hang on: what it loads, and which exit code an error ends with."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import click
import pytest

from qrunner.ctl.context import NotRunning, exit_code
from qrunner.ctl.program import VERBS, program
from qrunner.errors import ConfigError, QRunnerError, QueueError
from tests.sites import ROOT

SHOW = """
import sys
from qrunner.ctl.program import program
try:
    program.main(sys.argv[1:])
finally:
    print([name for name in sys.modules if name.startswith("qrunner.ctl.") or name in ("asyncio", "logging")])
"""


@pytest.mark.parametrize("words", [["--help"], ["--version-of-what"], ["hlod"]])
def test_neither_the_help_nor_a_mistyped_verb_loads_a_verb(words: list[str]) -> None:
    run = subprocess.run(
        [sys.executable, "-c", SHOW, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout.splitlines()[-1] == "['qrunner.ctl.context', 'qrunner.ctl.program']"


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_is_where_the_table_says_and_takes_the_configuration(name: str) -> None:
    context = click.Context(program)
    command = program.get_command(context, name)
    assert command is not None
    assert command.name == name
    assert [param.opts for param in command.params if "-c" in param.opts] == [["-c", "--config"]]


def test_every_verb_has_a_line_in_the_help() -> None:
    assert all(verb.help and verb.help[0].islower() for verb in VERBS.values())


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotRunning("x"), 3),
        (ConfigError("x"), 78),
        (QueueError("x"), 75),
        (QRunnerError("x"), 1),
        (OSError(errno.ENOSPC, "full"), 75),
        (OSError(errno.ENOENT, "gone"), 1),
        (BrokenPipeError(), None),
        (ValueError("a bug"), None),
    ],
)
def test_an_error_ends_with_its_exit_code(error: Exception, code: int | None) -> None:
    assert exit_code(error) == code
