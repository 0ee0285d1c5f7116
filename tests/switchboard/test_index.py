"""The index hands out what is due, oldest first and each once, whether it was listed or came singly."""

from __future__ import annotations

from bisect import insort

from hypothesis import given
from hypothesis import strategies as st

from qrunner.format import LAST_DUE_NS, ready_name
from qrunner.switchboard.index import DueIndex, Row, key_of, packed, parts_of

ids = st.binary(min_size=20, max_size=20).map(bytes.hex)
few_ids = st.sampled_from([digit * 40 for digit in "0123"])
entries = st.tuples(st.integers(0, 5), few_ids)


def row(*names: tuple[int, str]) -> Row:
    return Row(packed([ready_name(*name) for name in sorted(names)]))


@given(st.integers(0, LAST_DUE_NS), ids)
def test_a_key_is_as_long_as_any_and_tells_what_the_name_does(due_ns: int, id: str) -> None:
    assert parts_of(key_of(due_ns, id)) == (due_ns, id)
    assert key_of(due_ns, id) == packed([ready_name(due_ns, id)])
    assert len(key_of(due_ns, id)) == 30


@given(st.lists(st.tuples(st.integers(0, LAST_DUE_NS), ids)))
def test_keys_sort_as_they_are_due(names: list[tuple[int, str]]) -> None:
    assert [parts_of(key) for key in sorted(key_of(*name) for name in names)] == sorted(names)


@given(
    st.lists(st.lists(entries, unique=True)),
    st.lists(entries),
    st.lists(st.tuples(st.integers(0, 6), st.integers(1, 4)) | entries),
)
def test_it_gives_what_a_sorted_list_would(
    rows: list[list[tuple[int, str]]],
    singly: list[tuple[int, str]],
    steps: list[tuple[int, int] | tuple[int, str]],
) -> None:
    index, known = DueIndex(), sorted({*singly, *(name for names in rows for name in names)})
    index.replace((key_of(*name) for name in singly), [row(*names) for names in rows])
    for step in steps:
        if isinstance(step[1], str):
            index.add(key_of(*step))  # type: ignore[arg-type]
            insort(known, step)
            known = list(dict.fromkeys(known))
        else:
            now, limit = step
            due = [name for name in known if name[0] <= now]
            assert [parts_of(key) for key in index.peek(now)] == due
            assert [parts_of(key) for key in index.take(now, limit)] == due[:limit]
            known = [name for name in known if name not in due[:limit]]
        for after in (-1, 0, 3, 9):
            later = [due_ns for due_ns, _ in known if due_ns > after]
            assert index.next_due_ns(after) == (later[0] if later else None)


def test_what_came_during_a_listing_outlives_it_and_what_came_before_does_not() -> None:
    index = DueIndex()
    index.add(key_of(1, "a" * 40))
    index.begin()
    index.add(key_of(2, "b" * 40))
    index.replace([], [row((3, "c" * 40))])
    assert [parts_of(key)[0] for key in index.take(9, 9)] == [2, 3]


def test_what_was_listed_and_came_singly_is_one() -> None:
    index = DueIndex()
    index.replace([key_of(1, "a" * 40)], [row((1, "a" * 40)), row((1, "a" * 40), (2, "b" * 40))])
    index.add(key_of(1, "a" * 40))
    assert [parts_of(key)[0] for key in index.take(9, 9)] == [1, 2]
    assert (index.take(9, 9), index.next_due_ns()) == ([], None)


def test_a_row_that_is_kept_goes_on_where_it_was() -> None:
    index, kept = DueIndex(), row((1, "a" * 40), (2, "b" * 40))
    index.replace([], [kept])
    assert kept.is_whole
    index.take(9, 1)
    assert not kept.is_whole
    index.begin()
    index.replace([], [kept])
    assert [parts_of(key)[0] for key in index.take(9, 9)] == [2]
