"""The pipe, run as the process that an MTA runs."""

from __future__ import annotations

import fcntl
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qrunner import format, inject
from qrunner.message import Draft, Envelope, Recipient
from tests.injecting import MESSAGE, PROGRAM, accepted, files, lay_out, only_entry, read, refused, run

# As the MTA starts it, and by the interpreter that runs the tests.
STARTS = {"shebang": [str(PROGRAM)], "this python": [sys.executable, "-IS", str(PROGRAM)]}


@pytest.fixture
def queue_dir(tmp_path: Path) -> Path:
    """A queue directory with the queue ``in`` and its sub-directories."""
    root = tmp_path / "qfiles"
    lay_out(root / "in")
    return root


# What is written


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_a_message_becomes_one_entry_in_the_sub_directory_of_its_id(
    queue_dir: Path, start: list[str]
) -> None:
    earliest = time.time_ns()
    entry = accepted(queue_dir, "-f", "ann@a.example", "bob@b.example", start=start)
    (path,) = files(queue_dir)
    assert path.parent == queue_dir / "in" / entry.id[:2]
    assert path.name == format.ready_name(entry.arrival_ns, entry.id)
    assert (entry.message, entry.sender, entry.recipients) == (MESSAGE, "ann@a.example", ("bob@b.example",))
    assert earliest <= entry.arrival_ns == entry.due_ns <= time.time_ns()
    assert not entry.meta
    assert not entry.history


def test_the_file_is_the_one_that_format_would_write(queue_dir: Path) -> None:
    odd = 'x"\\\x7f\t\n é \U0001f600 \udcff'
    arguments = ["-f", "ann@a.example", "-m", f"odd={odd}", "-m", "k=", "bob@b.example", f"{odd}@b.example"]
    accepted(queue_dir, *(os.fsencode(word) for word in arguments))
    (path,) = files(queue_dir)
    fields = json.loads(path.read_bytes().split(b"\n")[1])
    envelope = Envelope("ann@a.example", tuple(map(Recipient, ("bob@b.example", f"{odd}@b.example"))))
    sealed = format.seal(
        Draft(MESSAGE, envelope, {"odd": odd, "k": ""}, arrival_ns=fields["arrival"]), 0, fields["nonce"]
    )
    assert path.read_bytes() == b"".join(sealed.parts)
    assert path.name == format.ready_name(fields["arrival"], sealed.id)


def test_the_constants_are_those_of_the_format() -> None:
    assert inject.HEADER_SIZE == format.HEAD_SIZE
    assert format.VERSION == 1


def test_a_flat_queue_is_written_to_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    accepted(tmp_path, "-f", "", "bob@b.example")
    assert [path.parent for path in files(tmp_path)] == [tmp_path / "in"]


def test_a_stranger_in_the_place_of_a_sub_directory_sends_the_entry_to_the_queue_itself(
    tmp_path: Path,
) -> None:
    lay_out(tmp_path / "elsewhere")
    (tmp_path / "in").mkdir()
    for number in range(256):
        stranger = tmp_path / "in" / f"{number:02x}"
        stranger.touch() if number % 2 else stranger.symlink_to(tmp_path / "elsewhere" / "00")
    for _ in range(4):
        assert run(tmp_path, "-f", "", "bob@b.example").returncode == 0
    assert len([path for path in (tmp_path / "in").iterdir() if format.parse_name(path.name)]) == 4


def test_q_names_another_queue(queue_dir: Path) -> None:
    lay_out(queue_dir / "list-bounces_2")
    accepted(queue_dir, "-q", "list-bounces_2", "-f", "", "bob@b.example")
    (path,) = files(queue_dir)
    assert path.parent.parent.name == "list-bounces_2"


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
@pytest.mark.parametrize(
    ("directory", "file"), [(0o700, 0o600), (0o755, 0o600), (0o777, 0o600), (0o770, 0o660), (0o750, 0o640)]
)
def test_the_umask_has_no_say_in_the_mode(queue_dir: Path, umask: int, directory: int, file: int) -> None:
    (queue_dir / "in").chmod(directory)
    accepted(queue_dir, "-f", "", "bob@b.example", umask=umask)
    assert files(queue_dir)[0].stat().st_mode & 0o7777 == file


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\n",
        b"no newline at the end",
        b"CRLF: yes\r\n\r\nbody\r\n",
        b"bare: cr\rhere\n\n\0\xff\n",
        b"From: header, not mbox\n\nFrom the start\n",
        b">From ann Mon Jan 1\nSubject: x\n\n",
        b"x" * (inject.HELD - 1),
        b"x" * inject.HELD,
        b"x" * (inject.HELD + 1) + b"\n",
        random.Random(1).randbytes(5 * inject.HELD + 12345),
    ],
    ids=lambda message: f"{message[:12]!r}… {len(message)}",
)
def test_the_message_is_kept_byte_for_byte(queue_dir: Path, message: bytes) -> None:
    assert accepted(queue_dir, "-f", "ann@a.example", "bob@b.example", message=message).message == message


