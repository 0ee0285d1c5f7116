"""A spool to die on.

Assertions in this folder's own modules say what they compared, as those in tests do.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

pytest.register_assert_rewrite("tests.crash.dying", "tests.crash.looking", "tests.crash.transitions")

from tests.crash.dying import Stage  # noqa: E402 - after what it is rewritten by


@pytest.fixture(scope="session")
def built() -> Iterator[Stage]:
    """Made once, since its directories take longer than many a death; and in memory, which a killed process can't tell
    from a disk."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Stage.built(Path(folder))


@pytest.fixture
def stage(built: Stage) -> Iterator[Stage]:
    yield built
    built.clear()
