"""The runner ``bounce``: who a bounce is about, why, and how often that has been of late."""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qrunner import PermanentFailure, TemporaryFailure
from qrunner.bounce import Bounce
from qrunner.errors import ConfigError
from qrunner.loading import load_class
from qrunner.site import Site
from qrunner.testing import FakeSite
from tests.documents import blocks
from tests.test_dsn import CORPUS, HOSTILE, sample

LIST = "list-bounces@lists.example.org"
SITE = """
[site]
hostname = "lists.example.org"
postmaster = "postmaster@lists.example.org"
report_queue = "out"
[runner.out]
class = "outgoing"
smtp = "mta"
{out}
[smtp.mta]
host = "mta.example.org"
[runner.bounces]
class = "bounce"
hook = "{module}:{hook}"
retry = {{ jitter = 0 }}
{keys}
"""

heard: list[Bounce] = []
refuse: list[tuple[str, Exception]] = []


def on_bounce(bounce: Bounce) -> None:
    """The site's."""
    for number, (address, error) in enumerate(refuse):
        if address == bounce.address:
            del refuse[number]
            raise error
    heard.append(bounce)


async def on_bounce_awaited(bounce: Bounce) -> None:
    await asyncio.sleep(0)
    heard.append(bounce)


@pytest.fixture(autouse=True)
def nothing_heard() -> None:
    heard.clear()
    refuse.clear()


def make(keys: str = "", *, out: str = "", hook: str = "on_bounce") -> FakeSite:
    return FakeSite(SITE.format(module=__name__, hook=hook, keys=keys, out=out))


@pytest.fixture
def site(request: pytest.FixtureRequest) -> Iterator[FakeSite]:
    with make(getattr(request, "param", "")) as made:
        yield made


def comes(site: FakeSite, message: bytes | str, to: str = LIST, sender: str = "") -> None:
    data = sample(message) if isinstance(message, str) else message
    site.enqueue("bounces", message=data, sender=sender, recipients=[to])
    site.run_until_idle(limit_s=60)


def told() -> list[tuple[str, str, str, bool]]:
    return [(one.address, one.kind, one.status, one.permanent) for one in heard]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("postfix", [("Ann@example.com", "address", "5.1.1", True)]),
        ("exim", [("bob@example.com", "address", "5.1.1", True), ("cat@example.com", "address", "", True)]),
        ("qmail", [("dan@example.com", "address", "5.1.1", True)]),
        ("blocked", [("eve@example.com", "policy", "5.7.1", True)]),
        ("full", [("fay@example.com", "address", "4.2.2", False)]),
        (
            "utf8",
            [
                ("jürgen@bücher.example", "address", "5.1.1", True),
                ("kaiä@example.com", "address", "5.2.1", True),
            ],
        ),
    ],
)
def test_a_bounce_is_told_with_its_address_and_its_kind(
    site: FakeSite, name: str, expected: list[tuple[str, str, str, bool]]
) -> None:
    comes(site, name)
    assert told() == expected
    assert {(one.sender, one.entry.message) for one in heard} == {(LIST, sample(name))}
    assert [site.entries(queue) for queue in ("bounces", "hold", "shunt")] == [[], [], []]


def test_the_text_is_what_the_host_said(site: FakeSite) -> None:
    comes(site, "blocked")
    comes(site, "qmail")
    assert [one.text for one in heard] == [
        "550 5.7.1 Service unavailable, Client host [192.0.2.1] blocked using Spamhaus.",
        "<dan@example.com>: Sorry, no mailbox here by that name. (#5.1.1)",
    ]


@pytest.mark.parametrize("name", ["delayed", "delivered"])
def test_a_report_that_nobody_was_given_up_is_no_bounce(site: FakeSite, name: str) -> None:
    comes(site, name)
    comes(site, name, to="list-bounces+ann=example.com@lists.example.org")
    assert (heard, site.entries("bounces"), site.entries("hold")) == ([], [], [])


@pytest.mark.parametrize("name", ["question", "vacation", "strange", "forwarded"])
def test_what_is_no_bounce_is_held(site: FakeSite, name: str) -> None:
    comes(site, name, sender="" if name in ("vacation", "strange") else "bob@example.net")
    (entry,) = site.entries("hold")
    assert (heard, entry.message) == ([], sample(name))


@pytest.mark.parametrize("site", ['next = ["people", "archive"]'], indirect=True)
def test_what_is_no_bounce_goes_to_the_next_queue_if_there_is_one(site: FakeSite) -> None:
    comes(site, "question")
    assert [len(site.entries(queue)) for queue in ("people", "archive", "hold")] == [1, 1, 0]
    comes(site, "postfix")
    assert (len(heard), len(site.entries("people"))) == (1, 1)


