"""Which line of a TOML text a key stands in: what tomllib does not say.

A scanner that knows just enough of the grammar to walk over it: tables, arrays of tables, dotted and quoted keys,
strings of several lines, arrays, inline tables.

Guarantees: never raises, whatever the text; for a text that tomllib accepts every key is found.
Not guaranteed: anything but *some* line for a text that tomllib refuses.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_right

Path = tuple[str | int, ...]

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SPACE = re.compile(r"[ \t]*")
_BLANK = re.compile(r"(?:[\s,]|#[^\n]*)*")
_REST = re.compile(r"[^\n]*\n?")
_QUOTED = re.compile(r'"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'')
# A string of several lines ends at its three quotes, of which it may hold up to two more just before the end.
_LONG = re.compile(r'"""(?:[^\\]|\\.)*?"""(?:"{0,2})|\'\'\'.*?\'\'\'(?:\'{0,2})', re.DOTALL)
_PLAIN = re.compile(r"[^,\]}#\n]*")


class _Confused(Exception):
    """The text is not TOML here; the scan goes on in the next line."""


class Lines:
    """The lines of every key and table of a text, counted from 1."""

    def __init__(self, text: str) -> None:
        self._found: dict[Path, int] = {}
        self._text, self._at = text, 0
        self._newlines = [match.start() for match in re.finditer("\n", text)]
        self._counts: dict[Path, int] = {}
        self._scan()

    def line(self, path: Path) -> int:
        """The line of the key, else of the innermost table around it that has one, else 1."""
        while path and path not in self._found:
            path = path[:-1]
        return self._found.get(path, 1)

    def __contains__(self, path: Path) -> bool:
        return path in self._found

    def _scan(self) -> None:
        table: Path = ()
        while self._skip(_BLANK) < len(self._text):
            start = self._at
            try:
                if self._text[start] == "[":
                    table = self._header()
                else:
                    self._pair(table)
            except (_Confused, RecursionError):
                self._at = max(self._at, start)
                self._skip(_REST)

    def _skip(self, pattern: re.Pattern[str]) -> int:
        match = pattern.match(self._text, self._at)
        if match is not None:
            self._at = match.end()
        return self._at

    def _take(self, sign: str) -> bool:
        if not self._text.startswith(sign, self._at):
            return False
        self._at += len(sign)
        return True

    def _expect(self, sign: str) -> None:
        if not self._take(sign):
            raise _Confused

    def _note(self, path: Path, at: int, *, again: bool = False) -> None:
        """The first place counts, but a table's own header before the one of a table inside it."""
        line = bisect_right(self._newlines, at - 1) + 1
        if again:
            self._found[path] = line
        else:
            self._found.setdefault(path, line)

    def _header(self) -> Path:
        start = self._at
        many = self._take("[[")
        if not many:
            self._expect("[")
        names = self._dotted()
        self._expect("]]" if many else "]")
        path = self._resolved(names[:-1], start)
        path = (*path, names[-1])
        if many:
            self._note(path, start)
            self._counts[path] = self._counts.get(path, -1) + 1
            path = (*path, self._counts[path])
        self._note(path, start, again=True)
        return path

    def _resolved(self, names: list[str], start: int) -> Path:
        """The path that these names lead to: through an array of tables, to its latest one."""
        path: Path = ()
        for name in names:
            path = (*path, name)
            self._note(path, start)
            if path in self._counts:
                path = (*path, self._counts[path])
        return path

    def _dotted(self) -> list[str]:
        names = [self._name()]
        while self._take("."):
            names.append(self._name())
        return names

    def _name(self) -> str:
        start = self._skip(_SPACE)
        quoted = self._text[start : start + 1] in ("'", '"')
        end = self._skip(_QUOTED if quoted else _BARE)
        if end == start:
            raise _Confused
        self._skip(_SPACE)
        return _unquoted(self._text[start:end]) if quoted else self._text[start:end]

    def _pair(self, table: Path) -> None:
        start = self._at
        path = table
        for name in self._dotted():
            path = (*path, name)
            self._note(path, start)
        self._expect("=")
        self._skip(_SPACE)
        self._value(path)

    def _value(self, path: Path) -> None:
        if self._take("["):
            self._array(path)
        elif self._take("{"):
            self._inline(path)
        elif self._text.startswith(('"""', "'''"), self._at):
            self._must_move(_LONG)
        elif self._text.startswith(('"', "'"), self._at):
            self._must_move(_QUOTED)
        else:
            self._skip(_PLAIN)

    def _must_move(self, pattern: re.Pattern[str]) -> None:
        start = self._at
        if self._skip(pattern) == start:
            raise _Confused

    def _array(self, path: Path) -> None:
        index = 0
        while self._skip(_BLANK) < len(self._text) and not self._take("]"):
            start = self._at
            self._note((*path, index), start)
            self._value((*path, index))
            if self._at == start:
                raise _Confused
            index += 1

    def _inline(self, path: Path) -> None:
        while self._skip(_BLANK) < len(self._text) and not self._take("}"):
            self._pair(path)


def _unquoted(text: str) -> str:
    try:
        value = tomllib.loads(f"k = {text}")["k"]
    except ValueError:
        return text[1:-1]
    return value if isinstance(value, str) else text
