"""The runner that hands mail to programs, with real programs: what they are given, what their end means, and that nothing
of them stays."""

from __future__ import annotations

import contextlib
import os
import pwd
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from qrunner.message import Entry
from qrunner.runners.command import LARGEST_OUTPUT
from qrunner.testing import FakeSite
from tests.programs.living import alive, hanging, pids
from tests.sites import wait_for

pytest_plugins = ["qrunner.testing.plugin"]

CORPUS = sorted((Path(__file__).parents[1] / "corpus").glob("*.eml"))
MakeSite = Callable[..., FakeSite]


def toml(command: Sequence[str], more: str = "") -> str:
    """A site whose runner `check` runs this."""
    words = ", ".join(f"'''{word}'''" for word in command)
    return f"""
[site]
hostname = "lists.example.org"
postmaster = "pm@lists.example.org"
report_queue = "reports"
retry = {{ first = "5m", lifetime = "2d", jitter = 0 }}
[runner.check]
class = "command"
command = [{words}]
{more}
"""


def shell(script: str, more: str = "") -> str:
    return toml(["sh", "-c", script], more)


def python(code: str, more: str = "") -> str:
    return toml([sys.executable, "-c", code], more)


def ran(fake_site: MakeSite, text: str, **fields: Any) -> FakeSite:
    """The site, with one message that has been through."""
    site = fake_site(text)
    site.enqueue("check", **fields)
    site.run_until_idle(30)
    return site


def the_one(site: FakeSite, queue: str) -> Entry:
    (entry,) = site.entries(queue)
    return entry


def end_of(entry: Entry) -> Mapping[str, Any]:
    """What its history says of how the program ended last."""
    return [line for line in entry.history if line["what"] == "ended"][-1]


def printed(fake_site: MakeSite, text: str, **fields: Any) -> str:
    """What the program printed; it is to end with 3."""
    end = end_of(the_one(ran(fake_site, text, **fields), "shunt"))
    assert end["exit"] == 3, end
    return str(end["stdout"])


# What it is given


def test_every_message_of_the_corpus_arrives_byte_for_byte(fake_site: MakeSite, tmp_path: Path) -> None:
    site = fake_site(toml(["sh", "-c", 'cat > "$0/$QRUNNER_ID"', str(tmp_path)], "concurrency = 2"))
    sent = {site.enqueue("check", message=path.read_bytes()): path for path in CORPUS}
    site.run_until_idle(60)
    assert [entry.history for entry in site.entries("shunt")] == []
    assert len(sent) > 20
    for id, path in sent.items():
        assert (tmp_path / id).read_bytes() == path.read_bytes(), path.name


def test_its_environment_is_these_seven_and_nothing_else(
    fake_site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "of ours")
    monkeypatch.setenv("PATH", f".:/usr/local/bin::/usr/bin:/bin:{Path.cwd().name}")
    code = "import os, sys; sys.stdout.write(repr(dict(os.environ))); sys.exit(3)"
    site = fake_site(python(code))
    id = site.enqueue("check", sender="", recipients=["a@example.org", '"b c"@example.org'])
    site.run_until_idle(30)
    found = eval(str(end_of(the_one(site, "shunt"))["stdout"]))
    assert found == {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": pwd.getpwuid(os.getuid()).pw_dir,
        "LANG": "C.UTF-8",
        "QRUNNER_ID": id,
        "QRUNNER_QUEUE": "check",
        "SENDER": "",
        "RECIPIENTS": 'a@example.org\n"b c"@example.org',
    }


def test_addresses_are_passed_as_the_bytes_they_came_as(fake_site: MakeSite) -> None:
    code = "import os, sys; print(os.environb[b'SENDER'], os.environb[b'RECIPIENTS']); sys.exit(3)"
    sender, to = "ä$(id)@example.org", "\udcff;`id`@example.org"
    seen = printed(fake_site, python(code), sender=sender, recipients=[to])
    assert eval(seen.replace(" b", ",b")) == (sender.encode(), b"\xff;`id`@example.org")