# VERP


def test_the_address_that_it_came_to_names_the_subscriber() -> None:
    # The mail was forwarded: the host that gave it up knows another address.
    with make() as site:
        comes(site, "blocked", to="list-bounces+ann+tag=example.net@lists.example.org")
        assert told() == [("ann+tag@example.net", "policy", "5.7.1", True)]
        assert heard[0].sender == LIST


@pytest.mark.parametrize(
    ("keys", "out", "to", "address"),
    [
        ("", 'verp = "-="', "list-bounces-ann=example.net@lists.example.org", "ann@example.net"),
        ("", 'verp = "-="', "list-bounces-ann+tag=example.net@lists.example.org", "ann+tag@example.net"),
        (
            'options = { verp = "-=" }',
            "",
            "list-bounces-ann-lee=example.net@lists.example.org",
            "lee@example.net",
        ),
        (
            'options = { verp = "-=", senders = ["LIST-bounces@lists.example.org"] }',
            "",
            "list-bounces-ann-lee=example.net@lists.example.org",
            "ann-lee@example.net",
        ),
        (
            f'options = {{ senders = ["{LIST}"] }}',
            "",
            "another+ann=example.net@lists.example.org",
            "eve@example.com",
        ),
    ],
)
def test_how_the_site_writes_its_senders_is_how_they_are_read(
    keys: str, out: str, to: str, address: str
) -> None:
    with make(keys, out=out) as site:
        comes(site, "blocked", to=to)
    assert [one.address for one in heard] == [address]


def test_of_several_readings_the_one_that_the_report_names_is_right() -> None:
    with make('options = { verp = "-=" }') as site:
        message = sample("blocked").replace(b"eve@example.com", b"ann-lee@example.net")
        comes(site, message, to="list-bounces-ann-lee=example.net@lists.example.org")
    assert [(one.address, one.sender) for one in heard] == [("ann-lee@example.net", LIST)]


def test_the_same_that_the_outgoing_runner_wrote_comes_back(site: FakeSite) -> None:
    site.enqueue("out", sender=LIST, recipients=['"bob lee"@example.net'], meta={"verp": True})
    site.run_until_idle()
    (sent,) = site.sink["mta"].messages
    comes(site, "blocked", to=sent.sender)
    assert [one.address for one in heard] == ['"bob lee"@example.net']


def test_a_bounce_of_no_known_format_counts_for_whom_it_came_back(site: FakeSite) -> None:
    comes(site, "strange", to="list-bounces+ann=example.net@lists.example.org")
    assert told() == [("ann@example.net", "address", "5.0.0", True)]


@pytest.mark.parametrize("name", ["vacation", "question"])
def test_who_is_away_or_asks_is_not_given_up(site: FakeSite, name: str) -> None:
    comes(site, name, to="list-bounces+ann=example.net@lists.example.org")
    assert heard == []
    assert len(site.entries("hold")) == 1


def test_a_report_of_our_own_is_read_as_well(site: FakeSite) -> None:
    site.sink["mta"].reply("RCPT", "550 5.1.1 no such user", times=1)
    site.enqueue("out", sender=LIST, recipients=["ann@example.net"], meta={"verp": True})
    site.run_until_idle()
    (report,) = site.sink["mta"].messages
    comes(site, report.message, to=report.recipients[0])
    assert told() == [("ann@example.net", "address", "5.1.1", True)]
    assert heard[0].text == "550 5.1.1 no such user"


# Scores


def scores() -> list[float]:
    return [round(one.score, 3) for one in heard]


def test_only_refusals_of_the_address_count_one_a_day_and_half_as_much_a_week_later(site: FakeSite) -> None:
    to = "list-bounces+ann=example.net@lists.example.org"
    for _ in range(3):
        comes(site, "postfix", to=to)
    comes(site, "blocked", to=to)
    site.clock.advance("7d")
    comes(site, "blocked", to=to)
    comes(site, "postfix", to=to)
    # One that was only put off for too long counts half.
    site.clock.advance("7d")
    comes(site, "full", to=to)
    comes(site, "full", to="list-bounces+bob=example.net@lists.example.org")
    assert scores() == [1, 1, 1, 1, 0.5, 1.5, 1.25, 0.5]
    assert not any(one.over_threshold for one in heard)


