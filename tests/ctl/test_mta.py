"""What `mta-config postfix` prints. That Postfix takes it, tests/scenarios/test_postfix.py shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from qrunner.ctl.mta import installed_pipe, postfix_lines
from qrunner.errors import ConfigError

from .conftest import Place

QUEUE_DIR = Path("/srv/lists/qfiles")
INJECT = Path("/opt/qrunner/bin/qrunner-inject")


def lines(*arguments: str, **how: object) -> list[str]:
    """What stands in the text, without comments and empty lines."""
    text = postfix_lines(QUEUE_DIR, INJECT, *(arguments or ("list",)), **how)  # type: ignore[arg-type]
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_the_pipe_runs_as_the_owner_and_keeps_quotes_and_the_null_sender() -> None:
    found = lines()
    at = found.index("qrunner  unix  -  n  n  -  20  pipe")
    assert found[at + 1 : at + 3] == [
        "  flags=q user=list null_sender=",
        f"  argv={INJECT} -Q {QUEUE_DIR} -q in -f ${{sender}} -- ${{recipient}}",
    ]


def test_the_alias_line_needs_no_shell() -> None:
    assert f'list: "|{INJECT} -Q {QUEUE_DIR} -q in"' in lines()


def test_the_queue_is_the_one_that_was_asked_for() -> None:
    assert sum(" -q incoming" in line for line in lines("list", "incoming")) == 2


@pytest.mark.parametrize(
    ("listen", "door"),
    [
        ("127.0.0.1:8024", "lmtp:inet:127.0.0.1:8024"),
        ("[::1]:8024", "lmtp:inet:[::1]:8024"),
        ("unix:/srv/lists/var/lmtp.sock", "lmtp:unix:/srv/lists/var/lmtp.sock"),
    ],
)
def test_a_door_is_reached_by_lmtp(listen: str, door: str) -> None:
    found = lines(lmtp=listen, domains=["a.example", "b.example"])
    assert {f"a.example  {door}", f"b.example  {door}"} <= set(found)


def test_without_a_door_lmtp_is_not_spoken_of() -> None:
    assert "lmtp" not in postfix_lines(QUEUE_DIR, INJECT, "list").lower()


def test_for_queues_of_root_there_is_lmtp_only() -> None:
    text = postfix_lines(QUEUE_DIR, INJECT, "root", lmtp="127.0.0.1:8024")
    assert "qrunner-inject" not in text
    assert "lmtp:inet:127.0.0.1:8024" in text


def test_for_queues_of_root_without_a_door_there_is_nothing_to_print() -> None:
    with pytest.raises(ConfigError, match="root"):
        postfix_lines(QUEUE_DIR, INJECT, "root")


@pytest.mark.parametrize("path", ["/srv/my lists", "/srv/$HOME", "/srv/a;b", '/srv/"', "/srv/é", "/srv/a\nb"])
def test_a_path_that_would_need_a_shell_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="can't stand"):
        postfix_lines(Path(path), INJECT, "list")
    with pytest.raises(ConfigError, match="can't stand"):
        postfix_lines(QUEUE_DIR, Path(path), "list")


def test_relative_paths_are_made_absolute() -> None:
    assert f"-Q {Path.cwd() / 'qfiles'} " in postfix_lines(Path("qfiles"), INJECT, "list")


DOOR = """
[runner.door]
class = "lmtp"
listen = "127.0.0.1:8024"
next = "in"
"""


def test_the_verb_fills_in_what_the_site_and_its_door_are(place: Place) -> None:
    place.config.write_text(place.config.read_text() + DOOR)
    result = place.call("mta-config", "postfix", "--inject", str(INJECT))
    assert result.exit_code == 0, result.stderr
    assert "lists.example.org  lmtp:inet:127.0.0.1:8024" in result.stdout
    pipe = f"argv={INJECT} -Q {place.folder}/qfiles -q in -f ${{sender}} -- ${{recipient}}"
    # Postfix runs no command as root, whom the queues of these tests may belong to.
    assert (pipe in result.stdout) == ((place.folder / "qfiles").stat().st_uid != 0)


def test_the_verb_finds_the_pipe_that_stands_beside_it() -> None:
    assert installed_pipe().name == "qrunner-inject"
    assert installed_pipe().is_absolute()


def test_the_verb_refuses_a_queue_that_is_not_there(place: Place) -> None:
    assert place.call("mta-config", "postfix", "-q", "nosuch").exit_code == 2
    assert place.call("mta-config", "sendmail").exit_code == 2
