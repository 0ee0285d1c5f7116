"""Where the door `lmtp` listens, and what stands in its way."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qrunner.config import ConfigErrors, Listen
from qrunner.errors import ConfigError
from qrunner.smtpd.listener import Listener
from qrunner.smtpd.room import Room
from tests.driving import until
from tests.runners.doors import DOOR, UNIX, door_process, kinds, open_door, stuffed
from tests.sites import ROOT, tiny_site, wait_for

MESSAGE = stuffed(b"Subject: hello\r\n\r\nworld\r\n")
LOG = logging.getLogger("qrunner.test")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the socket is to be."""
    folder = tmp_path / "var"
    folder.mkdir(mode=0o700)
    return folder / "door"


def listener(path: Path) -> Listener:
    return Listener(Listen(path=path), asyncio.Protocol, Room(1, 1), LOG)


async def test_a_unix_socket_is_the_owners_alone_and_goes_with_the_door(tmp_path: Path) -> None:
    path = tmp_path / "var" / "door"
    async with open_door(tmp_path, door=UNIX) as door:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert kinds(await door.deliver(MESSAGE, "bob@x")) == ["250 2.0.0"]
        assert b"Received: from client.example (local)\r\n" in door.entries()[0].message
    assert not path.exists()
    assert [file.name for file in path.parent.iterdir() if file.name.startswith(".")] == []


async def test_its_mode_may_be_another(tmp_path: Path) -> None:
    async with open_door(tmp_path, 'socket_mode = "0660"', door=UNIX):
        assert stat.S_IMODE((tmp_path / "var" / "door").stat().st_mode) == 0o660


async def test_a_socket_that_a_dead_process_left_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    place = listener(path)
    await place.open()
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.close()
    place.close()
    assert not path.exists()
    assert reader


async def test_a_place_where_somebody_listens_is_left_to_him(path: Path) -> None:
    first = listener(path)
    await first.open()
    with pytest.raises(ConfigError, match="another door listens there"):
        await listener(path).open()
    await asyncio.open_unix_connection(str(path))
    first.close()
    await (again := listener(path)).open()
    again.close()