def test_the_same_message_twice_is_two_entries(queue_dir: Path) -> None:
    for _ in range(2):
        assert run(queue_dir, "-f", "", "bob@b.example").returncode == 0
    assert len({read(path).id for path in files(queue_dir)}) == 2


def test_an_initial_mbox_line_is_dropped(queue_dir: Path) -> None:
    entry = accepted(queue_dir, "-f", "", "bob@b.example", message=b"From ann@x  Mon Jan  1\n" + MESSAGE)
    assert entry.message == MESSAGE


def test_a_large_message_is_not_held_in_memory(queue_dir: Path) -> None:
    limit = 64 << 20

    def little_memory() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    message = b"0123456789abcde\n" * (100 << 16)
    entry = accepted(queue_dir, "-f", "", "bob@b.example", message=message, preexec_fn=little_memory)
    assert entry.size == len(message) == 100 << 20
    assert entry.message == message


def test_a_message_that_comes_in_drops_is_read_to_its_end(queue_dir: Path) -> None:
    command = [str(PROGRAM), "-Q", str(queue_dir), "-f", "", "bob@b.example"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        for at in range(0, len(MESSAGE), 5):
            process.stdin.write(MESSAGE[at : at + 5])
            process.stdin.flush()
    assert process.returncode == 0
    assert only_entry(queue_dir).message == MESSAGE


# Sender and recipients


def test_an_empty_sender_is_the_null_sender(queue_dir: Path) -> None:
    assert (
        accepted(queue_dir, "-f", "", "bob@b.example", environment={"SENDER": "ann@a.example"}).sender == ""
    )


def test_angle_brackets_around_nothing_are_the_null_sender(queue_dir: Path) -> None:
    assert accepted(queue_dir, "-f", "<>", "bob@b.example").sender == ""


def test_without_f_the_sender_is_that_of_the_environment(queue_dir: Path) -> None:
    entry = accepted(queue_dir, "bob@b.example", environment={"SENDER": "ann@a.example"})
    assert entry.sender == "ann@a.example"


def test_an_empty_sender_in_the_environment_is_the_null_sender(queue_dir: Path) -> None:
    assert accepted(queue_dir, "bob@b.example", environment={"SENDER": ""}).sender == ""


def test_without_any_sender_the_message_is_not_taken(queue_dir: Path) -> None:
    assert b"no sender" in refused(queue_dir, "bob@b.example")


def test_the_original_recipient_goes_before_the_recipient(queue_dir: Path) -> None:
    both = {"ORIGINAL_RECIPIENT": "list+x@b.example", "RECIPIENT": "list@b.example"}
    assert accepted(queue_dir, "-f", "", environment=both).recipients == ("list+x@b.example",)


@pytest.mark.parametrize("original", [{}, {"ORIGINAL_RECIPIENT": ""}])
def test_without_an_original_recipient_the_recipient_is_taken(
    queue_dir: Path, original: dict[str, str]
) -> None:
    entry = accepted(queue_dir, "-f", "", environment={**original, "RECIPIENT": "list@b.example"})
    assert entry.recipients == ("list@b.example",)


@pytest.mark.parametrize("arguments", [[], [""], ["--"], ["a@b.example", ""]])
def test_without_a_recipient_the_message_is_not_taken(queue_dir: Path, arguments: list[str]) -> None:
    assert b"no recipient" in refused(queue_dir, "-f", "", *arguments)


def test_no_rcpt_takes_a_message_for_nobody(queue_dir: Path) -> None:
    entry = accepted(queue_dir, "-f", "", "--no-rcpt", environment={"RECIPIENT": "list@b.example"})
    assert entry.recipients == ()


def test_a_recipient_named_twice_is_kept_once(queue_dir: Path) -> None:
    assert accepted(queue_dir, "-f", "", "b@x", "a@x", "b@x").recipients == ("b@x", "a@x")


CENSORED = [
    ("list-bounces+bob_x=b.example@a.example", "list-bounces+bob#x=b.example@a.example"),
    ("o_brien____@a.example", "o'brien&*?{@a.example"),
    ("____@a.example", "}|~$@a.example"),
    ("a_b@a.example", '"a b"@a.example'),
    ("a_b_c@a.example", '"a\\"b\\\\c"@a.example'),
    ("a..b@a.example", '"a..b"@a.example'),
    ("under_score@a.example", "under_score@a.example"),
    ("_@a.example", "\udce9@a.example"),
]


@pytest.mark.parametrize(("variable", "header"), CENSORED)
@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_a_sender_that_local_censored_is_read_from_the_return_path(
    queue_dir: Path, variable: str, header: str, ending: bytes
) -> None:
    lines = [
        b"From x  Mon Jan  1",
        b"return-PATH:  <" + os.fsencode(header) + b">",
        b"Subject: x",
        b"",
        b"body",
        b"",
    ]
    entry = accepted(queue_dir, "b@x", message=ending.join(lines), environment={"SENDER": variable})
    assert entry.sender == header


@pytest.mark.parametrize(
    "head",
    [
        b"Return-Path: <other@a.example>\n",
        b"Return-Path: <a#bc@a.example>\n",
        b"Return-Path: <>\n",
        b"Return-Path:\n",
        b"Return-Path: <other@a.example>\nReturn-Path: <a#b@a.example>\n",
        b"Subject: no such header\n",
        b"\nReturn-Path: <a#b@a.example>\n",
        b"",
    ],
)
def test_a_return_path_that_differs_otherwise_changes_nothing(queue_dir: Path, head: bytes) -> None:
    entry = accepted(queue_dir, "b@x", message=head + b"\nbody\n", environment={"SENDER": "a_b@a.example"})
    assert entry.sender == "a_b@a.example"


@pytest.mark.parametrize(("variable", "header"), CENSORED)
def test_a_recipient_that_local_censored_is_read_from_x_original_to(
    queue_dir: Path, variable: str, header: str
) -> None:
    message = b"Return-Path: <>\nX-Original-To: " + os.fsencode(header) + b"\nX-Original-To: x@x\n\nbody\n"
    both = {"ORIGINAL_RECIPIENT": variable, "RECIPIENT": "list@b.example"}
    assert accepted(queue_dir, "-f", "", message=message, environment=both).recipients == (header,)


def test_a_sender_that_was_given_is_not_compared_with_the_return_path(queue_dir: Path) -> None:
    message = b"Return-Path: <a#b@a.example>\n\n"
    assert accepted(queue_dir, "-f", "a_b@a.example", "b@x", message=message).sender == "a_b@a.example"


ADDRESSES = st.binary(min_size=1, max_size=40).filter(lambda word: b"\0" not in word)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sender=ADDRESSES, recipients=st.lists(ADDRESSES, min_size=1, max_size=4), key=ADDRESSES, value=ADDRESSES
)
def test_whatever_bytes_an_address_has_arrive(
    queue_dir: Path, sender: bytes, recipients: list[bytes], key: bytes, value: bytes
) -> None:
    key = key.replace(b"=", b"")
    named = [b"-m", key + b"=" + value] if key and not key.startswith(b"qrunner.") else []
    entry = accepted(queue_dir, "-f", sender, *named, "--", *recipients)
    files(queue_dir)[0].unlink()
    assert entry.sender == ("" if sender == b"<>" else os.fsdecode(sender))
    assert entry.recipients == tuple(dict.fromkeys(map(os.fsdecode, recipients)))
    assert dict(entry.meta) == ({os.fsdecode(key): os.fsdecode(value)} if named else {})


