"""A real connection, on aiosmtplib's protocol, and what that lacks.

aiosmtplib takes replies apart, keeps commands whole and upgrades to TLS. Put right here:

* a reply that nobody asked for is never taken for the next command's: the connection is dropped (``attentive``);
* several commands may go out at once;
* each step has its own limit (RFC 5321 section 4.5.3.2) instead of one for all;
* any 2xx is success, to the last dot as well;
* the body goes out in pieces, each of which must move, and the last dot waits for ``before_dot``.

Failures: ``HostFailure`` before the session stands, ``Lost`` after.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from aiosmtplib import SMTPException, SMTPResponse
from aiosmtplib.auth import auth_login_encode, auth_plain_encode
from aiosmtplib.esmtp import parse_esmtp_extensions

from qrunner.config import HostConfig, is_loopback
from qrunner.smtp import wire
from qrunner.smtp.attentive import Attentive
from qrunner.smtp.board import Board, FileBoard
from qrunner.smtp.channel import BeforeDot, HostFailure, Lost
from qrunner.smtp.reply import Reply
from qrunner.smtp.wire import Offer

if TYPE_CHECKING:
    from qrunner.smtp.mx import Finder

PIECE = 64 << 10
_QUIT_S = 5.0
_NEXT_ADDRESS_S = 2.0
_VERBS = frozenset({b"EHLO", b"HELO", b"MAIL", b"RCPT", b"DATA", b"RSET"})
_FAMILIES = {"any": socket.AF_UNSPEC, "ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
_OUR_FAULT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


class SmtpChannel:
    """A connection to one host."""

    def __init__(self, protocol: Attentive, host: HostConfig) -> None:
        self.offer = Offer()
        self._protocol, self._host = protocol, host

    @property
    def is_clean(self) -> bool:
        return self._protocol.is_clean

    @property
    def has_surplus(self) -> bool:
        return self._protocol.has_surplus

    def close(self) -> None:
        if self._protocol.transport is not None:
            self._protocol.transport.close()

    def abort(self) -> None:
        """Closes without sending what still waits to be sent."""
        transport = self._protocol.transport
        if isinstance(transport, asyncio.WriteTransport):
            transport.abort()

    async def command(self, line: bytes) -> Reply:
        return await self._said(line, self._host.command_timeout_s)

    async def _said(self, line: bytes, timeout_s: float) -> Reply:
        self._must_be_clean()
        try:
            return _reply(await self._protocol.execute_command(line, timeout=timeout_s))
        except (SMTPException, OSError, ValueError) as error:
            self.abort()
            raise Lost(_words(error, f"after {_verb(line)}")) from error
        except BaseException:
            self.abort()
            raise

    async def commands(self, lines: Sequence[bytes]) -> Sequence[Reply]:
        self._must_be_clean()
        heard: list[Reply] = []
        try:
            group = self._protocol.send_group(lines)
            for _ in lines:
                heard.append(_reply(await group.next(self._host.command_timeout_s)))  # noqa: PERF401 - what came counts
            return heard
        except (SMTPException, OSError, ValueError) as error:
            self.abort()
            raise Lost(_words(error, f"after {_verb(lines[len(heard)])}"), heard) from error
        except BaseException:
            self.abort()
            raise

    def _must_be_clean(self) -> None:
        if not self._protocol.is_clean:
            gone = not self._protocol.is_connected
            self.abort()
            raise Lost("the host closed the connection" if gone else "the host spoke without being asked")

    async def body(self, message: bytes, before_dot: BeforeDot) -> Reply:
        try:
            last = b""
            for piece in _pieces(message):
                if last:
                    await self._write(last)
                last = piece
            self._must_be_clean()
            before_dot()
            return await self._finish(last + wire.END)
        except BaseException:
            # What is still unsent must stay unsent: a message cut off is no message, one ended by us would be.
            self.abort()
            raise

    async def _write(self, piece: bytes) -> None:
        try:
            self._protocol.write(piece)
            if not self._protocol.may_go_on:
                async with asyncio.timeout(self._host.data_timeout_s):
                    await self._protocol.drain()
        except (SMTPException, OSError) as error:
            raise Lost(_words(error, "in the message")) from error

    async def _finish(self, end: bytes) -> Reply:
        try:
            return _reply(await self._protocol.send(end, 1).next(self._host.final_timeout_s))
        except (SMTPException, OSError) as error:
            raise Lost(_words(error, "after the end of the message")) from error

    async def quit(self) -> None:
        try:
            if self._protocol.is_clean:
                await self._protocol.execute_command(b"QUIT", timeout=_QUIT_S)
        except (SMTPException, OSError):
            pass  # whatever a host answers to a farewell, we leave
        finally:
            self.close()

    async def start_tls(self, context: ssl.SSLContext) -> None:
        """STARTTLS and the handshake. :raises HostFailure: refused, or it failed; the channel is closed."""
        try:
            await self._protocol.start_tls(
                context, server_hostname=_peer(self._host), timeout=self._host.command_timeout_s
            )
        except (SMTPException, OSError, ValueError) as error:
            self.abort()
            raise HostFailure(_words(error, "in STARTTLS")) from error

    async def greeting(self) -> Reply:
        """The first thing the host says. :raises Lost: nothing."""
        try:
            return _reply(await self._protocol.read_response(timeout=self._host.greeting_timeout_s))
        except (SMTPException, OSError) as error:
            self.abort()
            raise Lost(_words(error, "before the greeting")) from error


def _pieces(message: bytes) -> Iterator[bytes]:
    """What is written at a time: each must move within the time for data, so one long line is cut."""
    for text in wire.pieces(message):
        for start in range(0, len(text), PIECE):
            yield text[start : start + PIECE]


def _verb(line: bytes) -> str:
    """The command without its argument; what is no command is a password's line."""
    verb = line.split(b" ")[0]
    return verb.decode() if verb in _VERBS else "AUTH"


