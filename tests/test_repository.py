"""The repository: what lies where, and that what it says of itself holds."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"qrunner", "qfiles", "etc", "tests", "bin", "docs", "bench", ".ci"}
FILES = {
    ".gitignore",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "pyproject.toml",
}
TARGETS = "demo run test check bench setup install docs clean help"
CODE = [path for folder in ("qrunner", "etc", "bench", "docs") for path in (ROOT / folder).rglob("*.py")]


def tracked() -> list[Path]:
    """The files that git has; of an unpacked release, which has no git, the files of the folders that are ours."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        command = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        there = [ROOT / name for name in run.stdout.split("\0") if name]
        return [path for path in there if path.is_file()]
    return [path for name in FOLDERS for path in (ROOT / name).rglob("*") if path.is_file()]


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {name for name in os.environ if not name.startswith("MAKE") and name != "PYTHON"}
    environment = {name: os.environ[name] for name in kept}
    command = ["make", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)


def test_the_top_level_is_what_the_documents_say() -> None:
    top = {path.relative_to(ROOT).parts[0] for path in tracked()}
    assert top <= FOLDERS | FILES
    assert top >= {"qrunner", "qfiles", "etc", "tests", "bin", "docs", "bench", ".ci", *FILES}


def test_the_commands_stand_in_bin_and_can_be_run() -> None:
    there = {path.name for path in (ROOT / "bin").iterdir()}
    assert there == {"qrunner-ctl", "qrunner-inject"}
    assert all(os.access(ROOT / "bin" / name, os.X_OK) for name in there)


def test_the_pipe_names_its_interpreter_by_full_path() -> None:
    # Through `env`, an interpreter that is missing would be exit 127, and an MTA bounces on that.
    first = (ROOT / "bin" / "qrunner-inject").read_bytes().split(b"\n")[0]
    assert first == b"#!/usr/bin/python3 -IS"


def test_no_file_names_a_path_of_one_machine() -> None:
    places = re.compile(rb"(?<![\w.$}/-])/(?:home|root|Users|work|builds|opt/pyenv|farm)/[\w.]")
    named = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]!r}"
        for path in tracked()
        if not path.is_symlink()
        for number, line in enumerate(path.read_bytes().split(b"\n"), 1)
        if places.search(line)
    ]
    assert named == []


def test_nothing_that_is_made_or_queued_is_tracked() -> None:
    made = re.compile(r"(^|/)(\.venv|var|build|dist|__pycache__|\.hypothesis)/|\.pyc$|\.egg-info/")
    assert [str(path) for path in tracked() if made.search(str(path.relative_to(ROOT)))] == []
    assert [path.name for path in tracked() if path.is_relative_to(ROOT / "qfiles")] == ["README"]


@pytest.mark.parametrize("target", TARGETS.split())
def test_help_lists_every_target_and_each_can_be_planned(target: str) -> None:
    assert re.search(rf"^make {target} +\S", make("help").stdout, re.MULTILINE)
    make("--dry-run", target)


def test_what_needs_the_environment_builds_it_first() -> None:
    # Planned as if nothing had been built yet.
    for target in ("demo", "run", "test", "check", "bench", "docs", "stress"):
        plan = make("--dry-run", "--always-make", target).stdout
        assert plan.index(".ci/build-venv") < plan.index(".venv/bin/", plan.index("touch"))


def test_a_python_that_is_missing_or_cannot_build_is_named_with_the_remedy(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\ncase "$2" in *platform*) echo 3.9.2;; *) exit 1;; esac\n')
    old.chmod(0o755)
    for python, said in [
        (str(old), "is Python 3.9.2; qrunner wants 3.11"),
        ("no-such-python", "there is no"),
    ]:
        command = [ROOT / ".ci" / "build-venv", python, tmp_path / "venv", "."]
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == 1
        assert said in run.stderr
        assert "make PYTHON=" in run.stderr
    assert not (tmp_path / "venv").exists()


