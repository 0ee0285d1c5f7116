"""Two machines on one queue directory, as docs/SCALE.md shows them: two masters, each with a state and a node of its own."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from qrunner.config import parse
from qrunner.rundir import is_alive
from qrunner.site import Site
from tests.documents import blocks
from tests.scenarios.postfix import folder_for_everyone, free_port, until
from tests.scenarios.sinks import RealSink, smtp_sinks
from tests.sites import TinySite, tiny_site, wait_for

pytestmark = [pytest.mark.needs("smtp-sink"), pytest.mark.timeout(200)]


def shown() -> str:
    """The configuration of the document."""
    (found,) = [block.text for block in blocks("docs/SCALE.md") if "machines" in block.words]
    return found


def here(node: str, sink: RealSink) -> str:
    """The same, on this machine."""
    text = shown()
    for theirs, ours in (
        ('node      = "a"', f'node      = "{node}"\ndurability = "none"\nmin_free = "0"'),
        ('"/shared/qfiles"', '"../qfiles"'),
        ('"/var/lib/qrunner"', f'"../{node}"'),
        ('"192.0.2.1"', f'"127.0.0.1"\nport = {sink.port}'),
        ("127.0.0.1:8024", f"127.0.0.1:{free_port()}"),
    ):
        assert theirs in text
        text = text.replace(theirs, ours)
    return text


@pytest.fixture
def sink() -> Iterator[RealSink]:
    with folder_for_everyone() as root, smtp_sinks(root, 1) as (one,):
        yield one


@pytest.fixture
def machines(tmp_path: Path, sink: RealSink) -> Iterator[dict[str, TinySite]]:
    """Both, and both run."""
    (tmp_path / "qfiles").mkdir(mode=0o700)
    with ExitStack() as stack:
        both = {node: stack.enter_context(tiny_site(tmp_path, state_dir=node)) for node in "ab"}
        for node, one in both.items():
            one.write(here(node, sink))
        for one in both.values():
            one.ctl("start")
        yield both


def send(one: TinySite, numbers: range) -> None:
    site = Site.load(one.config)
    for number in numbers:
        site.enqueue("in", message=b"x\n", sender="a@example.org", recipients=[f"r{number}@example.net"])


def arrived(sink: RealSink) -> Counter[str]:
    return Counter(address for got in sink.messages() for address in got.recipients)


def waiting(one: TinySite) -> int:
    return sum(1 for queue in ("in", "out") for _ in (one.folder / "qfiles" / queue).glob("*/[0-9]*"))


def lose(one: TinySite) -> None:
    """All of its processes at once, as with its power."""
    pids = [one.master.pid, *(pid for pid in one.pids().values() if pid)]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not any(map(is_alive, pids)))


def test_the_shown_configuration_differs_in_one_word(tmp_path: Path) -> None:
    text = shown()
    for node in "ab":
        config = parse(text.replace('node      = "a"', f'node      = "{node}"'), tmp_path / "etc" / "q.toml")
        assert config.site.node == node


def test_two_machines_share_the_work_and_each_message_goes_out_once(
    machines: dict[str, TinySite], sink: RealSink
) -> None:
    send(machines["a"], range(30))
    send(machines["b"], range(30, 60))
    until(lambda: sink.count() >= 60 and not waiting(machines["a"]), machines["a"].log)
    assert len(arrived(sink)) == 60
    assert set(arrived(sink).values()) == {1}
    for node, slice in (("a", 0), ("b", 1)):
        assert {"door/0", f"in/{slice}", f"out/{slice}"} == set(machines[node].pids())
        # Half of the ids are of each range: it gets none once in 2 ** 60 times.
        assert f"runner:out/{slice}" in machines[node].log()
        assert " delivered " in machines[node].log()


def test_what_a_machine_leaves_behind_is_done_by_the_other_once_its_slices_are_written_over(
    machines: dict[str, TinySite], sink: RealSink
) -> None:
    lose(machines["b"])
    send(machines["a"], range(60))
    until(lambda: 0 < waiting(machines["a"]) < 60, machines["a"].log)
    machines["a"].change('node = "b"', 'node = "a"')
    machines["a"].ctl("reload")
    until(lambda: sink.count() >= 60 and not waiting(machines["a"]), machines["a"].log)
    assert len(arrived(sink)) == 60
    assert set(arrived(sink).values()) == {1}