def _reply(response: SMTPResponse) -> Reply:
    if not 200 <= response.code <= 599:
        raise SMTPException(f"{response.code} is no reply code")
    return Reply(response.code, response.message)


def _words(error: BaseException, where: str) -> str:
    if isinstance(error, TimeoutError):
        return f"timed out {where}"
    message = getattr(error, "message", None) or str(error) or type(error).__name__
    return f"lost {where}: {message}"


class SmtpDialer:
    """Makes real connections.

    :param hostname: what we call ourselves in EHLO (RFC 5321 section 4.1.1.1).
    :param finder: who finds the hosts of domains; None: the name servers of this machine are asked.
    """

    def __init__(self, hostname: str, finder: Finder | None = None) -> None:
        self._hostname = hostname.encode("idna") if not hostname.isascii() else hostname.encode()
        self._finder = finder

    def board(self, folder: Path) -> Board:
        board = FileBoard(folder)
        board.lay_out()
        return board

    def finder(self) -> Finder:
        if self._finder is None:
            # Here, so that sites whose hosts have names do not pay for it.
            from qrunner.smtp.mx import Finder
            from qrunner.smtp.resolver import Resolver

            self._finder = Finder(self._hostname.decode(), Resolver())
        return self._finder

    async def dial(self, host: HostConfig, at: Sequence[str] = ()) -> SmtpChannel:
        *others, last = at or (host.host,)
        for address in others:
            try:
                return await self._reach(host, address)
            except HostFailure:
                continue
        return await self._reach(host, last)

    async def _reach(self, host: HostConfig, address: str) -> SmtpChannel:
        try:
            return await self._dial(host, address, tls=host.tls)
        except _Handshake as error:
            if host.tls != "may" or host.username is not None:
                raise
            # Mail that need not be secret goes in plain to a host whose TLS is broken (RFC 7435).
            try:
                return await self._dial(host, address, tls="none")
            except HostFailure as second:
                raise second from error

    async def _dial(self, host: HostConfig, address: str, tls: str) -> SmtpChannel:
        context = None if tls == "none" else await asyncio.to_thread(_context, host)
        protocol = await _connected(host, address, context if tls == "implicit" else None)
        channel = SmtpChannel(protocol, host)
        try:
            await self._open(channel, host, tls, context)
        except Lost as error:
            raise HostFailure(str(error)) from error
        except BaseException:
            channel.abort()
            raise
        return channel

    async def _open(
        self, channel: SmtpChannel, host: HostConfig, tls: str, context: ssl.SSLContext | None
    ) -> None:
        _expect(await channel.greeting(), "greeting")
        methods = await self._hello(channel)
        encrypted = tls == "implicit"
        if context is not None and not encrypted:
            if channel.offer.has("STARTTLS"):
                await _encrypt(channel, context)
                methods, encrypted = await self._hello(channel), True
            elif tls == "require":
                raise HostFailure("TLS is required, and the host does not offer STARTTLS")
        if host.username is not None:
            await _authenticate(channel, host, methods, encrypted=encrypted)

    async def _hello(self, channel: SmtpChannel) -> list[str]:
        """EHLO, or HELO where that is refused (RFC 5321 section 4.1.4); the host's AUTH methods."""
        reply = await channel.command(b"EHLO " + self._hostname)
        if reply.is_permanent:
            channel.offer = Offer()
            _expect(await channel.command(b"HELO " + self._hostname), "HELO")
            return []
        _expect(reply, "EHLO")
        extensions, methods = parse_esmtp_extensions(reply.text)
        channel.offer = Offer.of(extensions)
        return methods


