"""The envelope that a delivery wrote on top of a message."""

from __future__ import annotations

from pathlib import Path

import pytest

from qrunner.delivered import Delivered, envelope_of

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.eml"))


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b"", Delivered()),
        (b"Return-Path: <a@b>\nDelivered-To: c@d\n", Delivered("a@b", ("c@d",))),
        (b"Return-Path: <a@b>\r\nDelivered-To: c@d\r\n", Delivered("a@b", ("c@d",))),
        (b"return-path : a@b\nDELIVERED-TO:<c@d>\n", Delivered("a@b", ("c@d",))),
        (b"Return-Path: <>\nX-Original-To: c@d\n", Delivered("", ("c@d",))),
        (b"X-Original-To: c@d\nDelivered-To: e@f\n", Delivered(None, ("e@f",))),
        (b"Delivered-To: c@d\nDelivered-To: e@f\n", Delivered(None, ("c@d",))),
        (b'Delivered-To: "john doe"@d\n', Delivered(None, ('"john doe"@d',))),
        (b"Delivered-To: root\n", Delivered(None, ("root",))),
        (b"Delivered-To: mailing list x@y\nX-Original-To: x@y\n", Delivered(None, ("x@y",))),
        (b"Delivered-To: x@y, z@y\n", Delivered()),
        (b"Delivered-To: x@y\r\n", Delivered(None, ("x@y",))),
        (b"Delivered-To:\n x@y\n", Delivered(None, ("x@y",))),
        (b"Delivered-To: x\x00@y\n", Delivered()),
        (b"Delivered-To: \xff@y\n", Delivered(None, ("\udcff@y",))),
        ("Delivered-To: ü@y\n".encode(), Delivered(None, ("ü@y",))),
        (b"Delivered-To: " + b"x" * 2000 + b"@y\n", Delivered()),
        (b"From ann@example.org Sat Nov 21\nDelivered-To: c@d\n", Delivered(None, ("c@d",))),
        (b"Return-Path: nobody knows\n", Delivered()),
    ],
)
def test_what_stands_on_top(head: bytes, expected: Delivered) -> None:
    assert envelope_of(head + b"Subject: x\n\nDelivered-To: body@example.org\n") == expected


def test_what_a_sender_may_have_made_up_names_no_recipient() -> None:
    message = b"Received: from host\nDelivered-To: victim@example.org\nReturn-Path: <a@b>\n\n"
    assert envelope_of(message) == Delivered("a@b", ())


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_no_message_of_the_corpus_is_too_odd(path: Path) -> None:
    envelope_of(path.read_bytes())