@pytest.mark.parametrize("address", ["a\nb@example.org", "a\0b@example.org"])
def test_an_address_that_would_be_two_or_cut_is_shunted(fake_site: MakeSite, address: str) -> None:
    entry = the_one(ran(fake_site, shell("exit 0"), recipients=[address]), "shunt")
    assert repr(address) in entry.history[-1]["reason"]


def test_more_recipients_than_an_environment_holds_are_shunted_with_the_reason(fake_site: MakeSite) -> None:
    to = [f"subscriber-number-{n}@example.org" for n in range(10_000)]
    entry = the_one(ran(fake_site, shell("exit 0"), recipients=to), "shunt")
    assert "too many recipients" in entry.history[-1]["reason"]
    assert "traceback" not in entry.history[-1]


def test_it_has_three_descriptors(fake_site: MakeSite, tmp_path: Path) -> None:
    with open(tmp_path / "secret", "w") as ours:
        os.set_inheritable(ours.fileno(), True)
        code = "import os, sys; print(sorted(map(int, os.listdir('/proc/self/fd')))); sys.exit(3)"
        # The fourth is the one that lists them.
        assert printed(fake_site, python(code)) == "[0, 1, 2, 3]\n"


def test_it_can_read_its_message_twice_and_not_write_it(fake_site: MakeSite) -> None:
    code = (
        "import os, sys; a = os.read(0, 9); os.lseek(0, 0, 0); print(a == os.read(0, 9)); os.write(0, b'x')"
    )
    end = end_of(the_one(ran(fake_site, python(code)), "shunt"))
    assert (end["stdout"], "Bad file descriptor" in end["stderr"]) == ("True\n", True)


def test_it_leads_a_session_and_its_signals_are_as_by_default(fake_site: MakeSite) -> None:
    # What Python itself sets up has not happened yet in a shell, which reads this without a child: while it starts one,
    # it blocks signals.
    script = (
        'ps -o sid= -p $$ | tr -d " "; echo $$; '
        'while read -r name value; do case $name in SigBlk:|SigIgn:) echo "$name $value";; esac; done </proc/$$/status; exit 3'
    )
    session, pid, blocked, ignored = printed(fake_site, shell(script)).splitlines()
    assert session == pid
    # 32 and 33 belong to the C library, which lets nobody set them: whatever started us may have left them ignored.
    its_own = ~(1 << 31 | 1 << 32)
    assert {int(line.split()[1], 16) & its_own for line in (blocked, ignored)} == {0}


def test_each_run_has_an_empty_folder_of_its_own_that_is_gone_afterwards(
    fake_site: MakeSite, tmp_path: Path
) -> None:
    site = fake_site(
        shell(f"pwd >> {tmp_path}/seen; ls -A >> {tmp_path}/seen; mkdir -p a/b; touch x a/b/c; chmod 0 a")
    )
    for _ in range(2):
        site.enqueue("check")
    site.run_until_idle(30)
    first, second = map(Path, (tmp_path / "seen").read_text().splitlines())
    assert first != second
    assert [path for path in (first, second) if path.exists()] == []
    site.close()
    assert not first.parent.exists()


def test_no_shell_ever_sees_its_arguments(fake_site: MakeSite) -> None:
    words = ["$(id)", "a b", "; rm -rf x", "*", ""]
    code = "import sys; print(sys.argv[1:]); sys.exit(3)"
    assert eval(printed(fake_site, toml([sys.executable, "-c", code, *words]))) == words


def test_a_program_that_reads_nothing_of_a_large_message_is_fine(fake_site: MakeSite) -> None:
    site = ran(fake_site, shell("exit 0"), message=b"X-Y: z\n\n" + b"x" * 5_000_000)
    assert site.entries("check") + site.entries("shunt") == []


def test_handlers_come_first(fake_site: MakeSite) -> None:
    text = shell("head -1; exit 3", f'handlers = "{__name__}:tag"')
    assert printed(fake_site, text) == "X-Seen: 1\n"


def tag(entry: Entry) -> Entry:
    return entry.with_header("X-Seen", "1")


# What its end means