@pytest.mark.parametrize("locale", ["C", "C.UTF-8", "POSIX"])
def test_the_locale_does_not_change_an_address(queue_dir: Path, locale: str) -> None:
    entry = accepted(queue_dir, "-f", "é@x".encode(), b"\xff@x", environment={"LC_ALL": locale})
    assert (entry.sender, entry.recipients) == ("é@x", ("\udcff@x",))


# Options


def test_an_options_value_is_taken_as_it_stands(queue_dir: Path) -> None:
    entry = accepted(queue_dir, "-f", "--", "-m", "-k=-v=w", "--", "-f", "--no-rcpt", "--help")
    assert (entry.sender, entry.recipients) == ("--", ("-f", "--no-rcpt", "--help"))
    assert entry.meta == {"-k": "-v=w"}


def test_values_may_be_attached(queue_dir: Path) -> None:
    entry = accepted(queue_dir, "-qin", "-f-ann@x", "-ma=b", "--max-size=1k", "--min-free=0", "b@x")
    assert (entry.sender, entry.meta) == ("-ann@x", {"a": "b"})


def test_options_may_follow_recipients(queue_dir: Path) -> None:
    assert accepted(queue_dir, "b@x", "-f", "a@x", "c@x").recipients == ("b@x", "c@x")


@pytest.mark.parametrize(
    "arguments",
    [
        ["-x"],
        ["--unknown"],
        ["--unknown=1"],
        ["--no-rcpt=1"],
        ["--help"],
        ["-h"],
        ["-"],
        ["-f"],
        ["-q"],
        ["-m"],
        ["-m", "novalue"],
        ["-m", "=value"],
        ["-m", "qrunner.x=1"],
        ["--max-size"],
        ["--max-size", "-1"],
        ["--max-size", "1T"],
        ["--max-size", "M"],
        ["--max-size", "1_000"],
        ["--max-size="],
        ["--min-free", "x"],
        ["--min-free", "٣"],
        ["-Q"],
        ["-Q", ""],
        ["-q", ""],
        ["-q", "hold"],
        ["-q", "shunt"],
        ["-q", "bad"],
        ["-q", "abc123"],
        ["-q", "In"],
        ["-q", "1n"],
        ["-q", "_in"],
        ["-q", "in/00"],
        ["-q", "../in"],
        ["-q", "."],
        ["-q", ".lease"],
        ["-q", "ïn"],
        ["-q", "i²"],
        ["-q", "i" * 65],
        ["-q", "missing"],
    ],
    ids=" ".join,
)
def test_a_wrong_option_is_75(queue_dir: Path, arguments: list[str]) -> None:
    (queue_dir / "hold").mkdir()
    (queue_dir / "abc123").mkdir()
    refused(queue_dir, "-f", "", "b@x", *arguments)


