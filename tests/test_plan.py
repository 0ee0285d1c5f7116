"""What a master runs, and what each runner depends on."""

from __future__ import annotations

from pathlib import Path

import pytest

from qrunner.config import parse
from qrunner.master.plan import Plan, make_plan, sweep_snapshots
from qrunner.rundir import RunDir

TEXT = """\
[site]
hostname = "lists.example.org"
node = "a"
queue_dir = "qfiles"
state_dir = "var"
postmaster = "postmaster@lists.example.org"

[smtp.mta1]
host = "127.0.0.1"

[smtp.mta2]
host = "127.0.0.1"
port = 2525

[runner.in]
class = "incoming"
next = "out"

[runner.out]
class = "outgoing"
on_down = ["backoff"]
slices = [{ weight = 70, smtp = "mta1" }, { weight = 30, smtp = "mta1", node = "b" }]

[runner.backoff]
class = "outgoing"
smtp = ["mta1", "mta2"]
on_down = []
"""


BALANCED = (
    TEXT.replace('next = "out"', 'next = "mtas"') + "[balance.mtas]\nmembers = { out = 1, backoff = 1 }\n"
)


def plan(text: str) -> Plan:
    return Plan(parse(text, Path("/srv/site/etc/qrunner.toml")), "", Path())


@pytest.mark.parametrize(
    ("old", "new", "restarted"),
    [
        ("weight = 70", "weight = 71", "out"),
        ('next = "out"', 'next = "backoff"', "in"),
        ("port = 2525", "port = 2526", "backoff out"),
        ('smtp = ["mta1", "mta2"]', 'smtp = ["mta2"]', "backoff out"),
        ('postmaster = "post', 'postmaster = "host', "backoff in out"),
        ("[smtp.mta1]", "[balance.mtas]\nmembers = { out = 1 }\n\n[smtp.mta1]", "backoff in out"),
        ("[smtp.mta1]", "# a remark\n[smtp.mta1]", ""),
        ("[smtp.mta1]", '[smtp.mta3]\nhost = "127.0.0.3"\n\n[smtp.mta1]', ""),
        ("[runner.in]", '[runner.more]\nclass = "incoming"\nnext = "out"\n\n[runner.in]', ""),
    ],
)
def test_a_change_restarts_the_runners_that_it_is_about(old: str, new: str, restarted: str) -> None:
    assert old in TEXT
    before, after = plan(TEXT), plan(TEXT.replace(old, new))
    changed = [name for name in before.config.runners if before.depends(name) != after.depends(name)]
    assert sorted(changed) == restarted.split()


@pytest.mark.parametrize(
    ("old", "new", "restarted"),
    [
        ('smtp = ["mta1", "mta2"]', 'smtp = ["mta2"]', "backoff in out"),
        ("port = 2525", "port = 2526", "backoff out"),
    ],
)
def test_where_there_is_a_balance_everybody_has_to_know_the_hosts_of_its_members(
    old: str, new: str, restarted: str
) -> None:
    before, after = plan(BALANCED), plan(BALANCED.replace(old, new))
    changed = [name for name in before.config.runners if before.depends(name) != after.depends(name)]
    assert sorted(changed) == restarted.split()


@pytest.mark.parametrize(
    ("old", "new", "run"),
    [
        ("", "", "in/0 out/0 backoff/0"),
        ('node = "a"', 'node = "b"', "in/0 out/0 out/1 backoff/0"),
        ('next = "out"', 'next = "out"\nenabled = false', "out/0 backoff/0"),
        ("weight = 70", "weight = 70, enabled = false", "in/0 backoff/0"),
        ('next = "out"', 'next = "out"\nnode = "b"', "out/0 backoff/0"),
    ],
)
def test_only_what_is_ours_is_run(old: str, new: str, run: str) -> None:
    assert [job.label for job in plan(TEXT.replace(old, new)).jobs()] == run.split()


def test_a_snapshot_reads_as_what_it_was_made_of_and_is_swept_when_nobody_needs_it(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.make()
    path = Path("/srv/site/etc/qrunner.toml")
    first = make_plan(parse(TEXT, path), run)
    again = make_plan(parse(TEXT, path), run)
    other = make_plan(parse(TEXT + "# changed\n", path), run)
    assert first == again != other
    assert parse(first.snapshot.read_text(), path) == first.config
    sweep_snapshots(run, {other.snapshot})
    assert list(run.run.iterdir()) == [other.snapshot]
