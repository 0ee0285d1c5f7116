"""The file of an entry: it comes back as it went in, or it is known for a broken one."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from hashlib import sha1

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrunner.errors import CorruptEntry
from qrunner.format import (
    HEAD_SIZE,
    LAST_DUE_NS,
    Claimant,
    Name,
    glance_at,
    history_line,
    ids_begin,
    lengths,
    open_file,
    parse_history,
    parse_name,
    ready_name,
    reseal,
    seal,
    sorted_out,
)
from qrunner.message import Draft, Entry, Envelope, Recipient
from tests.sites import ROOT

# Any str that a file can hold: what came as bytes that are no UTF-8 are single surrogates in it.
addresses = st.text() | st.binary().map(lambda raw: raw.decode("utf-8", "surrogateescape"))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
metas = st.dictionaries(st.text(), values, max_size=4)
recipients = st.builds(Recipient, addresses, st.sampled_from(["", "NEVER", "SUCCESS,FAILURE"]), addresses)
envelopes = st.builds(
    Envelope,
    addresses,
    st.lists(recipients, max_size=4, unique_by=lambda one: one.address).map(tuple),
    st.text(),
    st.sampled_from(["", "FULL", "HDRS"]),
    st.sampled_from(["", "7BIT", "8BITMIME"]),
    st.booleans(),
)
drafts = st.builds(
    Draft, st.binary(max_size=200), envelopes, metas, st.lists(st.just("a" * 40), max_size=2).map(tuple)
)
records = st.dictionaries(st.text(), values, max_size=4).filter(
    lambda record: "to" not in record and "what" not in record
)


def opened(data: bytes, id: str) -> Entry:
    return open_file("in", Name(7, id), data).entry


def plain(message: bytes = b"Subject: x\n\nbody\n") -> tuple[str, bytes]:
    sealed = seal(Draft(message, Envelope.of("ann", ["bob", "eve"])), 5)
    return sealed.id, b"".join(sealed.parts)


# There and back


@given(drafts, st.integers(1, 2**62))
def test_what_was_sealed_comes_back(draft: Draft, arrival_ns: int) -> None:
    sealed = seal(draft, arrival_ns)
    entry = opened(b"".join(sealed.parts), sealed.id)
    assert (entry.message, entry.envelope, dict(entry.meta)) == (
        draft.message,
        draft.envelope,
        dict(draft.meta),
    )
    assert (entry.parents, entry.arrival_ns, entry.due_ns) == (draft.parents, arrival_ns, 7)
    assert entry.recipients == draft.envelope.addresses
    assert (entry.id, entry.queue, entry.history) == (sealed.id, "in", ())


@given(drafts, st.lists(records, max_size=3), envelopes, metas, st.binary(max_size=50))
def test_changed_content_keeps_the_id_and_the_history(
    draft: Draft, lines: list[dict[str, object]], envelope: Envelope, meta: dict[str, object], message: bytes
) -> None:
    sealed = seal(draft, 3)
    before = dataclasses.replace(
        opened(b"".join(sealed.parts), sealed.id),
        message=message,
        envelope=envelope,
        recipients=envelope.addresses,
        meta=meta,
        history=parse_history(b"".join(map(history_line, lines))),
    )
    changed = reseal(before, [{"t": 1, "what": "rewrite"}], {"to": "out"})
    found = open_file("in", Name(7, sealed.id), b"".join(changed.parts))
    assert changed.id == found.entry.id == sealed.id
    assert found.entry.same_content(before)
    assert found.entry.arrival_ns == before.arrival_ns
    assert [dict(line) for line in found.entry.history] == [
        *map(dict, before.history),
        {"t": 1, "what": "rewrite"},
    ]
    assert found.hop == {"to": "out"}


def test_the_head_is_what_the_page_on_the_format_says() -> None:
    sealed = seal(
        Draft(b"hello", Envelope.of("ann@example.org", ["bob@example.net"])), 5, nonce="0123456789abcdef"
    )
    line = b'{"nonce":"0123456789abcdef","arrival":5,"sender":"ann@example.org","recipients":["bob@example.net"]}\n'
    start = b"qrunner 1 %08d %012d " % (len(line), 5)
    digest = sha1(start + line + b"hello", usedforsecurity=False).hexdigest()
    assert b"".join(sealed.parts) == start + digest.encode() + b"\n" + line + b"hello"
    assert sealed.id == digest
    assert (len(start), HEAD_SIZE) == (32, 32 + 40 + 1)


def test_the_same_message_twice_is_two_entries() -> None:
    assert plain()[0] != plain()[0]


@pytest.mark.parametrize(
    "draft",
    [
        Draft(b"", Envelope(None)),  # type: ignore[arg-type]
        Draft(b"", Envelope("", (Recipient(b"bob"),))),  # type: ignore[arg-type]
        Draft(b"", Envelope("", (Recipient(5, "NEVER"),))),  # type: ignore[arg-type]
        Draft(b"", Envelope(""), {"a": object()}),
        Draft(b"", Envelope(""), {"a": "x" * 100_000_000}),
    ],
    ids=["no sender", "bytes", "a number", "no JSON", "too long"],
)
def test_what_could_not_be_read_again_is_not_accepted(draft: Draft) -> None:
    with pytest.raises((TypeError, ValueError)):
        seal(draft, 1)


# Broken files


@given(st.data())
def test_a_file_cut_anywhere_is_told_from_a_whole_one(data: st.DataObject) -> None:
    id, whole = plain()
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(CorruptEntry):
        opened(whole[:cut], id)


@given(st.data())
def test_an_altered_byte_is_told_from_the_right_one(data: st.DataObject) -> None:
    id, whole = plain()
    at = data.draw(st.integers(0, len(whole) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[at]))
    with pytest.raises(CorruptEntry):
        opened(whole[:at] + bytes([other]) + whole[at + 1 :], id)


def test_zeros_where_the_message_was_are_told_from_it() -> None:
    id, whole = plain()
    with pytest.raises(CorruptEntry):
        opened(whole[:HEAD_SIZE] + bytes(len(whole) - HEAD_SIZE), id)


@given(st.integers(0, 10**8 - 1), st.integers(0, 10**12 - 1))
def test_lengths_that_lie_are_found_out_before_anything_is_read(json_len: int, message_len: int) -> None:
    id, whole = plain()
    true = (int(whole[10:18]), int(whole[19:31]))
    lie = b"qrunner 1 %08d %012d " % (json_len, message_len) + whole[32:]
    if (json_len, message_len) != true:
        with pytest.raises(CorruptEntry):
            opened(lie, id)
    if HEAD_SIZE + json_len + message_len > len(lie):
        with pytest.raises(CorruptEntry, match="cut short"):
            lengths(lie[:HEAD_SIZE], len(lie))


@given(st.binary() | st.from_regex(rb"\Aqrunner [0-9]{1,5} .*", fullmatch=True))
def test_a_strangers_file_is_no_entry(data: bytes) -> None:
    with pytest.raises(CorruptEntry):
        opened(data, "0" * 40)


@pytest.mark.parametrize("version", [b"2", b"0", b"17", b"9" * 18, b"9" * 6000])
def test_a_file_of_another_version_is_left_to_its_program(version: bytes) -> None:
    head = b"qrunner %s 00000002 000000000000 " % version + b"0" * 40 + b"\n{}"
    with pytest.raises(CorruptEntry):
        opened(head.ljust(200), "0" * 40)


def forged(fields: object, message: bytes = b"") -> tuple[str, bytes]:
    line = (fields if isinstance(fields, bytes) else json.dumps(fields).encode()) + b"\n"
    start = b"qrunner 1 %08d %012d " % (len(line), len(message))
    digest = sha1(start + line + message, usedforsecurity=False).hexdigest()
    return digest, start + digest.encode() + b"\n" + line + message


GOOD = {"arrival": 1, "sender": "", "recipients": []}


@pytest.mark.parametrize(
    "fields",
    [
        b"",
        b"null",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b"9" * 5000,
        {},
        {**GOOD, "sender": None},
        {**GOOD, "recipients": "bob"},
        {**GOOD, "recipients": [1]},
        {**GOOD, "recipients": [{"notify": "NEVER"}]},
        {**GOOD, "recipients": {"bob": 1}},
        {**GOOD, "arrival": "soon"},
        {**GOOD, "arrival": float("inf")},
        {**GOOD, "arrival": None},
        {**GOOD, "meta": 5},
        {**GOOD, "envid": []},
        {**GOOD, "parents": [1]},
        {**GOOD, "hop": 5},
        {**GOOD, "id": "0" * 40},
    ],
    ids=lambda fields: str(fields)[:60],
)
def test_an_envelope_that_makes_no_sense_is_no_entry_whatever_its_checksum_says(fields: object) -> None:
    id, data = forged(fields)
    with pytest.raises(CorruptEntry):
        opened(data, id)


def test_a_file_under_anothers_name_is_no_entry() -> None:
    _, whole = plain()
    with pytest.raises(CorruptEntry, match="name"):
        opened(whole, "0" * 40)


def test_fields_of_a_later_program_are_passed_over() -> None:
    id, data = forged({**GOOD, "colour": "blue"})
    assert opened(data, id).sender == ""


# The history


@given(st.lists(records, max_size=6))
def test_a_history_comes_back_in_order(lines: list[dict[str, object]]) -> None:
    numbered = [{"n": number, **line} for number, line in enumerate(lines)]
    assert [dict(line) for line in parse_history(b"".join(map(history_line, numbered)))] == numbered


@given(st.lists(records, min_size=1, max_size=4), st.data(), st.sampled_from([b"no end", b"an end\n", b""]))
def test_a_tail_torn_anywhere_loses_the_torn_line_only(
    lines: list[dict[str, object]], data: st.DataObject, message: bytes
) -> None:
    numbered = [{"n": number, **line} for number, line in enumerate(lines)]
    id, whole = plain(message)
    start = whole if whole.endswith(b"\n") else whole + b"\n"
    tail = b"".join(map(history_line, numbered))
    cut = data.draw(st.integers(0, len(tail)))
    torn = tail[:cut]
    # Whoever appends next ends the torn line first.
    after = torn + (b"" if not torn or torn.endswith(b"\n") else b"\n") + history_line({"n": "last"})
    found = [dict(line) for line in opened(start + after, id).history]
    ends = [sum(len(history_line(line)) for line in numbered[: n + 1]) for n in range(len(numbered))]
    whole_lines = [line for line, end in zip(numbered, ends, strict=True) if end - 1 <= cut]
    assert found == [*whole_lines, {"n": "last"}]


@given(st.lists(records, min_size=1, max_size=4), st.data())
def test_an_altered_byte_in_a_history_costs_no_other_line(
    lines: list[dict[str, object]], data: st.DataObject
) -> None:
    numbered = [{"n": number, **line} for number, line in enumerate(lines)]
    tail = b"".join(map(history_line, numbered))
    at = data.draw(st.integers(0, len(tail) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda byte: byte != tail[at]))
    found = [dict(line) for line in parse_history(tail[:at] + bytes([other]) + tail[at + 1 :])]
    assert all(line in numbered for line in found)
    # A line end that is gone joins two lines; nothing else reaches beyond its own.
    assert len(found) >= len(numbered) - (2 if tail[at : at + 1] == b"\n" else 1)


@given(st.binary())
def test_any_bytes_after_the_message_are_a_history_of_nothing(tail: bytes) -> None:
    id, whole = plain()
    assert opened(whole + re.sub(rb"(?m)^[0-9a-f]{8} ", b"", tail), id).message == b"Subject: x\n\nbody\n"


def test_a_line_that_a_recovery_wrote_again_counts_once() -> None:
    line = history_line({"t": 1, "what": "attempt"})
    assert len(parse_history(line + line)) == 1
    # A step of several lines is written again as a whole.
    assert len(parse_history((line + history_line({"t": 2, "what": "attempt"})) * 2)) == 2


def test_history_decides_who_is_owed() -> None:
    id, whole = plain()
    assert opened(whole + history_line({"t": 1, "what": "delivered", "to": ["bob"]}), id).recipients == (
        "eve",
    )


# Names

ids = st.text("0123456789abcdef", min_size=40, max_size=40)
claimants = st.builds(
    Claimant,
    st.integers(0, 2**22),
    st.text("0123456789abcdef", min_size=1, max_size=16),
    st.integers(0, 10**9),
    st.text("0123456789abcdef", min_size=1, max_size=16),
    st.from_regex(r"\A[a-z0-9][a-z0-9.-]{0,40}\Z").map(str.strip),
)


@given(st.integers(0, LAST_DUE_NS), ids, st.none() | claimants)
def test_a_name_comes_back(due_ns: int, id: str, claimant: Claimant | None) -> None:
    name = Name(due_ns, id, claimant)
    assert parse_name(str(name)) == name


@given(st.lists(st.integers(0, LAST_DUE_NS), min_size=2, max_size=9), ids)
def test_names_sort_as_they_are_due(times: list[int], id: str) -> None:
    assert sorted(ready_name(due, id) for due in times) == [ready_name(due, id) for due in sorted(times)]


@given(st.text())
def test_a_strangers_name_is_none(text: str) -> None:
    assert parse_name(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "1+" + "a" * 40,
        "0" * 20 + "+" + "A" * 40,
        "0" * 20 + "+" + "a" * 39,
        "0" * 20 + "+" + "a" * 40 + ".",
        "0" * 20 + "+" + "a" * 40 + ".tmp",
        "0" * 20 + "+" + "a" * 40 + "\n",
        "0" * 20 + "+" + "a" * 40 + ".1,a,1,b",
        "0" * 20 + "+" + "a" * 40 + ".1,a,1,b,n/o",
        "9" * 20 + "+" + "a" * 40,
        "٠" * 20 + "+" + "a" * 40,
        ".new.0011",
    ],
)
def test_a_name_that_is_almost_ours_is_a_strangers(text: str) -> None:
    assert parse_name(text) is None


names = st.lists(
    st.builds(ready_name, st.integers(0, LAST_DUE_NS), st.binary(min_size=20, max_size=20).map(bytes.hex))
    | st.from_regex(r"[0-9a-fA-F]{20}[+0][0-9a-gA-F]{40}", fullmatch=True)
    | st.from_regex(r"[0-9]{20}\+[0-9a-f]{40}(\.[0-9a-z,]{0,9})?", fullmatch=True)
    | st.from_regex(r"[0-9]{19,21}\+[0-9a-f]{39,41}", fullmatch=True)
    | st.from_regex(r"\d{20}\+[0-9a-f]{40}", fullmatch=True)
    | st.text(st.characters(exclude_characters="/\0"), min_size=1)
    | st.just("\udcff" * 61),
    max_size=5,
)


@given(names)
def test_names_are_sorted_out_as_each_would_be_taken_apart(listed: list[str]) -> None:
    ready, others = sorted_out(listed)
    parsed = {text: parse_name(text) for text in listed}
    is_ready = [text for text in listed if (name := parsed[text]) is not None and name.claimant is None]
    assert ready == sorted(is_ready)
    assert sorted(others) == sorted(text for text in listed if text not in is_ready)


def test_ids_begin_with_digits_if_all_of_them_do() -> None:
    one, two = ready_name(5, "ab" + "1" * 38), ready_name(6, "ac" + "1" * 38)
    assert ids_begin([], "ab")
    assert ids_begin([one, one], "ab")
    assert ids_begin([one, two], "a")
    assert not ids_begin([one, two], "ab")


@given(drafts, st.integers(1, 2**62), st.lists(records, max_size=3))
def test_a_glance_sees_what_is_in_the_file(
    draft: Draft, arrival: int, lines: list[dict[str, object]]
) -> None:
    sealed = seal(draft, arrival, records=lines)
    entry = opened(b"".join(sealed.parts), sealed.id)
    tail = b"".join(sealed.parts[2:])
    glance = glance_at("in", sealed.id, 7, sealed.head[HEAD_SIZE:], len(draft.message), sealed.id, tail)
    assert (glance.sender, glance.recipients, glance.size) == (entry.sender, entry.recipients, entry.size)
    assert (glance.meta, glance.history) == (dict(entry.meta), entry.history)
    assert (glance.arrival_ns, glance.due_ns) == (entry.arrival_ns, 7)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b"{}",
        b'{"arrival":1,"sender":1,"recipients":[]}',
        b'{"arrival":1,"sender":"","recipients":"ann"}',
        b'{"arrival":1,"sender":"","recipients":[]} {}',
        b'{"id":"other","arrival":1,"sender":"","recipients":[]}',
        b'{"arrival":1e999,"sender":"","recipients":[]}',
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_a_glance_at_what_is_no_envelope_says_so(line: bytes) -> None:
    with pytest.raises(CorruptEntry):
        glance_at("in", "a" * 40, 7, line, 0, "a" * 40, b"")


def test_nonces_are_nobody_elses_whichever_thread_or_fork_asks() -> None:
    program = """if True:
        import os
        from concurrent.futures import ThreadPoolExecutor
        from qrunner.format import Nonces
        nonces = Nonces()
        with ThreadPoolExecutor(8) as threads:
            print(*threads.map(lambda _: nonces.next(), range(2_000)), flush=True)
        os.fork()
        print(nonces.next(), Nonces().next(), flush=True)
        """
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = run.stdout.split()
    assert len(found) == len(set(found)) == 2_004