@pytest.mark.parametrize(
    ("script", "exits", "where", "attempts"),
    [
        ("exit 0", "", "", 0),
        ("exit 75", "", "check", 1),
        ("exit 1", "", "shunt", 0),
        ("exit 127", "", "shunt", 0),
        ("exit 1", '1 = "done"', "", 0),
        ("exit 1", '1 = "later"', "check", 1),
        ("exit 1", '1 = "hold"', "hold", 0),
        ("exit 1", '1 = "bounce"', "reports", 0),
        ("exit 0", '0 = "shunt"', "shunt", 0),
        ("kill -SEGV $$", "", "shunt", 0),
        ("kill -KILL $$", "", "shunt", 0),
        ("kill -SEGV $$", '139 = "later"', "check", 1),
    ],
)
def test_what_becomes_of_the_entry(
    fake_site: MakeSite, script: str, exits: str, where: str, attempts: int
) -> None:
    site = ran(fake_site, shell(script, f"exits = {{ {exits} }}"))
    found = {queue: site.entries(queue) for queue in ("check", "shunt", "hold", "reports")}
    assert {queue for queue, entries in found.items() if entries} == {where} - {""}
    assert [entry.attempts for entries in found.values() for entry in entries] == [attempts] * bool(where)


def test_a_shunted_entry_says_how_it_ended_and_what_it_printed(fake_site: MakeSite) -> None:
    entry = the_one(ran(fake_site, shell("echo on it; echo 'no such list' >&2; exit 9")), "shunt")
    assert entry.history[-1]["reason"] == "sh: exit code 9: no such list"
    assert "traceback" not in entry.history[-1]
    end = end_of(entry)
    assert (end["exit"], end["stdout"], end["stderr"]) == (9, "on it\n", "no such list\n")


def test_one_that_died_of_a_signal_is_named_by_it(fake_site: MakeSite) -> None:
    entry = the_one(ran(fake_site, shell("kill -ABRT $$")), "shunt")
    assert entry.history[-1]["reason"] == "sh: ended by SIGABRT"
    assert end_of(entry)["signal"] == "SIGABRT"


def test_the_sender_of_a_bounce_reads_its_last_words_and_its_status(fake_site: MakeSite) -> None:
    script = "echo looking; echo '5.7.1 not from you' >&2; exit 77"
    report = the_one(ran(fake_site, shell(script, 'exits = { 77 = "bounce" }')), "reports")
    assert (report.sender, report.recipients) == ("", ("ann@example.org",))
    assert b"Status: 5.7.1" in report.message
    assert b"not from you" in report.message


def test_a_status_of_the_other_kind_is_not_taken_over(fake_site: MakeSite) -> None:
    entry = the_one(ran(fake_site, shell("echo '5.7.1 never' >&2; exit 75")), "check")
    line = entry.history[-1]
    assert (line["text"], line["status"]) == ("5.7.1 never", "4.0.0")


def test_done_goes_on_to_next_with_its_history(fake_site: MakeSite) -> None:
    site = fake_site(shell("echo fine", 'next = ["out", "log"]'))
    id = site.enqueue("check")
    site.run_until_idle(30)
    assert [the_one(site, queue).parents for queue in ("out", "log")] == [(id,), (id,)]
    site = fake_site(shell("echo fine", 'next = "out"'))
    id = site.enqueue("check")
    site.run_until_idle(30)
    entry = the_one(site, "out")
    assert (entry.id, end_of(entry)["stdout"]) == (id, "fine\n")


# Programs that are not there


def executable(path: Path, text: str = "#!/bin/sh\nexit 0\n") -> Path:
    path.write_text(text)
    path.chmod(0o700)
    return path


def not_there(path: Path) -> None:
    pass


def not_executable(path: Path) -> None:
    executable(path).chmod(0o600)


def of_no_interpreter(path: Path) -> None:
    executable(path, "#!/no/such/program\n")


