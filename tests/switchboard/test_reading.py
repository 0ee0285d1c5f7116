"""Reading files of a queue: a large one is read in parts, and is the same, or as corrupt, as in one piece."""

from __future__ import annotations

from pathlib import Path

import pytest

from qrunner.errors import CorruptEntry
from qrunner.format import Name, open_file, seal
from qrunner.message import Draft, Envelope
from qrunner.switchboard import reading
from qrunner.switchboard.reading import open_path

LARGE = b"Subject: large\n\n" + b"x" * (3 << 20)
RECORD = {"what": "attempt", "text": "later"}


def large(tmp_path: Path, *records: dict[str, str]) -> tuple[Path, Name, bytes]:
    sealed = seal(Draft(LARGE, Envelope.of("ann@a.example", ["bob@b.example"])), 1, records=records)
    data = b"".join(sealed.parts)
    path = tmp_path / "entry"
    path.write_bytes(data)
    return path, Name(7, sealed.id), data


@pytest.mark.parametrize("records", [(), (RECORD,), (RECORD, {"what": "delivered"})])
def test_a_large_file_is_the_same_entry_in_parts(tmp_path: Path, records: tuple[dict[str, str], ...]) -> None:
    path, name, data = large(tmp_path, *records)
    found = open_path(str(path), "in", name).entry
    assert found == open_file("in", name, data).entry
    assert (found.message, len(found.history)) == (LARGE, len(records))


@pytest.mark.parametrize("at", [0, 10, 60, 80, 200, 2 << 20, -1])
def test_one_altered_byte_of_a_large_file_is_found(tmp_path: Path, at: int) -> None:
    path, name, data = large(tmp_path)
    changed = bytearray(data)
    changed[at] ^= 1
    path.write_bytes(changed)
    with pytest.raises(CorruptEntry):
        open_path(str(path), "in", name)


@pytest.mark.parametrize("size", [2 << 20, (3 << 20) + 100])
def test_a_large_file_that_was_cut_is_no_entry(tmp_path: Path, size: int) -> None:
    path, name, data = large(tmp_path)
    path.write_bytes(data[:size])
    with pytest.raises(CorruptEntry, match="cut short"):
        open_path(str(path), "in", name)


def test_a_tail_that_is_longer_than_any_history_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, name, data = large(tmp_path)
    path.write_bytes(data + b"\n" * 1_000)
    monkeypatch.setattr(reading, "LONGEST_TAIL", 999)
    with pytest.raises(CorruptEntry, match="longer than"):
        open_path(str(path), "in", name)
