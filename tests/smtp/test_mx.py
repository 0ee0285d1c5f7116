"""From a domain to its hosts, against a real name server: every answer there is, and the order."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable, Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrunner.config import HostConfig
from qrunner.smtp import mx
from qrunner.smtp.mx import Finder, MailHost, Nowhere
from qrunner.smtp.resolver import Resolver
from tests.dnsserver import SERVFAIL, SILENT, DnsServer

PUBLIC, OTHER = "8.8.8.8", "1.1.1.1"
DIRECT = HostConfig("direct", mode="mx")
LOCAL = HostConfig("direct", mode="mx", allow_private=True)

Broken = Callable[[DnsServer], None]


def found(
    domain: str,
    *records: str,
    config: HostConfig = DIRECT,
    broken: dict[str, object] | None = None,
    before: Collection[str] = (),
    own: str = "lists.example.org",
) -> tuple[MailHost, ...] | Nowhere:
    """What is found where these records are all there is."""

    async def find() -> tuple[MailHost, ...] | Nowhere:
        async with DnsServer(*records) as server:
            server.broken.update(broken or {})  # type: ignore[arg-type]
            resolver = Resolver([server.host], port=server.port, timeout_s=0.4)
            return await Finder(own, resolver).find(domain, config, before)

    return asyncio.run(find())


def names(hosts: tuple[MailHost, ...] | Nowhere) -> list[str]:
    assert not isinstance(hosts, Nowhere), hosts
    return [host.name for host in hosts]


def status(hosts: tuple[MailHost, ...] | Nowhere) -> str:
    assert isinstance(hosts, Nowhere), hosts
    return hosts.status


def test_hosts_come_in_the_order_of_their_preference() -> None:
    hosts = found(
        "example.com",
        "example.com. MX 30 c.example.com.",
        "example.com. MX 10 a.example.com.",
        "example.com. MX 20 b.example.com.",
        *(f"{name}.example.com. A {PUBLIC}" for name in "abc"),
    )
    assert names(hosts) == ["a.example.com", "b.example.com", "c.example.com"]


_hosts = st.lists(st.builds(MailHost, st.sampled_from("abcdefghij"), st.integers(0, 3)), max_size=12)


@given(_hosts, st.randoms(use_true_random=False), st.frozensets(st.sampled_from("abcdefghij")))
def test_the_order_is_by_preference_and_nobody_is_lost(
    hosts: list[MailHost], dice: random.Random, before: frozenset[str]
) -> None:
    ranked = mx.ranked_hosts(hosts, dice, before)
    assert sorted(host.name for host in ranked) == sorted({host.name for host in hosts})
    assert [host.preference for host in ranked] == sorted(host.preference for host in ranked)
    for host in ranked:
        assert host.preference == min(one.preference for one in hosts if one.name == host.name)
    for group in mx.equals(ranked):
        known = [host.name in before for host in group]
        assert known == sorted(known, reverse=True)
    assert [host for group in mx.equals(ranked) for host in group] == ranked


@given(st.integers(2, 4))
def test_equals_come_in_every_order(count: int) -> None:
    hosts, dice = [MailHost(name, 10) for name in "abcd"[:count]], random.Random(1)
    orders = {tuple(host.name for host in mx.ranked_hosts(hosts, dice)) for _ in range(600)}
    assert len(orders) == {2: 2, 3: 6, 4: 24}[count]


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=8))
def test_only_hosts_better_than_us_are_left(hosts: list[tuple[int, bool]]) -> None:
    looked = [mx._Looked(MailHost(str(at), rank), us=us) for at, (rank, us) in enumerate(hosts)]
    left = mx.better_than_us(looked)
    ours = [rank for rank, us in hosts if us]
    assert [one.host.preference for one in left] == [
        rank for rank, _ in hosts if not ours or rank < min(ours)
    ]


def test_a_host_that_was_spoken_to_before_is_first_among_its_equals() -> None:
    records = [f"example.com. MX 10 {name}.example.com." for name in "abcdef"]
    records += [f"{name}.example.com. A {PUBLIC}" for name in "abcdef"]
    for _ in range(5):
        assert names(found("example.com", *records, before={"d.example.com"}))[0] == "d.example.com"


def test_a_host_has_all_its_addresses_in_turns_of_family() -> None:
    (host,) = _one(
        found(
            "example.com",
            "example.com. MX 10 mx.example.com.",
            f"mx.example.com. A {PUBLIC}",
            f"mx.example.com. A {OTHER}",
            "mx.example.com. AAAA 2606:4700::1111",
        )
    )
    assert sorted(host.addresses) == sorted([PUBLIC, OTHER, "2606:4700::1111"])
    assert host.addresses[0] == "2606:4700::1111"


def _one(hosts: tuple[MailHost, ...] | Nowhere) -> tuple[MailHost, ...]:
    assert not isinstance(hosts, Nowhere), hosts
    return hosts


@pytest.mark.parametrize(
    ("more", "left"),
    [
        ({"family": "ipv4"}, [PUBLIC]),
        ({"family": "ipv6"}, ["2606:4700::1111"]),
        ({"source_address": "192.0.2.7"}, [PUBLIC]),
        ({"source_address": "2001:db8::7"}, ["2606:4700::1111"]),
    ],
)
def test_only_addresses_of_the_family_that_can_be_used(more: dict[str, str], left: list[str]) -> None:
    config = HostConfig("direct", mode="mx", **more)  # type: ignore[arg-type]
    records = [
        "example.com. MX 10 mx.example.com.",
        f"mx.example.com. A {PUBLIC}",
        "mx.example.com. AAAA 2606:4700::1111",
    ]
    (host,) = _one(found("example.com", *records, config=config))
    assert list(host.addresses) == left


def test_a_domain_without_mx_is_its_own_host() -> None:
    (host,) = _one(found("example.com", f"example.com. A {PUBLIC}"))
    assert (host.name, host.addresses) == ("example.com", (PUBLIC,))


def test_a_domain_without_mx_may_have_only_an_ipv6_address() -> None:
    (host,) = _one(found("example.com", "example.com. AAAA 2606:4700::1111"))
    assert host.addresses == ("2606:4700::1111",)


def test_an_alias_stands_for_the_domain_that_it_names() -> None:
    records = ["example.com. CNAME other.example.", f"mx.other.example. A {PUBLIC}"]
    assert names(found("example.com", *records, "other.example. MX 5 mx.other.example.")) == [
        "mx.other.example"
    ]
    assert names(found("example.com", records[0], f"other.example. A {PUBLIC}")) == ["other.example"]


def test_a_host_may_be_an_alias() -> None:
    records = ["example.com. MX 5 mx.example.com.", "mx.example.com. CNAME real.example."]
    (host,) = _one(found("example.com", *records, f"real.example. A {PUBLIC}"))
    assert host.addresses == (PUBLIC,)


def test_an_alias_that_leads_nowhere_is_no_domain() -> None:
    assert status(found("example.com", "example.com. CNAME gone.example.")) == "5.1.2"


def test_a_domain_that_does_not_exist_is_a_failure_for_good() -> None:
    nowhere = found("no.example.com")
    assert status(nowhere) == "5.1.2"
    assert isinstance(nowhere, Nowhere)
    assert nowhere.is_permanent
    assert "no.example.com" in nowhere.text


def test_a_domain_with_neither_mx_nor_address_is_a_failure_for_good() -> None:
    assert status(found("example.com", "example.com. TXT hello")) == "5.1.2"


def test_a_domain_that_says_it_takes_no_mail_is_believed() -> None:
    nowhere = found("example.com", "example.com. MX 0 .", f"example.com. A {PUBLIC}")
    assert status(nowhere) == "5.1.10"
    assert isinstance(nowhere, Nowhere)
    assert nowhere.text.startswith("556 5.1.10 ")


def test_a_null_mx_beside_others_is_passed_over() -> None:
    records = ["example.com. MX 0 .", "example.com. MX 10 mx.example.com.", f"mx.example.com. A {PUBLIC}"]
    assert names(found("example.com", *records)) == ["mx.example.com"]


def test_an_mx_that_does_not_exist_is_passed_over() -> None:
    records = ["example.com. MX 0 gone.example.", "example.com. MX 10 mx.example.com."]
    assert names(found("example.com", *records, f"mx.example.com. A {PUBLIC}")) == ["mx.example.com"]


def test_mx_hosts_of_which_none_exists_are_a_failure_for_good() -> None:
    assert status(found("example.com", "example.com. MX 0 gone.example.")) == "5.4.4"


THREE = [
    "example.com. MX 10 a.example.com.",
    "example.com. MX 20 b.example.com.",
    "example.com. MX 20 c.example.com.",
    "example.com. MX 30 d.example.com.",
    *(f"{name}.example.com. A {PUBLIC}" for name in "abcd"),
]


def test_if_we_are_a_host_only_better_ones_are_left() -> None:
    assert names(found("example.com", *THREE, own="b.example.com")) == ["a.example.com"]
    assert names(found("example.com", *THREE, own="B.Example.com.")) == ["a.example.com"]


def test_if_we_are_the_best_host_there_is_a_loop() -> None:
    nowhere = found("example.com", *THREE, own="a.example.com")
    assert status(nowhere) == "5.4.6"


def test_we_know_ourselves_by_our_address() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.connect(("192.0.2.1", 9))
        own = one.getsockname()[0]
    records = ["example.com. MX 10 mx.example.com.", f"mx.example.com. A {own}"]
    assert status(found("example.com", *records, config=LOCAL)) == "5.4.6"
    assert mx.is_ours(own)
    assert not mx.is_ours(PUBLIC)


@pytest.mark.parametrize("how", [SERVFAIL, SILENT])
def test_a_domain_whose_name_servers_fail_may_do_better_later(how: object) -> None:
    nowhere = found("example.com", broken={"example.com.": how})
    assert status(nowhere) == "4.4.3"
    assert isinstance(nowhere, Nowhere)
    assert nowhere.counts


@pytest.mark.parametrize("how", [SERVFAIL, SILENT])
def test_that_our_own_name_servers_fail_says_nothing_of_a_domain(how: object) -> None:
    nowhere = found("example.com", broken={".": how})
    assert status(nowhere) == "4.4.3"
    assert isinstance(nowhere, Nowhere)
    assert not nowhere.counts


def test_a_host_whose_address_nobody_knows_now_may_do_better_later() -> None:
    records = ["example.com. MX 10 mx.example.net."]
    assert status(found("example.com", *records, broken={"mx.example.net.": SERVFAIL})) == "4.4.3"


def test_a_host_whose_address_nobody_knows_now_is_passed_over_for_one_that_has_one() -> None:
    records = ["example.com. MX 10 mx.example.net.", "example.com. MX 20 b.example.com."]
    hosts = found("example.com", *records, f"b.example.com. A {PUBLIC}", broken={"mx.example.net.": SERVFAIL})
    assert names(hosts) == ["b.example.com"]


@pytest.mark.parametrize(
    ("domain", "address", "name"),
    [
        ("[8.8.8.8]", "8.8.8.8", "[8.8.8.8]"),
        ("[IPv6:2606:4700:0:0::1111]", "2606:4700::1111", "[IPv6:2606:4700::1111]"),
        ("[ipv6:2606:4700::1111]", "2606:4700::1111", "[IPv6:2606:4700::1111]"),
    ],
)
def test_an_address_in_brackets_is_a_host(domain: str, address: str, name: str) -> None:
    (host,) = _one(found(domain))
    assert (host.name, host.addresses, host.peer) == (name, (address,), address)


@pytest.mark.parametrize(
    "domain", ["[8.8.8]", "[8.8.8.8", "[IPv6:x]", "[fe80::1%1]", "[IPv6:fe80::1%1]", "[]"]
)
def test_what_is_no_address_in_brackets_is_a_failure_for_good(domain: str) -> None:
    assert status(found(domain)) == "5.1.2"


def test_an_address_of_a_family_that_is_not_used_is_a_failure_for_good() -> None:
    config = HostConfig("direct", mode="mx", family="ipv6")
    assert status(found("[8.8.8.8]", config=config)) == "5.4.4"


PRIVATE = [
    "127.0.0.1",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.0.1",
    "169.254.1.1",
    "100.64.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "fe80::1",
    "fc00::1",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "2002:7f00:1::",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    assert not mx.is_public(address)
    kind = "AAAA" if ":" in address else "A"
    records = ["example.com. MX 10 mx.example.com.", f"mx.example.com. {kind} {address}"]
    assert status(found("example.com", *records)) == "5.4.4"
    assert status(found(f"[{address}]" if kind == "A" else f"[IPv6:{address}]")) == "5.4.4"


def test_an_address_that_is_not_public_is_taken_where_that_is_configured() -> None:
    records = ["example.com. MX 10 mx.example.com.", "mx.example.com. A 127.0.0.3"]
    (host,) = _one(found("example.com", *records, config=LOCAL))
    assert host.addresses == ("127.0.0.3",)


def test_a_host_with_one_public_address_loses_only_the_others() -> None:
    records = [
        "example.com. MX 10 mx.example.com.",
        "mx.example.com. A 10.0.0.1",
        f"mx.example.com. A {PUBLIC}",
    ]
    (host,) = _one(found("example.com", *records))
    assert host.addresses == (PUBLIC,)


@pytest.mark.parametrize("name", [r"\.\./x.example.", "a/b.example.", r"a\000b.example.", r"a\032b.example."])
def test_a_host_whose_name_no_host_can_have_is_passed_over(name: str) -> None:
    records = [f"example.com. MX 10 {name}", f"{name} A {PUBLIC}"]
    assert status(found("example.com", *records)) == "5.4.4"


@pytest.mark.parametrize(
    "domain",
    ["", ".", "a..b", "-" * 64 + ".example", "a/b", "x y.example", "a\nb", "stra\u00dfe.example", "\ud800.x"],
)
def test_what_can_be_no_domain_is_a_failure_for_good(domain: str) -> None:
    assert status(found(domain)) == "5.1.2"


def test_a_domain_in_other_letters_is_looked_up_in_ours() -> None:
    records = ["xn--bcher-kva.example. MX 10 mx.example.com.", f"mx.example.com. A {PUBLIC}"]
    assert names(found("b\u00fccher.example", *records)) == ["mx.example.com"]


def test_more_hosts_than_anybody_needs_are_not_looked_at() -> None:
    records = [f"example.com. MX {number} m{number}.example.com." for number in range(100)]
    records += [f"m{number}.example.com. A {PUBLIC}" for number in range(100)]
    assert names(found("example.com", *records)) == [f"m{number}.example.com" for number in range(20)]


@pytest.mark.parametrize(
    ("address", "domain"),
    [("a@B.Example", "b.example"), ('"a@b"@c', "c"), ("root", ""), ("a@[IPv6:::1]", "[ipv6:::1]")],
)
def test_the_domain_stands_behind_the_last_at(address: str, domain: str) -> None:
    assert mx.domain_of(address) == domain
