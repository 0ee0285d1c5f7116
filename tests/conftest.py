"""What holds for every test: what may be left out, where, and how hard Hypothesis tries.

A test names the programs that it wants of the machine: `@pytest.mark.needs("postfix", "strace")`. A bare machine
leaves it out and says what to install; with QRUNNER_NO_SKIPS=1, as in CI, whatever did not run is a failure.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

HERE = Path(__file__).parent
WHERE = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
DID_NOT_RUN = ("skipped", "xfailed", "xpassed")
# Folders and files whose tests start many processes, or go through many deaths.
LONG = ("scenarios", "test_master.py", "test_tutorial.py", "crash", "ctl", "test_inject_faults.py", "runners")

# A slow machine is no fault of the code; with `derandomize` a failure in CI is the same one everywhere.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


# Who is started in the background by a shell ignores these, and so do all whom he starts; some tests send them.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)


def pytest_configure(config: pytest.Config) -> None:
    """Have pytest-xdist begin the files in the order they stand in, not with those of the most tests."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what stands in tests/stress; what takes longest comes first, so that at the end nobody is waited for."""
    for item in items:
        if item.path.is_relative_to(HERE / "stress"):
            item.add_marker("stress")
    items.sort(key=lambda item: _rank(item.path))


@cache
def _rank(path: Path) -> int:
    for rank, name in enumerate(LONG):
        if path.is_relative_to(HERE / name):
            return rank
    return len(LONG)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out a test whose programs this machine does not have."""
    wanted = [program for mark in item.iter_markers("needs") for program in mark.args]
    missing = [program for program in wanted if shutil.which(program, path=WHERE) is None]
    if missing:
        pytest.skip(f"not on this machine: {' '.join(missing)} (tests/wants names the packages)")


@pytest.fixture(autouse=True)
def _umask_is_kept() -> Iterator[None]:
    """What becomes the owner of the queues also sets the umask; the tests after it have their own."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)


def _not_run(config: pytest.Config) -> int:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or not os.environ.get("QRUNNER_NO_SKIPS"):
        return 0
    return sum(len(reporter.stats.get(kind, [])) for kind in DID_NOT_RUN)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the session if something did not run that was to."""
    if _not_run(session.config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say why a session without a failed test has failed."""
    if count := _not_run(config):
        terminalreporter.write_line(
            f"QRUNNER_NO_SKIPS: {count} did not run to the end, which fails here", red=True
        )