def test_the_systems_python_builds_the_environment_where_it_can_and_a_named_one_overrules_it() -> None:
    modern = "import ensurepip, sys; sys.exit(sys.version_info < (3, 11))"
    system = Path("/usr/bin/python3")
    can = system.exists() and subprocess.run([system, "-c", modern], capture_output=True).returncode == 0
    taken = make("--dry-run", "--always-make", "setup").stdout
    assert (f".ci/build-venv '{system}' .venv" in taken) == can
    named = make("--dry-run", "--always-make", "setup", "PYTHON=/opt/python3.14").stdout
    assert ".ci/build-venv '/opt/python3.14' .venv" in named


def name_interpreter(path: Path) -> str:
    program = ROOT / ".ci" / "name_interpreter.py"
    subprocess.run([sys.executable, program, path], capture_output=True, check=True)
    return path.read_text().split("\n")[0]


def test_an_installed_pipe_keeps_an_interpreter_that_runs_and_is_given_one_otherwise(tmp_path: Path) -> None:
    good, missing = tmp_path / "good", tmp_path / "missing"
    good.write_text(f"#!{sys.executable} -IS\nprint(1)\n")
    missing.write_text("#!/usr/bin/python2.7 -IS\nprint(1)\n")
    assert name_interpreter(good) == f"#!{sys.executable} -IS"
    assert name_interpreter(missing) == f"#!{os.path.realpath(sys.executable)} -IS"
    assert subprocess.run([missing], capture_output=True, check=True).stdout == b"1\n"


def test_the_run_time_dependencies_are_the_four_that_have_a_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    names = {re.split(r"[<>=~]", item)[0] for item in project["dependencies"]}
    assert names == {"aiosmtplib", "click", "dnspython", "filelock"}


def test_no_module_has_a_name_that_says_nothing() -> None:
    nothing = {"util", "utils", "helpers", "common", "misc", "base"}
    assert [str(path) for path in CODE if path.stem in nothing] == []


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_opens_with_its_manual_page(path: Path) -> None:
    assert re.match(r'(#!.*\n)?r?"""\S', path.read_text("utf-8"))


NOT_RUN = {
    "test_needs.py": "import pytest\n@pytest.mark.needs('no-such-program')\ndef test_it(): pass\n",
    "test_xfail.py": "import pytest\n@pytest.mark.xfail\ndef test_it(): assert False\n",
    "test_module.py": "import pytest\npytest.skip(allow_module_level=True)\n",
}


def run_pytest(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "-q", folder]
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("QRUNNER_", "PYTEST_"))
    }
    paths = {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=folder, env=inherited | paths | environment, capture_output=True, text=True
    )


def test_where_nothing_may_be_skipped_a_test_that_did_not_run_fails_the_session(tmp_path: Path) -> None:
    (tmp_path / "test_runs.py").write_text("def test_it(): pass\n")
    assert run_pytest(tmp_path, QRUNNER_NO_SKIPS="1").returncode == 0
    for name, text in NOT_RUN.items():
        (tmp_path / name).write_text(text)
    assert run_pytest(tmp_path).returncode == 0
    strict = run_pytest(tmp_path, QRUNNER_NO_SKIPS="1")
    assert strict.returncode == 1
    assert "3 did not run to the end" in strict.stdout


def test_every_program_that_a_test_needs_has_its_package_named() -> None:
    known = set(re.findall(r"^([\w-]+) [\w-]+$", (ROOT / "tests" / "wants").read_text(), re.MULTILINE))
    marks = re.compile(r"mark\.needs\(([^)]*)\)")
    tests = [path for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)]
    needed = {
        program
        for path in tests
        for arguments in marks.findall(path.read_text("utf-8"))
        for program in re.findall(r"[\"']([\w-]+)[\"']", arguments)
    }
    assert needed <= known
