"""The warden and its keepers: what they promise when everything around them is killed."""

from __future__ import annotations

import ast
import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from qrunner.programs import warden
from qrunner.programs.running import Order, Running, Wardens
from tests.programs.living import HANGING, alive, hanging, pids
from tests.sites import wait_for

LIMIT_S = 30.0


def order(folder: Path, *arguments: str) -> Order:
    return Order(arguments, {"PATH": "/usr/bin:/bin"}, folder, b"")


def with_one(test: Callable[[Running], Awaitable[None]], given: Order) -> None:
    """Calls it with a program that waits for its go."""

    async def story() -> None:
        wardens = Wardens()
        async with asyncio.timeout(LIMIT_S):
            await test(await wardens.begin(given))
        wardens.close()

    asyncio.run(story())


def test_it_needs_nothing_but_the_standard_library() -> None:
    names = {
        alias.name if isinstance(node, ast.Import) else str(node.module)
        for node in ast.walk(ast.parse(Path(warden.__file__).read_text("utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert [name for name in names if name.split(".")[0] not in sys.stdlib_module_names] == []


def test_nothing_runs_that_was_not_told_to_go(tmp_path: Path) -> None:
    async def test(running: Running) -> None:
        running.kill()
        ended = await running.ended()
        assert (ended.exit, ended.signal) == (None, signal.SIGKILL)

    with_one(test, order(tmp_path, "touch", f"{tmp_path}/ran"))
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_is_stopped_is_killed_all_the_same(tmp_path: Path) -> None:
    async def test(running: Running) -> None:
        running.go()
        while (await asyncio.to_thread(warden.stat_of, running.program.pid))[:1] != [b"T"]:
            await asyncio.sleep(0.01)
        running.terminate()
        running.kill()
        assert (await running.ended()).signal == signal.SIGKILL

    with_one(test, order(tmp_path, "sh", "-c", "kill -STOP $$"))


def test_many_orphans_of_a_program_that_goes_on_are_taken_leave_of(tmp_path: Path) -> None:
    script = f"for n in $(seq 300); do (true &) ; done; touch {tmp_path}/done; exec sleep 1000"

    async def test(running: Running) -> None:
        running.go()
        keeper = running.keeper.pid
        children = Path(f"/proc/{keeper}/task/{keeper}/children")
        while not (tmp_path / "done").exists() or children.read_text().split() != [str(running.program.pid)]:
            await asyncio.sleep(0.01)
        running.kill()
        await running.ended()

    with_one(test, order(tmp_path, "sh", "-c", script))


@pytest.mark.parametrize("victims", ["runner", "runner and warden", "keeper", "warden"])
def test_whoever_is_killed_nothing_of_the_program_stays(tmp_path: Path, victims: str) -> None:
    """But where it is the keeper, only the program itself is sure to die with it."""
    child = os.fork()
    if not child:
        os.setpgid(0, 0)
        _run_for_ever(tmp_path)
    wait_for(lambda: {*HANGING, "who"} <= {path.name for path in tmp_path.iterdir()})
    numbers = [int(word) for word in (tmp_path / "who").read_text().split()]
    victim = dict(zip(("runner", "warden", "keeper"), numbers, strict=True))
    try:
        for name in victims.split(" and "):
            os.kill(victim[name], signal.SIGKILL)
        dying = [int((tmp_path / "program").read_text())] if victims == "keeper" else pids(tmp_path)
        if victims == "warden":
            # Its keepers don't need it.
            assert alive(dying) == dying
            os.kill(victim["runner"], signal.SIGKILL)
        wait_for(lambda: not alive(dying))
    finally:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for pid in alive(pids(tmp_path)):
            os.kill(pid, signal.SIGKILL)


def _run_for_ever(folder: Path) -> None:
    """A runner's process, of whose descriptors another process of its own has copies."""

    async def story() -> None:
        wardens = Wardens()
        running = await wardens.begin(order(folder, sys.executable, "-c", hanging(folder)))
        running.go()
        assert wardens._process is not None
        if not os.fork():
            signal.pause()
        (folder / "new").write_text(f"{os.getpid()} {wardens._process.pid} {running.keeper.pid}")
        (folder / "new").rename(folder / "who")
        await running.ended()

    try:
        asyncio.run(story())
    finally:
        os._exit(1)