def test_no_options_at_all_are_75() -> None:
    result = subprocess.run([PROGRAM], input=MESSAGE, capture_output=True, check=False)
    assert (result.returncode, result.stdout[:6]) == (75, b"4.3.0 ")


def test_help_alone_is_printed() -> None:
    result = subprocess.run([PROGRAM, "--help"], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, inject.USAGE)


# Refusals


def test_a_message_larger_than_max_size_is_refused_for_good(queue_dir: Path) -> None:
    assert b"larger than 10 bytes" in refused(
        queue_dir, "-f", "", "--max-size", "10", "b@x", message=b"01234567890", code=65
    )
    accepted(queue_dir, "-f", "", "--max-size", "10", "b@x", message=b"0123456789")


def test_a_message_too_large_to_be_held_is_refused_for_good(queue_dir: Path) -> None:
    refused(queue_dir, "-f", "", "--max-size", "3M", "b@x", message=b"x" * (4 << 20), code=65)


def test_a_max_size_of_nought_is_no_limit(queue_dir: Path) -> None:
    accepted(queue_dir, "-f", "", "--max-size", "0", "b@x")


def test_nothing_is_taken_below_min_free(queue_dir: Path) -> None:
    assert b"bytes free" in refused(queue_dir, "-f", "", "--min-free", "1000000G", "b@x")


@pytest.mark.parametrize(
    "make",
    [
        lambda root: None,
        lambda root: root.write_text(""),
        lambda root: root.mkdir(),
        lambda root: (root.mkdir(), (root / "in").write_text("")),
        lambda root: (root.mkdir(), (root / "real").mkdir(), (root / "in").symlink_to("real")),
        lambda root: (root.mkdir(), subprocess.check_call(["mkfifo", root / "in"])),
    ],
    ids=["nothing", "a file", "no queue", "queue a file", "queue a link", "queue a fifo"],
)
def test_a_queue_that_is_no_directory_is_75(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "qfiles")
    refused(tmp_path / "qfiles", "-f", "", "b@x")


def test_a_queue_directory_behind_a_link_is_fine(queue_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "spool").symlink_to(queue_dir)
    assert run(tmp_path / "spool", "-f", "", "b@x").returncode == 0
    only_entry(queue_dir)


def test_a_closed_standard_input_is_not_an_empty_message(queue_dir: Path) -> None:
    refused(queue_dir, "-f", "", "b@x", stdin=None, preexec_fn=lambda: os.close(0))


