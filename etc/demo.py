"""The default site at work: `make demo`.

Three SMTP sinks listen in this process; the site of etc/qrunner.toml is started on a copy of its own, under a real
master; real messages come in through the pipe and from a program, and pass a handler; three slices hand them to the
three hosts, 70/20/10. One host is killed on the way. Whatever its slice still has reaches the others by ``backoff``.

Exit code: 0 if every message has arrived once and byte for byte, and a part of them by ``backoff``; else 1, and the
site's folder with its log is kept. Everything that was started is stopped, by Ctrl-C and SIGTERM too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from demo_mail import Letter, letters, number_of

from qrunner import Site
from qrunner.config import Config, parse
from qrunner.errors import QRunnerError
from qrunner.slices import cut, owner
from qrunner.smtp.sink import Received, Sink
from qrunner.smtp.sinkserver import SinkServer

HERE = Path(__file__).resolve().parent
COUNT, BY_PIPE = 300, 48
KILLED, KILLED_AFTER = "mta2", 5
LIMIT_S = 25.0
CTL = (sys.executable, "-P", "-c", "from qrunner.ctl import main; main()")
# A message whose connection was cut is tried again after this, and not after the five minutes of every day.
RETRY = 'retry = { first = "1s", max = "5s" }     # the demonstration is in a hurry'

Step = Callable[[str], None]


class Failed(Exception):
    """What kept the demonstration from its end."""


# The folder, the hosts, the master


def copy_site(folder: Path, ports: Mapping[str, int]) -> Path:
    """The default site with its mail under ``folder``, and its hosts on these ports; its configuration."""
    shutil.copytree(HERE, folder / "etc", ignore=shutil.ignore_patterns("__pycache__", "demo*"))
    (folder / "qfiles").mkdir()
    (folder / "var").mkdir()
    # Whatever the checkout's modes are: a configuration that others may write is refused.
    for path in folder.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    path = folder / "etc" / "qrunner.toml"
    text = path.read_text("utf-8").replace("[site]\n", f"[site]\n{RETRY}\n", 1)
    for name, port in ports.items():
        text = re.sub(rf"(\[smtp\.{name}\](?:\n[^\[].*)*?\nport\s*=\s*)\d+", rf"\g<1>{port}", text)
    path.write_text(text, "utf-8")
    return path


class Hosts:
    """SMTP hosts, and what they have been given: by the number of the letter, the host and the message."""

    def __init__(self) -> None:
        self.got: dict[int, list[tuple[str, bytes]]] = {}
        self.servers: dict[str, SinkServer] = {}
        self.strange: list[str] = []
        self._news = asyncio.Event()

    async def listen(self, stack: AsyncExitStack, name: str, port: int) -> int:
        """Starts one on this port, or, where somebody listens already, on a free one; which it is."""
        for place in (port, 0):
            with contextlib.suppress(OSError):
                server = await SinkServer(Sink(name), port=place, told=self._told).__aenter__()
                stack.push_async_callback(server.stop)
                self.servers[name] = server
                return server.port
        raise Failed("there is no port to listen on")

    def _told(self, sink: Sink, received: Received) -> None:
        number = number_of(received.message)
        if number is None:
            self.strange.append(f"{sink.name} was given a message that nobody sent, from {received.sender!r}")
        else:
            self.got.setdefault(number, []).append((sink.name, received.message))
        self._news.set()

    def count(self, name: str) -> int:
        """How many messages a host has been given."""
        return len(self.servers[name].sink.messages)

    async def wait_for(self, done: Callable[[], bool]) -> bool:
        """Until so much has arrived; False: it took too long."""
        try:
            async with asyncio.timeout(LIMIT_S):
                while not done():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            return False
        return True


async def ctl(config: Path, *words: str, codes: Collection[int] = (0,)) -> str:
    """Runs ``qrunner-ctl``; what it printed. Failed for another exit code."""
    pipe = asyncio.subprocess.PIPE
    # In a session of its own: a Ctrl-C is for us, who then stop everything in order.
    process = await asyncio.create_subprocess_exec(
        *CTL, "-c", str(config), *words, stdout=pipe, stderr=pipe, start_new_session=True
    )
    out, err = (part.decode().strip() for part in await process.communicate())
    if process.returncode not in codes:
        raise Failed(f"qrunner-ctl {' '.join(words)}: exit code {process.returncode}\n{out}\n{err}")
    return out or err


@asynccontextmanager
async def running(config: Path, step: Step) -> AsyncIterator[None]:
    """The site, started; stopped in any case."""
    starting = asyncio.create_task(ctl(config, "start"))
    try:
        step(f"qrunner-ctl start: {await asyncio.shield(starting)}")
        yield
    finally:
        # A start that is under way when we are interrupted is stopped once it has come to its end.
        await asyncio.wait([starting])
        step(f"qrunner-ctl stop: {await ctl(config, 'stop', codes=(0, 3))}")


# The mail


def pipe_program() -> Path:
    """The ``qrunner-inject`` of this environment, else the checkout's."""
    installed = Path(sys.executable).parent / "qrunner-inject"
    return installed if installed.exists() else HERE.parent / "bin" / "qrunner-inject"


