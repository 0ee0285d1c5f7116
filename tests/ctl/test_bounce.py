"""``bounce``: an entry ends with a report to its sender, wherever it lies."""

from __future__ import annotations

from pathlib import Path

import pytest

from qrunner.message import Draft, Envelope, Recipient
from qrunner.switchboard import Area

from .conftest import Place
from .test_entries import claim, leased


@pytest.mark.parametrize("area", ["queue", "hold", "shunt"])
def test_an_entry_ends_and_its_sender_is_told_why(place: Place, area: Area) -> None:
    id = place.enqueue("slow")
    if area != "queue":
        place.aside(area, id, "slow")
    result = place.call("bounce", id, "--reason", "the list was closed")
    assert (result.exit_code, result.stdout.split()) == (0, [id])
    assert place.ids("slow", area) == []
    (ref,) = place.site.spool.peek("out")
    report = place.site.spool.read(ref)
    assert (report.sender, report.recipients, report.parents) == ("", ("ann@example.org",), (id,))
    assert report.header("Auto-Submitted") == "auto-replied"
    assert b"Final-Recipient: rfc822; bob@example.net" in report.message
    assert b"Diagnostic-Code: X-qrunner; the list was closed" in report.message
    assert b"Status: 5.0.0" in report.message
    assert f" bounce id={id} queue=slow" in place.log()


def test_without_a_reason_the_report_names_the_site(place: Place) -> None:
    assert place.call("bounce", place.enqueue()).exit_code == 0
    (ref,) = place.site.spool.peek("out")
    assert b"given up by the postmaster of lists.example.org" in place.site.spool.read(ref).message


def test_only_those_who_are_still_owed_it_are_reported(place: Place) -> None:
    history = ({"t": 1, "what": "delivered", "to": ["bob@example.net"]},)
    envelope = Envelope.of("ann@example.org", ["bob@example.net", "cat@example.net"])
    id = place.put("abcdef" + "1" * 34, envelope=envelope, recipients=("cat@example.net",), history=history)
    assert place.call("bounce", id).exit_code == 0
    (ref,) = place.site.spool.peek("out")
    message = place.site.spool.read(ref).message
    assert (b"rfc822; cat@" in message, b"rfc822; bob@" in message) == (True, False)


def test_who_asked_not_to_be_told_hears_nothing_and_the_entry_ends(place: Place) -> None:
    never = Envelope("ann@example.org", (Recipient("bob@example.net", "NEVER"),))
    id = place.site.spool.enqueue("in", Draft(b"\n", never))
    result = place.call("bounce", id)
    assert (result.exit_code, result.stdout.split()) == (0, [id])
    assert "nobody is to be told of it" in result.stderr
    assert [place.ids("in"), place.ids("out")] == [[], []]


def test_of_what_the_null_sender_sent_the_postmaster_is_told_once(place: Place) -> None:
    assert place.call("bounce", place.enqueue(sender="")).exit_code == 0
    (ref,) = place.site.spool.peek("out")
    assert place.site.spool.read(ref).recipients == ("postmaster@lists.example.org",)
    assert place.call("bounce", ref.id).exit_code == 0
    assert place.ids("out") == []


def test_the_rules_of_all_verbs_hold(place: Place) -> None:
    one, two = place.enqueue(), place.enqueue(to="cat@example.net")
    assert place.call("bounce").exit_code == 2
    assert place.call("bounce", "in").exit_code == 2
    rehearsal = place.call("bounce", "in", "--dry-run")
    assert "2 entries (2 in in) would be bounced" in rehearsal.stderr
    assert place.ids("in") == [one, two]
    assert place.call("bounce", "ALL", "--yes").exit_code == 0
    assert len(place.ids("out")) == 2


def test_an_entry_in_a_runner_s_hand_is_left_alone_and_named(place: Place) -> None:
    id = place.enqueue()
    with leased(place) as lease:
        claim(place, lease, id)
        result = place.call("bounce", id)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "a runner has it in hand" in result.stderr
    assert place.ids("out") == []