@pytest.mark.parametrize("site", ['options = { threshold = 2.5, half_life = "14d" }'], indirect=True)
def test_who_has_bounced_too_often_is_over_the_threshold(site: FakeSite) -> None:
    for _ in range(4):
        comes(site, "postfix")
        site.clock.advance("1d")
    assert [one.over_threshold for one in heard] == [False, False, True, True]
    site.site.scores.forget("bounces", "ann@example.com")
    comes(site, "postfix")
    assert (heard[-1].score, heard[-1].over_threshold) == (1, False)


def test_an_entry_counts_once_however_often_it_is_tried(site: FakeSite) -> None:
    refuse.extend([("Ann@example.com", TemporaryFailure("the database is away", delay=86_400))] * 3)
    comes(site, "postfix")
    for _ in range(3):
        assert heard == []
        assert len(site.entries("bounces")) == 1
        site.clock.advance("1d")
        site.run_until_idle()
    assert len(heard) == 1
    assert site.site.scores.days("bounces", "ann@example.com") == {
        site.clock.now_ns() // (86_400 * 10**9) - 3: 1.0
    }


# The hook


def test_a_hook_is_not_called_again_for_those_it_has_heard_of(site: FakeSite) -> None:
    refuse.append(("cat@example.com", TemporaryFailure("the database is away")))
    comes(site, "exim")
    assert [one.address for one in heard] == ["bob@example.com"]
    site.clock.advance("1h")
    site.run_until_idle()
    assert [one.address for one in heard] == ["bob@example.com", "cat@example.com"]
    assert site.entries("bounces") == []


def test_a_hook_that_breaks_is_a_persons_to_mend(site: FakeSite) -> None:
    refuse.append(("Ann@example.com", KeyError("ann")))
    comes(site, "postfix")
    (entry,) = site.entries("shunt")
    assert "KeyError" in str(entry.history[-1])


def test_a_hook_that_refuses_for_good_is_reported_to_nobody_but_the_postmaster(site: FakeSite) -> None:
    refuse.append(("Ann@example.com", PermanentFailure("no such list")))
    comes(site, "postfix")
    (report,) = site.sink["mta"].messages
    assert report.recipients == ("postmaster@lists.example.org",)


def test_a_hook_may_be_asynchronous() -> None:
    with make(hook="on_bounce_awaited") as site:
        comes(site, "postfix")
    assert len(heard) == 1


def test_a_count_that_can_not_be_written_waits_and_costs_nothing(site: FakeSite) -> None:
    def full(*arguments: object) -> dict[int, float]:
        raise OSError(28, "No space left on device")

    count = site.site.scores.count
    site.site.scores.count = full  # type: ignore[method-assign]
    comes(site, "postfix")
    (entry,) = site.entries("bounces")
    assert (entry.attempts, heard) == (0, [])
    assert "No space left" in str(entry.history[-1])
    site.site.scores.count = count  # type: ignore[method-assign]
    site.clock.advance("1m")
    site.run_until_idle()
    assert (len(heard), site.entries("bounces")) == (1, [])


