"""The configuration: what a good one becomes, and everything that is said of a bad one."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrunner.config import (
    Config,
    ConfigErrors,
    Retry,
    WhenIdle,
    duration_s,
    find,
    is_queue_name,
    load,
    parse,
    problem_at,
    size_bytes,
)
from qrunner.config.access import writable_by
from qrunner.config.keys import RUNNER, SITE, SMTP, STOCK

FILE = Path("/srv/lists/etc/qrunner.toml")

GOOD = """
[site]
hostname = "lists.example.org"
retry = { first = "1m", lifetime = "2d", warn = "4h" }

[smtp.mta1]
host = "127.0.0.1"
port = 2525
rate = "600/m"
[smtp.mta2]
host = "relay.example.org"
idle_timeout = "5s"
[smtp.direct]
mode = "mx"

[runner.in]
class = "incoming"
handlers = ["mysite.handlers:tag"]
next = ["out", "keep"]

[runner.out]
class = "outgoing"
nice = 5
options = { a = 1, b = 2 }
slices = [
  { weight = 70, smtp = "mta1" },
  { weight = 30, smtp = ["mta2", "direct"], node = "b", concurrency = 3, options = { b = 3 } },
]

[runner.backoff]
class = "outgoing"
smtp = ["mta1", "mta2"]
retry = { max = "8h" }

[runner.door]
class = "lmtp"
listen = "unix:../var/lmtp.sock"
next = "main"

[runner.changes]
class = "maildir"
path = "../mail/changes"
recipients = ["builds@example.org"]
next = "news"

[runner.news]
class = "fanout"
subscribers = { linux = {}, keep = { header = { "List-Id" = ["*dev*", "/ops$/"] } } }

[runner.linux]
class = "mysite.runners:Linux"
instances = 3
only_when_idle = true
periodic = "1m"

[runner.check]
class = "command"
queue = "to-check"
command = ["./check", "--strict"]
timeout = "10m"
exits = { 1 = "done" }
output = "in"

[runner.keep]
class = "archive"
path = "../var/archive/%Y-%m.mbox"

[runner.bounces]
class = "bounce"
hook = "mysite.bounces:on_bounce"
only_when_idle = { pressure = 10, queues = ["in", "out"] }

[balance.mtas]
members = { out = 60, backoff = 40 }

[route.main]
rules = [
  { recipient = "*@big.example", queue = "mtas" },
  { queue = "in" },
]
"""


def good(text: str = GOOD) -> Config:
    return parse(text, FILE)


def problems(text: str) -> list[str]:
    """What is wrong with a text, without the file's name."""
    with pytest.raises(ConfigErrors) as raised:
        parse(text, FILE)
    assert str(raised.value).splitlines() == [str(problem) for problem in raised.value.problems]
    return [str(problem).removeprefix(f"{FILE}:") for problem in raised.value.problems]


def only_problem(text: str) -> str:
    (problem,) = problems(text)
    return problem


# What a good one becomes


def test_paths_start_at_the_files_own_folder() -> None:
    config = good()
    assert config.site.queue_dir == Path("/srv/lists/qfiles")
    assert config.runners["changes"].settings["path"] == Path("/srv/lists/mail/changes")
    assert config.runners["check"].settings["command"] == ("/srv/lists/etc/check", "--strict")
    assert config.runners["door"].settings["listen"].path == Path("/srv/lists/var/lmtp.sock")


def test_a_retry_says_only_in_what_it_differs() -> None:
    config = good()
    assert config.site.retry == Retry(first_s=60, lifetime_s=2 * 86400, warn_s=4 * 3600)
    assert config.runners["backoff"].retry == Retry(60, max_s=8 * 3600, lifetime_s=2 * 86400, warn_s=4 * 3600)
    assert config.runners["out"].retry == config.site.retry


def test_a_slice_inherits_what_it_does_not_say() -> None:
    first, second = good().runners["out"].slices
    assert (first.weight, first.node, first.smtp, first.concurrency, first.nice) == (
        70,
        None,
        ("mta1",),
        20,
        5,
    )
    assert (second.node, second.smtp, second.concurrency) == ("b", ("mta2", "direct"), 3)
    assert (first.options, second.options) == ({"a": 1, "b": 2}, {"a": 1, "b": 3})


def test_instances_are_that_many_equal_slices_and_one_is_the_default() -> None:
    config = good()
    assert [one.weight for one in config.runners["linux"].slices] == [1, 1, 1]
    assert len(config.runners["in"].slices) == 1