async def test_a_strangers_server_is_left_alone(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(ConfigError, match="another process listens there"):
            await listener(path).open()
        assert path.is_socket()


@pytest.mark.parametrize("what", ["file", "folder", "link"])
async def test_what_is_no_socket_is_left_alone(path: Path, what: str) -> None:
    if what == "file":
        path.write_text("mine")
    elif what == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/null")
    with pytest.raises(ConfigError, match="no socket of ours"):
        await listener(path).open()
    assert path.is_symlink() if what == "link" else path.exists()


async def test_what_took_the_sockets_name_meanwhile_is_not_removed(path: Path) -> None:
    place = listener(path)
    await place.open()
    path.unlink()
    path.write_text("mine")
    place.close()
    assert path.read_text() == "mine"


async def test_a_folder_that_others_may_write_to_is_refused(path: Path) -> None:
    path.parent.chmod(0o777)
    with pytest.raises(ConfigError, match="others may write to it"):
        await listener(path).open()
    with pytest.raises(ConfigError, match="is not there"):
        await listener(path / "x" / "door").open()


async def test_a_path_that_is_too_long_is_said_to_be(path: Path) -> None:
    with pytest.raises(ConfigError, match="107 bytes at most"):
        await listener(path.with_name("x" * 108)).open()
    longest = path.with_name("x" * (107 - len(f"{path.parent}/")))
    await (place := listener(longest)).open()
    await asyncio.open_unix_connection(str(longest))
    place.close()


async def test_a_port_that_is_taken_is_said_to_be(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"can't listen at 127.0.0.1:{port}"):
            async with open_door(tmp_path, door=DOOR.replace(":0", f":{port}")):
                raise AssertionError("it listens")


async def test_an_ipv6_address_can_be_listened_at(tmp_path: Path) -> None:
    async with open_door(tmp_path, door=DOOR.replace("127.0.0.1", "[::1]")) as door:
        assert door.runner.listener is not None
        reader, writer = await asyncio.open_connection("::1", door.runner.listener.port)
        await reader.readline()
        writer.write(b"LHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<a@x>\r\nDATA\r\n" + MESSAGE)
        writer.write_eof()
        await reader.read()
        assert b"from x ([IPv6:::1])\r\n" in door.entries()[0].message


def test_nobody_but_this_machine_is_listened_to_without_accept(tmp_path: Path) -> None:
    async def opened() -> None:
        async with open_door(tmp_path, door=DOOR.replace("127.0.0.1", "0.0.0.0")):
            pass

    with pytest.raises(ConfigErrors, match="accept: is missing"):
        asyncio.run(opened())


def test_nor_by_a_class_of_the_sites_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ours_at_the_door.py").write_text(
        "from qrunner.runners.lmtp import LmtpRunner\nclass Ours(LmtpRunner): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    async def opened(host: str) -> list[str]:
        own = DOOR.replace('"lmtp"', '"ours_at_the_door:Ours"').replace("127.0.0.1", host)
        async with open_door(tmp_path, door=own) as door:
            return kinds(await door.deliver(MESSAGE, "bob@x"))

    assert asyncio.run(opened("127.0.0.1")) == ["250 2.0.0"]
    with pytest.raises(ConfigError, match="accept is missing"):
        asyncio.run(opened("0.0.0.0"))


# As a process


def test_status_knows_the_door(tmp_path: Path) -> None:
    with tiny_site(tmp_path) as site:
        door = '\n[runner.door]\nclass = "lmtp"\nlisten = "unix:../var/door"\nnext = "in"\n'
        site.write(site.config.read_text() + door)
        site.ctl("start")
        assert said_by_lmtp(tmp_path / "var" / "door", b"a@x") == b"250"

        def seen() -> dict[str, Any]:
            return next(one for one in site.told()["runners"] if one["name"] == "door")

        wait_for(lambda: seen()["processed"] == 1)
        (door_says,) = [one for one in site.status()["runners"] if one["name"] == "door"]
        assert (door_says["state"], door_says["range"], door_says["failed"]) == ("running", None, 0)
        site.ctl("suspend", "runner:door")
        wait_for(lambda: seen()["state"] == "suspended")
        assert said_by_lmtp(tmp_path / "var" / "door", b"a@x") == b"503"
        site.ctl("resume", "runner:door")
        wait_for(lambda: seen()["state"] == "running")
        site.ctl("stop")
        assert not (tmp_path / "var" / "door").exists()


def said_by_lmtp(path: Path, recipient: bytes) -> bytes:
    """The code of the last reply to one message."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        talk = client.makefile("rwb")
        lines = b"LHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<" + recipient + b">\r\nDATA\r\n"
        talk.write(lines)
        talk.flush()
        while not (line := talk.readline()).startswith((b"354", b"503")):
            assert line
        if line.startswith(b"354"):
            talk.write(MESSAGE)
            talk.flush()
            line = talk.readline()
        return line[:3]


def test_without_descriptors_connections_wait_and_nothing_spins(tmp_path: Path) -> None:
    few = 40

    def before() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, few))

    door = door_process(tmp_path, before=before)
    path, many = str(tmp_path / "var" / "door"), list[socket.socket]()
    try:
        for _ in range(few + 5):
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(20)
            client.connect(path)
            many.append(client)
        wait_for(lambda: "out of system resource" in (tmp_path / "err").read_text())
        used = cpu_s(door.pid)
        wait_for(lambda: (tmp_path / "err").read_text().count("out of system resource") > 2)
        assert cpu_s(door.pid) - used < 0.5
        for client in many[: few // 2]:
            client.close()
        assert many[-1].recv(3) == b"220"
    finally:
        for client in many:
            client.close()
        door.send_signal(signal.SIGTERM)
        assert door.wait(30) == 0


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_one_that_was_killed_leaves_its_place_to_the_next(tmp_path: Path) -> None:
    for _ in range(2):
        door = door_process(tmp_path)
        assert said_by_lmtp(tmp_path / "var" / "door", b"a@x") == b"250"
        door.kill()
        door.wait()
    assert (tmp_path / "var" / "door").is_socket()


def test_once_comes_to_its_end_at_once(tmp_path: Path) -> None:
    door_process(tmp_path).kill()
    config = str(tmp_path / "etc" / "qrunner.toml")
    command = [
        sys.executable,
        "-c",
        "from qrunner.ctl import main; main()",
        "-c",
        config,
        "run",
        "door",
        "--once",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run(command, env=environment, timeout=60, capture_output=True).returncode == 0


async def test_the_log_says_where_it_listens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        async with open_door(tmp_path, door=UNIX):
            await until(lambda: "listening" in caplog.text)