def test_a_history_that_can_not_be_written_may_make_the_hook_hear_again_and_loses_nothing(
    site: FakeSite,
) -> None:
    site.run_until_idle()
    (engine,) = (one for one in site.engines if one.config.name == "bounces")

    async def full(*arguments: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    engine.note = full  # type: ignore[method-assign]
    comes(site, "exim")
    assert (len(heard), site.entries("bounces"), site.entries("shunt")) == (2, [], [])


# Strangers


def test_a_bounce_of_more_addresses_than_a_message_has_is_for_a_person(site: FakeSite) -> None:
    comes(site, HOSTILE["recipients"].replace(b"a@example.net", b"%d@example.net"))
    lines = b"".join(b"Final-Recipient: rfc822;%d@example.net\nAction: failed\n\n" % n for n in range(150))
    comes(site, b"Content-Type: message/delivery-status\n\nReporting-MTA: dns; h\n\n" + lines)
    assert (len(heard), len(site.entries("hold"))) == (1, 1)


def test_a_bounce_that_names_no_address_is_for_a_person(site: FakeSite) -> None:
    comes(site, b"Content-Type: message/delivery-status\n\nAction: failed\nStatus: 5.1.1\n\n")
    assert (heard, len(site.entries("hold"))) == ([], 1)


@pytest.mark.parametrize("name", HOSTILE)
def test_what_strangers_write_has_an_end(site: FakeSite, name: str) -> None:
    comes(site, HOSTILE[name], to="list-bounces+ann=example.net@lists.example.org")
    assert (site.entries("bounces"), site.entries("shunt")) == ([], [])


@pytest.mark.parametrize("fill", [b"a", b" ", b"<", b"a@", b'"', b"\t<a"])
def test_one_long_line_does_not_stop_the_process(site: FakeSite, fill: bytes) -> None:
    for opening in (b"failed addresses follow:\n", b"A message that you sent could not be delivered\n"):
        comes(site, b"From: MAILER-DAEMON@h\n\n" + opening + fill * 200_000 + b"!")
    assert (site.entries("bounces"), site.entries("shunt")) == ([], [])


@pytest.mark.parametrize("path", sorted(CORPUS.glob("*.eml")), ids=lambda path: path.stem)
def test_odd_mail_is_kept_byte_for_byte(site: FakeSite, path: Path) -> None:
    comes(site, path.read_bytes())
    (entry,) = site.entries("hold")
    assert (entry.message, heard) == (path.read_bytes(), [])


def test_what_the_scanner_fails_at_is_no_bounce_and_no_fault(
    site: FakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(message: object) -> tuple[list[bytes], list[bytes]]:
        raise IndexError("an odd one")

    monkeypatch.setattr("qrunner.runners.bounce.all_failures", fails)
    comes(site, "qmail")
    assert len(site.entries("hold")) == 1


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300), to=st.text(max_size=40))
def test_nothing_shunts_it(site: FakeSite, data: bytes, to: str) -> None:
    comes(site, sample("postfix")[:700] + data, to=f"a+{to}@lists.example.org")
    assert site.entries("shunt") == []


# Configuration


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ('{ half_life = "soon" }', "not a duration"),
        ('{ half_life = "0s" }', "more than 0"),
        ("{ threshold = 0 }", "more than 0"),
        ('{ threshold = "x" }', "could not convert"),
        ('{ verp = "++=" }', "not right for verp"),
        ('{ senders = "a@b" }', "a list of addresses"),
    ],
)
def test_an_option_that_makes_no_sense_keeps_it_from_starting(options: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        make(f"options = {options}")


def test_without_the_extra_the_check_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flufl.bounce", None)
    monkeypatch.delitem(sys.modules, "qrunner.runners.bounce")
    with pytest.raises(ConfigError, match=r"^bounce: this runner wants .*pip install 'qrunner\[bounce\]'"):
        load_class("bounce")


def test_counts_survive_a_restart_and_are_the_machines_own(tmp_path: Path) -> None:
    with make() as fake:
        config = fake.config
    from dataclasses import replace

    (tmp_path / "qfiles").mkdir()
    (tmp_path / "var").mkdir()
    place = replace(config.site, queue_dir=tmp_path / "qfiles", state_dir=tmp_path / "var")
    config = replace(config, site=place)
    Site(config).scores.count("bounces", "ann@example.com", 0, 1.0, 86_400.0)
    assert Site(config).scores.days("bounces", "ann@example.com") == {0: 1.0}
    assert sorted(os.listdir(tmp_path / "var")) == ["bounce"]


# The documents


def test_the_how_to_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, configuration = (
        next(one for one in blocks("docs/HOWTO.md") if one.language == language and "bounces" in one.words)
        for language in ("python", "toml")
    )
    (tmp_path / "mysite").mkdir()
    (tmp_path / "mysite" / "__init__.py").touch()
    (tmp_path / "mysite" / "bounces.py").write_text(code.text)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "mysite"]:
        monkeypatch.delitem(sys.modules, name)
    out = '[smtp.mta1]\nhost = "h"\n[runner.out]\nclass = "outgoing"\nsmtp = "mta1"\n'
    with FakeSite(f"{out}{configuration.text}") as site:
        site.pressure = 90
        comes(site, "postfix", to="list-bounces+ann=example.net@lists.example.org")
        assert len(site.entries("bounces")) == 1
        site.pressure = 5
        for _ in range(9):
            comes(site, "postfix", to="list-bounces+ann=example.net@lists.example.org")
            site.clock.advance("1d")
        site.enqueue("bounces", message=sample("vacation"), sender="", recipients=[LIST])
        site.enqueue("bounces", message=sample("question"), sender="bob@example.net", recipients=[LIST])
        site.run_until_idle()
        (asked,) = site.sink["mta1"].messages
        assert (asked.message, asked.recipients) == (sample("question"), ("owner@lists.example.org",))
    gone = importlib.import_module("mysite.bounces").unsubscribed
    assert gone == {("ann@example.net", LIST)}
