"""The map in `qrunner/__init__.py` is true: every module stands in it, and every import follows it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import qrunner

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "qrunner"


@dataclass(frozen=True)
class Place:
    """Where a module stands: its floor counted from the ground, its column, and the wing of that floor."""

    floor: int
    column: int
    wing: int
    alone: bool


@dataclass(frozen=True)
class Import:
    """One import of something of ours, by the module (or the folder, for one that stands as `folder/*`)."""

    by: str
    of: str
    where: str


@cache
def floors() -> dict[str, Place]:
    """The table of the docstring: the name of a module, or of a folder of modules, → its place."""
    block = re.search(r"^::\n\n((?: {4}.*\n)+)", qrunner.__doc__ or "", re.MULTILINE)
    assert block, "there is no table in the docstring"
    places: dict[str, Place] = {}
    for floor, line in enumerate(reversed(block[1].splitlines())):
        column = 0
        for wing, part in enumerate(" ".join(line.split()[1:]).split(" | ")):
            for word in part.split():
                name = word.strip("[]").removesuffix("/*")
                assert name not in places, f"{name} stands in the map twice"
                places[name] = Place(floor, column, wing, alone=word.startswith("["))
                column += 1
    return places


@cache
def exceptions() -> frozenset[tuple[str, str]]:
    """The lines `importer -> imported: reason` of the docstring."""
    return frozenset(re.findall(r"^ {4}(\w+) -> (\w+): \S", qrunner.__doc__ or "", re.MULTILINE))


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def home(path: Path) -> str:
    """The name under which a file stands in the map: its own, or its folder's."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def targets(node: ast.AST, package: list[str]) -> list[str]:
    """The dotted names that an import statement may load; `package` is the importing file's own."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    anchor = package[: len(package) - node.level + 1] if node.level else []
    stem = ".".join([*anchor, *filter(None, [node.module])])
    return [f"{stem}.{alias.name}" for alias in node.names]


def imports(path: Path) -> list[Import]:
    """Every import of ours in a file: at its top, in a function, and under TYPE_CHECKING."""
    package = list(path.relative_to(ROOT).parent.parts)
    return [
        Import(home(path), ([*target.split("."), ""])[1], f"{path.relative_to(ROOT)}:{node.lineno}")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for target in targets(node, package)
        if target.split(".")[0] == "qrunner"
    ]


def libraries(path: Path) -> set[str]:
    """The top-level names of what a file imports and is not ours."""
    package = list(path.relative_to(ROOT).parent.parts)
    names = {
        t.split(".")[0]
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        for t in targets(node, package)
    }
    return names - set(sys.stdlib_module_names) - {"qrunner"}


def fault(item: Import) -> str:
    """What is wrong with an import; empty if nothing is."""
    places = floors()
    if item.of not in places:
        return "imports from the package's door; name the module that is the thing's home"
    if item.by == item.of or (item.by, item.of) in exceptions():
        return ""
    by, of = places[item.by], places[item.of]
    if by.alone:
        return "imports something of ours, and its brackets say that it does not"
    if of.floor > by.floor:
        return f"goes up, to {item.of}"
    if of.floor == by.floor and of.wing != by.wing:
        return f"joins two wings, to {item.of}"
    if of.floor == by.floor and of.column > by.column:
        return f"goes to the right on its own floor, to {item.of}"
    return ""


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_stands_in_the_map_and_imports_follow_it(path: Path) -> None:
    assert home(path) in floors(), f"{path.relative_to(ROOT)} is not in the map of qrunner/__init__.py"
    faults = [f"{item.where}: {said}" for item in imports(path) if (said := fault(item))]
    assert not faults, "\n".join(faults)


def test_the_map_names_nothing_that_is_not_there() -> None:
    there = {home(path) for path in modules()}
    assert sorted(set(floors()) - there) == []


def test_every_exception_is_in_use() -> None:
    used = {(item.by, item.of) for path in modules() for item in imports(path)}
    assert sorted(exceptions() - used) == []


def test_a_folder_of_the_map_is_a_folder_and_a_module_a_file() -> None:
    folders = set(re.findall(r"(\w+)/\*", qrunner.__doc__ or ""))
    assert {home(path) for path in modules() if path.parent != PACKAGE} <= folders


def test_whatever_is_imported_is_declared_in_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    declared = {re.split(r"\W", item)[0] for item in project["dependencies"]} | {"dns"}
    # The fixtures of qrunner.testing are for sites that have pytest; of the runners, each loads its extra when it starts.
    extra = {"testing": {"pytest", "_pytest"}, "switchboard": {"pytest"}, "runners": {"flufl"}}
    undeclared = {
        (str(path.relative_to(ROOT)), name)
        for path in modules()
        for name in libraries(path) - declared - extra.get(home(path), set())
    }
    assert not undeclared


def test_the_rules_see_a_fault_of_each_kind() -> None:
    assert fault(Import("errors", "runner", "")).startswith("goes up")
    assert fault(Import("smtp", "switchboard", "")).startswith("joins two wings")
    assert fault(Import("switchboard", "smtp", "")).startswith("joins two wings")
    assert fault(Import("message", "format", "")).startswith("goes to the right")
    assert fault(Import("inject", "errors", "")).startswith("imports something of ours")
    assert fault(Import("runner", "Runner", "")).startswith("imports from the package's door")
    assert fault(Import("format", "message", "")) == ""
    assert fault(Import("runners", "smtp", "")) == ""


def test_an_import_is_seen_in_whichever_form_it_is_written() -> None:
    forms = {
        "import qrunner.smtp.pool": "qrunner.smtp.pool",
        "from qrunner.smtp import pool": "qrunner.smtp.pool",
        "from qrunner import smtp": "qrunner.smtp",
        "from . import pool": "qrunner.smtp.pool",
        "from .pool import Pool": "qrunner.smtp.pool.Pool",
        "from ..errors import QueueError": "qrunner.errors.QueueError",
        "from .. import errors": "qrunner.errors",
    }
    for text, target in forms.items():
        assert targets(ast.parse(text).body[0], ["qrunner", "smtp"]) == [target]


def test_the_public_names_are_those_of_the_contract_and_each_has_a_home() -> None:
    names = "BatchRunner Done Entry Fate Hold PermanentFailure Requeue Runner Site TemporaryFailure"
    assert qrunner.__all__ == names.split()
    assert [name for name in qrunner.__all__ if not hasattr(qrunner, name)] == []


def test_importing_the_package_loads_nothing_else() -> None:
    show = (
        "import sys, qrunner; print([m for m in sys.modules if m.startswith('qrunner.') or m == 'asyncio'])"
    )
    run = subprocess.run([sys.executable, "-c", show], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