def test_a_standard_input_that_can_not_be_read_is_75(queue_dir: Path) -> None:
    descriptor = os.open("/dev/null", os.O_WRONLY)
    refused(queue_dir, "-f", "", "b@x", stdin=descriptor)
    os.close(descriptor)


@pytest.mark.parametrize(("size", "code"), [("1K", 0), ("1", 65), ("nonsense", 75)])
@pytest.mark.parametrize("closed", [(1,), (2,), (1, 2)])
def test_closed_outputs_do_not_change_the_exit_code(
    queue_dir: Path, size: str, code: int, closed: tuple[int, ...]
) -> None:
    def close() -> None:
        for descriptor in closed:
            os.close(descriptor)

    result = run(queue_dir, "-f", "", "--max-size", size, "b@x", preexec_fn=close)
    assert result.returncode == code
    assert len(files(queue_dir)) == (code == 0)
    for path in files(queue_dir):
        read(path)


@pytest.mark.parametrize(("size", "code"), [("1K", 0), ("1", 65), ("nonsense", 75)])
def test_a_broken_output_pipe_does_not_change_the_exit_code(queue_dir: Path, size: str, code: int) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    result = run(queue_dir, "-f", "", "--max-size", size, "b@x", stdout=writing, stderr=writing)
    os.close(writing)
    assert result.returncode == code


def test_a_full_output_pipe_does_not_keep_the_program(queue_dir: Path) -> None:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETFL, os.O_NONBLOCK)
    os.write(writing, b"x" * fcntl.fcntl(writing, fcntl.F_GETPIPE_SZ))
    assert run(queue_dir, "--wrong", stdout=writing, stderr=writing).returncode == 75
    os.close(reading)
    os.close(writing)


def test_standard_output_and_standard_error_apart_both_hear_of_it(queue_dir: Path) -> None:
    result = run(queue_dir, "--wrong", "x", stderr=subprocess.PIPE)
    assert result.stdout == result.stderr == b"4.3.0 qrunner-inject: unknown option: --wrong\n"


def test_what_is_said_has_one_line_and_no_control_characters(queue_dir: Path) -> None:
    said = refused(queue_dir, "-q", "a\n5.1.1 b\x1b[31mé\udcff".encode("utf-8", "surrogateescape"))
    assert b"a?5.1.1 b?[31m\\xe9" in said


def test_a_python_that_lacks_a_module_is_75(queue_dir: Path) -> None:
    broken = "import sys; sys.modules['_sha1'] = sys.modules['hashlib'] = None; "
    program = f"{broken}sys.argv[0] = 'x'; exec(compile(open({str(PROGRAM)!r}).read(), 'x', 'exec'))"
    refused(queue_dir, "-f", "", "b@x", start=[sys.executable, "-IS", "-c", program])


def test_a_python_whose_sha1_is_elsewhere_will_do(queue_dir: Path) -> None:
    program = f"import sys; sys.modules['_sha1'] = None; exec(open({str(PROGRAM)!r}).read())"
    accepted(queue_dir, "-f", "", "b@x", start=[sys.executable, "-IS", "-c", program])


def test_too_little_memory_is_75(queue_dir: Path) -> None:
    """Whatever the interpreter needs to start, a little more lets the program start and then starve."""
    program = (
        "import sys, resource; pages = int(open('/proc/self/statm').read().split()[0])"
        "; limit = (pages * 4 + 512) * 1024; source = compile(open(sys.argv.pop(1)).read(), 'x', 'exec')"
        "; resource.setrlimit(resource.RLIMIT_AS, (limit, limit)); exec(source)"
    )
    start = [sys.executable, "-IS", "-c", program, str(PROGRAM)]
    assert b"MemoryError" in refused(queue_dir, "-f", "", "b@x", start=start, message=b"x" * (4 << 20))


def test_too_few_descriptors_are_75(queue_dir: Path) -> None:
    program = (
        "import sys, resource; source = compile(open(sys.argv.pop(1)).read(), 'x', 'exec')"
        "; resource.setrlimit(resource.RLIMIT_NOFILE, (4, 4)); exec(source)"
    )
    start = [sys.executable, "-IS", "-c", program, str(PROGRAM)]
    assert b"Too many open files" in refused(queue_dir, "-f", "", "b@x", start=start)


def test_a_limit_on_the_size_of_files_is_75(queue_dir: Path) -> None:
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    refused(queue_dir, "-f", "", "b@x", message=b"x" * 9000, preexec_fn=small_files)


