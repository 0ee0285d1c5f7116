"""The pytest plugin: the fixtures ``fake_clock`` and ``fake_site``.

It is loaded by pytest wherever qrunner is installed, so it imports nothing of ours before a fixture is asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from qrunner.testing import FakeClock, FakeSite

# Failing assertions of the suites are explained as in a test of one's own.
if "qrunner.testing.contract" not in sys.modules:
    pytest.register_assert_rewrite("qrunner.testing.contract")


@pytest.fixture
def fake_clock() -> FakeClock:
    """A clock that stands still until it is advanced."""
    from qrunner.testing import FakeClock

    return FakeClock()


@pytest.fixture
def fake_site(fake_clock: FakeClock) -> Iterator[Callable[[str], FakeSite]]:
    """Makes a ``FakeSite`` of a configuration, on ``fake_clock``; it is closed when the test is over."""
    from qrunner.testing import FakeSite

    with ExitStack() as sites:
        yield lambda toml: sites.enter_context(FakeSite(toml, clock=fake_clock))
