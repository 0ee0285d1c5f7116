"""How a connection comes about: greeting, EHLO, TLS, AUTH, and what each failure says of the host."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import shutil
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from qrunner.smtp import client
from qrunner.smtp.channel import HostFailure
from qrunner.smtp.client import SmtpChannel, SmtpDialer, _peer
from qrunner.smtp.sink import Sink
from qrunner.smtp.sinkserver import SinkServer
from tests.smtp.hosts import config, deliver, free_port, kinds, saying, scripted

DIALER = SmtpDialer("client.example")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificate and key of 127.0.0.1, signed by itself, in one file."""
    openssl = shutil.which("openssl")
    assert openssl is not None
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            openssl,
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-keyout",
            folder / "key",
            "-out",
            folder / "cert",
            "-days",
            "2",
            "-subj",
            "/CN=127.0.0.1",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
        ],
        check=True,
        capture_output=True,
    )
    both = folder / "both.pem"
    both.write_bytes((folder / "cert").read_bytes() + (folder / "key").read_bytes())
    return both


@asynccontextmanager
async def tls_host(
    certificate: Path, *, implicit: bool = False, handshakes: bool = True
) -> AsyncIterator[int]:
    """A host with STARTTLS (or TLS from the start) and AUTH, which takes one message or any number of QUITs."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if implicit:
            await writer.start_tls(context)
        writer.write(b"220 hi\r\n")
        encrypted = implicit
        while line := await reader.readline():
            verb = line.split()[0].upper()
            if verb == b"STARTTLS":
                writer.write(b"220 go\r\n")
                await writer.drain()
                if not handshakes:
                    return
                await writer.start_tls(context)
                encrypted = True
            elif verb == b"EHLO":
                writer.write(
                    b"250-hi\r\n" + (b"250 AUTH PLAIN LOGIN\r\n" if encrypted else b"250 STARTTLS\r\n")
                )
            elif verb == b"AUTH":
                good = line.split()[2] == base64.b64encode(b"\0me\0secret")
                writer.write(b"235 ok\r\n" if good else b"535 5.7.8 no\r\n")
            elif verb == b"MAIL":
                writer.write(b"550 encrypted\r\n" if encrypted else b"550 plain\r\n")
            else:
                writer.write(b"250 ok\r\n")

    async with scripted(script) as port:
        yield port


async def dialled(port: int, **more: object) -> str:
    """What the host says of the connection: encrypted, or plain."""
    channel = await DIALER.dial(config(port, **more))
    try:
        delivery = await deliver(channel, "a@x")
        return delivery.outcomes["a@x"].text
    finally:
        channel.close()


def failure(coroutine: object) -> HostFailure:
    with pytest.raises(HostFailure) as caught:
        asyncio.run(coroutine)  # type: ignore[arg-type]
    return caught.value


async def _dial_sink(sink: Sink, **more: object) -> SmtpChannel:
    async with SinkServer(sink) as server:
        channel = await DIALER.dial(config(server.port, **more))
        channel.close()
        return channel


def test_nobody_listens() -> None:
    error = failure(DIALER.dial(config(free_port())))
    assert "connect to 127.0.0.1" in error.text
    assert not error.slow


def test_an_address_that_swallows_everything_does_not_hide_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_NEXT_ADDRESS_S", 0.05)

    async def test() -> None:
        async with SinkServer(Sink()) as server:
            with socket.socket() as deaf, contextlib.ExitStack() as callers:
                deaf.bind(("127.0.0.9", server.port))
                deaf.listen(0)
                for _ in range(4):
                    # More than it has room for: who comes now is not even refused.
                    caller = callers.enter_context(socket.socket())
                    caller.setblocking(False)
                    caller.connect_ex(deaf.getsockname())
                found = [
                    (socket.AF_INET, socket.SOCK_STREAM, 6, "", (at, server.port))
                    for at in ("127.0.0.9", "127.0.0.1")
                ]

                async def both(*_: object, **__: object) -> object:
                    return found

                monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", both)
                channel = await DIALER.dial(config(server.port, host="two.example", connect_timeout_s=20))
                assert channel.is_clean
                await channel.quit()

    asyncio.run(test())


def test_a_name_that_does_not_resolve_is_the_host_s_failure() -> None:
    assert "connect to" in failure(DIALER.dial(config(25, host="nowhere.invalid"))).text


@pytest.mark.parametrize(
    ("command", "reply", "slow"),
    [
        ("CONNECT", "421 full", True),
        ("CONNECT", "450 later", True),
        ("CONNECT", "554 no", False),
        ("EHLO", "421 full", True),
        ("EHLO", "450 later", False),
    ],
)
def test_what_a_host_says_first_decides(command: str, reply: str, slow: bool) -> None:
    sink = Sink()
    sink.reply(command, reply)
    assert failure(_dial_sink(sink)).slow is slow


def test_a_host_that_knows_neither_ehlo_nor_helo_is_of_no_use() -> None:
    sink = Sink()
    sink.reply("EHLO", "500 what")
    sink.reply("HELO", "500 what")
    assert "HELO" in failure(_dial_sink(sink)).text


@pytest.mark.parametrize("command", ["CONNECT", "EHLO"])
def test_a_host_that_hangs_up_first_has_failed(command: str) -> None:
    sink = Sink()
    sink.hang_up(after=command)
    failure(_dial_sink(sink))


def test_a_host_that_does_not_greet_in_time_has_failed() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def test() -> None:
        async with scripted(silent) as port:
            await DIALER.dial(config(port, greeting_timeout_s=0.05))

    assert "timed out" in failure(test()).text


def test_the_host_is_told_our_name() -> None:
    heard: list[bytes] = []

    async def test() -> None:
        async with scripted(saying([b"250 hi\r\n"], heard)) as port:
            (await DIALER.dial(config(port))).close()

    asyncio.run(test())
    assert heard == [b"EHLO client.example\r\n"]


def test_may_encrypts_without_asking_who_it_is(certificate: Path) -> None:
    async def test() -> str:
        async with tls_host(certificate) as port:
            return await dialled(port, tls="may")

    assert "encrypted" in asyncio.run(test())


def test_may_goes_on_in_plain_where_there_is_no_tls() -> None:
    async def test() -> dict[str, str]:
        async with SinkServer(Sink()) as server:
            channel = await DIALER.dial(config(server.port, tls="may"))
            delivery = await deliver(channel, "a@x")
            await channel.quit()
            return kinds(delivery)

    assert asyncio.run(test()) == {"a@x": "delivered"}


def test_may_connects_again_in_plain_after_a_broken_handshake(certificate: Path) -> None:
    async def test() -> str:
        async with tls_host(certificate, handshakes=False) as port:
            return await dialled(port, tls="may")

    assert "plain" in asyncio.run(test())


def test_require_takes_nothing_less(certificate: Path) -> None:
    async def broken() -> None:
        async with tls_host(certificate, handshakes=False) as port:
            await dialled(port, tls="require", ca_file=certificate)

    async def unknown() -> None:
        async with tls_host(certificate) as port:
            await dialled(port, tls="require")

    async def absent() -> None:
        async with SinkServer(Sink()) as server:
            await dialled(server.port, tls="require")

    failure(broken())
    assert "certificate" in failure(unknown()).text.lower()
    assert "STARTTLS" in failure(absent()).text


@pytest.mark.parametrize("tls", ["require", "implicit"])
def test_a_host_that_proves_itself_is_trusted(certificate: Path, tls: str) -> None:
    async def test() -> str:
        async with tls_host(certificate, implicit=tls == "implicit") as port:
            return await dialled(port, tls=tls, ca_file=certificate)

    assert "encrypted" in asyncio.run(test())


def test_a_dot_behind_a_name_is_no_part_of_what_a_certificate_says() -> None:
    assert _peer(config(25, host="mta1.example.org.")) == "mta1.example.org"


def test_plaintext_slipped_in_before_the_handshake_is_not_heard() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 hi\r\n")
        await reader.readline()
        writer.write(b"250-hi\r\n250 STARTTLS\r\n")
        await reader.readline()
        writer.write(b"220 go\r\n250 injected\r\n")
        await reader.read()

    async def test() -> None:
        async with scripted(script) as port:
            await DIALER.dial(config(port, tls="require", command_timeout_s=0.5))

    failure(test())


async def _login(certificate: Path, tmp_path: Path, password: str) -> str:
    (tmp_path / "password").write_text(password + "\n")
    async with tls_host(certificate) as port:
        return await dialled(
            port, tls="require", ca_file=certificate, username="me", password_file=tmp_path / "password"
        )


def test_the_password_is_given(certificate: Path, tmp_path: Path) -> None:
    assert "encrypted" in asyncio.run(_login(certificate, tmp_path, "secret"))


def test_a_wrong_password_is_not_tried_often(certificate: Path, tmp_path: Path) -> None:
    error = failure(_login(certificate, tmp_path, "wrong"))
    assert error.at_once
    assert "535" in error.text


def test_a_password_that_can_not_be_read_is_said(certificate: Path, tmp_path: Path) -> None:
    async def test() -> None:
        async with tls_host(certificate) as port:
            missing = tmp_path / "missing"
            await dialled(port, tls="require", ca_file=certificate, username="me", password_file=missing)

    assert failure(test()).at_once


@pytest.mark.parametrize(
    ("methods", "said"),
    [("AUTH PLAIN", [b"AUTH PLAIN AG1lAHNlY3JldA=="]), ("AUTH LOGIN", [b"AUTH LOGIN bWU=", b"c2VjcmV0"])],
)
def test_on_loopback_a_password_may_go_in_plain(methods: str, said: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret")
    heard: list[bytes] = []
    replies = [
        b"250-hi\r\n250 " + methods.encode() + b"\r\n",
        *[b"334 x\r\n"] * (len(said) - 1),
        b"235 ok\r\n",
    ]

    async def test() -> None:
        async with scripted(saying(replies, heard)) as port:
            channel = await DIALER.dial(config(port, username="me", password_file=tmp_path / "password"))
            channel.close()

    asyncio.run(test())
    assert [line.strip() for line in heard[1:]] == said


def test_elsewhere_it_may_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qrunner.smtp.client.is_loopback", lambda host: False)

    async def test() -> None:
        async with SinkServer(Sink(extensions=("AUTH PLAIN",))) as server:
            await DIALER.dial(config(server.port, tls="may", username="me"))

    error = failure(test())
    assert error.at_once
    assert "not encrypted" in error.text
