"""What the how-to promises of its configurations, on sinks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from qrunner.bounce import Bounce
from qrunner.testing import FakeSite
from tests.documents import blocks

OURS = ("mta1", "mta2", "mta3")
gone: list[Bounce] = []


def on_bounce(bounce: Bounce) -> None:
    """As ``mysite.bounces`` might have it."""
    gone.append(bounce)


def shown(word: str) -> str:
    (found,) = [block.text for block in blocks("docs/HOWTO.md") if word in block.words]
    return found.replace("mysite.bounces", __name__)


def counts(site: FakeSite) -> Counter[str]:
    return Counter({name: len(sink.messages) for name, sink in site.sink.items()})


def send(site: FakeSite, count: int, queue: str = "out", domain: str = "x.example") -> None:
    for number in range(count):
        site.enqueue(queue, recipients=[f"r{number}@{domain}"])


def pass_by(site: FakeSite, minutes: int) -> None:
    for _ in range(minutes):
        site.clock.advance("1m")
        site.run_until_idle()


@pytest.fixture
def site() -> Iterator[FakeSite]:
    with FakeSite(shown("fallback").replace('rate = "600/m"', "")) as one:
        yield one


def test_three_mtas_share_the_mail_by_weight_and_the_relay_gets_none(site: FakeSite) -> None:
    send(site, 1_000)
    site.run_until_idle()
    got = counts(site)
    # Six standard deviations.
    assert abs(got["mta1"] - 700) < 90
    assert abs(got["mta2"] - 200) < 80
    assert abs(got["mta3"] - 100) < 60
    assert not got["relay"]
    assert got.total() == 1_000


def test_what_is_put_off_waits_for_its_own_host(site: FakeSite) -> None:
    for name in OURS:
        site.sink[name].reply("RCPT", "451 4.7.1 come again", times=3)
    send(site, 100)
    pass_by(site, 120)
    assert not counts(site)["relay"]
    assert not site.entries("fallback")
    assert not site.entries("backoff")
    assert counts(site).total() == 100


def test_while_one_is_down_the_others_take_its_share_and_while_all_are_the_relay(site: FakeSite) -> None:
    site.sink["mta1"].down = True
    send(site, 100)
    site.run_until_idle()
    assert counts(site) == {"mta1": 0, "relay": 0, "mta2": counts(site)["mta2"], "mta3": counts(site)["mta3"]}
    assert counts(site).total() == 100
    for name in OURS:
        site.sink[name].down = True
    send(site, 100)
    pass_by(site, 5)
    assert counts(site)["relay"] == 100
    for name in OURS:
        site.sink[name].down = False
    # They are found out, and begin with one connection each.
    pass_by(site, 6)
    send(site, 100)
    pass_by(site, 6)
    assert counts(site)["relay"] == 100
    assert counts(site).total() == 300


@pytest.mark.parametrize("first", [*OURS, "relay"])
def test_with_all_four_down_mail_goes_to_whichever_is_back_first(site: FakeSite, first: str) -> None:
    for sink in site.sink.values():
        sink.down = True
    send(site, 50)
    for _ in range(4 * 7):
        site.clock.advance("6h")
        site.run_until_idle()
    assert not counts(site).total()
    site.sink[first].down = False
    pass_by(site, 30)
    assert counts(site)[first] == counts(site).total() == 50


def test_mail_in_bulk_goes_by_the_queue_of_its_domain_with_a_sender_that_tells_for_whom() -> None:
    gone.clear()
    with FakeSite(shown("bulk")) as site:
        site.sink["direct"].reply("RCPT TO:<r0", "550 5.1.1 no such user")
        send(site, 3, "in", "small.example")
        send(site, 2, "in", "bigmail.example")
        pass_by(site, 10)
        assert {one.recipients for one in site.sink["careful"].messages} == {
            ("r0@bigmail.example",),
            ("r1@bigmail.example",),
        }
        assert {one.sender.partition("+")[2] for one in site.sink["careful"].messages} == {
            "r0=bigmail.example@example.org",
            "r1=bigmail.example@example.org",
        }
        assert [(one.address, one.kind) for one in gone] == [("r0@small.example", "address")]
