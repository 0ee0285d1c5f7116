"""Which hosts stand behind a queue, and whether one of them lives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from qrunner.config import parse
from qrunner.smtp.board import MemoryBoard
from qrunner.smtp.living import hosts_behind, is_living

CONFIG = parse(
    """
[site]
hostname = "h.example"
queue_dir = "q"
state_dir = "v"
postmaster = "pm@h.example"
report_queue = "out"
[smtp.m1]
host = "m1"
[smtp.m2]
host = "m2"
[runner.in]
class = "incoming"
next = "both"
[runner.out]
class = "outgoing"
slices = [{ weight = 1, smtp = "m1" }, { weight = 2, smtp = "m2" }]
[runner.other]
class = "outgoing"
smtp = "m2"
[balance.both]
members = { out = 1, other = 1 }
[route.main]
rules = [{ recipient = "*@x", queue = "in" }, { queue = "other" }]
""",
    Path("/nowhere/qrunner.toml"),
)


def test_a_queue_has_the_hosts_of_its_slices() -> None:
    assert hosts_behind(CONFIG, "out") == ("m1", "m2")
    assert hosts_behind(CONFIG, "other") == ("m2",)
    assert hosts_behind(CONFIG, "in") == ()


def test_a_virtual_queue_has_those_of_all_that_it_may_choose() -> None:
    assert hosts_behind(CONFIG, "both") == ("m1", "m2")
    assert hosts_behind(CONFIG, "main") == ("m2",)


def test_a_queue_lives_with_one_of_its_hosts_or_without_any() -> None:
    board = MemoryBoard()
    board.change("m2", lambda health: replace(health, state="down"))
    assert is_living(CONFIG, board, "out")
    assert not is_living(CONFIG, board, "other")
    assert is_living(CONFIG, board, "in")


def test_a_queue_whose_runner_is_not_enabled_does_not_live() -> None:
    text = CONFIG.text.replace('class = "incoming"', 'class = "incoming"\nenabled = false')
    config = parse(text, CONFIG.path)
    assert not is_living(config, MemoryBoard(), "in")
    assert is_living(config, MemoryBoard(), "out")
    assert is_living(config, MemoryBoard(), "nobody-works-on-it")
