"""The key locator: every key of every valid text, and no exception on any text."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrunner.config.lines import Lines, Path

TEXT = '''\
title = "x"             # 1

[site]                  # 3
hostname = "a"          # 4
retry = { first = "5m", max = "4h" }   # 5

[smtp.direct.deep]      # 7
"quoted \\u0041.key" = 1 # 8
dotted . 'and quoted' = 2   # 9

[smtp]                  # 11
long = """
[not.a.table]
fake = 1
"""                     # 15
after = \'\'\'it's
[x]\'\'\'                   # 17
list = [
  "a,]",   # a comment with ] in it
  { weight = 1,
    smtp = "b" },   # tomllib of 3.15 takes this, older ones refuse it
  [ 1, 2 ],
]

[[runner.out.slices]]   # 25
weight = 1
[[runner.out.slices]]   # 27
weight = 2
[runner.out.slices.options]   # 29
limit = 3
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("title",), 1),
        (("site",), 3),
        (("site", "hostname"), 4),
        (("site", "retry", "max"), 5),
        (("smtp", "direct"), 7),
        (("smtp", "direct", "deep", "quoted A.key"), 8),
        (("smtp", "direct", "deep", "dotted", "and quoted"), 9),
        (("smtp",), 11),
        (("smtp", "long"), 12),
        (("smtp", "after"), 16),
        (("smtp", "list"), 18),
        (("smtp", "list", 0), 19),
        (("smtp", "list", 1, "weight"), 20),
        (("smtp", "list", 1, "smtp"), 21),
        (("smtp", "list", 2, 1), 22),
        (("runner", "out", "slices"), 25),
        (("runner", "out", "slices", 0, "weight"), 26),
        (("runner", "out", "slices", 1), 27),
        (("runner", "out", "slices", 1, "options", "limit"), 30),
        (("runner", "out", "slices", 1, "no such key"), 27),
        (("site", "no such key"), 3),
        (("no such table", "key"), 1),
    ],
)
def test_a_key_is_found_in_its_line_and_a_missing_one_in_its_tables(path: Path, line: int) -> None:
    assert Lines(TEXT).line(path) == line


def test_a_table_inside_a_string_is_no_table() -> None:
    assert ("not", "a", "table") not in Lines(TEXT)


@given(st.text(alphabet=st.sampled_from("ab.=[]{}\"'\\\n\t #,1é\r")))
def test_no_text_whatever_makes_it_raise(text: str) -> None:
    Lines(text).line(("a", "b"))


def test_nesting_deeper_than_the_stack_is_no_exception() -> None:
    assert Lines("a = " + "[" * 100_000 + "\nb = 1").line(("a",)) == 1


# Texts that tomllib accepts, made from values, written in as many of TOML's ways as there are.
NAMES = st.text(min_size=1, max_size=6) | st.sampled_from(["a", "b-c", "queue", "1"])
STRINGS = st.text(alphabet="abc[]{}=#,\"'\n\\ é.", max_size=12)
SCALARS = st.integers(-5, 5) | st.booleans() | STRINGS
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
TABLES = st.dictionaries(NAMES, VALUES, max_size=4)
DOCUMENTS = st.dictionaries(NAMES, TABLES | st.lists(TABLES, min_size=1, max_size=3), max_size=4)


def spelled(name: str, draw: Any) -> str:
    bare = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
    return name if bare and draw(st.booleans()) else _basic(name)


def _basic(text: str) -> str:
    return json.dumps(text).replace("\x7f", "\\u007f") if _encodable(text) else '"?"'


def _encodable(text: str) -> bool:
    return all(ord(sign) < 0x10000 for sign in text)


def value_text(value: Any, draw: Any, *, inline: bool = False) -> str:
    gap = draw(st.sampled_from(["", " ", "\n", " # ]}\n"])) if not inline else " "
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case str():
            return string_text(value, draw)
        case list():
            return "[" + ",".join(gap + value_text(one, draw, inline=inline) + gap for one in value) + "]"
        case _:
            pairs = (f"{spelled(k, draw)} = {value_text(v, draw, inline=True)}" for k, v in value.items())
            return "{" + ", ".join(pairs) + "}"


def string_text(text: str, draw: Any) -> str:
    ways = [_basic(text)]
    if "'" not in text:
        ways.append(f"'''{text}'''")
        if "\n" not in text:
            ways.append(f"'{text}'")
    if '"""' not in text and "\\" not in text:
        ways.append(f'"""\n{text}"""')
    return str(draw(st.sampled_from(ways)))


@st.composite
def documents(draw: Any) -> str:
    out = []
    for name, content in draw(DOCUMENTS).items():
        tables = content if isinstance(content, list) else [content]
        for table in tables:
            title = spelled(name, draw)
            out.append(f"[[{title}]]" if isinstance(content, list) else f"[ {title} ]")
            out += [f"{spelled(k, draw)}\t= {value_text(v, draw)} # x" for k, v in table.items()]
    return "\n".join(out)


def paths(value: Any, at: Path = ()) -> list[Path]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(path for key, one in inner for path in paths(one, (*at, key)))]


@given(documents())
def test_every_key_of_a_valid_text_is_found_in_a_line_that_names_it(text: str) -> None:
    try:
        parsed = tomllib.loads(text)
    except tomllib.TOMLDecodeError:  # two names that are spelled the same
        return
    lines = Lines(text)
    for path in paths(parsed)[1:]:
        assert path in lines
        name = path[-1]
        if isinstance(name, str) and name.isascii() and name.isalnum():
            assert name in text.split("\n")[lines.line(path) - 1]