def test_python_variables_and_the_current_directory_have_no_say(queue_dir: Path, tmp_path: Path) -> None:
    for module in ("posix", "time", "_sha1", "errno", "encodings"):
        (tmp_path / f"{module}.py").write_text("import sys; sys.exit(1)")
    environment = {
        "PYTHONPATH": str(tmp_path),
        "PYTHONHOME": str(tmp_path),
        "PYTHONSTARTUP": "x",
        "PYTHONINSPECT": "1",
    }
    accepted(queue_dir, "-f", "", "b@x", environment=environment, cwd=tmp_path)


# Whose it is


@pytest.mark.needs("setpriv")
def test_only_the_owner_of_the_queue_directory_may_inject(queue_dir: Path) -> None:
    """Root becomes the owner; a stranger is refused."""
    if os.geteuid() != 0:
        assert b"not the owner" in refused(Path("/"), "-f", "", "b@x")
        return
    for path in [queue_dir.parent, queue_dir, *queue_dir.rglob("*")]:
        os.chown(path, 12345, 12346)
    for parent in queue_dir.parents:
        parent.chmod(parent.stat().st_mode | 0o011)
    accepted(queue_dir, "-f", "", "b@x")
    status = files(queue_dir)[0].stat()
    assert (status.st_uid, status.st_gid) == (12345, 12346)
    accessible = ["setpriv", "--reuid=54321", "--regid=12346", "--clear-groups"]
    queue_dir.chmod(0o777)
    (queue_dir / "in").chmod(0o777)
    result = run(
        queue_dir, "-f", "", "b@x", before=accessible, start=["/usr/bin/python3", "-IS", "-c", readable()]
    )
    assert result.returncode == 75
    assert b"4.3.0 qrunner-inject: not the owner" in result.stdout
    assert len(files(queue_dir)) == 1


def readable() -> str:
    """The program as an argument, for a user who can't read the checkout."""
    return PROGRAM.read_text()


# Signals


def waiting_for_input(queue_dir: Path, **how: object) -> subprocess.Popen[bytes]:
    """A process that has read a part of its message and waits for more."""
    command = [PROGRAM, "-Q", queue_dir, "-f", "", "b@x"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **how)  # type: ignore[call-overload]
    assert process.stdin is not None
    process.stdin.write(b"x" * (1 << 20))
    process.stdin.flush()
    deadline = time.monotonic() + 10
    # A pipe holds 64 KiB: when a megabyte is written, the program has long been reading.
    while "S" not in Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2][:3]:
        assert time.monotonic() < deadline
    return process  # type: ignore[no-any-return]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_polite_signal_ends_it_with_75_and_no_remains(queue_dir: Path, number: signal.Signals) -> None:
    process = waiting_for_input(queue_dir)
    process.send_signal(number)
    out, _ = process.communicate(timeout=10)
    assert (process.returncode, out) == (
        75,
        b"4.3.0 qrunner-inject: interrupted, or nothing came for too long\n",
    )
    assert files(queue_dir) == []


def test_what_does_not_come_to_an_end_is_75_before_the_mail_server_gives_up(queue_dir: Path) -> None:
    source = PROGRAM.read_text().replace("TIME_LIMIT_S = 900", "TIME_LIMIT_S = 1")
    command = [sys.executable, "-IS", "-c", source, "-Q", str(queue_dir), "-f", "", "b@x"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.wait(timeout=30) == 75
    assert files(queue_dir) == []


def test_a_hang_up_that_is_ignored_stays_ignored(queue_dir: Path) -> None:
    process = waiting_for_input(queue_dir, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=10)
    assert process.returncode == 0
    assert only_entry(queue_dir).size == 1 << 20


# The program as a file


def test_the_program_is_executable_and_names_its_interpreter_by_full_path() -> None:
    first = PROGRAM.read_bytes().split(b"\n")[0]
    assert first == b"#!/usr/bin/python3 -IS"
    assert os.access(PROGRAM, os.X_OK)


def test_nothing_but_what_is_built_in_is_imported_to_take_a_message(queue_dir: Path) -> None:
    result = run(queue_dir, "-f", "", "b@x", start=["/usr/bin/python3", "-ISX", "importtime", str(PROGRAM)])
    bare = subprocess.run(
        ["/usr/bin/python3", "-ISX", "importtime", "-c", ""], capture_output=True, check=False
    )

    def modules(output: bytes) -> set[str]:
        return {line.rpartition("|")[2].strip() for line in output.decode().splitlines()}

    assert result.returncode == 0
    assert modules(result.stdout) - modules(bare.stderr) <= {"errno", "_sha1"}
