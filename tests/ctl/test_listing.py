"""`list`, `show` and `slices`: what they tell, and that they change nothing."""

from __future__ import annotations

import json
import re
import subprocess
from datetime import datetime

import pytest

from qrunner.format import ready_name
from qrunner.message import Envelope, Recipient
from qrunner.slices import SPACE, WHOLE, Range
from qrunner.switchboard import Area

from .conftest import ENTRY_POINT, Place

A1, A2 = "abcdef" + "1" * 34, "bcdefa" + "2" * 34
FIELDS = [
    "id",
    "queue",
    "state",
    "arrival",
    "due",
    "size",
    "sender",
    "recipients",
    "attempts",
    "last_error",
    "meta",
]


def test_list_tells_the_fields_of_the_contract_and_no_others(place: Place) -> None:
    id = place.enqueue("out", meta={"list": "dev"})
    (line,) = place.list()
    assert list(line) == FIELDS
    arrival, due = line.pop("arrival"), line.pop("due")
    assert datetime.fromisoformat(arrival) == datetime.fromisoformat(due)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", arrival)
    assert line == {
        "id": id,
        "queue": "out",
        "state": "ready",
        "size": 21,
        "sender": "ann@example.org",
        "recipients": ["bob@example.net"],
        "attempts": 0,
        "last_error": None,
        "meta": {"list": "dev"},
    }


def test_list_tells_every_state(place: Place) -> None:
    ready, deferred, active = place.enqueue(), place.enqueue(delay=3600), place.enqueue()
    for area in ("hold", "shunt", "bad"):
        place.aside(area, place.enqueue())  # type: ignore[arg-type]
    lease = place.site.spool.lease("in", WHOLE, "test", 0)
    lease.refresh()
    for ref in lease.due(place.site.clock.now_ns(), 10):
        if ref.id == active:
            lease.claim(ref)
    states = {line["id"]: line["state"] for line in place.list()}
    lease.release()
    assert (states[ready], states[deferred], states[active]) == ("ready", "deferred", "active")
    assert sorted(states.values()) == ["active", "bad", "deferred", "held", "ready", "shunted"]


def test_list_is_oldest_due_first_over_all_queues(place: Place) -> None:
    third, first, second = (
        place.enqueue("in", delay=30),
        place.enqueue("out", delay=10),
        place.enqueue("slow", delay=20),
    )
    assert [line["id"] for line in place.list()] == [first, second, third]
    assert [line["id"] for line in place.list("--limit", "2")] == [first, second]
    assert place.list("--limit", "0") == []


def test_list_tells_attempts_what_is_still_owed_and_the_last_error(place: Place) -> None:
    history = (
        {"t": 1, "what": "attempt", "text": "first try", "status": "4.0.0"},
        {"t": 2, "what": "delivered", "to": ["bob@example.net"], "host": "mta1", "reply": "250 ok"},
        {"t": 3, "what": "deferred", "to": ["eve@example.net"], "host": "mta1", "reply": "451 4.7.1 later"},
        {"t": 3, "what": "attempt", "text": "451 4.7.1 later", "status": "4.7.1"},
    )
    to = ("bob@example.net", "eve@example.net")
    place.put(A1, envelope=Envelope.of("", to), recipients=to, history=history)
    (line,) = place.list()
    assert (line["attempts"], line["recipients"], line["last_error"]) == (2, [to[1]], "451 4.7.1 later")


def test_list_tells_of_what_has_no_readable_envelope(place: Place) -> None:
    place.file("bad", "in", ready_name(5, A1) + ".0a1b2c3d").write_bytes(b"garbage")
    (line,) = place.list("bad")
    assert (line["id"], line["queue"], line["state"]) == (A1, "in", "bad")
    assert all(line[key] is None for key in ("arrival", "size", "sender", "recipients", "attempts", "meta"))
    assert "too few for a header" in line["last_error"]
    assert A1[:12] in place.call("list").stdout


def test_list_of_ids_says_which_are_not_there(place: Place) -> None:
    id = place.enqueue()
    result = place.call("list", "--json", id, "deadbeef")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["id"] == id
    assert "deadbeef" in result.stderr


def test_list_of_nothing_prints_nothing(place: Place) -> None:
    assert place.call("list").stdout == place.call("list", "--json").stdout == ""


def test_the_table_shows_control_characters_and_escapes_none(place: Place) -> None:
    place.put(A1, envelope=Envelope.of("a\x1b[31m@x", ["b\u202e\udcff@x"]), recipients=("b\u202e\udcff@x",))
    text = place.call("list").stdout
    assert r"<a\x1b[31m@x> to b\u202e\xff@x" in text
    assert "\x1b" not in text


