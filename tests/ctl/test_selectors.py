"""Selectors: which entries the words of a command line mean, the same for every verb."""

from __future__ import annotations

import pytest

from qrunner.format import ready_name

from .conftest import Place

A1, A2 = "abcdef" + "1" * 34, "abcdef" + "2" * 34
DAY_NS = 86_400 * 10**9


def ids(place: Place, *words: str) -> list[str]:
    return [line["id"] for line in place.list(*words)]


def test_an_id_is_its_first_six_or_more_digits_in_either_case(place: Place) -> None:
    id = place.enqueue()
    place.enqueue()
    assert ids(place, id[:6]) == ids(place, id) == ids(place, id[:20].upper()) == [id]


def test_fewer_digits_are_a_usage_error(place: Place) -> None:
    result = place.call("list", "abcde")
    assert result.exit_code == 2
    assert "first 6 or more" in result.stderr


def test_a_beginning_that_fits_several_is_refused_and_lists_them(place: Place) -> None:
    place.put(A1)
    place.put(A2, "out")
    for verb in ("hold", "list", "show"):
        result = place.call(verb, "abcdef")
        assert result.exit_code == 2
        assert A1 in result.stderr
        assert A2 in result.stderr
    assert place.ids("in") == [A1]
    assert ids(place, "abcdef1") == [A1]


def test_an_entry_in_two_places_is_one_id(place: Place) -> None:
    place.put(A1, due_ns=10**18)
    place.put(A1, "in", "bad", due_ns=10**18 + 7 * DAY_NS)
    assert [line["state"] for line in place.list("abcdef")] == ["ready", "bad"]
    assert place.call("hold", "abcdef").exit_code == 0
    assert (place.ids("in"), place.ids("in", "hold"), place.ids("in", "bad")) == ([], [A1], [A1])


def test_an_id_that_is_not_there_is_named_and_the_others_go_ahead(place: Place) -> None:
    id = place.enqueue()
    result = place.call("hold", "deadbeef", id)
    assert result.exit_code == 1
    assert "deadbeef: there is no such entry" in result.stderr
    assert place.ids("in", "hold") == [id]


def test_a_filter_that_matches_nothing_is_no_failure(place: Place) -> None:
    place.enqueue()
    assert place.call("hold", "--sender", "nobody@*").exit_code == 0
    assert place.call("delete", "-q", "out").exit_code == 0
    assert place.call("release", "ALL").exit_code == 0
    assert len(place.ids("in")) == 1


def test_a_queue_is_named_as_an_argument_or_as_a_filter(place: Place) -> None:
    one, two, three = place.enqueue("in"), place.enqueue("out"), place.enqueue("slow")
    assert ids(place, "in") == ids(place, "-q", "in") == ids(place, "--queue=in") == [one]
    assert ids(place, "in", "out") == ids(place, "-q", "in", "-q", "out") == [one, two]
    assert ids(place, "ALL", "-q", "slow") == [three]
    assert ids(place, "in", "-q", "out") == []


def test_hold_shunt_and_bad_name_what_was_set_aside(place: Place) -> None:
    held, shunted, bad = place.enqueue(), place.enqueue(), place.enqueue()
    place.aside("hold", held)
    place.aside("shunt", shunted)
    place.aside("bad", bad)
    assert (ids(place, "hold"), ids(place, "shunt"), ids(place, "-q", "bad")) == ([held], [shunted], [bad])
    assert ids(place, "in") == []
    assert len(ids(place)) == 3


def test_a_queue_that_is_not_there_is_refused_with_those_that_are(place: Place) -> None:
    result = place.call("list", "nosuch")
    assert result.exit_code == 2
    assert "in out slow" in result.stderr
    assert place.call("list", "-q", "nosuch").exit_code == 2


def test_a_virtual_queue_is_refused_with_the_real_ones(place: Place) -> None:
    assert "name one of out, slow" in place.call("list", "both").stderr
    assert place.call("delete", "main").exit_code == 2


