"""Real Postfix as the host that mail is handed to: one that wants TLS and a password, and one that greylists."""

from __future__ import annotations

import shutil
import socketserver
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qrunner.site import Site
from tests.scenarios.postfix import Postfix, folder_for_everyone, postfix, until
from tests.scenarios.sinks import RealSink, smtp_sinks
from tests.sites import TinySite, tiny_site, wait_for

pytestmark = [pytest.mark.needs("postfix", "smtp-sink"), pytest.mark.timeout(200)]

SITE = """\
[site]
hostname = "lists.example.org"
node = "a"
queue_dir = "../qfiles"
state_dir = "../var"
postmaster = "postmaster@lists.example.org"
report_queue = "reports"
durability = "none"
min_free = "0"
retry = {{ first = "1s", max = "1s", jitter = 0.1 }}

[smtp.mta]
host = "127.0.0.1"
port = {port}
probe_after = "1s"
{more}

[runner.out]
class = "outgoing"
smtp = "mta"
"""
# Postfix hands on what it takes, so that it can be counted.
ONWARD = """\
default_transport = smtp:[127.0.0.1]:{port}
smtp_tls_security_level = none
smtpd_relay_restrictions =
"""
SECURE = """\
mynetworks =
smtpd_tls_security_level = encrypt
smtpd_tls_cert_file = {root}/cert.pem
smtpd_tls_key_file = {root}/key.pem
smtpd_tls_loglevel = 1
smtpd_sasl_auth_enable = yes
smtpd_sasl_type = cyrus
smtpd_sasl_path = smtpd
cyrus_sasl_config_path = {root}/etc/sasl
smtpd_sasl_local_domain = mta.example.org
smtpd_recipient_restrictions = permit_sasl_authenticated, reject
"""
SASL = """\
pwcheck_method: auxprop
auxprop_plugin: sasldb
sasldb_path: {root}/sasldb2
mech_list: {mechanism}
"""
GREYLISTING = (
    "smtpd_recipient_restrictions = check_policy_service inet:127.0.0.1:{port}, permit_mynetworks, reject\n"
)
USER, PASSWORD = "qrunner", "a word that nobody knows"


@contextmanager
def hop(root: Path, main: str) -> Iterator[tuple[Postfix, RealSink]]:
    """A Postfix with these lines, and where its mail goes on to."""
    with smtp_sinks(root, 1) as (sink,), postfix(root, main=ONWARD.format(port=sink.port) + main) as mta:
        yield mta, sink


@contextmanager
def site(folder: Path, mta: Postfix, more: str = "") -> Iterator[TinySite]:
    """A site whose only host is this Postfix; its master runs."""
    with tiny_site(folder) as one:
        one.write(SITE.format(port=mta.port, more=more))
        (folder / "qfiles").mkdir(mode=0o700)
        Site.load(one.config).spool.prepare(["out", "reports"])
        one.ctl("start")
        yield one


def send(one: TinySite, *to: str) -> None:
    Site.load(one.config).enqueue(
        "out", message=b"Subject: hello\n\nworld\n", sender="ann@example.org", recipients=to
    )


def depth(one: TinySite, queue: str = "out") -> int:
    return sum(1 for _ in (one.folder / "qfiles" / queue).glob("*/[0-9]*"))


def arrived(sink: RealSink) -> Counter[str]:
    return Counter(address for got in sink.messages() for address in got.recipients)


def host(one: TinySite) -> dict[str, object]:
    """What `status` says of it."""
    (found,) = [host for host in one.status()["hosts"] if host["name"] == "mta"]
    return dict(found)


@pytest.fixture
def root() -> Iterator[Path]:
    with folder_for_everyone() as path:
        yield path


def lay_down_secrets(root: Path, mechanism: str) -> None:
    """A certificate of 127.0.0.1, and a user in Cyrus SASL's own table."""
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    files = ["-keyout", root / "key.pem", "-out", root / "cert.pem", "-days", "2"]
    name = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*new, *files, *name], check=True, capture_output=True)
    # Debian's Postfix looks beside its main.cf, whatever it is told.
    (root / "etc" / "sasl").mkdir(parents=True)
    (root / "etc" / "sasl" / "smtpd.conf").write_text(SASL.format(root=root, mechanism=mechanism))
    table = root / "sasldb2"
    add = ["saslpasswd2", "-p", "-c", "-f", table, "-u", "mta.example.org", USER]
    path = "/usr/sbin:/usr/bin:/sbin:/bin"
    subprocess.run(add, input=PASSWORD, text=True, check=True, env={"PATH": path})
    shutil.chown(table, "postfix")