def test_a_runner_that_is_off_has_no_slice_that_is_on() -> None:
    config = good('[runner.x]\nclass = "x:Y"\nenabled = false\nslices = [{ enabled = true }]')
    assert not config.runners["x"].slices[0].enabled


def test_tls_is_none_on_loopback_and_may_elsewhere() -> None:
    hosts = good().smtp
    assert [hosts[name].tls for name in ("mta1", "mta2", "direct")] == ["none", "may", "may"]
    assert hosts["mta1"].rate == (600, 60.0)


def test_on_down_is_backoff_where_there_is_one_but_not_its_own() -> None:
    config = good()
    assert config.runners["out"].settings["on_down"] == ("backoff",)
    assert config.runners["backoff"].settings["on_down"] == ()
    alone = good('[smtp.a]\nhost = "a"\n[runner.out]\nclass = "outgoing"\nsmtp = "a"')
    assert alone.runners["out"].settings["on_down"] == ()


def test_doors_own_no_queue() -> None:
    config = good()
    assert [name for name, runner in config.runners.items() if runner.door] == ["door", "changes"]
    assert config.runners["door"].queue == ""


def test_every_real_queue_is_listed_once_and_no_virtual_one() -> None:
    queues = good().queues()
    assert sorted(queues) == ["backoff", "bounces", "in", "keep", "linux", "news", "out", "to-check"]


def test_the_report_queue_is_there_although_no_runner_serves_it_yet() -> None:
    assert good('[runner.gate]\nclass = "mysite:Gate"').queues() == ("gate", "out")


def test_values_are_converted() -> None:
    runners = good().runners
    assert runners["check"].settings["exits"] == {0: "done", 1: "done", 75: "later"}
    assert runners["check"].timeout_s == 600
    assert runners["linux"].only_when_idle == WhenIdle()
    assert runners["bounces"].only_when_idle == WhenIdle(10, ("in", "out"))
    assert runners["linux"].periodic_s == 60


def test_rules_and_subscribers_are_matches() -> None:
    config = good()
    first, last = config.routes["main"].rules
    assert first.match.fits_recipient("Bob@BIG.example")
    assert (first.match.splits, last.match.splits) == (True, False)
    subscribers = dict(config.runners["news"].settings["subscribers"])
    assert subscribers["keep"].fits_message(sender="", header=lambda name: "x.ops", meta={})


def test_an_empty_file_is_a_site_of_defaults() -> None:
    config = good("")
    assert config.site.node
    assert config.site.postmaster == f"postmaster@{config.site.hostname}"
    assert config.site.min_free == 64 * 1024 * 1024
    assert config.queues() == ("out",)


def test_an_unchanged_runner_is_equal_after_a_reload_and_a_changed_one_is_not() -> None:
    changed = good(GOOD.replace('path = "../mail/changes"', 'path = "../mail/other"'))
    differing = [name for name, runner in good().runners.items() if changed.runners[name] != runner]
    assert differing == ["changes"]


# What is said of a bad one


def test_every_problem_is_reported_at_once_with_line_and_key() -> None:
    text = """\
[site]
hostnam = "a"
min_free = "64Q"
[smtp.mta1]
port = 70000
[runner.in]
class = "incomming"
next = "uot"
[runner.out]
class = "outgoing"
slices = [
  { weight = 0, smtp = "mta1" },
  { smtp = "mat1" },
]
"""
    found = problems(text)
    assert [line.split(": ")[:2] for line in found] == [
        ["2", "site.hostnam"],
        ["3", "site.min_free"],
        ["4", "smtp.mta1.host"],
        ["5", "smtp.mta1.port"],
        ["7", "runner.in.class"],
        ["8", "runner.in.next"],
        ["12", "runner.out.slices[0].weight"],
        ["13", "runner.out.slices[1].smtp"],
    ]
    assert 'did you mean "hostname"?' in found[0]
    assert 'did you mean "incoming"?' in found[4]
    assert 'did you mean "out"?' in found[5]
    assert 'did you mean "mta1"?' in found[7]


