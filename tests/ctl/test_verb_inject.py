"""The verb `inject`, and the recipients that it takes from headers."""

from __future__ import annotations

import mailbox
import os
import pwd
from pathlib import Path

import pytest

from qrunner.addressing import taken_from_headers
from qrunner.errors import PermanentFailure
from qrunner.message import Entry

from .conftest import Place

MESSAGE = b"Subject: x\n\nbody\n"
ME = pwd.getpwuid(os.getuid()).pw_name


def entries(place: Place, queue: str = "in") -> list[Entry]:
    return list(place.site.entries(queue))


def test_the_message_on_standard_input_is_queued_and_its_id_printed(place: Place) -> None:
    message = b"Subject: \xff\r\n\r\nno end of line\x00"
    result = place.process(
        "inject",
        "-q",
        "out",
        "-f",
        "ann@x.example",
        "-m",
        "list=dev",
        "-m",
        "a=b=c",
        "b@y",
        "c@y",
        input=message,
    )
    assert result.returncode == 0, result.stderr
    (entry,) = entries(place, "out")
    assert result.stdout.split() == [entry.id.encode()]
    assert (entry.message, entry.sender, entry.recipients) == (message, "ann@x.example", ("b@y", "c@y"))
    assert entry.meta == {"list": "dev", "a": "b=c"}
    assert f" inject id={entry.id} queue=out" in place.log()


def test_an_options_value_is_taken_as_it_stands(place: Place) -> None:
    assert place.call("inject", "-f", "-odd@x", "-m", "k=", "--", "-b@y", given=MESSAGE).exit_code == 0
    (entry,) = entries(place)
    assert (entry.sender, entry.recipients, entry.meta) == ("-odd@x", ("-b@y",), {"k": ""})


@pytest.mark.parametrize("null", ["", "<>"])
def test_an_empty_sender_is_the_null_sender(place: Place, null: str) -> None:
    assert place.call("inject", "-f", null, "b@y", given=MESSAGE).exit_code == 0
    assert entries(place)[0].sender == ""


def test_the_environment_of_an_mta_is_read_as_the_pipe_reads_it(place: Place) -> None:
    message = b"From ann Mon Jan  1 00:00:00 2024\nReturn-Path: <v+b=y?z@x>\nX-Original-To: q'r@y\n\n"
    env = {"SENDER": "v+b=y_z@x", "ORIGINAL_RECIPIENT": "q_r@y", "RECIPIENT": "other@y"}
    assert place.call("inject", given=message, env=env).exit_code == 0
    (entry,) = entries(place)
    assert (entry.sender, entry.recipients) == ("v+b=y?z@x", ("q'r@y",))
    assert entry.message.startswith(b"Return-Path")


def test_without_any_sender_it_is_the_user_at_the_sites_host(place: Place) -> None:
    assert place.call("inject", "b@y", given=MESSAGE, env={"SENDER": None}).exit_code == 0
    assert entries(place)[0].sender == f"{ME}@lists.example.org"


def test_a_virtual_queue_is_resolved(place: Place) -> None:
    assert (
        place.call("inject", "-q", "main", "a@slow.example", "b@fast.example", given=MESSAGE).exit_code == 0
    )
    assert [entry.recipients for entry in entries(place, "slow")] == [("a@slow.example",)]
    assert [entry.recipients for entry in entries(place, "out")] == [("b@fast.example",)]


def test_mistakes_are_usage_errors_and_queue_nothing(place: Place) -> None:
    for words in (
        ["-q", "nosuch", "b@y"],
        ["-m", "novalue", "b@y"],
        ["-m", "qrunner.x=1", "b@y"],
        [""],
        [],
        ["--max-size", "many", "b@y"],
        ["--nosuch", "b@y"],
    ):
        assert place.call("inject", *words, given=MESSAGE).exit_code == 2
    assert place.list() == []


def test_no_rcpt_queues_a_message_without_recipients(place: Place) -> None:
    assert place.call("inject", "--no-rcpt", given=MESSAGE).exit_code == 0
    assert entries(place)[0].recipients == ()


def test_what_is_larger_than_max_size_is_refused(place: Place) -> None:
    result = place.call("inject", "--max-size", "1K", "b@y", given=b"x" * 1025)
    assert (result.exit_code, "larger than 1024 bytes" in result.stderr) == (1, True)
    assert place.call("inject", "--max-size", "1K", "b@y", given=b"x" * 1024).exit_code == 0


def test_a_queue_that_takes_nothing_is_75(place: Place) -> None:
    place.config.write_text(place.config.read_text().replace('min_free = "0"', 'min_free = "900000G"'))
    result = place.call("inject", "b@y", given=MESSAGE)
    assert (result.exit_code, result.stdout) == (75, "")


# -t


def test_recipients_come_from_to_cc_and_bcc_and_bcc_is_removed(place: Place) -> None:
    message = (
        b'To: Ann <a@x>, "Doe, J" <j@x>,\r\n team: t1@x, "q r"@x;\r\nBCC : h@x,\r\n\th2@x\r\n'
        b"Subject: x\r\ncc: c@x\r\nBcc:\r\n\r\nBcc: body@x\r\n"
    )
    assert place.call("inject", "-t", "extra@x", "c@x", given=message).exit_code == 0
    (entry,) = entries(place)
    assert entry.recipients == ("extra@x", "c@x", "a@x", "j@x", "t1@x", '"q r"@x', "h@x", "h2@x")
    assert entry.message == (
        b'To: Ann <a@x>, "Doe, J" <j@x>,\r\n team: t1@x, "q r"@x;\r\n'
        b"Subject: x\r\ncc: c@x\r\n\r\nBcc: body@x\r\n"
    )


