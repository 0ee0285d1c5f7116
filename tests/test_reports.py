"""Reports as a site sends them: of failures, of delays, no more than one an hour, and the hook beside them."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator
from datetime import UTC, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from qrunner import Entry, Fate, PermanentFailure, Runner, TemporaryFailure
from qrunner.bounce import Bounce
from qrunner.message import Draft, Envelope, Recipient
from qrunner.runners.outgoing import OutgoingRunner
from qrunner.testing import FakeSite
from tests.driving import make_bench, running, until

SITE = f"""
[site]
hostname = "lists.example.org"
report_queue = "reports"
retry = {{ first = "1h", factor = 1, max = "1h", jitter = 0, lifetime = "5h", warn = "2h" }}
[smtp.mta1]
host = "mta1.example.org"
[runner.out]
class = "{__name__}:Tells"
smtp = "mta1"
on_down = []
bounced = "{__name__}:heard"
"""
told: list[tuple[str, Bounce]] = []


class Tells(OutgoingRunner):
    async def bounced(self, bounce: Bounce) -> None:
        told.append(("method", bounce))
        if bounce.address.startswith("oops@"):
            raise ZeroDivisionError("in the hook")


def heard(bounce: Bounce) -> None:
    told.append(("function", bounce))


@pytest.fixture
def site() -> Iterator[FakeSite]:
    told.clear()
    with FakeSite(SITE) as one:
        yield one


def refuse(site: FakeSite, text: str = "550 5.1.1 unknown user") -> None:
    site.sink["mta1"].behave()
    site.sink["mta1"].reply("RCPT", text, times=None)


def fail(site: FakeSite, *to: str, sender: str = "ann@example.org") -> str:
    id = site.enqueue("out", sender=sender, recipients=to or ("bob@example.net",))
    site.run_until_idle()
    return id


def hours(site: FakeSite, count: int) -> None:
    for _ in range(count):
        site.clock.advance("1h")
        site.run_until_idle()


# Delays


def test_what_was_waited_for_our_host_is_added_to_the_time_that_is_left(site: FakeSite) -> None:
    site.sink["mta1"].down = True
    fail(site)
    hours(site, 9)
    assert site.entries("reports") == []
    site.sink["mta1"].down = False
    refuse(site, "450 4.2.0 later")
    hours(site, 4)
    (warning,) = site.entries("reports")
    # Five hours in all, of which two to three are over.
    until = re.search(rb"Will-Retry-Until: ([^\n]*)", warning.message)
    assert until is not None
    left = parsedate_to_datetime(until[1].decode()).replace(tzinfo=UTC) - site.clock.now
    assert timedelta(hours=0) < left < timedelta(hours=4)


def test_a_delay_is_told_once_beside_an_entry_that_stays(site: FakeSite) -> None:
    refuse(site, "450 4.2.0 later")
    id = fail(site)
    hours(site, 1)
    assert site.entries("reports") == []
    hours(site, 2)
    (warning,) = site.entries("reports")
    assert (warning.sender, warning.recipients, warning.parents) == ("", ("ann@example.org",), (id,))
    assert b"Action: delayed" in warning.message
    assert b"Status: 4.2.0" in warning.message
    assert b"Will-Retry-Until: " in warning.message
    (entry,) = site.entries("out")
    assert (entry.id, entry.attempts) == (id, 4)
    assert [line["to"] for line in entry.history if line["what"] == "warned"] == [["bob@example.net"]]
    assert told == []
    hours(site, 2)
    assert [b"Action: failed" in one.message for one in site.entries("reports")] == [False, True]


def test_no_delay_is_told_where_none_is_configured() -> None:
    with FakeSite(SITE.replace(', warn = "2h"', "")) as site:
        refuse(site, "450 4.2.0 later")
        fail(site)
        hours(site, 4)
        assert site.entries("reports") == []
        assert len(site.entries("out")) == 1


def test_a_delay_is_told_about_those_who_want_it_and_still_wait(site: FakeSite) -> None:
    to = [
        Recipient("asks@example.net", notify="FAILURE,DELAY"),
        Recipient("not@example.net", notify="FAILURE"),
        Recipient("never@example.net", notify="NEVER"),
        Recipient("usual@example.net"),
        Recipient("gone@example.net"),
    ]
    site.sink["mta1"].reply("RCPT TO:<gone@", "550 5.1.1 unknown", times=None)
    site.sink["mta1"].reply("RCPT", "450 4.2.0 later", times=None)
    site.site.accept("out", Draft(b"Subject: x\n\n", Envelope("ann@example.org", tuple(to))))
    site.run_until_idle()
    assert len(site.entries("reports")) == 1
    hours(site, 3)
    _, warning = site.entries("reports")
    named = [line for line in warning.message.splitlines() if line.startswith(b"Final-Recipient:")]
    assert named == [
        b"Final-Recipient: rfc822; asks@example.net",
        b"Final-Recipient: rfc822; usual@example.net",
    ]


def test_a_failure_is_told_even_if_its_delay_was_a_moment_ago() -> None:
    with FakeSite(SITE.replace('warn = "2h"', 'warn = "1s"')) as site:
        refuse(site, "450 4.2.0 later")
        fail(site)
        hours(site, 1)
        refuse(site)
        site.sink["mta1"].reply("RCPT", "550 5.1.1 unknown", times=None)
        hours(site, 1)
        assert [b"Action: failed" in one.message for one in site.entries("reports")] == [False, True]


def test_nobody_is_told_of_a_delay_of_the_null_senders_mail(site: FakeSite) -> None:
    refuse(site, "450 4.2.0 later")
    fail(site, sender="")
    hours(site, 3)
    assert site.entries("reports") == []


# No more than one an hour


def test_of_mail_from_one_sender_to_one_address_one_failure_an_hour_is_told(
    site: FakeSite, caplog: pytest.LogCaptureFixture
) -> None:
    refuse(site)
    caplog.set_level(logging.WARNING, "qrunner")
    for _ in range(3):
        fail(site)
    assert len(site.entries("reports")) == 1
    left_out = [record.fields for record in caplog.records if record.message == "report left out"]  # type: ignore[attr-defined]
    assert [(one["to"], one["left_out"]) for one in left_out] == [
        ("bob@example.net", 1),
        ("bob@example.net", 2),
    ]
    assert [bounce.address for kind, bounce in told if kind == "method"] == ["bob@example.net"] * 3
    fail(site, sender="eve@example.org")
    fail(site, "BOB@example.net", "cat@example.net")
    assert len(site.entries("reports")) == 3
    assert b"Final-Recipient: rfc822; BOB" not in site.entries("reports")[-1].message
    hours(site, 1)
    fail(site)
    assert b"X-qrunner-Left-Out: 3" in site.entries("reports")[-1].message


def test_runners_of_one_machine_count_together(tmp_path: Path) -> None:
    (tmp_path / "var").mkdir()

    class Fails(Runner):
        async def dispose(self, entry: Entry) -> Fate:
            raise PermanentFailure("never")

    for _ in range(3):
        bench = make_bench(tmp_path)
        bench.put()
        bench.drain(Fails)
    assert len(bench.entries("out")) == 1
    assert len(list((tmp_path / "var" / "report").glob("*.json"))) == 1


# Reports of reports


def test_what_the_null_sender_has_sent_goes_to_the_postmaster_once_and_no_further(
    site: FakeSite, caplog: pytest.LogCaptureFixture
) -> None:
    refuse(site)
    fail(site, sender="")
    (report,) = site.entries("reports")
    assert (report.sender, report.recipients) == ("", ("postmaster@lists.example.org",))
    # It comes back by an alias, and that fails as well.
    site.enqueue("out", message=report.message, sender="", recipients=["admin@example.com"])
    site.run_until_idle()
    assert len(site.entries("reports")) == 1
    assert "nobody told" in [record.message for record in caplog.records]


# The hook


def test_the_hook_hears_of_each_who_was_given_up_once_the_report_is_there(site: FakeSite) -> None:
    site.sink["mta1"].reply("RCPT TO:<b", "550 5.1.1 <b@x>: unknown user", times=None)
    site.sink["mta1"].reply("RCPT TO:<s", "554 5.7.1 blocked", times=None)
    id = fail(site, "b@example.net", "good@example.net", "s@example.net")
    assert [(kind, one.address, one.kind) for kind, one in told] == [
        ("method", "b@example.net", "address"),
        ("function", "b@example.net", "address"),
        ("method", "s@example.net", "policy"),
        ("function", "s@example.net", "policy"),
    ]
    first = told[0][1]
    assert (first.status, first.text) == ("5.1.1", "550 5.1.1 <b@x>: unknown user")
    assert (first.sender, first.entry.id, first.permanent) == ("ann@example.org", id, True)


def test_who_was_put_off_for_too_long_is_no_permanent_failure(site: FakeSite) -> None:
    refuse(site, "452 4.2.2 mailbox full")
    fail(site)
    hours(site, 6)
    assert [(one.kind, one.permanent) for _, one in told] == [("address", False)] * 2
    assert site.entries("out") == []


def test_what_the_hook_raises_is_logged_and_stops_nothing(
    site: FakeSite, caplog: pytest.LogCaptureFixture
) -> None:
    refuse(site)
    fail(site, "oops@example.net", "bob@example.net")
    assert [(kind, one.address) for kind, one in told] == [
        ("method", "oops@example.net"),
        ("function", "oops@example.net"),
        ("method", "bob@example.net"),
        ("function", "bob@example.net"),
    ]
    assert "bounced failed" in [record.message for record in caplog.records]
    assert len(site.entries("reports")) == 1
    assert site.entries("out") == site.entries("shunt") == []


def test_a_hook_that_hangs_is_cut_short_by_a_stop_and_costs_no_entry(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, 'grace = "0s"')
    bench.put()
    calls: list[str] = []

    class Hangs(Runner):
        async def dispose(self, entry: Entry) -> Fate:
            raise PermanentFailure("never")

        async def bounced(self, bounce: Bounce) -> None:
            calls.append(bounce.address)
            await asyncio.Event().wait()

    async def story() -> None:
        await until(lambda: bool(calls), "the hook")

    engine = bench.engine(Hangs)
    running(engine, story)
    assert engine.state == "stopped"
    assert bench.where() == {"out": 1}


def test_a_hook_that_takes_too_long_is_given_up_with_the_time_of_a_dispose(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, 'timeout = "20ms"')
    bench.put()

    class Hangs(Runner):
        async def dispose(self, entry: Entry) -> Fate:
            raise PermanentFailure("never")

        async def bounced(self, bounce: Bounce) -> None:
            await asyncio.Event().wait()

    assert bench.drain(Hangs).state == "stopped"
    assert bench.where() == {"out": 1}


def test_a_temporary_failure_is_no_bounce(tmp_path: Path) -> None:
    bench = make_bench(tmp_path)
    bench.put()
    calls: list[Bounce] = []

    class Later(Runner):
        async def dispose(self, entry: Entry) -> Fate:
            raise TemporaryFailure("not yet")

        async def bounced(self, bounce: Bounce) -> None:
            calls.append(bounce)

    bench.drain(Later)
    assert calls == []
