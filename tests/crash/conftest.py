"""Assertions in this folder's own modules say what they compared, as those in tests do."""

import pytest

pytest.register_assert_rewrite("tests.crash.dying", "tests.crash.looking", "tests.crash.transitions")
