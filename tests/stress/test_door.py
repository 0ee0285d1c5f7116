"""The door is killed over and over while fifty sessions send, with every sync."""

from __future__ import annotations

from pathlib import Path

from tests.crash.test_door import killed_while_mail_comes_in


def test_what_was_answered_is_there_after_many_deaths(tmp_path: Path) -> None:
    killed_while_mail_comes_in(tmp_path, kills=25, count=12_000)
