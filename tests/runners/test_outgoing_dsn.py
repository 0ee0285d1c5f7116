"""What the sender asked to hear (RFC 3461), over hosts that know of it and over those that do not."""

from __future__ import annotations

import asyncio
import email
from collections.abc import Awaitable, Callable

import pytest

from qrunner.message import Draft, Entry, Envelope, Recipient
from qrunner.smtp.sink import EXTENSIONS, Sink
from qrunner.smtp.sinkserver import SinkServer
from qrunner.testing.contract import WHOLE
from tests.runners.live import MESSAGE, RUNNER, Live, host, lines, live

KNOWS_NOT = tuple(one for one in EXTENSIONS if one != "DSN")
SUCCESS = Recipient("a@x", "SUCCESS", "rfc822;a+2Bb@old.example")


def over(
    extensions: tuple[str, ...],
    test: Callable[[Live, Sink], Awaitable[None]],
    more: str = "",
    runner: str = RUNNER,
) -> None:
    async def whole() -> None:
        async with (
            SinkServer(Sink("mta", extensions)) as server,
            live(host(server.port, more) + runner) as site,
        ):
            await test(site, server.sink)

    asyncio.run(whole())


def send(site: Live, *recipients: Recipient, sender: str = "ann@example.org", **more: str) -> None:
    site.spool.enqueue("out", Draft(MESSAGE, Envelope(sender, recipients, **more)))  # type: ignore[arg-type]


def fields(report: Entry) -> dict[str, list[str]]:
    """The fields of a report, by name."""
    status = email.message_from_bytes(report.message).get_payload(1)
    found: dict[str, list[str]] = {}
    for group in status.get_payload():  # type: ignore[union-attr]
        for name, value in group.items():  # type: ignore[union-attr]
            found.setdefault(name, []).append(str(value))
    return found


def test_a_host_that_knows_of_reports_is_asked_for_them_and_we_send_none() -> None:
    async def test(site: Live, sink: Sink) -> None:
        send(site, SUCCESS, Recipient("b@x", "NEVER"), envid="QQ314", ret="HDRS")
        await site.settle()
        assert not site.entries()
        assert not site.reports
        assert sink.messages[0].lines[0].endswith(" RET=HDRS ENVID=QQ314")
        assert [line.partition("> ")[2] for line in sink.messages[0].lines[1:]] == [
            "NOTIFY=SUCCESS ORCPT=rfc822;a+2Bb@old.example",
            "NOTIFY=NEVER",
        ]

    over(EXTENSIONS, test)


def test_over_one_that_does_not_a_report_says_that_it_was_passed_on() -> None:
    async def test(site: Live, sink: Sink) -> None:
        send(
            site,
            SUCCESS,
            Recipient("b@x", "SUCCESS,FAILURE"),
            Recipient("c@x"),
            Recipient("d@x", "FAILURE"),
            envid="Q",
        )
        await site.settle()
        assert not site.entries()
        assert "NOTIFY" not in str(sink.messages[0].lines)
        (report,) = site.reports
        assert (report.sender, report.recipients) == ("", ("ann@example.org",))
        said = fields(report)
        assert said["Final-Recipient"] == ["rfc822; a@x", "rfc822; b@x"]
        assert said["Original-Recipient"] == ["rfc822; a+b@old.example"]
        assert said["Action"] == ["relayed", "relayed"]
        assert said["Status"] == ["2.0.0", "2.0.0"]
        assert said["Original-Envelope-Id"] == ["Q"]
        assert said["Remote-MTA"] == ["dns; 127.0.0.1"] * 2

    over(KNOWS_NOT, test)


def test_the_whole_message_is_returned_only_with_what_failed() -> None:
    async def test(site: Live, sink: Sink) -> None:
        send(site, SUCCESS, ret="FULL")
        await site.settle()
        (report,) = site.reports
        assert b"Subject: hello" in report.message
        assert b"world" not in report.message

    over(KNOWS_NOT, test)