def test_what_is_bad_has_nobody_to_tell(place: Place) -> None:
    id = place.enqueue()
    place.aside("bad", id)
    result = place.call("bounce", id)
    assert (result.exit_code, place.ids("in", "bad")) == (1, [id])
    assert "can't be read" in result.stderr


def test_a_damaged_entry_stays_and_is_named(place: Place) -> None:
    id = place.enqueue()
    (ref,) = place.site.spool.peek("in")
    with open(ref.token, "r+b") as file:
        file.truncate(100)
    result = place.call("bounce", id)
    assert (result.exit_code, place.ids("in")) == (1, [id])
    assert "cut short" in result.stderr
    assert place.list("in")[0]["state"] == "ready"


def test_within_the_hour_the_same_is_told_once_and_counted(place: Place) -> None:
    first, second, other = place.enqueue(), place.enqueue(), place.enqueue(to="cat@example.net")
    result = place.call("bounce", first, second, other)
    assert (result.exit_code, result.stdout.split()) == (0, [first, second, other])
    assert f"{second}: nobody is to be told of it: somebody was within the hour" in result.stderr
    assert place.ids("in") == []
    assert len(place.ids("out")) == 2
    assert "report left out" in place.log()
    answer = place.site.tally.ask(
        ["failed <ann@example.org> <bob@example.net>"], "x", place.site.clock.now_ns()
    )
    assert answer["failed <ann@example.org> <bob@example.net>"].may is False


HOOKS = """
from pathlib import Path

def note(bounce):
    told = Path(__file__).with_suffix(".told")
    known = told.read_text() if told.exists() else ""
    told.write_text(f"{known}{bounce.address} {bounce.status} {bounce.permanent} {bounce.entry.id} {bounce.text}\\n")

async def later(bounce):
    note(bounce)

def breaks(bounce):
    raise RuntimeError("no database")
"""


def hooked(place: Place, bounced: str) -> Path:
    """The runner of ``slow`` has these; where they write."""
    code = place.folder / "code"
    code.mkdir(mode=0o700)
    name = f"hooks_{place.folder.name}".replace("-", "_")
    (code / f"{name}.py").write_text(HOOKS)
    (code / f"{name}.py").chmod(0o600)
    text = place.config.read_text().replace("[site]", '[site]\npython_path = ["../code"]')
    text = text.replace("[runner.slow]", f"[runner.slow]\nbounced = {bounced.replace('hooks:', f'{name}:')}")
    place.config.write_text(text)
    return code / f"{name}.told"


@pytest.mark.parametrize("bounced", ['"hooks:note"', '["hooks:note"]', '["hooks:later"]'])
def test_the_functions_of_the_queue_s_runner_hear_of_each_recipient(place: Place, bounced: str) -> None:
    told = hooked(place, bounced)
    envelope = Envelope.of("ann@example.org", ["bob@example.net", "cat@example.net"])
    id = place.put("abcdef" + "1" * 34, "slow", envelope=envelope, recipients=envelope.addresses)
    other = place.enqueue("in")
    result = place.call("bounce", id, other, "--reason", "closed")
    assert result.exit_code == 0, result.stderr
    assert told.read_text().splitlines() == [
        f"bob@example.net 5.0.0 True {id} closed",
        f"cat@example.net 5.0.0 True {id} closed",
    ]


def test_of_what_only_would_be_bounced_they_hear_nothing(place: Place) -> None:
    told = hooked(place, '"hooks:note"')
    assert place.call("bounce", place.enqueue("slow"), "--dry-run").exit_code == 0
    assert not told.exists()


@pytest.mark.parametrize("bounced", ['["hooks:breaks", "hooks:note"]', '["nosuch:function", "hooks:note"]'])
def test_one_that_fails_keeps_no_entry_and_is_named(place: Place, bounced: str) -> None:
    told = hooked(place, bounced)
    id = place.enqueue("slow")
    result = place.call("bounce", id)
    assert (result.exit_code, result.stdout.split()) == (1, [id])
    assert "no database" in result.stderr or "nosuch" in result.stderr
    assert place.ids("slow") == []
    assert id in told.read_text()
