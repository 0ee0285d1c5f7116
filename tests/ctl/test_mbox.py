"""An mbox taken apart: every byte of every message, whatever is in them."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrunner.ctl.mbox import NoMbox, Piece, Quoting, pieces, sender_of
from qrunner.mailstore.mbox import framed
from tests.documents import ROOT

FROM = b"From ann@x.example Mon Jan  1 00:00:00 2024\n"
CORPUS = sorted((ROOT / "tests" / "corpus").glob("*.eml"))


def split(data: bytes, quoting: Quoting = "mboxrd", largest: int = 0) -> list[Piece]:
    found = list(pieces(io.BytesIO(data), 0, len(data), quoting=quoting, largest=largest))
    # Nothing lies between two of them.
    assert [piece.start for piece in found[1:]] == [piece.end for piece in found[:-1]]
    assert not found or found[-1].end == len(data)
    return found


def messages(data: bytes, quoting: Quoting = "mboxrd") -> list[bytes | None]:
    return [piece.message for piece in split(data, quoting)]


def mboxrd(*given: bytes) -> bytes:
    """As a careful writer makes it."""
    written = []
    for message in given:
        body = re.sub(rb"^(>*From )", rb">\1", message, flags=re.MULTILINE)
        written.append(FROM + body + (b"" if body.endswith(b"\n") or not body else b"\n") + b"\n")
    return b"".join(written)


def with_line_end(message: bytes) -> bytes:
    """What can be had back: a message without a last line end is given one."""
    return message if message.endswith(b"\n") or not message else message + b"\n"


def test_the_corpus_comes_back_byte_for_byte() -> None:
    given = [path.read_bytes() for path in CORPUS]
    assert len(given) > 25
    assert messages(mboxrd(*given)) == [with_line_end(message) for message in given]


LINES = st.sampled_from(
    [
        b"",
        b"From ",
        b"From x",
        b">From y",
        b">>From ",
        b"From a@b Mon Jan  1 00:00:00 2024",
        b"A: b",
        b"text",
        b"\r",
        b"\0\xff",
    ]
)
MESSAGES = st.builds(
    lambda lines, ends: b"".join(line + end for line, end in zip(lines, ends, strict=False)),
    st.lists(LINES, max_size=8),
    st.lists(st.sampled_from([b"\n", b"\r\n", b""]), min_size=8, max_size=8),
)


@given(st.lists(MESSAGES, min_size=1, max_size=4))
def test_whatever_was_written_as_mboxrd_comes_back(given: list[bytes]) -> None:
    assert messages(mboxrd(*given)) == [with_line_end(message) for message in given]


@given(st.lists(MESSAGES, max_size=4), st.binary(max_size=30))
def test_a_file_of_any_bytes_is_taken_apart_without_a_gap_or_is_none(given: list[bytes], rest: bytes) -> None:
    split(FROM + b"".join(given) + rest, "none")
    with contextlib.suppress(NoMbox):
        split(b"".join(given) + rest)


def test_what_an_archive_has_kept_comes_back(tmp_path: Path) -> None:
    given = [path.read_bytes() for path in CORPUS]
    kept = b"".join(framed(f"{n}@x.example", datetime.now(UTC), message) for n, message in enumerate(given))
    found = split(kept)
    assert [piece.message for piece in found] == [with_line_end(message) for message in given]
    assert [sender_of(piece.from_line) for piece in found] == [f"{n}@x.example" for n in range(len(given))]


def test_an_empty_line_belongs_to_the_mbox_and_a_second_one_to_the_message() -> None:
    assert messages(FROM + b"A: b\n\none\n\n\n" + FROM + b"A: b\n\ntwo\n\n") == [
        b"A: b\n\none\n\n",
        b"A: b\n\ntwo\n",
    ]


def test_lines_may_end_with_cr_and_lf_in_all_of_it_or_in_the_messages_alone() -> None:
    whole = (FROM + b"A: b\n\none\n\n" + FROM + b"A: b\n\n>From two\n\n").replace(b"\n", b"\r\n")
    assert messages(whole) == [b"A: b\r\n\r\none\r\n", b"A: b\r\n\r\nFrom two\r\n"]
    assert messages(FROM + b"A: b\r\n\r\none\r\n\r\n\n" + FROM + b"A: b\r\n") == [
        b"A: b\r\n\r\none\r\n\r\n",
        b"A: b\r\n",
    ]


@pytest.mark.parametrize("tail", [b"no end", b"one\n", b"", b"one\n\nno end"])
def test_the_last_message_may_end_without_a_line_end_and_without_an_empty_line(tail: bytes) -> None:
    assert messages(FROM + b"A: b\n\n\n" + FROM + tail) == [b"A: b\n\n", tail]


def test_a_line_that_begins_with_from_begins_a_message_only_after_an_empty_line() -> None:
    body = b"A: b\n\ntext\n" + FROM + b"more\n"
    assert messages(FROM + body) == [body]


@pytest.mark.parametrize(
    "line", [b"From now on we write it so,\nand not\n", b"From ann@x.example\nI heard\n", b"From \n"]
)
def test_a_paragraph_that_nobody_quoted_is_no_new_message(line: bytes) -> None:
    assert messages(FROM + b"A: b\n\n" + line + b"\n") == [b"A: b\n\n" + line]


@pytest.mark.parametrize(
    "line",
    [
        b"From A\n",
        b"From nobody\n",
        b"From - Tue Apr 10 10:00:00 2001\n",
        b"From 0123456789012345678901234567890123456789 Mon Sep 17 00:00:00 2001\n",
        b'From "john doe"@x.example Mon Jan  1 00:00 2024 remote from y\n',
    ],
)
def test_from_lines_of_many_kinds_begin_a_message(line: bytes) -> None:
    assert messages(FROM + b"A: b\n\n\n" + line + b"A: c\n\n") == [b"A: b\n\n", b"A: c\n"]


def test_quotes_are_taken_off_as_their_kind_was_put_on() -> None:
    body = b">From a\n>>From b\n> From c\n>from d\n"
    assert messages(FROM + body, "mboxrd") == [b"From a\n>From b\n> From c\n>from d\n"]
    assert messages(FROM + body, "mboxo") == [b"From a\n>>From b\n> From c\n>from d\n"]
    assert messages(FROM + body, "none") == [body]


def test_a_line_longer_than_what_is_read_at_once_is_one_line() -> None:
    line = b"x" * 65535
    for around in (b"", b"x", b"xx"):
        body = b"A: b\n\n" + line + around + b"\n\nFrom " + line + around + b"\n" + b"From " + line + b"\n"
        assert messages(FROM + body + b"\n" + FROM + b"A: c\n") == [body, b"A: c\n"]


def test_of_a_message_that_is_too_large_the_size_is_told_and_nothing_kept() -> None:
    data = mboxrd(b"a" * 99 + b"\n", b"b" * 100 + b"\n", b"c" * 99 + b"\n", b"d" * 70_000 + b"\n" * 70_000)
    found = split(data, largest=100)
    assert [piece.size for piece in found] == [100, 101, 100, 140_000]
    assert [piece.message for piece in found] == [b"a" * 99 + b"\n", None, b"c" * 99 + b"\n", None]


def test_it_can_be_begun_where_any_of_its_messages_begins() -> None:
    data = mboxrd(b"one\n", b"two\n", b"three\n")
    first = split(data)[0]
    again = list(pieces(io.BytesIO(data), first.end, len(data)))
    assert again == split(data)[1:]


@pytest.mark.parametrize(
    "data", [b"Subject: x\n\nbody\n", b"\x1f\x8b\x08" + b"\x00" * 100, b"from me\n", b" From \n", b"x"]
)
def test_a_file_that_is_no_mbox_says_how_it_begins(data: bytes) -> None:
    with pytest.raises(
        NoMbox, match=r"no mbox: at byte 0 stands .+, expected a line that begins with 'From '"
    ) as raised:
        split(data)
    assert repr(data.split(b"\n")[0][:9])[2:-1] in str(raised.value)


def test_an_empty_file_and_one_of_empty_lines_are_an_mbox_of_nothing() -> None:
    assert split(b"") == []
    assert list(pieces(io.BytesIO(b"\n\r\n\n"), 0, 4)) == []
    assert [p.message for p in pieces(io.BytesIO(b"\n" + FROM + b"A: b\n"), 0, len(FROM) + 6)] == [b"A: b\n"]


def test_a_file_that_loses_its_end_while_it_is_read_is_said_and_no_torn_message_comes_of_it() -> None:
    data = mboxrd(b"one\n", b"two two two\n")
    found = pieces(io.BytesIO(data[:-6]), 0, len(data))
    assert next(found).message == b"one\n"
    with pytest.raises(NoMbox, match="it ended at byte"):
        next(found)


@pytest.mark.parametrize(
    ("line", "sender"),
    [
        (b"From ann@x.example Mon Jan  1 00:00:00 2024\n", "ann@x.example"),
        (b"From  ann@x.example\r\n", "ann@x.example"),
        (b'From "john doe"@x.example Mon Jan  1 00:00:00 2024\n', '"john doe"@x.example'),
        (b"From MAILER-DAEMON Mon Jan  1 00:00:00 2024\n", ""),
        (b"From <> Mon Jan  1 00:00:00 2024\n", ""),
        (b"From - Mon Jan  1 00:00:00 2024\n", None),
        (b"From 0123456789abcdef Mon Sep 17 00:00:00 2001\n", None),
        (b"From \n", None),
        (b"From \xff@x\n", b"\xff@x".decode("utf-8", "surrogateescape")),
    ],
)
def test_the_sender_is_the_one_that_the_from_line_names(line: bytes, sender: str | None) -> None:
    assert sender_of(line) == sender


@pytest.mark.stress
def test_a_file_of_gigabytes_needs_no_more_memory_than_its_largest_message(tmp_path: Path) -> None:
    path = tmp_path / "large"
    with open(path, "wb") as file:
        one = FROM + b"A: b\n\n" + b"A line of text that is of an ordinary length.\n" * 2_000 + b"\n"
        for _ in range(12_000):
            file.write(one)
    assert path.stat().st_size > 1 << 30
    # VmHWM begins at exec; ru_maxrss knows how much memory whoever forked had.
    code = (
        "import re, sys; from qrunner.ctl.mbox import pieces; import os\n"
        "file = open(sys.argv[1], 'rb'); n = sum(1 for _ in pieces(file, 0, os.path.getsize(sys.argv[1])))\n"
        "print(n, *re.findall('VmHWM:\\s*([0-9]+) kB', open('/proc/self/status').read()))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, path], cwd=ROOT, capture_output=True, text=True, check=True
    )
    count, kilobytes = map(int, run.stdout.split())
    assert (count, kilobytes < 100_000) == (12_000, True)