WRONG = [
    ("[sight]\nx = 1", "1: sight: unknown section"),
    ("site = 3", "1: site: 3 is not a table"),
    ('[site]\nnode = "../a"', "2: site.node: "),
    ('[site]\nqueue_dir = ""', "2: site.queue_dir: "),
    ('[site]\nretry = { first = "5x" }', '2: site.retry.first: "5x" is not a duration'),
    ('[site]\nretry = { first = "5h" }', "2: site.retry: first (18000 s) is longer than max (14400 s)"),
    ('[site]\ndurability = "some"', "2: site.durability: "),
    ('[site]\nreport_queue = "fff"', "2: site.report_queue: "),
    ('[smtp.a]\nmode = "mx"\nhost = "b"\n[site]\nhostname = "a.example"', "3: smtp.a.host: "),
    ('[site]\nhostname = "a"\n[smtp.a]\nmode = "mx"', "4: smtp.a.mode: "),
    ('[smtp.a]\nhost = "b"\nusername = "u"', "1: smtp.a.password_file: is missing"),
    ('[smtp.a]\nhost = "b"\nrate = "0/m"', "3: smtp.a.rate: "),
    ('[smtp.a]\nhost = "b"\ntls = "maybe"', "3: smtp.a.tls: "),
    ('[smtp."a/b"]\nhost = "b"', '1: smtp."a/b"[]: '.removesuffix("[]: ")),
    ("[runner.in]\nnice = 3", "1: runner.in.class: is missing"),
    ('[runner.bad]\nclass = "m:C"', "1: runner.bad: "),
    ('[runner.abc]\nclass = "m:C"', "1: runner.abc: "),
    ('[runner.In]\nclass = "m:C"', "1: runner.In: "),
    ('[runner.x]\nclass = "m.n"', '2: runner.x.class: "m.n" is no stock runner'),
    ('[runner.x]\nclass = "m:C"\nconcurrency = true', "3: runner.x.concurrency: true is not right"),
    ('[runner.x]\nclass = "m:C"\ninstances = 2\nslices = [{}]', "3: runner.x.instances: cannot stand beside"),
    ('[runner.x]\nclass = "m:C"\nslices = []', "3: runner.x.slices: "),
    (
        '[runner.x]\nclass = "m:C"\nslices = [{ wait = 3 }]',
        '3: runner.x.slices[0].wait: unknown key, did you mean "weight"',
    ),
    ('[runner.x]\nclass = "m:C"\nhandlers = ["m.f"]', "3: runner.x.handlers[0]: "),
    ('[runner.x]\nclass = "m:C"\nreport = "me"', "3: runner.x.report: "),
    ('[runner.x]\nclass = "incoming"', "1: runner.x.next: is missing"),
    ('[runner.x]\nclass = "incoming"\nnext = "x"', '3: runner.x.next: "x" is its own queue'),
    (
        '[runner.x]\nclass = "fanout"\nsubscribers = { x = {} }',
        '3: runner.x.subscribers: "x" is its own queue',
    ),
    (
        '[runner.x]\nclass = "fanout"\nsubscribers = { y = {} }\n[runner.y]\nclass = "incoming"\nnext = "x"',
        "3: runner.x.subscribers: mail goes round for ever (x → y → x), expected an end",
    ),
    (
        '[runner.x]\nclass = "incoming"\nnext = "outpit"\n[runner.output]\nclass = "incoming"\nnext = "z"',
        '3: runner.x.next: no runner serves a queue "outpit", did you mean "output"?',
    ),
    ('[runner.x]\nclass = "outgoing"', "1: runner.x.smtp: is missing"),
    ('[runner.x]\nclass = "command"\ncommand = "ls"', '3: runner.x.command: "ls" is not a list'),
    ('[runner.x]\nclass = "command"\ncommand = ["a"]\nexits = { 1 = "x" }', "4: runner.x.exits.1: "),
    ('[runner.x]\nclass = "command"\ncommand = ["a"]\nexits = { 300 = "done" }', "4: runner.x.exits.300: "),
    ('[runner.x]\nclass = "command"\ncommand = ["a"]\nlisten = "b"', "4: runner.x.listen: unknown key"),
    ('[runner.x]\nclass = "bounce"', "1: runner.x.hook: is missing"),
    (
        '[runner.x]\nclass = "fanout"\nsubscribers = { y = { sender = "/(/" } }',
        "3: runner.x.subscribers.y.sender: ",
    ),
    (
        '[runner.y]\nclass = "m:C"\n[runner.x]\nclass = "lmtp"\nlisten = "0.0.0.0:24"\nnext = "y"',
        "3: runner.x.accept: is missing",
    ),
    (
        '[runner.y]\nclass = "m:C"\n[runner.x]\nclass = "lmtp"\nlisten = ":99999"\naccept = "*"\nnext = "y"',
        "5: runner.x.listen: ",
    ),
    (
        '[runner.y]\nclass = "m:C"\n[runner.x]\nclass = "lmtp"\nlisten = ":24"\naccept = "*"\nnext = "y"\nqueue = "z"',
        "8: runner.x.queue: ",
    ),
    (
        '[runner.y]\nclass = "m:C"\n[runner.x]\nclass = "m:C"\nqueue = "y"',
        '5: runner.x.queue: the queue "y" has a runner already, "y"',
    ),
    (
        '[runner.y]\nclass = "m:C"\n[runner.z]\nclass = "m:C"\n[balance.y]\nmembers = { z = 1 }',
        '5: balance.y: is also the queue of runner "y"',
    ),
    ('[runner.y]\nclass = "m:C"\n[balance.all]\nmembers = { y = -1 }', "4: balance.all.members.y: "),
    ("[route.r]\nrules = [\n  { queue = 'r' } ]", "1: route.r: goes round in a circle (r → r)"),
    ("[route.r]\nrules = [\n  { sender = 'x' } ]", "3: route.r.rules[0].queue: is missing"),
    (
        "[route.r]\n[balance.s]\nmembers = { r = 1 }\n[[route.r.rules]]\nqueue = 's'",
        "2: balance.s: goes round in a circle (s → r → s)",
    ),
]