def test_who_got_it_is_told_of_while_others_wait_and_not_again() -> None:
    async def test(site: Live, sink: Sink) -> None:
        sink.reply("RCPT TO:<b@x>", "451 later")
        send(site, SUCCESS, Recipient("b@x", "SUCCESS"))
        await site.settle()
        assert [fields(report)["Final-Recipient"] for report in site.reports] == [["rfc822; a@x"]]
        (entry,) = site.entries()
        assert [line["to"] for line in lines(entry, "relayed")] == [["a@x"]]
        await site.until_empty()
        assert [fields(report)["Final-Recipient"] for report in site.reports] == [
            ["rfc822; a@x"],
            ["rfc822; b@x"],
        ]

    over(KNOWS_NOT, test)


def test_one_that_failed_and_one_that_was_passed_on_have_a_report_each() -> None:
    async def test(site: Live, sink: Sink) -> None:
        sink.reply("RCPT TO:<b@x>", "550 no")
        send(site, SUCCESS, Recipient("b@x", "SUCCESS,FAILURE"))
        await site.settle()
        assert sorted(str(fields(report)["Action"]) for report in site.reports) == [
            "['failed']",
            "['relayed']",
        ]

    over(KNOWS_NOT, test)


@pytest.mark.parametrize("more", ['report = "none"', 'report = "postmaster"'])
def test_where_senders_are_told_nothing_they_are_not_told_this(more: str) -> None:
    async def test(site: Live, sink: Sink) -> None:
        send(site, SUCCESS)
        await site.settle()
        assert not site.entries()
        assert not site.reports

    over(KNOWS_NOT, test, runner=RUNNER + more)


def test_the_null_sender_is_never_told() -> None:
    async def test(site: Live, sink: Sink) -> None:
        send(site, SUCCESS, sender="")
        await site.settle()
        assert not site.entries()
        assert not site.reports

    over(KNOWS_NOT, test)


def test_each_message_that_is_asked_about_has_its_report() -> None:
    async def test(site: Live, sink: Sink) -> None:
        for _ in range(3):
            send(site, SUCCESS)
        await site.settle()
        assert len(site.reports) == 3

    over(KNOWS_NOT, test)


def test_what_was_only_assumed_is_not_told() -> None:
    async def test(site: Live, sink: Sink) -> None:
        sink.hang_up(after=".")
        send(site, SUCCESS)
        await site.settle()
        assert not site.entries()
        assert not site.reports

    over(KNOWS_NOT, test, 'on_ambiguous = "assume"')


@pytest.mark.parametrize(
    ("notify", "is_told"),
    [("", True), ("DELAY", True), ("FAILURE", False), ("SUCCESS", False), ("NEVER", False)],
)
def test_a_delay_is_told_whom_it_was_asked_for(notify: str, is_told: bool) -> None:
    async def test(site: Live, sink: Sink) -> None:
        sink.reply("RCPT", "451 later", times=None)
        send(site, Recipient("a@x", notify))
        await site.settle()
        await site.pass_by("5h")
        assert [fields(report)["Action"] for report in site.reports] == ([["delayed"]] if is_told else [])

    over(KNOWS_NOT, test, runner=RUNNER + 'retry = { warn = "4h" }')


def test_a_death_before_the_report_was_committed_does_not_lose_it() -> None:
    """The host has said yes, that stands in the history, and then the process dies."""

    async def test(site: Live, sink: Sink) -> None:
        await site.engines["out"].close()
        send(site, SUCCESS)
        lease = site.spool.lease("out", WHOLE, "out", 0)
        lease.refresh()
        (ref,) = lease.due(site.clock.now_ns(), 1)
        claim = lease.claim(ref)
        assert claim is not None
        said = {"to": ["a@x"], "host": "mta", "reply": "250 2.6.0 ok", "relayed": True}
        lease.note(claim, {"what": "delivered", **said})
        lease.abandon()
        await site.open()
        await site.settle()
        assert not site.entries()
        assert not sink.messages
        (report,) = site.reports
        assert fields(report)["Status"] == ["2.6.0"]

    over(KNOWS_NOT, test)
