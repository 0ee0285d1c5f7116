"""TLS to hosts that were found by MX: whose name a certificate must have, and what becomes of mail for who lacks one."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.runners.test_outgoing_hosts import Host
from tests.runners.test_outgoing_mx import Bench, bench, lines

KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
STARTTLS = b"250-hi\r\n250 STARTTLS\r\n"


class Authority:
    """One whom the site trusts, and the certificates that it has signed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "ca"
        self._make("ca", "-subj", "/CN=the site's own")

    def _make(self, name: str, *options: str) -> None:
        files = ["-keyout", self.folder / f"{name}.key", "-out", self.folder / name, "-days", "2"]
        subprocess.run(["openssl", "req", "-x509", *KEY, *files, *options], check=True, capture_output=True)

    def signed(self, name: str, *options: str) -> ssl.SSLContext:
        """For a host of this name; nothing is signed for who brings options of his own."""
        by_us = options or ("-CA", str(self.file), "-CAkey", str(self.folder / "ca.key"))
        file = f"{name}{len(options)}"
        self._make(file, "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}", *by_us)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.folder / file, self.folder / f"{file}.key")
        return context


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


def with_tls(context: ssl.SSLContext) -> Host:
    return Host({b"EHLO": [STARTTLS, b"250 hi\r\n"] * 9, b"STARTTLS": [b"220 go\r\n"] * 9}, context=context)


def at(
    one: Host, authority: Authority, test: Callable[[Bench], Awaitable[None]], mode: str = "require"
) -> None:
    """A site whose mail for ``x.example`` goes to this host, which the DNS calls ``mx9.example``."""

    async def whole() -> None:
        async with bench(f'tls = "{mode}"\nca_file = "{authority.file}"') as site:
            server = await asyncio.start_server(one.serve, "127.0.0.9", site.port)
            site.domain("x.example", 9)
            site.send("a@x.example")
            await site.settle()
            await test(site)
            server.close()

    asyncio.run(whole())


def spoken(one: Host) -> set[bytes]:
    return {line.split()[0].upper() for line in one.heard}


async def got(site: Bench) -> None:
    assert not site.entries()
    assert not site.entries("reports")


async def waits(site: Bench) -> None:
    assert site.entry().attempts == 1
    assert lines(site.entry(), "attempt")[0]["status"] == "4.4.1"
    assert not site.entries("reports")


def test_the_name_of_the_host_is_verified_not_that_of_the_domain(authority: Authority) -> None:
    right = with_tls(authority.signed("mx9.example"))
    at(right, authority, got)
    assert right.got == [(b"a@x.example",)]
    for name in ("x.example", "example", "mx9.example.org"):
        wrong = with_tls(authority.signed(name))
        at(wrong, authority, waits)
        assert not wrong.got
        assert b"MAIL" not in spoken(wrong)


def test_a_certificate_that_nobody_trusted_has_signed_is_none(authority: Authority) -> None:
    one = with_tls(authority.signed("mx9.example", "-sha256"))
    at(one, authority, waits)
    assert not one.got
    assert b"MAIL" not in spoken(one)


@pytest.mark.parametrize(
    "says",
    [
        {b"EHLO": [b"250 hi\r\n"] * 9},
        {b"EHLO": [b"502 what?\r\n"] * 9},
        {b"EHLO": [STARTTLS] * 9, b"STARTTLS": [b"454 4.7.0 not now\r\n"] * 9},
        {b"EHLO": [b"250-hi\r\n250 XXXXXXXA\r\n"] * 9},
    ],
    ids=["not offered", "no EHLO", "refused", "overwritten"],
)
def test_where_somebody_has_taken_starttls_away_nothing_goes_out_in_plain(
    authority: Authority, says: dict[bytes, list[bytes]]
) -> None:
    one = Host(says)
    at(one, authority, waits)
    assert not one.got
    assert not {b"MAIL", b"RCPT", b"DATA"} & spoken(one)


def test_with_may_such_a_host_gets_it_in_plain_and_one_of_another_name_too(authority: Authority) -> None:
    stripped, other = Host({b"EHLO": [b"250 hi\r\n"]}), with_tls(authority.signed("other.example"))
    for one in (stripped, other):
        at(one, authority, got, "may")
        assert one.got == [(b"a@x.example",)]
    assert b"STARTTLS" in spoken(other)


def test_the_next_host_is_tried_where_the_first_can_not_prove_itself(authority: Authority) -> None:
    wrong, right = with_tls(authority.signed("other.example")), with_tls(authority.signed("mx8.example"))

    async def whole() -> None:
        async with bench(f'tls = "require"\nca_file = "{authority.file}"') as site:
            servers = [
                await asyncio.start_server(one.serve, f"127.0.0.{number}", site.port)
                for one, number in ((wrong, 9), (right, 8))
            ]
            site.domain("x.example", 9, 8)
            site.send("a@x.example")
            await site.settle()
            assert not site.entries()
            for server in servers:
                server.close()

    asyncio.run(whole())
    assert right.got == [(b"a@x.example",)]
    assert not wrong.got
