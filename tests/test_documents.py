"""The documents: every link in them leads somewhere, and what they show is so."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import pytest

import qrunner
from qrunner.config import HostConfig, parse
from qrunner.config import keys as k
from qrunner.config.lines import Lines
from qrunner.config.reading import Keys, Reading, Spot
from qrunner.ctl.mta import postfix_lines
from qrunner.ctl.program import VERBS, program
from qrunner.fate import Done, Hold
from qrunner.format import open_file, parse_name
from qrunner.loading import stock_names
from qrunner.runner import Runner
from qrunner.schedule import Retry
from qrunner.testing import judge, make_entry
from tests.documents import ROOT, Block, blocks


def build(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, root / "docs" / "build.py", root / "build"]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A repository of one document."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "build.py").write_bytes((ROOT / "docs" / "build.py").read_bytes())
    (tmp_path / "docs" / "OTHER.md").write_text("# Other\n\n## Two words, & more\n\n## Again\n\n## Again\n")
    return tmp_path


def test_every_link_in_our_documents_leads_somewhere(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, ROOT / "docs" / "build.py", tmp_path], capture_output=True, text=True
    )
    assert run.stderr == ""
    assert (tmp_path / "README.html").exists()
    assert (tmp_path / "docs" / "GLOSSARY.html").exists()


def test_links_between_documents_become_links_between_pages(copy: Path) -> None:
    links = "[a](docs/OTHER.md) [b](docs/OTHER.md#two-words--more) [c](docs/OTHER.md#again-1) [d](#here)"
    (copy / "README.md").write_text(f"# Here\n\n{links} [out](https://example.org/x.md)\n")
    assert build(copy).returncode == 0
    page = (copy / "build" / "README.html").read_text()
    assert 'href="docs/OTHER.html#two-words--more"' in page
    assert 'href="https://example.org/x.md"' in page
    assert '<h2 id="again-1">' in (copy / "build" / "docs" / "OTHER.html").read_text()


@pytest.mark.parametrize("target", ["docs/NONE.md", "docs/OTHER.md#three-words", "#there", "../outside.md"])
def test_a_link_that_leads_nowhere_is_named_by_file_and_line_and_nothing_is_written(
    copy: Path, target: str
) -> None:
    (copy / "README.md").write_text(f"# Here\n\nSee\n\n[this]({target}).\n")
    run = build(copy)
    assert run.returncode == 1
    assert run.stderr.startswith(f"README.md:5: {target}: there is no such")
    assert not (copy / "build").exists()


# What is shown


def shown(document: str, language: str, word: str = "") -> list[Block]:
    return [
        block
        for block in blocks(document)
        if block.language == language and (not word or word in block.words)
    ]


def test_the_runner_of_the_readme_is_one() -> None:
    (block,) = shown("README.md", "python")
    names: dict[str, Any] = {}
    exec(compile(block.text, "README.md", "exec"), names)
    gate: type[Runner] = names["Gate"]
    options = {"largest": 1000}
    assert len([line for line in block.text.splitlines() if line]) <= 10
    assert judge(gate, make_entry(headers={"X-Spam": "yes"}), options=options) == Done("spam")
    assert judge(gate, make_entry(b"x" * 1001), options=options) == Hold("too big")
    assert judge(gate, options=options).queue == "out"


@pytest.mark.parametrize("document", ["README.md", "docs/HOWTO.md"])
def test_every_configuration_that_is_shown_is_a_right_one(document: str, tmp_path: Path) -> None:
    found = shown(document, "toml", "config")
    assert found
    for block in found:
        parse(block.text, tmp_path / "etc" / "qrunner.toml")


def test_the_readme_shows_the_default_site() -> None:
    (block, *_) = shown("README.md", "toml", "config")
    default = tomllib.loads((ROOT / "etc" / "qrunner.toml").read_text("utf-8"))
    for section, tables in tomllib.loads(block.text).items():
        assert tables.keys() == default[section].keys()
        for name, table in tables.items():
            assert table.items() <= default[section][name].items()


def postfix() -> list[str]:
    inject = Path("/opt/qrunner/bin/qrunner-inject")
    return postfix_lines(Path("/srv/lists/qfiles"), inject, "lists").splitlines()


@pytest.mark.parametrize("document", ["README.md", "docs/HOWTO.md"])
def test_the_lines_for_postfix_are_those_that_the_command_prints(document: str) -> None:
    found = [line for block in shown(document, "postfix") for line in block.text.splitlines()]
    assert found
    assert [line for line in found if line not in postfix()] == []


def test_the_how_to_has_all_lines_for_postfix() -> None:
    (block,) = shown("docs/HOWTO.md", "postfix", "all")
    wanted = [line for line in postfix() if line and not line.startswith("#")]
    assert block.text.splitlines() == wanted


def test_the_file_in_internals_is_an_entry() -> None:
    (name,) = shown("docs/INTERNALS.md", "text", "name")
    (content,) = shown("docs/INTERNALS.md", "text", "entry")
    parsed = parse_name(name.text.strip())
    assert parsed
    entry = open_file("out", parsed, content.text.encode()).entry
    assert (entry.recipients, entry.attempts, len(entry.history)) == (("eve@example.net",), 1, 3)
    assert entry.header("Subject") == "hello"


def test_every_file_of_ours_that_is_named_is_there() -> None:
    named = {
        path
        for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]
        for path in re.findall(
            r"`((?:qrunner|tests|docs|etc|bin|bench)/[^`\s*]+)`", document.read_text("utf-8")
        )
        if "NAME" not in path and "sieve" not in path
    }
    assert len(named) > 10
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []


# The reference


def rows(*headings: str) -> Iterator[list[str]]:
    """The cells of the tables of the reference below these headings."""
    text = (ROOT / "docs" / "REFERENCE.md").read_text("utf-8")
    for heading in headings:
        part = re.split(r"^#+ ", text.split(f"\n{heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]
        for line in part.splitlines():
            if line.startswith("| ") and not line.startswith("| key") and not line.startswith("| class"):
                yield [cell.strip() for cell in line.strip("|").split("|")]


def documented(*headings: str) -> dict[str, str]:
    """Each key with its default as it stands there."""
    return {name: row[-2] for row in rows(*headings) for name in re.findall(r"`([^`]+)`", row[-4])}


def same_default(cell: str, default: object, keys: Keys, name: str) -> bool:
    """Whether a default that is written as a value is the one that the code has."""
    written = re.fullmatch(r"`([^`]+)`", cell)
    if not written:
        return default in (None, (), {}, "") or name == "exits"
    value = tomllib.loads(f"x = {written[1]}")["x"]
    reading = Reading(Path("/etc/qrunner.toml"), Path("/etc"), Lines(""))
    return bool(keys[name].read(value, Spot(reading)) == default) and not reading.problems


def differing(found: Mapping[str, str], keys: Keys, defaults: Mapping[str, object]) -> list[str]:
    return [name for name, cell in found.items() if not same_default(cell, defaults[name], keys, name)]


def test_the_reference_has_every_key_of_site_and_retry_with_its_default() -> None:
    assert documented("### [site]").keys() == k.SITE.keys()
    derived = ("hostname", "node", "queue_dir", "state_dir", "postmaster", "retry")
    found = {name: cell for name, cell in documented("### [site]").items() if name not in derived}
    assert differing(found, k.SITE, {name: key.default for name, key in k.SITE.items()}) == []
    assert documented("### retry").keys() == k.RETRY.keys()
    usual = {name: getattr(Retry(), key.field or name) for name, key in k.RETRY.items()}
    assert differing(documented("### retry"), k.RETRY, usual) == []


def test_the_reference_has_every_key_of_a_host_with_its_default() -> None:
    found = documented("### [smtp.NAME]")
    assert found.keys() == k.SMTP.keys()
    usual = {name: getattr(HostConfig("mta1"), key.field or name) for name, key in k.SMTP.items()}
    found = {name: cell for name, cell in found.items() if usual[name] not in ("", None)}
    assert differing(found, k.SMTP, usual) == []


def test_the_reference_has_every_key_of_a_runner_and_its_slices_with_its_default() -> None:
    found = documented("### [runner.NAME]")
    assert found.keys() == k.RUNNER.keys()
    usual = {name: key.default for name, key in k.RUNNER.items()} | {"instances": 1, "concurrency": 1}
    assert differing(found, k.RUNNER, usual) == []
    assert documented("### slices").keys() == {*k.SLICE, *k.HOSTS}


def test_the_reference_has_every_key_of_the_stock_runners() -> None:
    found: dict[str, dict[str, str]] = {}
    for row in rows("### Keys of stock runners"):
        for name in re.findall(r"`([^`]+)`", row[1]):
            found.setdefault(row[0].strip("`"), {})[name] = row[-2]
    for name, stock in k.STOCK.items():
        keys = {**stock.keys, **(k.HOSTS if stock.delivers else {})}
        assert found.get(name, {}).keys() == keys.keys(), name
        usual = {key: value.default for key, value in keys.items()}
        given = {key: cell for key, cell in found.get(name, {}).items() if key != "on_down"}
        assert differing(given, keys, usual) == [], name


@pytest.mark.parametrize(
    ("heading", "names"),
    [
        ("### Of a host, `[smtp.NAME]`", k.SMTP.keys()),
        ('### Of the runner, `class = "outgoing"`', {*k.STOCK["outgoing"].keys, *k.HOSTS}),
        ("### Of the schedule, `retry`", k.RETRY.keys()),
    ],
)
def test_what_is_said_of_changing_a_key_has_them_all_with_the_defaults_of_the_reference(
    heading: str, names: Iterable[str]
) -> None:
    part = (ROOT / "docs" / "DELIVERY.md").read_text("utf-8").split(f"\n{heading}\n", 1)[1].split("\n#", 1)[0]
    found = dict(re.findall(r"^\| `([a-z_]+)` \| (.*?) \|", part, re.MULTILINE))
    assert set(names) <= found.keys()
    stock = {
        row[1].strip("`"): row[-2] for row in rows("### Keys of stock runners") if row[0] == "`outgoing`"
    }
    every = documented("### [smtp.NAME]") | documented("### [runner.NAME]") | documented("### retry") | stock
    every |= {"slices": "one", "concurrency": "20 for `outgoing`"}
    assert {name: every[name] for name in found} == found


def test_the_reference_has_every_key_of_virtual_queues() -> None:
    found = {
        name
        for row in rows("### [balance.NAME] and [route.NAME]")
        for name in re.findall("`([a-z]+)`", row[1])
    }
    assert found == {*k.BALANCE, *k.ROUTE, *k.RULE}


def test_the_reference_names_the_stock_runners_that_there_are() -> None:
    text = (ROOT / "docs" / "REFERENCE.md").read_text("utf-8")
    line = re.search(r"In this version there are: (.+?)\. ", text)
    assert line
    assert sorted(re.findall("`([a-z]+)`", line[1])) == sorted(stock_names())


def test_the_reference_has_every_verb_and_every_option() -> None:
    text = (ROOT / "docs" / "REFERENCE.md").read_text("utf-8")
    part = text.split("\n## qrunner-ctl\n", 1)[1].split("\n## ", 1)[0]
    named = set(re.findall(r"^\| `([a-z-]+)|, `([a-z-]+) SELECTION`", part, re.MULTILINE))
    assert {first or second for first, second in named} == set(VERBS)
    context = click.Context(program)
    for name in VERBS:
        command = program.get_command(context, name)
        assert command
        options = [option for one in command.params if isinstance(one, click.Option) for option in one.opts]
        assert [option for option in options if option.startswith("--") and option not in part] == [], name


def test_the_reference_imports_all_that_is_public() -> None:
    (block,) = shown("docs/REFERENCE.md", "python")
    names = re.findall(r"\w+", re.sub("from qrunner import", "", block.text))
    assert sorted(names) == sorted(qrunner.__all__)
