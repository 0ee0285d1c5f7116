"""The five usual mistakes in site code: each is a type error, and each is harmless when it runs all the same."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from mypy import api

from qrunner.message import Entry
from qrunner.testing import FakeSite

ROOT = Path(__file__).parent.parent
WRONG, RIGHT = (ROOT / "tests" / "mistakes" / name for name in ("wrong.py", "right.py"))
MISTAKES = ["NoReturn", "Truth", "WritesMeta", "WritesRecipients", "Misspells"]
SITE = """
[site]
hostname = "lists.example.org"
postmaster = "postmaster@lists.example.org"
[runner.in]
class = "{module}:{name}"
concurrency = {concurrency}
[runner.after]
class = "incoming"
handlers = ["{handlers}:spoil"]
next = "out"
"""


def loaded(path: Path) -> ModuleType:
    name = f"site_code_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=MISTAKES)
def mistake(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    module = loaded(WRONG)
    yield module.__name__, request.param
    del sys.modules[module.__name__]


def spoil(entry: Entry) -> Entry:
    """Not one of the five: it reaches into what it was given, where no type can forbid it."""
    entry.meta["tags"].append(object())
    return entry.with_header("X-Spoiled", "1")


def test_each_of_the_five_is_a_type_error_and_the_right_code_has_none() -> None:
    config = [
        "--config-file",
        str(ROOT / "pyproject.toml"),
        "--strict",
        "--no-error-summary",
        "--no-color-output",
    ]
    where = ["--cache-dir", str(ROOT / ".mypy_cache"), "--no-error-summary", "--no-color-output"]
    said, failed, _ = api.run([*config, *where, str(WRONG), str(RIGHT)])
    assert failed == ""
    errors = [line.split(":", 2) for line in said.splitlines() if " error: " in line]
    lines = WRONG.read_text().splitlines()
    meant = {number for number, line in enumerate(lines, 1) if line.endswith("# MISTAKE")}
    assert len(meant) == len(MISTAKES)
    assert {Path(path).name for path, _, _ in errors} == {WRONG.name}, said
    assert {int(number) for _, number, _ in errors} == meant, said


@pytest.mark.parametrize("concurrency", [1, 5])
def test_each_of_the_five_costs_no_mail_and_stops_nothing(mistake: tuple[str, str], concurrency: int) -> None:
    module, name = mistake
    toml = SITE.format(module=module, name=name, concurrency=concurrency, handlers=__name__)
    with FakeSite(toml) as site:
        ids = {site.enqueue(message=b"Subject: %d\n\nbody\n" % n, meta={"n": n}) for n in range(7)}
        site.run_until_idle()
        aside = site.entries("shunt")
        assert {entry.id for entry in aside} == ids
        assert sorted(entry.message for entry in aside) == [b"Subject: %d\n\nbody\n" % n for n in range(7)]
        assert all(entry.recipients == ("bob@example.net",) and list(entry.meta) == ["n"] for entry in aside)
        assert all(entry.history[-1]["reason"] for entry in aside)
        assert [site.entries(queue) for queue in ("in", "out", "bad")] == [[], [], []]


def test_the_right_code_forwards() -> None:
    module = loaded(RIGHT)
    for name in MISTAKES:
        toml = SITE.format(module=module.__name__, name=name, concurrency=1, handlers=__name__)
        with FakeSite(toml) as site:
            site.enqueue()
            site.run_until_idle()
            assert (len(site.entries("out")), site.entries("shunt")) == (1, []), name
    del sys.modules[module.__name__]


def test_content_that_can_not_be_written_down_is_shunted_and_the_rest_goes_on() -> None:
    toml = SITE.format(
        module="qrunner.runners.incoming", name="IncomingRunner", concurrency=1, handlers=__name__
    )
    with FakeSite(toml) as site:
        spoiled = site.enqueue("after", meta={"tags": []})
        site.enqueue("after", meta={"tags": []}, delay=10)
        site.run_until_idle()
        assert [entry.id for entry in site.entries("shunt")] == [spoiled]
        assert len(site.entries("after")) == 1