def of_no_first_line(path: Path) -> None:
    executable(path, "exit 0\n")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (not_there, "is not there"),
        (Path.mkdir, "is a folder"),
        (not_executable, "can't be executed"),
        (of_no_interpreter, "first line"),
        (of_no_first_line, "first line"),
    ],
)
def test_a_program_that_cannot_be_run_costs_the_mail_nothing_and_the_runner_says_so(
    fake_site: MakeSite, tmp_path: Path, make: Callable[[Path], None], said: str
) -> None:
    program = tmp_path / "check"
    make(program)
    site = fake_site(toml([str(program)]))
    for _ in range(3):
        site.enqueue("check")
    for _ in range(100):
        site.run_until_idle()
        site.clock.advance("1h")
    (engine,) = site.engines
    assert engine.state == "waiting"
    assert said in engine.reason
    assert [entry.attempts for entry in site.entries("check")] == [0, 0, 0]
    if program.is_dir():
        program.rmdir()
    executable(program)
    site.run_until_idle()
    assert site.entries("check") + site.entries("shunt") == []
    assert engine.state == "running"


def test_the_runner_stops_saying_so_when_nothing_waits_for_it_any_more(
    fake_site: MakeSite, tmp_path: Path
) -> None:
    site = ran(fake_site, toml([str(tmp_path / "check")]))
    (engine,) = site.engines
    assert engine.state == "waiting"
    (ref,) = site.spool.peek("check")
    site.spool.remove(ref)
    for _ in range(2):
        site.clock.advance("1m")
        site.run_until_idle()
    assert engine.state == "running"


# Programs that do not end, or leave something behind


def test_at_the_timeout_all_of_it_is_killed_before_anything_becomes_of_the_entry(
    fake_site: MakeSite, tmp_path: Path
) -> None:
    before = time.monotonic()
    entry = the_one(ran(fake_site, python(hanging(tmp_path), 'timeout = "1s"')), "check")
    assert time.monotonic() - before < 20
    assert (entry.attempts, entry.history[-1]["text"]) == (1, "not done within 1 s")
    assert end_of(entry)["signal"] == "SIGKILL"
    assert alive(pids(tmp_path)) == []


def test_a_program_may_tidy_up_at_sigterm_and_what_it_prints_then_is_kept(fake_site: MakeSite) -> None:
    script = "trap 'echo tidy; exit 0' TERM; sleep 100 & wait"
    entry = the_one(ran(fake_site, shell(script, 'timeout = "1s"')), "check")
    assert entry.history[-1]["text"] == "not done within 1 s"
    assert (end_of(entry)["exit"], end_of(entry)["stdout"]) == (0, "tidy\n")


def test_what_a_program_leaves_behind_ends_with_it(fake_site: MakeSite, tmp_path: Path) -> None:
    code = hanging(tmp_path).replace(
        'stay("program")',
        f"""
while len(os.listdir("{tmp_path}")) < 3 or any(n.endswith("new") for n in os.listdir("{tmp_path}")): time.sleep(0.01)
open("{tmp_path}/program", "w").write(str(os.getpid()))""",
    )
    site = ran(fake_site, python(code))
    assert site.entries("check") + site.entries("shunt") == []
    assert alive(pids(tmp_path)) == []


def test_programs_run_side_by_side(fake_site: MakeSite, tmp_path: Path) -> None:
    """Each waits until all three are there."""
    script = f"touch {tmp_path}/$$; while [ $(ls {tmp_path} | wc -l) -lt 3 ]; do sleep 0.01; done"
    site = fake_site(shell(script, 'concurrency = 3\ntimeout = "20s"'))
    for _ in range(3):
        site.enqueue("check")
    site.run_until_idle(30)
    assert site.entries("check") == []


# What it prints


def test_a_hundred_megabytes_fill_neither_memory_nor_the_history(fake_site: MakeSite) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    script = "yes 0123456789 | head -c 100000000; yes e | head -c 1000000 >&2; echo; echo the end; exit 3"
    entry = the_one(ran(fake_site, shell(script)), "shunt")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 30_000  # of kilobytes
    end = end_of(entry)
    assert end["stdout"].startswith("… ")
    assert end["stdout"].endswith("\nthe end\n")
    assert all(len(end[name]) < 5_000 for name in ("stdout", "stderr"))


