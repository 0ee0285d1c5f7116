"""The entry: what handlers may ask of it and make of it, whatever the message is."""

from __future__ import annotations

import gzip
from email.message import Message
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrunner.errors import CorruptEntry
from qrunner.format import Name, open_file, seal
from qrunner.message import Draft, Entry, Envelope, Forward, Recipient, header_block, still_owed

ROOT = Path(__file__).parent.parent
CORPUS = sorted((ROOT / "tests" / "corpus").glob("*.eml"))
REAL = sorted(path for path in (ROOT.parent / "shared" / "mail").rglob("*.gz") if path.is_file())
NAMES = [
    "Subject",
    "subject",
    "From",
    "To",
    "Received",
    "Content-Type",
    "X-Nul",
    "X-Seven",
    "",
    "\udcff",
    "(.*",
]


def odd(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def entry(message: bytes = b"Subject: hello\n\nworld\n", *to: str, **envelope: object) -> Entry:
    whole = Envelope("ann@example.org", tuple(Recipient(one) for one in to or ("bob@example.net",)))
    return Entry("0" * 40, "in", whole, message, whole.addresses, {"a": 1}, 10**18, 10**18)


# What is in a message


@pytest.mark.parametrize("path", [*CORPUS, *REAL], ids=lambda path: path.name)
def test_an_odd_message_answers_every_question(path: Path) -> None:
    it = entry(odd(path))
    for name in NAMES:
        value = it.header(name)
        assert value is None or it.with_header("X-Again", value).header("X-Again") is not None
    assert isinstance(it.parsed(), Message)
    assert it.size == len(it.message)


@pytest.mark.parametrize("path", [*CORPUS, *REAL], ids=lambda path: path.name)
def test_an_odd_message_is_kept_byte_for_byte(path: Path) -> None:
    sealed = seal(Draft(odd(path), Envelope.of("", ["bob"])), 1)
    again = open_file("in", Name(1, sealed.id), b"".join(sealed.parts)).entry
    assert again.message == odd(path)


@given(st.binary(), st.text())
def test_no_bytes_make_a_header_raise(message: bytes, name: str) -> None:
    value = entry(message).header(name)
    assert value is None or isinstance(value, str)


@given(st.text())
def test_no_encoded_word_makes_a_header_raise(text: str) -> None:
    message = (
        b"Subject: =?utf-8?q?"
        + text.encode("utf-8", "surrogatepass")
        + b"?= =?utf-7?b?"
        + text.encode("utf-8", "replace")
    )
    value = entry(message).header("Subject")
    assert value is not None
    value.encode()


@pytest.mark.parametrize(
    ("message", "value"),
    [
        (b"Subject: one\n\nSubject: two\n", "one"),
        (b"SUBJECT:one\n", "one"),
        (b"Subject:\tone\r\n two\r\n\tthree\r\n\r\n", "one two\tthree"),
        (b"Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\n\n", "Grüße"),
        (b"Subject: =?iso-8859-1?q?caf=E9?= =?utf-8?b?4pyT?=\n\n", "café✓"),
        (b"Subject: =?nonsense?q?x?=\n\n", "=?nonsense?q?x?="),
        (b"Subject: caf\xc3\xa9\n\n", "café"),
        (b"Subject: a\rb\n\n", "a b"),
        (b"Subject: =?utf-8?q?a=0D=0AX-Evil:_1?=\n\n", "a  X-Evil: 1"),
        (b"Subject:\n\n", ""),
        (b"X-Subject: no\n\n", None),
        (b"X: 1\n\nSubject: in the body\n", None),
        (b"X: 1\r\n\r\nSubject: in the body\r\n", None),
        (b"\nSubject: in the body\n", None),
        (b"\r\nSubject: in the body\r\n", None),
        (b"Subject: no body, no line end", "no body, no line end"),
        (b"", None),
    ],
)
def test_a_header_is_the_first_of_its_name_unfolded_and_decoded(message: bytes, value: str | None) -> None:
    assert entry(message).header("Subject") == value


# What a handler makes of it


@pytest.mark.parametrize(
    ("message", "after"),
    [
        (b"A: 1\n\nb\n", b"X-Seen: 1\nA: 1\n\nb\n"),
        (b"A: 1\r\n\r\nb\r\n", b"X-Seen: 1\r\nA: 1\r\n\r\nb\r\n"),
        (b"A: 1\n\nb\r\n", b"X-Seen: 1\nA: 1\n\nb\r\n"),
        (b"", b"X-Seen: 1\n"),
    ],
)
def test_a_header_is_added_on_top_in_the_messages_own_line_ending(message: bytes, after: bytes) -> None:
    assert entry(message).with_header("X-Seen", "1").message == after


@pytest.mark.parametrize("name", ["", "X Y", "X:", "X\n", "Ü", "\x7f"])
def test_a_name_that_no_header_can_have_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        entry().with_header(name, "1")


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\0b", "\n", "a\r\n b"])
def test_a_value_that_would_end_its_line_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="must not have"):
        entry().with_header("X-Seen", value)