def secured(root: Path, password: str) -> str:
    """The keys of the host, and the file that one of them names."""
    (root / "password").write_text(password)
    (root / "password").chmod(0o600)
    files = f'ca_file = "{root}/cert.pem"\npassword_file = "{root}/password"'
    return f'tls = "require"\nusername = "{USER}"\n{files}'


@pytest.mark.needs("saslpasswd2")
@pytest.mark.parametrize("mechanism", [pytest.param("PLAIN", marks=pytest.mark.stress), "LOGIN"])
def test_postfix_that_wants_tls_and_a_password_takes_our_mail(
    root: Path, mechanism: str, tmp_path: Path
) -> None:
    lay_down_secrets(root, mechanism)
    with (
        hop(root, SECURE.format(root=root)) as (mta, sink),
        site(tmp_path, mta, secured(root, PASSWORD)) as one,
    ):
        for number in range(20):
            send(one, f"r{number}@example.net", f"s{number}@example.net")
        until(lambda: len(arrived(sink)) == 40, lambda: mta.log()[-4000:] + one.log())
        until(lambda: not depth(one), one.log)
        assert set(arrived(sink).values()) == {1}
        assert f"sasl_method={mechanism}, sasl_username={USER}@mta.example.org" in mta.log()
        assert "TLS connection established from" in mta.log()
        assert host(one)["state"] == "up"


@pytest.mark.needs("saslpasswd2")
def test_a_wrong_password_is_tried_once_a_probe_and_costs_no_attempt(root: Path, tmp_path: Path) -> None:
    lay_down_secrets(root, "PLAIN")
    with (
        hop(root, SECURE.format(root=root)) as (mta, sink),
        site(tmp_path, mta, secured(root, "wrong")) as one,
    ):
        for number in range(20):
            send(one, f"r{number}@example.net")
        until(lambda: host(one)["state"] == "down", one.log)
        tried = mta.log().count("authentication failed")
        assert 1 <= tried <= 4, "twenty messages wait, and the host is asked by a probe"
        assert "535" in str(host(one)["last_error"])
        assert {entry.attempts for entry in Site.load(one.config).entries("out")} == {0}
        secured(root, PASSWORD)
        until(lambda: len(arrived(sink)) == 20, lambda: mta.log()[-4000:] + one.log())
        assert set(arrived(sink).values()) == {1}
        assert not depth(one, "reports")


class Greylist(socketserver.ThreadingTCPServer):
    """A policy service that lets a recipient pass the second time that he is asked for (Postfix, SMTPD_POLICY_README)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Question)
        self.seen: Counter[tuple[str, str]] = Counter()

    def action(self, sender: str, recipient: str) -> str:
        if recipient.startswith("known"):
            return "DUNNO"
        self.seen[sender, recipient] += 1
        return "451 4.7.1 Greylisted, come again" if self.seen[sender, recipient] == 1 else "DUNNO"


class _Question(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        asked: dict[str, str] = {}
        for line in self.rfile:
            key, equals, value = line.decode().rstrip("\n").partition("=")
            if equals:
                asked[key] = value
                continue
            assert isinstance(self.server, Greylist)
            self.wfile.write(f"action={self.server.action(asked['sender'], asked['recipient'])}\n\n".encode())
            asked = {}


@contextmanager
def greylist() -> Iterator[Greylist]:
    with Greylist() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def test_postfix_that_greylists_gets_each_recipient_once(root: Path, tmp_path: Path) -> None:
    with greylist() as policy:
        main = GREYLISTING.format(port=policy.server_address[1])
        with hop(root, main) as (mta, sink), site(tmp_path, mta, "max_connections = 4") as one:
            for number in range(10):
                send(one, f"known{number}@example.net", f"r{number}@example.net", f"s{number}@example.net")
            until(lambda: len(arrived(sink)) == 30, lambda: mta.log()[-4000:] + one.log())
            wait_for(lambda: not depth(one))
            mta.settle()
            assert set(arrived(sink).values()) == {1}
            # Each was put off once, and asked for once more.
            assert set(policy.seen.values()) == {2}
            assert len(policy.seen) == 20
            assert not depth(one, "reports")
            assert host(one)["state"] == "up"