def test_a_message_that_was_sent_on_goes_to_the_latest_resent_recipients() -> None:
    message = (
        b"Received: by x\nResent-From: b@x\nResent-To: new@x\nResent-Bcc: hid@x\n"
        b"Resent-From: a@x\nResent-To: older@x\nTo: first@x\nBcc: z@x\n\n"
    )
    recipients, left = taken_from_headers(message)
    assert recipients == ["new@x", "hid@x"]
    assert b"hid@x" not in left
    assert b"z@x" not in left
    assert b"Resent-To: older@x\nTo: first@x\n\n" in left


@pytest.mark.parametrize(
    ("field", "found"),
    [
        (b"To: undisclosed-recipients:;", []),
        (b"To: =?utf-8?q?a=2C_b?= <a@x>", ["a@x"]),
        (b"To: a@x (a comment, with a comma)", ["a@x"]),
        (b"To: \xc3\xa4@\xc3\xb6.example", ["ä@ö.example"]),
        (b"To: root", ["root"]),
        (b"X-To: a@x", []),
        (b"To : a@x", ["a@x"]),
        (b" To: a@x", []),
    ],
)
def test_addresses_are_read_as_they_are_written(field: bytes, found: list[str]) -> None:
    assert (
        taken_from_headers(b"Subject: s\n" + field + b"\n\n" if field[:1] != b" " else field + b"\n\n")[0]
        == found
    )


@pytest.mark.parametrize("message", [b"", b"\nTo: a@x\n\n", b"\r\nTo: a@x\r\n\r\n", b"no header at all"])
def test_a_message_without_headers_names_nobody_and_stays_as_it_is(message: bytes) -> None:
    assert taken_from_headers(message) == ([], message)


@pytest.mark.parametrize("field", [b"To: a@x, broken <", b"To: <>"])
def test_a_field_that_cant_be_read_is_said_and_nothing_is_sent(place: Place, field: bytes) -> None:
    with pytest.raises(PermanentFailure, match="To"):
        taken_from_headers(field + b"\n\n")
    assert place.call("inject", "-t", given=field + b"\n\n").exit_code == 1
    assert place.list() == []


def test_headers_that_name_nobody_are_a_failure(place: Place) -> None:
    result = place.call("inject", "-t", given=MESSAGE, env={"RECIPIENT": None})
    assert (result.exit_code, "no recipient" in result.stderr) == (1, True)


# Files


def test_files_have_the_envelope_that_their_delivery_wrote(place: Place, tmp_path: Path) -> None:
    file = tmp_path / "one.eml"
    file.write_bytes(b"Return-Path: <ann@x>\nDelivered-To: bob@y\n\nbody\n")
    assert place.call("inject", "--file", str(file)).exit_code == 0
    assert place.call("inject", "--file", str(file), "-f", "", "eve@y").exit_code == 0
    first, second = entries(place)
    assert (first.sender, first.recipients) == ("ann@x", ("bob@y",))
    assert (second.sender, second.recipients) == ("", ("eve@y",))
    assert first.message == file.read_bytes()


def test_a_file_that_cant_be_taken_is_said_and_the_others_are(place: Place, tmp_path: Path) -> None:
    good, nobody = tmp_path / "good.eml", tmp_path / "nobody.eml"
    good.write_bytes(b"Delivered-To: bob@y\n\n")
    nobody.write_bytes(b"Subject: x\n\n")
    result = place.call("inject", "--file", "/none", "--file", str(nobody), "--file", str(good))
    assert result.exit_code == 1
    assert "/none: " in result.stderr
    assert f"{nobody}: no recipient" in result.stderr
    assert len(entries(place)) == 1


def test_every_message_of_an_mbox_is_taken(place: Place, tmp_path: Path) -> None:
    box = tmp_path / "box"
    box.write_bytes(
        b"From ann@x Mon Jan  1 00:00:00 2024\nDelivered-To: b@y\n\none\n>From here\n\n"
        b"From MAILER-DAEMON Mon Jan  1 00:00:00 2024\nX-Original-To: c@y\n\ntwo\n\n"
    )
    before = box.read_bytes()
    result = place.call("inject", "--mbox", str(box))
    assert (result.exit_code, len(result.stdout.split())) == (0, 2)
    one, two = entries(place)
    assert (one.sender, one.recipients, two.sender, two.recipients) == ("ann@x", ("b@y",), "", ("c@y",))
    assert one.message == b"Delivered-To: b@y\n\none\nFrom here\n"
    assert box.read_bytes() == before


def test_every_message_of_a_maildir_is_taken_and_stays_there(place: Place, tmp_path: Path) -> None:
    box = mailbox.Maildir(tmp_path / "dir")
    for number in range(3):
        box.add(b"Subject: %d\n\n" % number)
    assert place.call("inject", "--maildir", str(tmp_path / "dir"), "-f", "a@x", "b@y").exit_code == 0
    assert sorted(entry.message for entry in entries(place)) == [b"Subject: %d\n\n" % n for n in range(3)]
    assert len(box) == 3
    assert place.call("inject", "--maildir", str(tmp_path / "none"), "b@y").exit_code == 1