def test_ids_come_from_standard_input(place: Place) -> None:
    wanted = [place.enqueue(), place.enqueue()]
    place.enqueue()
    assert place.call("hold", "-", given=f"{wanted[0]}\n\n{wanted[1][:12]} in ready\n").exit_code == 0
    assert place.ids("in", "hold") == wanted


def test_standard_input_without_ids_selects_nothing(place: Place) -> None:
    place.enqueue()
    result = place.call("delete", "-", given="")
    assert result.exit_code == 0
    assert len(place.ids("in")) == 1


def test_what_is_no_id_on_standard_input_is_refused_before_anything_is_done(place: Place) -> None:
    id = place.enqueue()
    assert place.call("delete", "-", given=f"{id}\nALL\n").exit_code == 2
    assert place.ids("in") == [id]


def test_sender_recipient_and_domain_are_globs_or_regular_expressions(place: Place) -> None:
    one = place.enqueue(sender="Ann@Example.org", to="bob@big.example")
    two = place.enqueue(sender="", to="eve@small.example")
    assert ids(place, "--sender", "ann@*") == ids(place, "--sender", "/^ann/") == [one]
    assert ids(place, "--sender", "") == ids(place, "--sender", "<>") == [two]
    assert ids(place, "--recipient", "eve@*") == [two]
    assert ids(place, "--domain", "BIG.example") == [one]
    assert ids(place, "--domain", "big*", "--domain", "small*") == [one, two]
    assert ids(place, "--domain", "big*", "--sender", "<>") == []


def test_a_recipient_that_has_its_copy_is_not_looked_for(place: Place) -> None:
    place.put(A1, history=({"t": 1, "what": "delivered", "to": ["bob@example.net"]},))
    assert ids(place, "--sender", "ann@*") == [A1]
    assert ids(place, "--recipient", "bob@*") == []


def test_a_broken_regular_expression_is_a_usage_error(place: Place) -> None:
    result = place.call("list", "--sender", "/(/")
    assert result.exit_code == 2
    assert "no regular expression" in result.stderr


def test_a_host_is_that_of_the_slice_or_of_the_history(place: Place) -> None:
    low, high = "0" * 40, "f" * 40
    place.put(low, "out")
    place.put(high, "out")
    line = {"t": 1, "what": "deferred", "to": [], "host": "mx.far.example", "reply": "451 no"}
    tried = place.put(A1, history=(line,))
    assert ids(place, "--host", "mta1") == [low]
    assert ids(place, "--host", "mta2") == [high]
    assert ids(place, "--host", "mx.far.*") == [tried]


def test_older_and_newer_go_by_arrival(place: Place) -> None:
    now = place.site.clock.now_ns()
    old = place.put(A1, arrival_ns=now - DAY_NS, due_ns=now)
    new = place.put(A2, arrival_ns=now, due_ns=now)
    assert ids(place, "--older", "1h") == [old]
    assert ids(place, "--newer", "1h") == [new]
    assert ids(place, "--older", "1h", "--newer", "2d") == [old]
    assert ids(place, "--older", "2d") == []
    assert place.call("list", "--older", "yesterday").exit_code == 2


def test_what_cant_be_read_fits_no_filter_on_its_content(place: Place) -> None:
    place.file("bad", "in", ready_name(5, A1)).write_bytes(b"garbage")
    assert ids(place, "bad") == [A1]
    assert ids(place, "bad", "--older", "1s") == []


@pytest.mark.parametrize("verb", ["hold", "release", "unshunt", "requeue", "delete"])
def test_a_verb_that_changes_entries_refuses_without_a_selector(place: Place, verb: str) -> None:
    id = place.enqueue()
    for words in ([verb], [verb, "--yes"], [verb, "--dry-run"]):
        result = place.call(*words)
        assert result.exit_code == 2
        assert "say which entries" in result.stderr
    assert place.ids("in") == [id]


def test_the_configuration_stands_before_or_after_the_verb(place: Place) -> None:
    from click.testing import CliRunner

    from qrunner.ctl.program import program

    id = place.enqueue()
    result = CliRunner().invoke(program, ["list", "-c", str(place.config), "in"])
    assert result.exit_code == 0
    assert id[:12] in result.stdout