def test_bytes_that_are_no_text_stand_in_the_history_as_such(fake_site: MakeSite) -> None:
    entry = the_one(ran(fake_site, shell(r"printf '\033[2J\000\377\n\033]0;x\007\n' >&2; exit 3")), "shunt")
    assert end_of(entry)["stderr"] == "\x1b[2J\0\\xff\n\x1b]0;x\x07\n"
    assert entry.history[-1]["reason"].isprintable()


# What it prints as a message

REPORT = b"To: dev@example.org, Eve <eve@example.net>\r\nSubject: passed\r\n\r\nAll \xe4.\r\n"


def reporting(tmp_path: Path, message: bytes, more: str = "", after: str = "exit 0") -> str:
    (tmp_path / "report").write_bytes(message)
    return shell(f"cat {tmp_path}/report; echo said >&2; {after}", f'output = "reports"\n{more}')


def test_what_it_prints_is_a_message_to_a_queue(fake_site: MakeSite, tmp_path: Path) -> None:
    site = fake_site(reporting(tmp_path, REPORT))
    id = site.enqueue("check", meta={"list": "dev"})
    site.run_until_idle(30)
    report = the_one(site, "reports")
    assert report.message == REPORT
    assert (report.sender, report.recipients) == ("", ("dev@example.org", "eve@example.net"))
    assert (report.parents, dict(report.meta)) == ((id,), {"list": "dev"})
    assert report.id != id
    assert site.entries("check") == []


def test_a_report_that_names_nobody_goes_to_the_sender(fake_site: MakeSite, tmp_path: Path) -> None:
    site = ran(fake_site, reporting(tmp_path, b"Subject: passed\n\nok\n"), sender="ann@example.org")
    assert the_one(site, "reports").recipients == ("ann@example.org",)
    site = ran(fake_site, reporting(tmp_path, b"Subject: passed\n\nok\n"), sender="")
    assert the_one(site, "reports").recipients == ()


def test_a_first_line_of_an_mbox_is_dropped_and_hidden_recipients_are_hidden(
    fake_site: MakeSite, tmp_path: Path
) -> None:
    text = b"From me Mon Jan  1\nBcc: boss@example.org\nSubject: x\n\nok\n"
    report = the_one(ran(fake_site, reporting(tmp_path, text)), "reports")
    assert (report.recipients, report.message) == (("boss@example.org",), b"Subject: x\n\nok\n")


def test_a_report_and_the_entry_itself_go_on_in_one_commit(fake_site: MakeSite, tmp_path: Path) -> None:
    site = fake_site(reporting(tmp_path, REPORT, 'next = "out"'))
    id = site.enqueue("check")
    site.run_until_idle(30)
    assert [the_one(site, queue).parents for queue in ("out", "reports")] == [(id,), (id,)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"all tests passed\n", "is no message, it begins with b'all tests passed"),
        (b"\n\nhello\n", "is no message"),
        (b"To: <>\n\nhello\n", "can't be addressed"),
        (b"X: " + b"x" * LARGEST_OUTPUT, f"{LARGEST_OUTPUT} are the most"),
    ],
    ids=["prose", "no header", "an empty address", "too long"],
)
def test_what_is_no_message_is_shunted_with_the_reason(
    fake_site: MakeSite, tmp_path: Path, text: bytes, said: str
) -> None:
    site = ran(fake_site, reporting(tmp_path, text))
    assert said in the_one(site, "shunt").history[-1]["reason"]
    assert site.entries("reports") == []


def test_nothing_printed_is_no_message_and_the_entry_is_done(fake_site: MakeSite, tmp_path: Path) -> None:
    site = ran(fake_site, reporting(tmp_path, b""))
    assert site.entries("reports") + site.entries("check") + site.entries("shunt") == []


@pytest.mark.parametrize("code", [75, 1])
def test_only_the_output_of_a_program_that_is_done_is_taken(
    fake_site: MakeSite, tmp_path: Path, code: int
) -> None:
    site = ran(fake_site, reporting(tmp_path, REPORT, after=f"exit {code}"))
    assert site.entries("reports") == []
    (entry,) = site.entries("check") + site.entries("shunt")
    assert "Subject: passed" in end_of(entry)["stdout"]