class _Handshake(HostFailure):
    """TLS did not come about."""


async def _encrypt(channel: SmtpChannel, context: ssl.SSLContext) -> None:
    try:
        await channel.start_tls(context)
    except HostFailure as error:
        raise _Handshake(error.text) from error


def _expect(reply: Reply, what: str) -> None:
    """:raises HostFailure: the reply is no success; 421, or a greeting of 4xx, only asks for less."""
    if not reply.is_success:
        slow = reply.is_closing or (what == "greeting" and not reply.is_permanent)
        raise HostFailure(f"{what}: {reply}", slow=slow)


async def _connected(host: HostConfig, address: str, context: ssl.SSLContext | None) -> Attentive:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(host.connect_timeout_s):
            _, protocol = await loop.create_connection(
                lambda: Attentive(loop),
                address,
                host.port,
                family=_FAMILIES.get(host.family, socket.AF_UNSPEC),
                local_addr=(host.source_address, 0) if host.source_address else None,
                # Of several addresses one that swallows everything must not use up all the time (RFC 8305).
                happy_eyeballs_delay=_NEXT_ADDRESS_S,
                ssl=context,
                server_hostname=_peer(host) if context else None,
            )
    except TimeoutError as error:
        raise HostFailure(f"connect to {_place(host, address)}: timed out") from error
    except (OSError, ValueError, UnicodeError) as error:
        if isinstance(error, OSError) and error.errno in _OUR_FAULT:
            raise
        raise HostFailure(f"connect to {_place(host, address)}: {error}") from error
    return protocol


def _peer(host: HostConfig) -> str:
    """What its certificate must name: a name as it is written there, without the dot that may end one in the DNS."""
    return host.host.rstrip(".")


def _place(host: HostConfig, address: str) -> str:
    named = "" if address in (host.host, host.name.strip("[]")) else f"[{address}]"
    return f"{host.host}{named}:{host.port}"


def _context(host: HostConfig) -> ssl.SSLContext:
    """What TLS must prove. Under ``may`` nothing, since nobody made sure of the host's name, unless a password
    is to follow; else the host's certificate and name.

    :raises HostFailure: a file of certificates can't be used.
    """
    try:
        context = ssl.create_default_context(cafile=str(host.ca_file) if host.ca_file else None)
        if host.client_cert is not None:
            context.load_cert_chain(str(host.client_cert))
    except (OSError, ValueError) as error:
        raise HostFailure(f"TLS can't be set up: {error}") from error
    if host.tls == "may" and host.username is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


async def _authenticate(
    channel: SmtpChannel, host: HostConfig, methods: list[str], *, encrypted: bool
) -> None:
    """AUTH PLAIN or LOGIN (RFC 4954). :raises HostFailure: refused, or it would give the password away."""
    if not encrypted and not is_loopback(host.host):
        raise HostFailure("AUTH: the connection is not encrypted, so no password is sent", at_once=True)
    user, password = host.username or "", await asyncio.to_thread(_password, host)
    try:
        reply = await _logged_in(channel, methods, user, password)
    except Lost as error:
        raise HostFailure(f"AUTH: {error}", at_once=True) from error
    if reply.code != 235:
        raise HostFailure(f"AUTH: {reply}", at_once=True)


async def _logged_in(channel: SmtpChannel, methods: list[str], user: str, password: str) -> Reply:
    if "plain" in methods:
        return await channel.command(b"AUTH PLAIN " + auth_plain_encode(user, password))
    if "login" not in methods:
        raise HostFailure("AUTH: the host offers neither PLAIN nor LOGIN", at_once=True)
    name, secret = auth_login_encode(user, password)
    reply = await channel.command(b"AUTH LOGIN " + name)
    return await channel.command(secret) if reply.code == 334 else reply


def _password(host: HostConfig) -> str:
    if host.password_file is None:
        return ""
    try:
        return host.password_file.read_text("utf-8").rstrip("\r\n")
    except (OSError, ValueError) as error:
        raise HostFailure(f"AUTH: the password can't be read: {error}", at_once=True) from error
