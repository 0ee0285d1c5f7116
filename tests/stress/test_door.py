"""The door is killed over and over while fifty sessions send, with every sync."""

from __future__ import annotations

from pathlib import Path

from tests.crash.test_door import killed_while_mail_comes_in
from tests.runners.doors import SITE


def test_what_was_answered_is_there_after_many_deaths(tmp_path: Path) -> None:
    site = SITE.replace('durability = "none"', 'durability = "full"')
    assert site != SITE
    killed_while_mail_comes_in(tmp_path, kills=20, count=10_000, site=site)
