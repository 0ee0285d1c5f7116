"""Messages on their way in."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qrunner.smtpd.body import END, Body, has_longer_line

HEAD = b"Received: x\r\n"
texts = st.lists(
    st.sampled_from([b"\r\n", b"\r", b"\n", b".", b"..", b"a", b"\x00", b"\xff", b"From x"]), max_size=30
)


def read(wire: bytes, sizes: list[int], max_size: int = 1 << 20) -> tuple[Body, bytes]:
    """Feeds pieces of these sizes, over and over; the body, and what came after it."""
    body, at, turn = Body(HEAD, max_size), 0, 0
    while True:
        size = sizes[turn % len(sizes)] if sizes else len(wire)
        assert at < len(wire), "it did not end"
        rest = body.feed(wire[at : at + size])
        at, turn = at + size, turn + 1
        if rest is not None:
            return body, rest + wire[at:]


def on_the_wire(message: bytes) -> bytes:
    """Dots doubled at the beginning of lines, which end with CRLF and nothing else."""
    return ("\r\n" + message.decode("latin-1")).replace("\r\n.", "\r\n..")[2:].encode("latin-1") + b".\r\n"


@given(texts, st.lists(st.integers(1, 9), max_size=5))
@example([b"."], [1])
@example([b"\r\n", b".", b"\r", b"\r\n"], [2])
@example([b"\n", b".", b"\n", b".", b"\r\n"], [3])
def test_any_message_comes_out_as_it_went_in_however_it_is_cut(parts: list[bytes], sizes: list[int]) -> None:
    message = b"".join(parts)
    message += b"" if not message or message.endswith(b"\r\n") else b"\r\n"
    body, rest = read(on_the_wire(message) + b"QUIT\r\n", sizes)
    assert body.message() == HEAD + message
    assert rest == b"QUIT\r\n"


@pytest.mark.parametrize(
    "end", [b"\n.\n", b"\n.\r\n", b"\r.\r", b"\r\n.\n", b"\r\n.\r", b"\r.\r\n", b"\n\r.\r\n"]
)
def test_nothing_but_crlf_dot_crlf_ends_a_message(end: bytes) -> None:
    smuggled = b"MAIL FROM:<x@x>\r\nRCPT TO:<y@y>\r\nDATA\r\n"
    body, rest = read(b"one" + end + smuggled + b"\r\n.\r\n", [])
    assert rest == b""
    assert smuggled in body.message()


@given(texts, st.integers(0, 20), st.lists(st.integers(1, 9), max_size=5))
@example([], 0, [1])
@example([b"From x", b"From x"], 13, [1])
def test_the_limit_is_on_the_message_and_not_on_its_dots(
    parts: list[bytes], limit: int, sizes: list[int]
) -> None:
    message = b"".join(parts)
    message += b"" if not message or message.endswith(b"\r\n") else b"\r\n"
    body, rest = read(on_the_wire(message) + b"Q", sizes, limit)
    assert body.is_too_large == (len(message) > limit)
    assert rest == b"Q"


def test_what_is_too_large_is_not_kept() -> None:
    body = Body(HEAD, 1000)
    for _ in range(1000):
        assert body.feed(b"x" * 10_000 + b"\r\n") is None
        assert body.held < 12_000
    assert body.feed(b".\r\nQUIT\r\n") == b"QUIT\r\n"
    assert body.is_too_large


def test_many_dots_make_nothing_slow_and_nothing_large() -> None:
    body = Body(HEAD, 1 << 20)
    pieces = 0
    while not body.is_too_large:
        assert body.feed(b"\r\n.x" * 10_000) is None
        pieces += 1
        assert body.held < 2 << 20
    assert pieces < 60


def test_what_is_dropped_still_ends() -> None:
    body = Body(HEAD, 1000)
    assert body.feed(b"abc\r\n") is None
    body.drop()
    assert body.held == len(END) - 1
    assert body.feed(b".\r\nNOOP\r\n") == b"NOOP\r\n"


@given(st.lists(st.integers(0, 12), min_size=1, max_size=8), st.integers(1, 12))
def test_a_line_is_longer_or_is_not(lengths: list[int], longest: int) -> None:
    message = b"".join(b"x" * length + b"\r\n" for length in lengths)
    assert has_longer_line(message, longest) == (max(lengths) > longest)


def test_a_bare_newline_ends_no_line() -> None:
    assert has_longer_line(b"xx\nxx\rxx\r\n", 7)
    assert not has_longer_line(b"xx\nxx\rxx\r\n", 8)
