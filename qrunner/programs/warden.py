"""The warden: a small process beside a runner that starts its programs, so that nothing of them ever stays.

Begun once by each runner, as ``python -I -S warden.py CONTROL PID``. For each program the runner sends four descriptors
over the socket CONTROL: what the program gets as 0, 1 and 2, and a socket, the *line*. The warden forks a *keeper*, and
the keeper the program. A fork of this small process costs a third of what a Python that starts would.

::

    on the line      runner → keeper                         keeper → runner
    first            {"argv":…,"env":…,"cwd":…}\\n            {"keeper":[pid,start],"program":[pid,start]}\\n
    then             g  run it; t  SIGTERM to its group      {"exit":0}\\n or {"signal":9}\\n or {"error":2}\\n
                     end of file: kill all of it

Guarantees: nothing runs before the ``g``. The program leads a session of its own and has three descriptors, the given
environment and signals as they are by default. Whatever it starts and leaves behind, also in another session, becomes
a child of the keeper (prctl(2), PR_SET_CHILD_SUBREAPER) and is killed when the program ends; only when all of it is gone
does the keeper say how the program ended. When the runner dies, whatever it dies of, the keepers kill at once; when a
keeper is killed, the program dies with it (PR_SET_PDEATHSIG).

Not guaranteed: what runs as somebody else (a set-user-id program) can't be killed, and is waited for. A program can
kill its own keeper, since it is the same user's; what it leaves then is ended before its entry is run again.

Failures: ``error`` is the errno of what kept the program from being started.
"""

import contextlib
import ctypes
import errno
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from typing import Any

_PDEATHSIG, _SUBREAPER = 1, 36
_LOOK_MS = 50
_libc = ctypes.CDLL(None, use_errno=True)