async def by_pipe(queue_dir: Path, letter: Letter) -> None:
    """One process for the message, as an MTA starts it."""
    arguments = ("-Q", str(queue_dir), "-f", letter.sender, "--", letter.recipient)
    process = await asyncio.create_subprocess_exec(
        str(pipe_program()), *arguments, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate(letter.message)
    if process.returncode != 0:
        raise Failed(f"qrunner-inject: exit code {process.returncode}: {said.decode(errors='replace')}")


async def by_program(site: Site, letter: Letter) -> None:
    """Through the Python API."""
    await site.enqueue_async(
        "in", message=letter.message, sender=letter.sender, recipients=[letter.recipient]
    )


async def feed(site: Site, mail: Sequence[Letter], step: Step) -> None:
    """Puts messages into ``in``; returns when all of them are on the disk."""
    turns = asyncio.Semaphore(8)
    every = len(mail) // BY_PIPE

    async def one(turn: int, letter: Letter) -> None:
        async with turns:
            if turn % every == 0:
                await by_pipe(site.config.site.queue_dir, letter)
            else:
                await by_program(site, letter)

    step(f"{len(mail)} messages go into `in`, whose handler signs them on top, and from there to `out`:")
    step(f"every {every}th by a process of qrunner-inject, as an MTA starts it, the others by Site.enqueue")
    await asyncio.gather(*(one(turn, letter) for turn, letter in enumerate(mail)))
    step("all of them are on the disk")


# The account


class Account:
    """What came of each message: which slice owned it, who was given it."""

    def __init__(self, config: Config, mail: Sequence[Letter], hosts: Hosts) -> None:
        slices = config.runners["out"].slices
        self.weights = {part.smtp[0]: part.weight for part in slices}
        self.names, self._ranges = list(self.weights), cut([part.weight for part in slices])
        self.directly: Counter[str] = Counter()
        self.by_backoff: Counter[str] = Counter()
        self.wrong = list(hosts.strange)
        for letter in mail:
            self._add(letter, hosts.got.get(letter.number, []))

    def _add(self, letter: Letter, got: list[tuple[str, bytes]]) -> None:
        if len(got) != 1:
            self.wrong.append(f"letter {letter.number} has arrived {len(got)} times, not once")
        for host, message in got[:1]:
            # On top stands the line that the handler wrote, with the id.
            line, _, rest = message.partition(b"\r\n")
            if rest != letter.on_the_wire or not line.startswith(b"X-Passed: in; "):
                self.wrong.append(f"letter {letter.number} has arrived changed")
                continue
            index = owner(self._ranges, line[-40:].decode())
            assert index is not None
            theirs = self.names[index]
            (self.directly if host == theirs else self.by_backoff)[theirs] += 1

    def table(self) -> str:
        """A line a host."""
        total = sum(self.weights.values())
        row = "{:8} {:>6} {:>16} {:>20} {:>13} {:>9}".format
        lines = [row("host", "weight", "expected share", "delivered directly", "via backoff", "together")]
        for name, weight in self.weights.items():
            share = f"{COUNT * weight / total:.0f}"
            direct, backoff = self.directly[name], self.by_backoff[name]
            lines.append(row(name, weight, share, direct, backoff, direct + backoff))
        direct, backoff = self.directly.total(), self.by_backoff.total()
        return "\n".join([*lines, row("total", total, COUNT, direct, backoff, direct + backoff)])

    def tell(self) -> bool:
        """Prints it; whether all is as it should be."""
        if not self.by_backoff[KILLED]:
            self.wrong.append(f"nothing of {KILLED}'s share has arrived by way of backoff")
        print(f"\n{self.table()}\n")
        for line in self.wrong[:20]:
            print(colour(line, "31"))
        verdict = colour("no", "31") if self.wrong else colour("yes", "32")
        print(f"each once and byte for byte: {verdict}", flush=True)
        return not self.wrong


def colour(text: str, code: str) -> str:
    """The text in a colour, on a terminal only."""
    plain = os.environ.get("NO_COLOR") or not sys.stdout.isatty()
    return text if plain else f"\x1b[{code}m{text}\x1b[0m"


def steps() -> Step:
    """Says what happens, line by line, with the time since the beginning."""
    began = time.monotonic()

    def step(text: str) -> None:
        first, *others = text.split("\n")
        print(colour(f"{time.monotonic() - began:5.1f} s  ", "2") + first, flush=True)
        for line in others:
            print(f"         {line}", flush=True)

    return step


# The whole


async def play(folder: Path, step: Step) -> bool:
    """Everything; whether it went well."""
    original = HERE / "qrunner.toml"
    known = parse(original.read_text("utf-8"), original)
    hosts, mail = Hosts(), letters(COUNT)
    async with AsyncExitStack() as stack:
        ports = {name: await hosts.listen(stack, name, host.port) for name, host in known.smtp.items()}
        step("SMTP hosts listen: " + ", ".join(f"{name} on port {port}" for name, port in ports.items()))
        path = copy_site(folder, ports)
        step(f"the site of {original}, its mail in {folder}")
        async with running(path, step):
            await deliver(path, mail, hosts, step)
        account = Account(known, mail, hosts)
    step("the account")
    return account.tell()


async def deliver(path: Path, mail: Sequence[Letter], hosts: Hosts, step: Step) -> None:
    """Feeds the site, kills a host, and waits until all is delivered and every queue empty."""
    await asyncio.gather(feed(Site.load(path), mail, step), kill(hosts, step))
    await hosts.wait_for(lambda: len(hosts.got) == len(mail))
    step(f"{len(hosts.got)} of {len(mail)} messages have arrived")
    step("qrunner-ctl status: " + "; ".join(["every queue is empty", *await emptied(path)]))


async def kill(hosts: Hosts, step: Step) -> None:
    """Ends one of the hosts when it has taken a few messages, and is about to take more."""
    if not await hosts.wait_for(lambda: hosts.count(KILLED) >= KILLED_AFTER):
        raise Failed(f"{KILLED} has been given no mail")
    await hosts.servers[KILLED].stop()
    step(
        f"{KILLED} is killed, having taken {hosts.count(KILLED)}: its port is closed, its connections are cut"
    )


async def emptied(path: Path) -> list[str]:
    """Waits until no queue holds anything; the problems of the site then. Failed if something is left."""
    until = time.monotonic() + LIMIT_S
    while True:
        state = json.loads(await ctl(path, "status", "--json", codes=(0, 1)))
        left = {one["name"]: one["depth"] for one in state["queues"] if one["depth"]}
        if not left:
            return [f"{one['where']} {one['what']}" for one in state["problems"]]
        if time.monotonic() > until:
            raise Failed(f"something is left in the queues: {left}")


async def main() -> int:
    """The program; its exit code."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    step, folder = steps(), Path(tempfile.mkdtemp(prefix="qrunner-demo-"))
    try:
        well = await play(folder, step)
    except (Failed, QRunnerError) as error:
        step(colour(str(error), "31"))
        well = False
    except asyncio.CancelledError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    if well:
        shutil.rmtree(folder)
    else:
        print(f"Not as it should be. The site is kept in {folder}, its log in var/log/qrunner.log.")
    return 0 if well else 1


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main()))
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(130)