def test_replacing_leaves_the_original_as_it_was() -> None:
    before = entry(b"x\n", "bob", "eve")
    after = before.replace(
        message=b"y\n", sender="", recipients=["eve", "new", "eve"], meta={"b": [1], "a": None}
    )
    assert (before.message, before.sender, before.recipients, dict(before.meta)) == (
        b"x\n",
        "ann@example.org",
        ("bob", "eve"),
        {"a": 1},
    )
    assert (after.message, after.sender, after.recipients, dict(after.meta)) == (
        b"y\n",
        "",
        ("eve", "new"),
        {"b": [1]},
    )
    assert after.id == before.id
    assert not after.same_content(before)
    assert before.replace().same_content(before)


def test_a_recipient_that_stays_keeps_its_parameters() -> None:
    bob = Recipient("bob", "NEVER", "rfc822;bob")
    it = Entry("0" * 40, "in", Envelope("", (bob, Recipient("eve"))), b"", ("bob", "eve"), {}, 1, 1)
    assert it.replace(recipients=["new", "bob"]).envelope.recipients == (Recipient("new"), bob)


@pytest.mark.parametrize(
    "changes",
    [
        {"message": "text"},
        {"sender": None, "recipients": "bob@example.net"},
        {"recipients": [1]},
        {"sender": 5},
    ],
)
def test_arguments_of_the_wrong_type_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(TypeError):
        entry().replace(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "meta", [{"qrunner.x": 1}, {"qrunner.x": None}, {"a": {1, 2}}, {"a": float("nan")}, {1: 2}, {"a": b""}]
)
def test_metadata_that_is_not_json_or_ours_is_refused(meta: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="etadata"):
        entry().replace(meta=meta)


def test_metadata_is_a_copy_that_its_maker_can_not_change() -> None:
    tags = ["a"]
    after = entry().replace(meta={"tags": tags, "pair": (1, 2)})
    tags.append("b")
    assert dict(after.meta) == {"a": 1, "tags": ["a"], "pair": [1, 2]}


def test_an_entry_can_not_be_written_to() -> None:
    it = entry()
    with pytest.raises(AttributeError):
        it.recipients = ()  # type: ignore[misc]
    with pytest.raises(TypeError):
        it.replace(meta={"b": 1}).meta["c"] = 2  # type: ignore[index]


def test_forwarding_is_a_value() -> None:
    it = entry()
    assert it.forward("out", delay=2) == Forward(it, "out", 2)


# Who is owed


def line(what: str, *to: str) -> dict[str, object]:
    return {"what": what, "to": list(to)}


@pytest.mark.parametrize(
    ("history", "owed"),
    [
        ([], ("bob", "eve")),
        ([line("delivered", "bob")], ("eve",)),
        ([line("failed", "eve"), line("expired", "bob")], ()),
        ([line("deferred", "bob"), line("sending", "bob"), line("ambiguous", "bob")], ("bob", "eve")),
        ([line("delivered", "bob"), line("rewrite"), line("failed", "eve")], ("bob",)),
        ([line("delivered", "somebody else")], ("bob", "eve")),
    ],
)
def test_who_was_delivered_failed_or_expired_is_owed_no_more(
    history: list[dict[str, object]], owed: tuple[str, ...]
) -> None:
    assert still_owed(Envelope.of("", ["bob", "eve"]), history) == owed


def test_attempts_are_the_failed_ones_of_this_queue() -> None:
    history = (
        {"what": "attempt"},
        {"what": "hop"},
        {"what": "attempt", "queue": "elsewhere"},
        {"what": "attempt", "queue": "in"},
    )
    it = Entry("0" * 40, "in", Envelope(""), b"", (), {}, 1, 1, history)
    assert it.attempts == 2


@pytest.mark.parametrize("ns", [0, 1, 10**18, 2**63 - 1, -5, 10**30])
def test_any_time_can_be_shown(ns: int) -> None:
    it = Entry("0" * 40, "in", Envelope(""), b"", (), {}, ns, ns)
    assert it.arrival.tzinfo is not None
    assert it.due == it.arrival


def test_a_file_that_looks_like_ours_inside_a_message_is_a_message() -> None:
    message = odd(ROOT / "tests" / "corpus" / "looks-like-ours.eml")
    with pytest.raises(CorruptEntry):
        open_file("in", Name(1, "0" * 40), message)


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
@pytest.mark.parametrize("length", [0, 65_533, 65_534, 65_535, 65_536, 200_000])
def test_headers_may_be_of_any_length(length: int, ending: bytes) -> None:
    head = b"Subject: " + b"x" * length + ending
    assert header_block(head + ending + b"text" + 2 * ending + b"more") == head
    assert header_block(head) == head


@given(st.lists(st.sampled_from([b"a", b"\n", b"\r", b"\r\n", b"\n\n", b": "]), max_size=12).map(b"".join))
def test_headers_end_at_the_first_empty_line_whatever_ends_it(message: bytes) -> None:
    found = header_block(message)
    assert message.startswith(found)
    ends = [at for at in (message.find(b"\n\n"), message.find(b"\n\r\n")) if at >= 0]
    if message.startswith((b"\n", b"\r\n")):
        assert found == b""
    else:
        assert found == (message[: min(ends) + 1] if ends else message)
