"""Questions to a real name server: answers, their absence, and trouble."""

from __future__ import annotations

import asyncio
import time

import dns.name
import pytest

from qrunner.smtp.resolver import Answer, Resolver, Trouble
from tests.dnsserver import REFUSED, SERVFAIL, SILENT, DnsServer

NAME = dns.name.from_text("example.com")


def resolver(server: DnsServer, **more: float) -> Resolver:
    return Resolver([server.host], port=server.port, **{"timeout_s": 0.5, **more})


async def ask(one: Resolver, kind: str = "MX", name: dns.name.Name = NAME) -> Answer:
    answer = await one.ask(name, kind)
    assert isinstance(answer, Answer), answer
    return answer


async def trouble(one: Resolver) -> Trouble:
    answer = await one.ask(NAME, "MX")
    assert isinstance(answer, Trouble)
    return answer


def test_an_answer_is_asked_for_once() -> None:
    async def test() -> None:
        async with DnsServer("example.com. MX 10 mx.example.com.") as server:
            one = resolver(server)
            for _ in range(3):
                assert len((await ask(one)).records) == 1
            assert server.queries == [("example.com.", "MX")]

    asyncio.run(test())


def test_an_answer_is_asked_for_again_when_its_time_is_over() -> None:
    async def test() -> None:
        async with DnsServer("example.com. MX 10 mx.example.com.", ttl=0) as server:
            one = resolver(server)
            await ask(one)
            await ask(one)
            assert server.asked("example.com.", "MX") == 2

    asyncio.run(test())


def test_many_who_ask_at_once_make_one_question() -> None:
    async def test() -> None:
        async with DnsServer("example.com. MX 10 mx.example.com.", ttl=0) as server:
            one = resolver(server)
            answers = await asyncio.gather(*(ask(one) for _ in range(50)))
            assert {len(answer.records) for answer in answers} == {1}
            assert server.asked("example.com.", "MX") == 1

    asyncio.run(test())


def test_who_gives_up_waiting_does_not_end_the_question_for_others() -> None:
    async def test() -> None:
        async with DnsServer("example.com. MX 10 mx.example.com.") as server:
            one = resolver(server)
            first = asyncio.create_task(ask(one))
            second = asyncio.create_task(ask(one))
            await asyncio.sleep(0)
            first.cancel()
            assert len((await second).records) == 1

    asyncio.run(test())


def test_that_there_is_nothing_is_an_answer() -> None:
    async def test() -> None:
        async with DnsServer("example.com. A 192.0.2.1") as server:
            one = resolver(server)
            assert await ask(one) == Answer(NAME)
            nowhere = dns.name.from_text("no.example.net")
            assert not (await ask(one, name=nowhere)).exists
            await ask(one)
            await ask(one, name=nowhere)
            assert len(server.queries) == 2

    asyncio.run(test())


def test_that_there_is_nothing_is_not_believed_for_ever_without_a_soa() -> None:
    async def test() -> None:
        async with DnsServer("example.com. A 192.0.2.1") as server:
            server.soa = False
            one = resolver(server)
            await ask(one)
            (node,) = one._cache.data.values()
            assert node.value is not None
            assert node.value.expiration <= time.time() + 3_600

    asyncio.run(test())


def test_an_alias_is_followed_and_its_end_is_named() -> None:
    async def test() -> None:
        async with DnsServer(
            "example.com. CNAME other.example.", "other.example. MX 5 mx.example."
        ) as server:
            answer = await ask(resolver(server))
            assert answer.name.to_text() == "other.example."
            assert len(answer.records) == 1

    asyncio.run(test())


def test_a_long_answer_comes_over_tcp() -> None:
    async def test() -> None:
        records = [f"example.com. MX 10 mail-exchanger-number-{number}.example.com." for number in range(40)]
        async with DnsServer(*records) as server:
            assert len((await ask(resolver(server))).records) == 40
            assert server.over_tcp == 1

    asyncio.run(test())


@pytest.mark.parametrize("how", [SERVFAIL, REFUSED, SILENT])
def test_trouble_of_a_domain_is_not_ours(how: object) -> None:
    async def test() -> None:
        async with DnsServer("example.com. MX 10 mx.example.com.") as server:
            server.broken["example.com."] = how  # type: ignore[assignment]
            found = await trouble(resolver(server))
            assert not found.ours
            assert "example.com (MX)" in found.text

    asyncio.run(test())


def test_a_name_server_that_has_lost_the_world_is_our_trouble() -> None:
    async def test() -> None:
        async with DnsServer() as server:
            server.broken["."] = SERVFAIL
            found = await trouble(resolver(server))
            assert found.ours
            assert "SERVFAIL" in found.text

    asyncio.run(test())


def test_a_name_server_that_is_away_is_our_trouble() -> None:
    async def test() -> None:
        async with DnsServer() as server:
            pass
        assert (await trouble(resolver(server))).ours

    asyncio.run(test())


def test_no_name_server_at_all_is_our_trouble() -> None:
    async def test() -> None:
        assert (await trouble(Resolver([]))).ours

    asyncio.run(test())


def test_the_second_name_server_answers_for_the_first() -> None:
    async def test() -> None:
        async with (
            DnsServer("example.com. MX 10 mx.example.com.") as server,
            DnsServer(host="127.0.0.9", port=server.port) as broken,
        ):
            broken.broken["."] = SERVFAIL
            one = Resolver([broken.host, server.host], port=server.port)
            assert len((await ask(one)).records) == 1
            assert broken.asked("example.com.", "MX") == 1

    asyncio.run(test())


def test_trouble_is_believed_for_a_while_and_then_looked_at_again() -> None:
    async def test() -> None:
        async with DnsServer("example.com. MX 10 mx.example.com.") as server:
            server.broken["example.com."] = SERVFAIL
            patient, hasty = resolver(server), resolver(server, trouble_s=0)
            for one in (patient, hasty):
                await trouble(one)
            server.broken.clear()
            assert not (await trouble(patient)).ours
            assert len((await ask(hasty)).records) == 1

    asyncio.run(test())


def test_a_name_server_that_comes_back_is_asked_again() -> None:
    async def test() -> None:
        async with DnsServer("example.com. MX 10 mx.example.com.") as server:
            one = resolver(server, trouble_s=0)
            server.broken["."] = SERVFAIL
            assert (await trouble(one)).ours
            server.broken.clear()
            assert len((await ask(one)).records) == 1

    asyncio.run(test())