@pytest.mark.parametrize(("text", "expected"), WRONG, ids=[expected for _, expected in WRONG])
def test_one_thing_wrong_is_one_problem_in_its_line(text: str, expected: str) -> None:
    assert only_problem(text).startswith(expected)


@pytest.mark.parametrize(
    ("text", "line"), [("[site\n", 1), ("[site]\na = 1\na = 2", 3), ("[site]\nx =\n", 2), ('a = """\n\n', 1)]
)
def test_broken_toml_is_said_with_its_line(text: str, line: int) -> None:
    assert only_problem(text).startswith(f"{line}: configuration: is not TOML: ")


@pytest.mark.parametrize(
    "text", ["a = " + "[" * 10_000, "a = " + "9" * 10_000, "[site]\nmin_free = 0x" + "f" * 9_000]
)
def test_what_python_itself_refuses_is_a_problem_like_any_other(text: str) -> None:
    assert problems(text)


def test_an_unknown_key_names_the_nearest_known_one_for_every_key_there_is() -> None:
    tables = {"[site]": SITE, '[smtp.a]\nhost = "x"': SMTP}
    tables |= {f'[runner.x]\nclass = "{name}"': {**RUNNER, **stock.keys} for name, stock in STOCK.items()}
    for header, keys in tables.items():
        for key in keys:
            found = [line for line in problems(f"{header}\n{key}x = 1") if f".{key}x: unknown key" in line]
            assert len(found) == 1
            assert f'"{key}"' in found[0]


def test_a_later_finding_gets_the_line_of_its_key() -> None:
    problem = problem_at(good(), ("runner", "linux", "class"), "cannot be imported")
    assert str(problem) == f"{FILE}:{line_of('mysite.runners:Linux')}: runner.linux.class: cannot be imported"


def line_of(text: str) -> int:
    return GOOD[: GOOD.index(text)].count("\n") + 1


VALUES = [
    "1",
    "-1",
    "1.5",
    "nan",
    "inf",
    "true",
    '""',
    '"x"',
    '"out"',
    '"\\n"',
    '"5m"',
    "[]",
    '["in"]',
    "[1]",
    "[[]]",
    "{}",
    "{a=1}",
    "{in={}}",
    "{in=1}",
    "[{}]",
    "[{queue=1}]",
    "1979-05-27",
    '"/(/"',
    '{1="done"}',
    "{sender=1}",
    "{sender=[]}",
]


@given(st.data())
def test_any_value_at_any_key_is_accepted_or_is_a_problem(data: st.DataObject) -> None:
    lines = GOOD.splitlines()
    index = data.draw(
        st.sampled_from(
            [i for i, line in enumerate(lines) if line.endswith(("]", '"', "}")) and " = " in line]
        )
    )
    lines[index] = f"{lines[index].split(' = ')[0]} = {data.draw(st.sampled_from(VALUES))}"
    try:
        parse("\n".join(lines), FILE)
    except ConfigErrors as errors:
        found = errors.problems
    else:
        found = ()
    assert all(1 <= problem.line <= len(lines) and problem.key for problem in found)


@given(st.text() | st.text(alphabet='[]a.="1\n{}'))
def test_any_text_is_a_configuration_or_a_list_of_problems(text: str) -> None:
    with contextlib.suppress(ConfigErrors):
        parse(text, FILE)


