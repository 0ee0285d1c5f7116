"""Fan-out: who gets a message, once, while it is there and while it is away."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from qrunner.config import ConfigErrors, load, parse
from qrunner.master.plan import prepare
from qrunner.message import Entry
from qrunner.runners.fanout import NOBODY, FanoutRunner
from qrunner.site import Site
from qrunner.testing import FakeSite
from tests.sites import TinySite, tiny_site, wait_for

pytest_plugins = ["qrunner.testing.plugin"]

Make = Callable[[str], FakeSite]
SITE = '[site]\nhostname = "lists.example.org"\npostmaster = "postmaster@lists.example.org"\n'


def news(subscribers: str, more: str = "") -> str:
    return f'{SITE}[runner.news]\nclass = "fanout"\nsubscribers = {{ {subscribers} }}\n{more}'


def holding(site: FakeSite, *queues: str) -> dict[str, list[Entry]]:
    return {queue: site.entries(queue) for queue in queues if site.entries(queue)}


def test_every_subscriber_gets_the_whole_message_with_all_its_recipients(fake_site: Make) -> None:
    site = fake_site(news("linux = {}, mac = {}, audit = {}"))
    id = site.enqueue("news", recipients=["a@example.org", "b@example.org"], meta={"source": "changes"})
    site.run_until_idle()
    found = holding(site, "linux", "mac", "audit", "news")
    assert [len(entries) for entries in found.values()] == [1, 1, 1]
    entries = [entry for (entry,) in found.values()]
    assert {entry.recipients for entry in entries} == {("a@example.org", "b@example.org")}
    assert {entry.parents for entry in entries} == {(id,)}
    assert len({entry.id for entry in entries}) == 3
    assert {entry.meta["source"] for entry in entries} == {"changes"}
    assert len({(entry.message, entry.sender, entry.arrival_ns) for entry in entries}) == 1


def test_a_single_one_gets_the_entry_itself(fake_site: Make) -> None:
    site = fake_site(news("linux = {}"))
    id = site.enqueue("news")
    site.run_until_idle()
    assert [entry.id for entry in site.entries("linux")] == [id]


def test_what_nobody_wants_is_finished_and_the_log_says_why(
    fake_site: Make, caplog: pytest.LogCaptureFixture
) -> None:
    site = fake_site(news('mac = { sender = "*@mac.example.org" }'))
    caplog.set_level("INFO", logger="qrunner")
    id = site.enqueue("news", sender="ann@linux.example.org")
    site.run_until_idle()
    assert holding(site, "news", "mac", "shunt", "hold") == {}
    (said,) = [record.fields for record in caplog.records if record.message == "done"]  # type: ignore[attr-defined]
    assert (said["id"], said["reason"]) == (id, NOBODY)


CASES: Sequence[tuple[str, bool]] = (
    ("{}", True),
    ('{ sender = "*@MAC.example.org" }', True),
    ('{ sender = "*@linux.example.org" }', False),
    ('{ recipient = "eve@example.net" }', True),
    ('{ recipient = "nobody@example.net" }', False),
    ('{ domain = ["example.com", "example.net"] }', True),
    ('{ header = { "List-Id" = "*dev*" } }', True),
    ('{ header = { "X-None" = "*" } }', False),
    ('{ meta = { source = "changes" } }', True),
    ('{ meta = { source = ["other", "/^chan/"] } }', True),
    ('{ meta = { source = "changes" }, header = { "List-Id" = "*ops*" } }', False),
)


@pytest.mark.parametrize(("match", "wants"), CASES)
def test_a_match_decides_and_one_recipient_is_enough(match: str, wants: bool, fake_site: Make) -> None:
    site = fake_site(news(f"mac = {match}"))
    site.enqueue(
        "news",
        message=b"List-Id: <dev.example.org>\nSubject: x\n\nx\n",
        sender="ann@mac.example.org",
        recipients=["bob@example.org", "eve@example.net"],
        meta={"source": "changes"},
    )
    site.run_until_idle()
    assert [entry.recipients for entry in site.entries("mac")] == (
        [("bob@example.org", "eve@example.net")] if wants else []
    )


def test_a_message_without_recipients_fits_only_matches_that_ask_for_none(fake_site: Make) -> None:
    site = fake_site(news('all = {}, some = { recipient = "*@example.org" }'))
    site.enqueue("news", recipients=[])
    site.run_until_idle()
    assert list(holding(site, "all", "some")) == ["all"]


def test_sources_and_subscribers_are_mapped_any_number_to_any_number(fake_site: Make) -> None:
    matches = 'linux = { meta = { source = ["changes", "door"] } }, mac = { meta = { source = "door" } }, audit = {}'
    site = fake_site(news(matches))
    for source in ("changes", "door", "elsewhere", None):
        site.enqueue("news", meta={} if source is None else {"source": source})
    site.run_until_idle()
    got = {
        queue: Counter(entry.meta.get("source") for entry in site.entries(queue))
        for queue in ("linux", "mac", "audit")
    }
    assert got == {
        "linux": {"changes": 1, "door": 1},
        "mac": {"door": 1},
        "audit": {"changes": 1, "door": 1, "elsewhere": 1, None: 1},
    }


def test_a_subscriber_may_be_a_choice_among_queues_or_split_the_recipients(fake_site: Make) -> None:
    virtual = """
