"""What the configuration names, loaded, and what is said where it can't be."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from qrunner.errors import ConfigError
from qrunner.loading import extend_path, load_class, load_function, stock_names

CODE = """
from qrunner import Runner
class Good(Runner): ...
class Other: ...
def tag(entry): ...
number = 3
"""


@pytest.fixture(autouse=True)
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "loaded.py").write_text(CODE)
    (tmp_path / "wants.py").write_text("import a_library_that_is_not_there")
    (tmp_path / "broken.py").write_text("def (:\n")
    (tmp_path / "raises.py").write_text("\n1 / 0\n")
    (tmp_path / "exits.py").write_text("raise SystemExit('no')")
    extend_path([tmp_path])
    yield
    for name in ("loaded", "wants", "broken", "raises", "exits"):
        sys.modules.pop(name, None)


def test_a_class_and_a_function_are_found_by_their_names() -> None:
    assert load_class("loaded:Good").__name__ == "Good"
    assert load_function("loaded:tag").__name__ == "tag"
    assert load_class("incoming").__name__ == "IncomingRunner"
    assert "incoming" in stock_names()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("incomming", "there is no stock runner of this name; did you mean 'incoming'?"),
        ("loaded:Goood", "loaded has no 'Goood'; did you mean 'Good'?"),
        ("loaded:Other", "is the class Other, not a class derived from qrunner.Runner"),
        ("loaded:tag", "is a function, not a class derived from qrunner.Runner"),
        ("lowded:Good", "there is no module 'lowded' on the python_path"),
        ("loaded.deeper:Good", "there is no module 'loaded.deeper' on the python_path"),
        ("wants:Good", "No module named 'a_library_that_is_not_there'"),
        ("broken:Good", "SyntaxError"),
        ("raises:Good", "raises.py:2: ZeroDivisionError: division by zero"),
        ("exits:Good", "SystemExit: no"),
        (":Good", "is not of the form package.module:name"),
    ],
)
def test_what_stands_in_the_way_of_a_class_is_told_in_one_line(name: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_class(name)
    assert str(caught.value).startswith(f"{name}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_called_is_no_function() -> None:
    with pytest.raises(ConfigError, match="loaded:number: is a int, not a function"):
        load_function("loaded:number")
    with pytest.raises(ConfigError, match="is not of the form"):
        load_function("loaded")


def test_a_folder_is_put_on_the_path_once(tmp_path: Path) -> None:
    before = list(sys.path)
    extend_path([tmp_path])
    assert sys.path == before