# Single values


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("250ms", 0.25), ("30s", 30), ("1.5h", 5400), ("1h30m", 5400), ("5d", 432000), ("0s", 0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "m", "5 m", "-5m", "5m ", "5M", "1e3s", "٣s", "9" * 400 + "d"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        duration_s(text)


def test_sizes_are_powers_of_1024() -> None:
    assert [size_bytes(text) for text in ("10", "1K", "64M", "1.5G")] == [10, 1024, 64 << 20, 3 << 29]
    for text in ("", "M", "1T", "1m", "-1", "1 M"):
        with pytest.raises(ValueError, match="expected"):
            size_bytes(text)


def test_queue_names() -> None:
    assert all(map(is_queue_name, ["in", "out-a", "x", "a_b", "add-on", "g" * 64]))
    assert not any(
        map(is_queue_name, ["", "hold", "shunt", "bad", "abc", "a1", "1a", "In", "a.b", "in\n", "x" * 65])
    )


# The file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    path = tmp_path / "etc" / "qrunner.toml"
    path.write_text('[site]\npython_path = ["../site"]\n')
    (tmp_path / "site").mkdir()
    for each in (path, tmp_path / "site"):
        each.chmod(0o755)
    return path


def load_problem(path: Path) -> str:
    with pytest.raises(ConfigErrors) as raised:
        load(path)
    return str(raised.value)


def test_a_file_is_loaded(file: Path) -> None:
    config = load(file)
    assert config.path == file
    assert config.text == file.read_text()
    assert config.site.python_path == (file.parent.parent / "site",)


def test_a_configuration_that_others_may_write_is_refused(file: Path) -> None:
    file.chmod(0o666)
    assert load_problem(file).startswith(f"{file}:1: configuration: everybody may write this file")


def test_a_python_path_that_others_may_write_is_refused_with_the_line_of_its_key(file: Path) -> None:
    (file.parent.parent / "site").chmod(0o777)
    assert load_problem(file).startswith(f"{file}:2: site.python_path: everybody may write ")


def test_roots_group_counts_as_others() -> None:
    status = os.stat_result((0o100664, 0, 0, 1, 0, 0, 0, 0, 0, 0))
    assert writable_by(status, frozenset({0})) == "its group"


def test_an_owner_who_is_a_stranger_is_refused() -> None:
    status = os.stat_result((0o100644, 0, 0, 1, 4321, 4321, 0, 0, 0, 0))
    assert writable_by(status, frozenset({0, 4321})) == ""
    assert "4321" in writable_by(status, frozenset({0}))


def test_a_folder_or_file_that_is_not_there_is_a_problem(file: Path) -> None:
    file.write_text('[site]\npython_path = "gone"\n[smtp.a]\nhost = "b"\nca_file = "gone.pem"\n')
    found = load_problem(file).splitlines()
    assert [line.removeprefix(f"{file}:").split(": ")[:2] for line in found] == [
        ["2", "site.python_path"],
        ["5", "smtp.a.ca_file"],
    ]


def test_a_missing_file_and_a_folder_are_said_to_be_so(tmp_path: Path) -> None:
    assert "No such file" in load_problem(tmp_path / "none.toml")
    assert "directory" in load_problem(tmp_path)


def test_a_file_that_may_not_be_looked_at_is_found_and_then_said_to_be_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A path that the system refuses to look at, for root as well: a name that is too long.
    refused = Path("/" + "x" * 300)
    monkeypatch.delenv("QRUNNER_CONFIG", raising=False)
    monkeypatch.setattr("qrunner.config.access.HERE", Path("/nowhere"))
    monkeypatch.setattr("qrunner.config.access.SYSTEM_WIDE", refused)
    assert find() == refused
    assert "cannot be read: File name too long" in load_problem(refused)


def test_text_that_is_not_utf_8_is_said_with_its_line(file: Path) -> None:
    file.write_bytes(b"[site]\n# caf\xe9\n")
    assert load_problem(file).startswith(f"{file}:2: configuration: byte 0xe9 is not UTF-8")


def test_the_file_is_found_in_the_order_of_the_contract(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent.parent)
    monkeypatch.setattr("qrunner.config.access.SYSTEM_WIDE", file.parent / "system.toml")
    monkeypatch.setenv("QRUNNER_CONFIG", "named.toml")
    assert find(Path("explicit.toml")) == Path("explicit.toml")
    assert find(None) == Path("named.toml")
    monkeypatch.delenv("QRUNNER_CONFIG")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert find(None) == Path("etc/qrunner.toml")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(ConfigErrors, match="no configuration, expected -c FILE"):
        find(None)
    (file.parent / "system.toml").touch()
    assert find(None) == file.parent / "system.toml"


def test_a_queue_that_another_machine_or_program_serves_may_be_named() -> None:
    config = parse(
        '[runner.x]\nclass = "incoming"\nnext = ["out", "archive"]', Path("/site/etc/qrunner.toml")
    )
    assert set(config.queues()) >= {"x", "out", "archive"}
