"""`init` and `check`."""

from __future__ import annotations

import json
import os
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from qrunner.ctl.setup import LAYOUT, rendered

from .conftest import ENTRY_POINT, ROOT, Place


def ctl(*words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*ENTRY_POINT, *map(str, words)],
        capture_output=True,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
        **options,
    )


def test_init_lays_out_a_site_that_passes_check(tmp_path: Path) -> None:
    folder = tmp_path / "site"
    result = ctl("init", folder)
    assert result.returncode == 0, result.stderr
    for name in ("etc/qrunner.toml", "qfiles/in/00", "var", "mysite/runners.py"):
        assert (folder / name).exists()
    assert {(folder / name).stat().st_mode & 0o777 for name in ("qfiles", "qfiles/in", "var")} == {0o700}
    checked = ctl("-c", folder / "etc/qrunner.toml", "check")
    assert (checked.returncode, checked.stdout) == (0, "")


def test_init_writes_over_nothing(tmp_path: Path) -> None:
    (tmp_path / "mysite").mkdir()
    (tmp_path / "mysite/handlers.py").write_text("mine = True\n")
    first = ctl("init", tmp_path)
    assert f"{tmp_path}/mysite/handlers.py: kept as it is" in first.stderr
    assert (tmp_path / "mysite/handlers.py").read_text() == "mine = True\n"
    config = tmp_path / "etc/qrunner.toml"
    config.write_text(config.read_text() + "# mine\n")
    (tmp_path / "mysite/runners.py").unlink()
    second = ctl("init", tmp_path)
    assert (second.returncode, "qrunner.toml: kept as it is" in second.stderr) == (0, True)
    assert config.read_text().endswith("# mine\n")
    assert not (tmp_path / "mysite/runners.py").exists()


def test_init_makes_relative_folders_where_it_stands(tmp_path: Path) -> None:
    assert ctl("init", "here", cwd=tmp_path).returncode == 0
    assert (tmp_path / "here/etc/qrunner.toml").is_file()


def test_init_where_a_file_is_in_the_way_is_1(tmp_path: Path) -> None:
    (tmp_path / "qfiles").write_text("")
    result = ctl("init", tmp_path)
    assert (result.returncode, "Traceback" in result.stderr) == (1, False)


def test_the_site_of_init_keeps_step_with_the_default_site() -> None:
    default = tomllib.loads((ROOT / "etc/qrunner.toml").read_text())
    fresh = tomllib.loads(rendered(LAYOUT["etc/qrunner.toml"]))
    assert set(default["site"]) == set(fresh["site"])
    assert set(default["runner"]) < set(fresh["runner"])
    for name in ("in", "out", "backoff"):
        assert fresh["runner"][name]["class"] == default["runner"][name]["class"]
    assert fresh["runner"]["in"]["handlers"] == default["runner"]["in"]["handlers"]
    assert rendered("handlers.py") == (ROOT / "etc/mysite/handlers.py").read_text()


CLEAN = """
[site]
hostname = "a.example"
queue_dir = "../qfiles"
state_dir = "../var"
postmaster = "p@a.example"
python_path = [".."]
[runner.in]
class = "incoming"
handlers = ["sitecode:good", "sitecode:good"]
next = "gate"
[runner.gate]
class = "sitecode:Gate"
[runner.report]
class = "sitecode:Batch"
"""
CODE = """
from qrunner import BatchRunner, Runner
print("noise at import")
class Gate(Runner):
    pass
class Batch(BatchRunner):
    pass
class Other:
    pass
def good(entry):
    return entry
number = 1
"""


@pytest.fixture
def written(tmp_path: Path) -> Any:
    def write(text: str) -> Path:
        (tmp_path / "etc").mkdir(exist_ok=True)
        (tmp_path / "sitecode.py").write_text(CODE)
        (tmp_path / "broken.py").write_text("raise RuntimeError('at import')\n")
        file = tmp_path / "etc/qrunner.toml"
        file.write_text(text)
        return file

    return write


def line_of(file: Path, text: str) -> int:
    return 1 + next(number for number, line in enumerate(file.read_text().splitlines()) if text in line)