# The processes that watch over it


def test_a_warden_that_was_killed_is_replaced(fake_site: MakeSite) -> None:
    site = ran(fake_site, shell("exit 0"))
    (engine,) = site.engines
    warden = engine.runner._wardens._process  # type: ignore[attr-defined]
    warden.kill()
    warden.wait()
    site.enqueue("check")
    site.run_until_idle(30)
    assert site.entries("check") == []


def test_a_program_that_kills_its_keeper_takes_nothing_with_it(fake_site: MakeSite, tmp_path: Path) -> None:
    """It dies with it; what it has started is found by its environment, before anything becomes of the entry."""
    script = f"sleep 1000 & echo $! > {tmp_path}/sleeper; setsid sleep 1000 & echo $! > {tmp_path}/escaped; sleep 0.1; kill -9 $PPID; sleep 1000"
    entry = the_one(ran(fake_site, shell(script)), "check")
    assert entry.history[-1]["text"] == "sh: nobody knows how it ended"
    assert alive(int((tmp_path / name).read_text()) for name in ("sleeper", "escaped")) == []


def test_a_program_that_stops_its_keeper_ends_at_the_timeout_all_the_same(
    fake_site: MakeSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qrunner.runners.command._TERM_S", 0.1)
    monkeypatch.setattr("qrunner.runners.command._PATIENCE_S", 0.5)
    script = f"setsid sleep 1000 & echo $! > {tmp_path}/escaped; kill -STOP $PPID; sleep 1000"
    entry = the_one(ran(fake_site, shell(script, 'timeout = "500ms"')), "check")
    assert entry.history[-1]["text"] == "not done within 0.5 s"
    assert alive([int((tmp_path / "escaped").read_text())]) == []


def test_when_the_site_ends_so_does_its_warden(fake_site: MakeSite) -> None:
    site = ran(fake_site, shell("exit 0"))
    (engine,) = site.engines
    pid = engine.runner._wardens._process.pid  # type: ignore[attr-defined]
    assert alive([pid]) == [pid]
    site.close()
    wait_for(lambda: not alive([pid]))


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_runs_leave_no_descriptors_behind(fake_site: MakeSite) -> None:
    site = ran(fake_site, shell("exit 0", 'concurrency = 4\nexits = { 0 = "done", 9 = "bounce" }'))
    (engine,) = site.engines
    warden = engine.runner._wardens._process.pid  # type: ignore[attr-defined]
    before = descriptors(os.getpid()), descriptors(warden)
    for _ in range(50):
        site.enqueue("check")
    site.run_until_idle(30)
    assert (descriptors(os.getpid()), descriptors(warden)) == before


def test_without_descriptors_mail_waits_at_no_cost(fake_site: MakeSite) -> None:
    site = ran(fake_site, shell("exit 0"))
    (engine,) = site.engines
    before, (limit, most) = descriptors(os.getpid()), resource.getrlimit(resource.RLIMIT_NOFILE)
    reasons = set()
    with contextlib.ExitStack() as fillers:
        # From the highest number up there are no gaps.
        top = max(map(int, os.listdir("/proc/self/fd")))
        while (last := fillers.enter_context(open("/dev/null")).fileno()) <= top:
            continue
        try:
            # However far it gets with what it has.
            for more in range(1, 9):
                resource.setrlimit(resource.RLIMIT_NOFILE, (last + more, most))
                site.enqueue("check")
                site.run_until_idle(30)
                reasons.add(engine.reason)
                site.clock.advance("10m")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
    assert "no program can be started: Too many open files" in reasons
    assert [entry.attempts for entry in site.entries("check")] == [0] * len(site.entries("check"))
    for _ in range(10):
        site.run_until_idle(30)
        site.clock.advance("10m")
    assert site.entries("check") + site.entries("shunt") == []
    assert descriptors(os.getpid()) == before
