"""The log while it is rotated again and again under many writers."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
WRITERS, LINES, ROTATIONS = 6, 20_000, 50

WRITER = """
import logging, signal, sys
from pathlib import Path
from qrunner.log import event, reopen, setup

asked = []
signal.signal(signal.SIGUSR1, lambda *_: asked.append(1))
setup("writer", path=Path(sys.argv[1]))
print("ready", flush=True)
for n in range(int(sys.argv[2])):
    if asked:
        asked.clear()
        reopen()
    event(logging.getLogger("qrunner"), "said", n=n)
"""


def test_no_line_is_lost_torn_or_doubled_while_the_log_is_rotated(tmp_path: Path) -> None:
    path = tmp_path / "qrunner.log"
    command = [sys.executable, "-c", WRITER, str(path), str(LINES)]
    writers = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(WRITERS)]
    for writer in writers:
        assert writer.stdout
        assert writer.stdout.readline() == "ready\n"
    for turn in range(ROTATIONS):
        if path.exists():
            path.rename(tmp_path / f"qrunner.log.{turn}")
        for writer in writers:
            if writer.poll() is None:
                writer.send_signal(signal.SIGUSR1)
    assert [writer.wait(100) for writer in writers] == [0] * WRITERS
    said = [
        re.fullmatch(r"\S+ info writer\[(\d+)\] said n=(\d+)", line)
        for file in tmp_path.iterdir()
        for line in file.read_text("utf-8").splitlines()
    ]
    assert all(said)
    assert len(said) == len({match.groups() for match in said if match}) == WRITERS * LINES