def test_check_of_what_is_right_prints_nothing(written: Any) -> None:
    result = ctl("check", "-c", written(CLEAN))
    assert (result.returncode, result.stdout) == (0, "")
    assert "nothing is wrong" in result.stderr
    assert json.loads(ctl("check", "--json", "-c", written(CLEAN)).stdout)["ok"] is True


PROGRAMS = """
[runner.there]
class = "command"
command = ["sh", "-c", "exit 0"]
[runner.none]
class = "command"
command = ["./none", "--strict"]
[runner.nowhere]
class = "command"
command = ["no-such-program"]
"""


def test_check_warns_of_programs_that_are_not_there(written: Any) -> None:
    """That is no error: mail waits for them, and they may come with the next update."""
    file = written(CLEAN + PROGRAMS)
    result = ctl("check", "-c", file)
    assert (result.returncode, result.stdout) == (0, "")
    none = f'{file}:{line_of(file, "./none")}: runner.none.command: "{file.parent}/none" is not there, expected a program'
    assert f"warning: {none}\n" in result.stderr
    assert "no-such-program" in result.stderr
    document = json.loads(ctl("check", "--json", "-c", file).stdout)
    assert (document["ok"], [one["key"] for one in document["warnings"]]) == (
        True,
        ["runner.none.command", "runner.nowhere.command"],
    )


def test_check_prints_every_error_with_its_line(written: Any) -> None:
    text = CLEAN.replace("postmaster", "postmastr").replace(
        '"sitecode:good"]', '"sitecode:goood", "broken:f"]'
    )
    text = text.replace('"sitecode:Gate"', '"sitecode:Other"').replace(
        '"sitecode:Batch"', '"sitecode:Batch"\ninstances = 3'
    )
    file = written(text + '[runner.x]\nclass = "sitecode:Gone"\nnice = "very"\n')
    result = ctl("check", "-c", file)
    assert result.returncode == 78
    lines = result.stdout.splitlines()
    for where, key, said in (
        ("postmastr", "site.postmastr", 'did you mean "postmaster"?'),
        ("goood", "runner.in.handlers[1]", "did you mean 'good'?"),
        ("broken", "runner.in.handlers[2]", "RuntimeError: at import"),
        ("sitecode:Other", "runner.gate.class", "not a class derived from qrunner.Runner"),
        ("instances", "runner.report.instances", "expected one slice"),
        ("sitecode:Gone", "runner.x.class", "has no 'Gone'"),
        ("very", "runner.x.nice", "very"),
    ):
        assert [
            line
            for line in lines
            if line.startswith(f"{file}:{line_of(file, where)}: {key}: ") and said in line
        ]
    assert [int(line.split(":")[1]) for line in lines] == sorted(int(line.split(":")[1]) for line in lines)
    problems = json.loads(ctl("check", "--json", "-c", file).stdout)["problems"]
    assert [f"{p['file']}:{p['line']}: {p['key']}: {p['text']}" for p in problems] == lines


def test_check_imports_nothing_from_where_others_may_write(written: Any, tmp_path: Path) -> None:
    file = written(CLEAN)
    (tmp_path / "sitecode.py").write_text("open('/proc/self/cwd/ran', 'w')\n")
    tmp_path.chmod(0o777)
    result = ctl("check", "-c", file, cwd=tmp_path)
    assert (result.returncode, "site.python_path" in result.stdout) == (78, True)
    assert not (tmp_path / "ran").exists()


def test_check_of_what_is_no_toml_or_not_there(written: Any, tmp_path: Path) -> None:
    assert ctl("check", "-c", written("[site\n")).returncode == 78
    missing = ctl("check", "-c", tmp_path / "none.toml")
    assert (missing.returncode, "cannot be read" in missing.stdout) == (78, True)
    assert json.loads(ctl("check", "--json", "-c", tmp_path / "none.toml").stdout)["ok"] is False


def test_a_wrong_configuration_ends_every_verb_with_78(place: Place) -> None:
    place.config.write_text("[runner.in]\nclas = 'incoming'\n")
    place.config.chmod(0o600)
    for words in (
        ["list"],
        ["hold", "ALL"],
        ["show", "abcdef"],
        ["slices", "in"],
        ["inject", "a@b"],
        ["flush"],
    ):
        result = place.call(*words)
        assert (result.exit_code, f"{place.config}:2: runner.in.clas" in result.stderr) == (78, True)