def test_list_to_a_pipe_that_nobody_reads_is_no_traceback(place: Place) -> None:
    place.enqueue()
    command = [*ENTRY_POINT, "-c", str(place.config), "list", "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=place.environment()
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()


# show


def test_show_tells_envelope_headers_and_history(place: Place) -> None:
    envelope = Envelope(
        "ann@example.org",
        (Recipient("bob@example.net", "NEVER", "rfc822;bob@old.example"), Recipient("eve@example.net")),
        envid="E1",
        ret="HDRS",
        body="8BITMIME",
        smtputf8=True,
    )
    history = (
        {
            "t": 1_700_000_000_000_000_000,
            "what": "delivered",
            "to": ["bob@example.net"],
            "host": "h",
            "reply": "250",
        },
    )
    message = b"Subject: one\r\n two\r\nX-Odd: \x1b[2J\r\nno header\r\n\r\nBody: not a header\r\n"
    place.put(
        A1,
        "out",
        envelope=envelope,
        recipients=envelope.addresses,
        history=history,
        message=message,
        parents=(A2,),
    )
    text = place.call("show", A1[:8]).stdout
    for part in (
        f"id          {A1}",
        "queue       out",
        "sender      <ann@example.org>",
        "recipient   bob@example.net notify=NEVER orcpt=rfc822;bob@old.example (settled)",
        "recipient   eve@example.net\n",
        "envid       E1",
        f"parent      {A2}",
        "  Subject: one two",
        r"  X-Odd: \x1b[2J",
        "  2023-11-14T22:13:20.000Z  delivered  to=",
    ):
        assert part in text
    document = json.loads(place.call("show", A1, "--json").stdout)
    assert set(FIELDS) < set(document)
    assert document["recipients"] == ["eve@example.net"]
    assert document["envelope"]["recipients"][0]["notify"] == "NEVER"
    assert document["headers"] == [["Subject", "one two"], ["X-Odd", "\x1b[2J"]]
    assert document["history"][0]["reply"] == "250"
    assert document["parents"] == [A2]


@pytest.mark.parametrize(
    "message", [b"", b"no end of line", b"\x00\xff\r\n\x1b[31m\n\n", b"a: b\n\n" * 70_000]
)
def test_show_raw_is_the_message_byte_for_byte(place: Place, message: bytes) -> None:
    id = place.enqueue(message=message)
    result = place.process("show", id, "--raw")
    assert (result.returncode, result.stdout == message) == (0, True)


@pytest.mark.parametrize("area", ["hold", "shunt", "bad"])
def test_show_finds_what_was_set_aside(place: Place, area: Area) -> None:
    id = place.enqueue()
    place.aside(area, id)
    document = json.loads(place.call("show", id, "--json").stdout)
    assert document["history"][-1]["what"] == area
    assert document["sender"] == "ann@example.org"


def test_show_of_what_is_no_entry_says_why_and_gives_all_its_bytes(place: Place) -> None:
    place.file("bad", "in", ready_name(5, A1)).write_bytes(b"garb\x00age")
    result = place.call("show", A1)
    assert (result.exit_code, "too few for a header" in result.stdout) == (0, True)
    assert place.process("show", A1, "--raw").stdout == b"garb\x00age"
    assert json.loads(place.call("show", A1, "--json").stdout)["state"] == "bad"


def test_show_prefers_the_copy_that_can_be_read(place: Place) -> None:
    place.put(A1)
    place.file("bad", "in", ready_name(5, A1)).write_bytes(b"garbage")
    assert json.loads(place.call("show", A1, "--json").stdout)["state"] == "ready"


def test_show_of_an_id_that_is_not_there_is_1(place: Place) -> None:
    assert place.call("show", "deadbeef").exit_code == 1
    assert place.call("show", "in").exit_code == 2
    assert place.call("show").exit_code == 2


# slices


def test_slices_tell_the_map_its_owners_and_what_waits(place: Place) -> None:
    for digit in "0123cf":
        place.put(digit * 40, "out")
    lease = place.site.spool.lease("out", Range(0, SPACE * 3 // 4), "out", 0)
    document = json.loads(place.call("slices", "out", "--json").stdout)
    lease.release()
    assert (document["runner"], document["queue"]) == ("out", "out")
    one, two = document["slices"]
    assert [one[key] for key in ("slice", "weight", "share", "waiting", "smtp")] == [0, 3, 0.75, 4, ["mta1"]]
    assert [two[key] for key in ("slice", "weight", "share", "waiting", "owner")] == [1, 1, 0.25, 2, None]
    assert one["range"] == f"{'0' * 40}-b{'f' * 39}"
    assert two["range"] == f"c{'0' * 39}-{'f' * 40}"
    assert one["owner"].startswith("runner out[0]")


def test_slices_are_a_table_for_people(place: Place) -> None:
    result = place.call("slices", "out")
    assert result.exit_code == 0
    assert "75.00%" in result.stdout
    assert "nobody" in result.stdout


def test_slices_of_a_runner_that_is_not_there_is_a_usage_error(place: Place) -> None:
    result = place.call("slices", "nosuch")
    assert (result.exit_code, "in out slow" in result.stderr) == (2, True)