[balance.pool]
choose = "sequence"
members = { one = 1, two = 1 }
[route.by-domain]
rules = [{ domain = "example.org", queue = "near" }, { queue = "far" }]
"""
    site = fake_site(news("pool = {}, by-domain = {}, audit = {}", virtual))
    for _ in range(2):
        site.enqueue("news", recipients=["a@example.org", "b@example.net"])
    site.run_until_idle()
    found = holding(site, "one", "two", "near", "far", "audit")
    assert {queue: [entry.recipients for entry in entries] for queue, entries in found.items()} == {
        "one": [("a@example.org", "b@example.net")],
        "two": [("a@example.org", "b@example.net")],
        "near": [("a@example.org",)] * 2,
        "far": [("b@example.net",)] * 2,
        "audit": [("a@example.org", "b@example.net")] * 2,
    }


def test_the_queues_of_subscribers_are_made_although_no_runner_has_them() -> None:
    config = parse(news("linux = {}, mac = {}"), Path("/site/etc/qrunner.toml"))
    assert {"news", "linux", "mac"} <= set(config.queues())


def test_a_subscriber_that_no_runner_has_is_a_slip_only_if_it_looks_like_one() -> None:
    more = '[runner.linux]\nclass = "incoming"\nnext = "mac"\n'
    with pytest.raises(ConfigErrors, match='no runner serves a queue "linxu", did you mean "linux"'):
        parse(news("linxu = {}", more), Path("/site/etc/qrunner.toml"))


class ByDay(FanoutRunner):
    """A site's own choice on top of the configuration's."""

    def subscribers(self, entry: Entry) -> Sequence[str]:
        return [*super().subscribers(entry), *self.options["always"], *self.options["always"]]


def test_a_sites_class_chooses_by_itself_and_names_a_queue_twice_without_harm(fake_site: Make) -> None:
    text = news('mac = { sender = "nobody" }, keep = {}', 'options = { always = ["keep", "mac"] }\n')
    site = fake_site(text.replace('"fanout"', f'"{__name__}:ByDay"'))
    site.enqueue("news")
    site.run_until_idle()
    assert {queue: len(found) for queue, found in holding(site, "keep", "mac").items()} == {
        "keep": 1,
        "mac": 1,
    }


# Under a real master


CONFIG = """\
[site]
hostname = "lists.example.org"
node = "a"
queue_dir = "../qfiles"
state_dir = "../var"
postmaster = "postmaster@lists.example.org"
durability = "none"
min_free = "0"

[runner.news]
class = "fanout"
concurrency = 8
max_crashes = 1000
subscribers = { %s }
"""
TWENTY = [f"sub-{number}" for number in range(20)]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[TinySite]:
    with tiny_site(tmp_path) as made:
        yield made


def subscribe(site: TinySite, *queues: str) -> None:
    site.write(CONFIG % ", ".join(f"{queue} = {{}}" for queue in queues))
    assert set(tomllib.loads(site.config.read_text())["runner"]["news"]["subscribers"]) == set(queues)


def put(site: TinySite, *numbers: int) -> None:
    loaded = Site.load(site.config)
    for number in numbers:
        message = b"X-N: %d\n\nx\n" % number
        loaded.enqueue("news", message=message, sender="a@example.org", recipients=["b@example.org"])


def numbers(site: TinySite, queue: str) -> Counter[int]:
    return Counter(int(entry.header("X-N") or -1) for entry in Site.load(site.config).entries(queue))


def until_news_is_empty(site: TinySite, limit_s: float = 20) -> None:
    spool = Site.load(site.config).spool
    wait_for(lambda: not any(True for _ in spool.peek("news")), limit_s)


def test_subscribers_come_and_go_by_reload_and_what_one_has_stays(site: TinySite) -> None:
    subscribe(site, "linux", "mac")
    site.ctl("start")
    put(site, 0)
    until_news_is_empty(site)
    subscribe(site, "linux", "audit")
    site.ctl("reload")
    put(site, 1)
    until_news_is_empty(site)
    subscribe(site, "linux", "mac", "audit")
    site.ctl("reload")
    put(site, 2)
    until_news_is_empty(site)
    got = {queue: sorted(numbers(site, queue)) for queue in ("linux", "mac", "audit")}
    assert got == {"linux": [0, 1, 2], "mac": [0, 2], "audit": [1, 2]}
    depths = {one["name"]: one["depth"] for one in site.status()["queues"]}
    assert (depths["mac"], depths["shunt"], depths["bad"]) == (2, 0, 0)


def test_a_subscriber_whose_runner_comes_later_finds_all_that_it_wanted(site: TinySite) -> None:
    subscribe(site, "linux", "mac")
    site.ctl("start")
    put(site, *range(10))
    until_news_is_empty(site)
    site.write(site.config.read_text() + '[runner.mac]\nclass = "incoming"\nnext = "done"\n')
    site.ctl("reload")
    wait_for(lambda: len(numbers(site, "done")) == 10)
    assert numbers(site, "linux") == numbers(site, "done") == Counter(range(10))


@pytest.mark.parametrize("count", [60, pytest.param(600, marks=pytest.mark.stress)])
def test_each_of_twenty_has_each_message_once_however_often_the_runner_is_killed(
    site: TinySite, count: int
) -> None:
    subscribe(site, *TWENTY)
    prepare(load(site.config))
    put(site, *range(count))
    site.ctl("start")
    spool = Site.load(site.config).spool
    for share in range(1, 6):
        # At different depths of the backlog, and in whatever it has in hand then.
        wait_for(lambda share=share: len(list(spool.peek("news"))) <= count - count * share // 7, 60)  # type: ignore[misc]
        site.kill("news/0")
    until_news_is_empty(site, 100)
    site.ctl("stop")
    assert [queue for queue in TWENTY if numbers(site, queue) != Counter(range(count))] == []
    assert list((site.folder / "qfiles" / "news" / ".hops").iterdir()) == []
