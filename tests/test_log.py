"""The log: one record, one line, whoever wrote it and whatever it says."""

from __future__ import annotations

import logging
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrunner.log import FileHandler, LineFormatter, event, fields, reopen, setup, visible

LOG = logging.getLogger("qrunner.test")


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    root = logging.getLogger()
    before = list(root.handlers), root.level
    yield tmp_path / "qrunner.log"
    for handler in list(root.handlers):
        if isinstance(handler, FileHandler):
            handler.close()
    root.handlers[:] = before[0]
    # Not by assignment: loggers remember what is worth a line, and only this makes them ask again.
    root.setLevel(before[1])
    logging.captureWarnings(False)


def lines(path: Path) -> list[str]:
    return path.read_text("utf-8").splitlines()


def test_a_record_has_time_with_zone_level_program_process_event_and_fields(path: Path) -> None:
    setup("runner:out/0", path=path)
    event(
        LOG, "delivered", id="3f00", to=["a@example.org", "b@example.org"], took_s=0.25, reply="250 2.0.0 ok"
    )
    (line,) = lines(path)
    time, rest = line.split(" ", 1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", time)
    wanted = 'delivered id=3f00 to=a@example.org,b@example.org took_s=0.25 reply="250 2.0.0 ok"'
    assert rest == f"info runner:out/0[{os.getpid()}] {wanted}"


@given(st.lists(st.integers(0, 2**32 * 10**6), min_size=1))
def test_a_line_s_time_is_that_of_its_record(times_us: list[int]) -> None:
    formatter = LineFormatter("ctl")
    for time_us in times_us:
        record = logging.makeLogRecord({"msg": "x", "name": "qrunner", "created": time_us / 1e6})
        told = datetime.fromisoformat(formatter.format(record).split()[0])
        # A float has the microseconds only nearly.
        assert 0 <= time_us + 1 - told.timestamp() * 1e6 < 1002


def test_a_record_of_ours_has_what_any_format_may_ask_for(caplog: pytest.LogCaptureFixture) -> None:
    event(LOG, "here", level=logging.WARNING, id="3f00")
    (record,) = caplog.records
    assert record.__dict__.keys() >= logging.makeLogRecord({}).__dict__.keys()
    asked = "%(asctime)s %(filename)s %(funcName)s %(lineno)d %(msecs)d %(threadName)s %(relativeCreated)d"
    assert logging.Formatter(f"{asked} %(message)s").format(record).endswith(" here")


def test_what_came_from_outside_stays_in_its_line_and_its_field(path: Path) -> None:
    setup("ctl", path=path)
    event(
        LOG,
        "refused",
        to='a"\n2026-01-01T00:00:00.000+00:00 info master[1] stopped',
        helo="\x1b[2J",
        ip="x y=z",
    )
    (line,) = lines(path)
    assert "\\n2026" in line
    assert 'helo=\\x1b[2J ip="x y=z"' in line


def test_a_traceback_is_told_in_the_record_s_own_line(path: Path) -> None:
    setup("ctl", path=path)
    try:
        raise ValueError("no\nsuch thing")
    except ValueError as error:
        event(LOG, "shunted", id="3f00", exc=error, level=logging.ERROR)
    (line,) = lines(path)
    assert " error ctl[" in line
    assert "shunted id=3f00 traceback=" in line
    assert "test_log.py" in line
    assert "ValueError: no\\nsuch thing" in line


def test_a_library_s_record_names_its_logger_and_libraries_are_heard_from_warnings_on(path: Path) -> None:
    setup("master", path=path)
    logging.getLogger("aiosmtplib").info("chatter")
    logging.getLogger("mysite").info("tagged %d", 3)
    (line,) = lines(path)
    assert line.endswith("] tagged 3 logger=mysite")


def test_fields_leave_out_none_and_show_what_is_empty() -> None:
    assert (
        fields({"a": None, "b": "", "c": 0, "d": 1.5, "e": "back\\slash"})
        == 'b="" c=0 d=1.5 e="back\\\\slash"'
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ünïcödé", "plain ünïcödé"),
        ("a\tb\r\n\0", "a\\tb\\r\\n\\x00"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("evil\u202etxt", "evil\\u202etxt"),
        (b"caf\xe9".decode("utf-8", "surrogateescape"), "caf\\xe9"),
        ("back\\slash", "back\\slash"),
    ],
)
def test_control_characters_are_made_visible(text: str, shown: str) -> None:
    assert visible(text) == shown


@given(st.text())
def test_visible_text_is_always_printable_and_encodable(text: str) -> None:
    assert visible(text).isprintable()
    visible(text).encode()


def test_visible_keeps_what_it_is_told_to_keep() -> None:
    assert visible("a\nb\x07", keep="\n") == "a\nb\\x07"


def test_after_a_rotation_the_old_file_is_whole_and_the_new_one_goes_on(path: Path) -> None:
    setup("master", path=path)
    event(LOG, "one")
    rotated = path.rename(path.with_suffix(".log.1"))
    event(LOG, "two")
    reopen()
    event(LOG, "three")
    assert [line.split()[-1] for line in lines(rotated)] == ["one", "two"]
    assert [line.split()[-1] for line in lines(path)] == ["three"]


def test_a_log_that_cannot_be_reopened_goes_on_in_the_old_file_and_says_so(path: Path) -> None:
    setup("master", path=path)
    rotated = path.rename(path.with_suffix(".log.1"))
    path.mkdir()
    reopen()
    event(LOG, "still here")
    first, second = lines(rotated)
    assert "log not reopened" in first
    assert second.endswith("still here")


def test_the_file_is_its_owner_s_alone_and_never_a_link_s_target(path: Path) -> None:
    setup("master", path=path)
    assert path.stat().st_mode & 0o777 == 0o600
    path.unlink()
    path.symlink_to(path.with_name("elsewhere"))
    with pytest.raises(OSError, match="symbolic links"):
        setup("master", path=path)


def test_a_line_that_does_not_fit_is_dropped_counted_and_ended_before_the_next(path: Path) -> None:
    setup("master", path=path)
    event(LOG, "first")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 30, before[1]))
    try:
        event(LOG, "torn")
        event(LOG, "dropped")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    event(LOG, "fits")
    event(LOG, "last")
    first, torn, fits, last = lines(path)
    assert first.endswith("first")
    assert len(torn) == 30
    assert fits.endswith("fits lines_lost=2")
    assert last.endswith("last")


def test_two_processes_write_one_file_line_by_line(path: Path) -> None:
    writer = (
        "import logging, sys; from pathlib import Path; from qrunner.log import event, setup\n"
        "setup('writer', path=Path(sys.argv[1]))\n"
        "for n in range(500): event(logging.getLogger('qrunner'), 'said', n=n, pad='x' * (n * 7 % 300))"
    )
    command = [sys.executable, "-c", writer, str(path)]
    processes = [subprocess.Popen(command, cwd=Path(__file__).parent.parent) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    said = [
        re.fullmatch(r"\S+ info writer\[(\d+)\] said n=(\d+) pad=(?:x+|\"\")", line) for line in lines(path)
    ]
    assert all(said)
    assert len({match.groups() for match in said if match}) == 1000


def test_without_a_file_the_log_is_standard_error_and_standard_output_stays_empty() -> None:
    code = "import logging; from qrunner.log import event, setup; setup('ctl'); event(logging.getLogger('qrunner'), 'up')"
    root = Path(__file__).parent.parent
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert run.stdout == ""
    assert run.stderr.endswith("] up\n")
