"""How much of the machine others use, from the kernel's counts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrunner.pressure import Counts, Gauge, Load, load_between

TICKS = os.sysconf("SC_CLK_TCK")


class Machine:
    """A /proc and a clock that a test advances."""

    def __init__(self, folder: Path, *, psi: bool = True, stat: bool = True) -> None:
        self.folder, self.psi, self.stat = folder, psi, stat
        self.now_s, self.own_s = 100.0, 7.0
        self.stalled_s, self.used_s, self.free_s = 3.0, 50.0, 150.0
        (folder / "pressure").mkdir()
        self.gauge = Gauge(folder, lambda: self.now_s, lambda: self.own_s)
        self._write()

    def passes(
        self, seconds: float, *, stalled: float = 0, used: float = 0, own: float = 0, cpus: int = 2
    ) -> None:
        """So much time, and of it, in shares: stalled, and of all CPUs used, of which by ourselves."""
        self.now_s += seconds
        self.stalled_s += seconds * stalled
        self.used_s += seconds * cpus * used
        self.own_s += seconds * cpus * own
        self.free_s += seconds * cpus * (1 - used)
        self._write()

    def _write(self) -> None:
        if self.psi:
            text = (
                f"some avg10=99.00 avg60=0.00 avg300=0.00 total={self.stalled_s * 1e6:.0f}\nfull avg10=0.00\n"
            )
            (self.folder / "pressure" / "cpu").write_text(text)
        if self.stat:
            half = round(self.used_s * TICKS / 2)
            free = round(self.free_s * TICKS / 2)
            # user nice system idle iowait irq softirq steal guest guest_nice; what was stolen or is a guest's is not
            # counted, or counted already.
            (self.folder / "stat").write_text(
                f"cpu  {half} 0 {half} {free} {free} 0 0 999999 55 0\ncpu0 1 2\n"
            )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_nothing_is_known_before_a_second_has_been_measured(machine: Machine) -> None:
    assert machine.gauge() is None
    machine.passes(0.5, used=1)
    assert machine.gauge() is None
    machine.passes(0.5, used=1, stalled=0.5)
    load = machine.gauge()
    assert load is not None
    assert load.stalled == pytest.approx(25)
    assert load.busy == pytest.approx(100)


def test_what_was_is_forgotten_a_second_later_whatever_the_kernels_averages_say(machine: Machine) -> None:
    machine.gauge()
    machine.passes(60, stalled=1, used=1)
    # Nobody has asked in between: a minute of load says nothing of now.
    assert machine.gauge() is None
    machine.passes(1, stalled=1, used=1)
    assert machine.gauge() == Load(pytest.approx(100), pytest.approx(100))
    machine.passes(1)
    assert machine.gauge() == Load(pytest.approx(0), pytest.approx(0))


def test_what_we_use_by_ourselves_is_not_what_others_use(machine: Machine) -> None:
    machine.gauge()
    machine.passes(2, used=0.75, own=0.5)
    load = machine.gauge()
    assert load is not None
    assert load.busy == pytest.approx(25)


def test_asking_often_measures_once_a_second(machine: Machine) -> None:
    machine.gauge()
    machine.passes(1, used=1)
    first = machine.gauge()
    for _ in range(9):
        machine.passes(0.1)
        assert machine.gauge() is first
    machine.passes(0.2)
    assert machine.gauge() != first


def test_a_kernel_without_pressure_stall_information_still_tells_who_is_busy(tmp_path: Path) -> None:
    machine = Machine(tmp_path, psi=False)
    machine.gauge()
    machine.passes(1, used=0.5)
    assert machine.gauge() == Load(None, pytest.approx(50))


@pytest.mark.parametrize("text", ["some avg10=0.00", "total=x", ""])
def test_pressure_that_can_not_be_read_is_none(tmp_path: Path, text: str) -> None:
    machine = Machine(tmp_path, psi=False)
    (tmp_path / "pressure" / "cpu").write_text(text)
    machine.gauge()
    machine.passes(1)
    assert machine.gauge() == Load(None, 0.0)


@pytest.mark.parametrize("text", ["", "cpu  0 0 0 0 0 0 0 0 0 0\n", "cpu\n", "cpu a b\n"])
def test_without_any_counts_the_load_average_has_to_do(tmp_path: Path, text: str) -> None:
    machine = Machine(tmp_path, psi=False, stat=False)
    (tmp_path / "stat").write_text(text)
    machine.gauge()
    machine.passes(1)
    load = machine.gauge()
    assert load is not None
    assert load.stalled is None
    assert 0 <= load.busy <= 100


def test_this_machine_says_something() -> None:
    now_s = 0.0
    gauge = Gauge(monotonic_s=lambda: now_s)
    assert gauge() is None
    now_s = 1.0
    load = gauge()
    assert load is not None
    assert 0 <= load.busy <= 100


SECONDS = st.floats(min_value=0, max_value=1e9)


@given(first=st.builds(Counts, *[SECONDS] * 4), last=st.builds(Counts, *[SECONDS] * 4))
def test_a_load_is_a_percentage_whatever_was_counted(first: Counts, last: Counts) -> None:
    load = load_between(first, last, 1.0)
    if load is not None:
        assert load.stalled is not None
        assert 0 <= load.stalled <= 100
        assert 0 <= load.busy <= 100