def main(control: int, runner: int) -> None:
    """Until the runner closes the socket, or dies."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        # Whoever signals all processes of a service tells the runner too, and that is who decides.
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    runner_fd = _watch(runner)
    poll = _poll(control, runner_fd)
    channel = socket.socket(fileno=control)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if runner_fd in ready:
            return
        data, fds, _, _ = socket.recv_fds(channel, 1, 4)
        if not data:
            return
        if len(fds) == 4 and _fork_or_none() == 0:
            channel.close()
            keep(fds[3], fds[:3], runner_fd)
            os._exit(0)
        for fd in fds:
            os.close(fd)


def _watch(runner: int) -> int | None:
    """A descriptor that is readable once the runner has died; None: the kernel has none, and only the line tells."""
    try:
        fd = os.pidfd_open(runner)
    except (AttributeError, OSError):
        fd = None
    if os.getppid() != runner:
        sys.exit(0)
    return fd


def _poll(*fds: int | None) -> select.poll:
    poll = select.poll()
    for fd in fds:
        if fd is not None:
            poll.register(fd, select.POLLIN)
    return poll


def _fork_or_none() -> int | None:
    try:
        return os.fork()
    except OSError:
        return None


def keep(line: int, fds: Sequence[int], runner_fd: int | None) -> None:
    """The life of a keeper: one program, from its start until nothing of it is left."""
    try:
        said = _kept(line, fds, runner_fd)
    except OSError as error:
        said = {"error": error.errno or errno.EIO}
    with contextlib.suppress(OSError):
        _say(line, said)


def _kept(line: int, fds: Sequence[int], runner_fd: int | None) -> dict[str, int]:
    request = json.loads(_read_line(line))
    _libc.prctl(_SUBREAPER, 1, 0, 0, 0)
    wake = _wake_on_children()
    go, start = os.pipe()
    trouble, told = os.pipe()
    keeper = os.getpid()
    program = os.fork()
    if program == 0:
        os.close(start)
        _become(request, fds, go, told, keeper)
    for fd in (*fds, go, told):
        os.close(fd)
    try:
        _say(line, {"keeper": [keeper, started(keeper)], "program": [program, started(program)]})
        _attend(line, runner_fd, wake, start, program)
    finally:
        code = os.waitstatus_to_exitcode(_end(program, wake))
    error = os.read(trouble, 16)
    if error:
        return {"error": int(error)}
    return {"signal": -code} if code < 0 else {"exit": code}


def _read_line(line: int) -> bytes:
    data = bytearray()
    while not data.endswith(b"\n"):
        # The runner sends nothing more before it was answered.
        part = os.read(line, 65536)
        if not part:
            os._exit(0)
        data += part
    return bytes(data)


def _say(line: int, what: dict[str, Any]) -> None:
    os.write(line, json.dumps(what).encode() + b"\n")


def _wake_on_children() -> int:
    wake, bell = os.pipe()
    for fd in (wake, bell):
        os.set_blocking(fd, False)
    signal.set_wakeup_fd(bell, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return wake


# The program


def _become(request: dict[str, Any], fds: Sequence[int], go: int, told: int, keeper: int) -> None:
    """In the child: the program, or the errno of what stands in its way."""
    try:
        os.setsid()
        _libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        for one in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(one, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        if os.getppid() != keeper or not os.read(go, 1):
            os._exit(0)
        os.chdir(_bytes(request["cwd"]))
        for number, fd in enumerate(fds):
            os.dup2(fd, number)
        _close_all_but(0, 1, 2, told)
        env = {_bytes(name): _bytes(value) for name, value in request["env"].items()}
        _execute([_bytes(word) for word in request["argv"]], env)
    except OSError as error:
        os.write(told, b"%d" % (error.errno or errno.EINVAL))
    except Exception:  # what can't stand in an argument, such as a NUL
        os.write(told, b"%d" % errno.EINVAL)
    finally:
        os._exit(127)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _close_all_but(*kept: int) -> None:
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            # The one that lists them is among them, and gone already.
            with contextlib.suppress(OSError):
                os.close(int(name))


def _execute(argv: list[bytes], env: dict[bytes, bytes]) -> None:
    """As execvp(3) looks for it, but on the program's own PATH, and never through a shell.

    :raises OSError: it can't be.
    """
    found: OSError | None = None
    for path in _candidates(argv[0], env.get(b"PATH", b"")):
        try:
            os.execve(path, argv, env)
        except (FileNotFoundError, NotADirectoryError) as error:
            found = found or error
        except PermissionError as error:
            # Another folder may have one that can be run; if none has, this is why.
            found = error
    raise found or FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


def _candidates(program: bytes, path: bytes) -> list[bytes]:
    if b"/" in program:
        return [program]
    return [os.path.join(folder, program) for folder in path.split(b":") if folder]


# The keeper


def _attend(line: int, runner_fd: int | None, wake: int, start: int, program: int) -> None:
    """Until the program has ended, or is to."""
    poll = _poll(line, runner_fd, wake)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if runner_fd in ready:
            return
        if wake in ready:
            os.read(wake, 4096)
            if _reap_others(program):
                return
        if line in ready:
            order = os.read(line, 1)
            if not order:
                return
            if order == b"g":
                os.write(start, order)
            elif order == b"t":
                _signal_group(program, signal.SIGTERM)


def _reap_others(program: int) -> bool:
    """Takes leave of what the program has left to us; whether it has ended itself. Its own end is not fetched yet, so
    that its number stays its own."""
    while True:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is None:
            return False
        if found.si_pid == program:
            return True
        os.waitpid(found.si_pid, 0)


def _signal_group(program: int, number: int) -> None:
    for send in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            send(program, number)


def _end(program: int, wake: int) -> int:
    """Kills all that is left; how the program ended, as wait(2) says it."""
    _signal_group(program, signal.SIGKILL)
    _, status = os.waitpid(program, 0)
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status
        if pid:
            continue
        # Only those whose end we fetch ourselves, so that no number can be somebody else's by now. Their children
        # are ours next.
        for child in _children():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(child, signal.SIGKILL)
        _poll(wake).poll(_LOOK_MS)
        with contextlib.suppress(BlockingIOError):
            os.read(wake, 4096)


def _children() -> Iterator[int]:
    me = os.getpid()
    try:
        with open(f"/proc/self/task/{me}/children", "rb") as file:
            yield from map(int, file.read().split())
    except FileNotFoundError:
        # A kernel without that list.
        for name in os.listdir("/proc"):
            if name.isdigit() and (fields := stat_of(int(name))) and int(fields[1]) == me:
                yield int(name)


def stat_of(pid: int) -> list[bytes]:
    """The fields of ``/proc/PID/stat`` from the third on (proc(5)): state, parent, group, session …; empty: there is no
    such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2].split()
    except OSError:
        return []


def started(pid: int) -> int:
    """When a process was started, in ticks since the boot; 0: there is none. With the number, it names a process."""
    fields = stat_of(pid)
    return int(fields[19]) if len(fields) > 19 else 0


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
