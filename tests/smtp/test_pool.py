"""Connections kept, counted and lent out; and two processes that share a host."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

from qrunner.clock import SystemClock
from qrunner.config import HostConfig
from qrunner.smtp.board import FileBoard
from qrunner.smtp.channel import HostFailure
from qrunner.smtp.client import SmtpDialer
from qrunner.smtp.pool import HostBusy, HostDown, Pool
from qrunner.smtp.session import Delivery
from qrunner.smtp.sink import Sink, SinkChannel, SinkDialer
from qrunner.smtp.sinkserver import SinkServer
from qrunner.testing.clock import FakeClock
from tests.smtp.hosts import config, deliver, kinds

LOG = logging.getLogger("qrunner.test")


class Site:
    """A sink, and a pool for it."""

    def __init__(self, **more: object) -> None:
        self.host = HostConfig("h", host="h", **more)  # type: ignore[arg-type]
        self.sink, self.clock = Sink("h"), FakeClock()
        self.dialer = SinkDialer({"h": self.sink})
        self.board = self.dialer.board(Path())
        self.pool = Pool({"h": self.host}, self.dialer, self.board, self.clock, LOG)

    async def send(self, entry: str = "e", **more: bool) -> Delivery:
        async with self.pool.lend("h", **more) as loan:
            delivery = await deliver(loan.channel, "a@x", reused=loan.reused)
        self.pool.judge("h", entry, delivery)
        return delivery


def test_a_connection_is_used_again() -> None:
    async def test() -> None:
        site = Site()
        for _ in range(5):
            await site.send()
        assert site.sink.connections == 1
        await site.pool.close()

    asyncio.run(test())


class Doorkeeper(SinkDialer):
    """A host that thinks for a moment about each password."""

    tried, wrong = 0, True

    async def dial(self, host: HostConfig, at: Sequence[str] = ()) -> SinkChannel:
        self.tried += 1
        for _ in range(5):
            await asyncio.sleep(0)
        if self.wrong:
            raise HostFailure("AUTH: 535 no", at_once=True)
        return await super().dial(host, at)


def test_a_wrong_password_is_given_once_however_many_wait() -> None:
    async def test() -> None:
        site = Site(username="me", probe_after_s=60)
        site.dialer = Doorkeeper({"h": site.sink})
        site.pool = Pool({"h": site.host}, site.dialer, site.board, site.clock, LOG)
        results = await asyncio.gather(*(site.send(f"e{n}") for n in range(20)), return_exceptions=True)
        assert {type(one) for one in results} == {HostDown}
        assert site.dialer.tried == 1
        assert site.pool.wait_s(["h"]) <= 120
        site.clock.advance(60)
        site.dialer.wrong = False
        await site.send()
        await asyncio.gather(*(site.send(f"e{n}") for n in range(20)))
        await site.pool.close()

    asyncio.run(test())


def test_a_connection_carries_no_more_messages_than_configured() -> None:
    async def test() -> None:
        site = Site(max_messages=2)
        for _ in range(5):
            await site.send()
        assert site.sink.connections == 3
        await site.pool.close()

    asyncio.run(test())


def test_a_fresh_connection_has_carried_nothing() -> None:
    async def test() -> None:
        site = Site()
        await site.send()
        await site.send(fresh=True)
        assert site.sink.connections == 2
        await site.pool.close()

    asyncio.run(test())


def test_a_host_has_no_more_connections_than_configured() -> None:
    async def test() -> None:
        site = Site(max_connections=3)
        most = 0

        async def one() -> None:
            nonlocal most
            async with site.pool.lend("h"):
                most = max(most, site.pool._berths["h"].in_use)
                await asyncio.sleep(0)

        await asyncio.gather(*(one() for _ in range(30)))
        assert most == 3
        assert site.sink.connections == 3
        await site.pool.close()

    asyncio.run(test())


def test_a_refused_host_is_down_after_so_many_tries_and_then_left_alone() -> None:
    async def test() -> None:
        site = Site(failures_to_open=5, probe_after_s=60.0)
        site.sink.down = True
        with pytest.raises(HostDown):
            await site.send()
        assert site.pool.health("h").failures == 5
        with pytest.raises(HostDown):
            await site.send()
        assert site.pool.health("h").failures == 5, "nobody bothers it before its time"
        site.clock.advance(61)
        with pytest.raises(HostDown):
            await site.send()
        assert site.pool.health("h").failures == 6
        site.sink.down = False
        site.clock.advance(121)
        assert kinds(await site.send()) == {"a@x": "delivered"}
        assert site.pool.health("h").is_up

    asyncio.run(test())


def test_after_a_probe_a_host_is_given_little_at_first() -> None:
    async def test() -> None:
        site = Site(max_connections=4)
        site.sink.down = True
        with pytest.raises(HostDown):
            await site.send()
        site.sink.down = False
        site.clock.advance("5m")
        rooms = []
        for _ in range(5):
            await site.send()
            rooms.append(site.pool.room("h"))
        assert rooms == [2, 3, 4, 4, 4]

    asyncio.run(test())


def test_a_probe_may_be_made_beside_the_deliveries() -> None:
    async def test() -> None:
        site = Site()
        site.sink.down = True
        with pytest.raises(HostDown):
            await site.send()
        site.sink.down = False
        site.clock.advance("5m")
        site.pool.probe_soon("h")
        await asyncio.gather(*site.pool._tasks)
        assert site.pool.health("h").is_up
        await site.send()
        assert site.sink.connections == 1
        await site.pool.close()

    asyncio.run(test())


def test_a_greeting_of_421_takes_connections_away_and_no_message_time() -> None:
    async def test() -> None:
        site = Site(max_connections=8)
        async with site.pool.lend("h"):
            site.sink.reply("CONNECT", "421 too many")
            second = asyncio.ensure_future(site.send())
            while site.pool.health("h").limit is None:
                await asyncio.sleep(0)
            assert not second.done()
        assert kinds(await second) == {"a@x": "delivered"}
        assert site.sink.connections == 2
        await site.pool.close()

    asyncio.run(test())


def test_a_greeting_of_421_to_the_only_connection_asks_for_patience() -> None:
    async def test() -> None:
        site = Site()
        site.sink.reply("CONNECT", "421 too many")
        with pytest.raises(HostBusy) as caught:
            await site.send()
        assert 1 < caught.value.delay_s < 60
        assert site.pool.health("h").is_up

    asyncio.run(test())


def test_a_host_that_goes_on_turning_us_away_is_asked_the_less_often_and_by_one_for_all() -> None:
    async def test() -> None:
        site = Site()
        site.sink.reply("CONNECT", "421 too many", times=None)
        for _ in range(360):
            for _ in range(20):
                with pytest.raises(HostBusy) as caught:
                    await site.send()
                assert 0 < caught.value.delay_s <= 120
            site.clock.advance(10)
        assert 50 < site.sink.connections < 70, "about once a minute, in an hour"
        assert site.pool.health("h").is_up
        site.sink.behave()
        site.clock.advance(60)
        await site.send()
        assert site.pool.room("h") > 0
        await site.pool.close()

    asyncio.run(test())


def test_a_host_that_is_down_is_probed_when_it_is_time_though_there_is_no_mail_for_it() -> None:
    async def test() -> None:
        site = Site()
        site.pool.look_after(["h"])
        site.sink.down = True
        with pytest.raises(HostDown):
            await site.send()
        for _ in range(60):
            site.clock.advance("1m")
            for _ in range(20):
                await asyncio.sleep(0)
            assert not site.pool.health("h").is_up
        site.sink.down = False
        site.clock.advance("5m")
        async with asyncio.timeout(5):
            while not site.pool.health("h").is_up:
                await asyncio.sleep(0)
        assert site.sink.connections == 1
        await site.pool.close()

    asyncio.run(test())


def test_a_session_that_the_host_ended_is_not_lent_again() -> None:
    async def test() -> None:
        site = Site()
        await site.send()
        site.sink.down = True
        with pytest.raises(HostDown):
            await site.send()

    asyncio.run(test())


def test_what_a_task_breaks_off_is_not_lent_again() -> None:
    async def test() -> None:
        site = Site()
        with pytest.raises(RuntimeError):
            async with site.pool.lend("h"):
                raise RuntimeError("x")
        await site.send()
        assert site.sink.connections == 2
        await site.pool.close()

    asyncio.run(test())


def test_processes_share_a_host_s_connections_and_take_turns(tmp_path: Path) -> None:
    async def test() -> None:
        sink = Sink("h")
        async with SinkServer(sink) as server:
            host = config(server.port, max_connections=2, idle_timeout_s=60.0)
            pools = [
                Pool({"h": host}, SmtpDialer("c.example"), FileBoard(tmp_path), SystemClock(), LOG)
                for _ in range(2)
            ]
            async with pools[0].lend("h"), pools[0].lend("h"):
                assert pools[1]._board.seat("h", 2) is None
                waiting = asyncio.ensure_future(_send(pools[1]))
                while not (tmp_path / "h.want").exists():
                    await asyncio.sleep(0.01)
            # The first process gives its seats up, although its sessions could wait for a minute.
            assert kinds(await waiting) == {"a@x": "delivered"}
            for pool in pools:
                await pool.close()
        assert len(sink.messages) == 1

    asyncio.run(asyncio.wait_for(test(), 20))


async def _send(pool: Pool) -> Delivery:
    async with pool.lend("h") as loan:
        return await deliver(loan.channel, "a@x")


def test_who_stops_waiting_leaves_the_connection_to_the_next() -> None:
    async def test() -> None:
        site = Site(max_connections=1)
        async with site.pool.lend("h"):
            waiting = [asyncio.ensure_future(site.send()) for _ in range(3)]
            while len(site.pool._berths["h"].waiters) < 3:
                await asyncio.sleep(0)
        # The first has been handed the connection, and has not yet learnt of it.
        waiting[0].cancel()
        assert [kinds(await one) for one in waiting[1:]] == [{"a@x": "delivered"}] * 2
        assert site.sink.connections == 1
        await site.pool.close()

    asyncio.run(asyncio.wait_for(test(), 10))


def test_two_processes_come_to_share_a_host(tmp_path: Path) -> None:
    async def test() -> None:
        sink = Sink("h")
        async with SinkServer(sink) as server:
            host = config(server.port, max_connections=4)
            pools = [
                Pool({"h": host}, SmtpDialer("c.example"), FileBoard(tmp_path), SystemClock(), LOG)
                for _ in range(2)
            ]
            sent = [0, 0]

            async def work(number: int) -> None:
                while min(sent) < 20:
                    await _send(pools[number])
                    sent[number] += 1

            async with asyncio.TaskGroup() as group:
                for _ in range(4):
                    group.create_task(work(0))
                while not sent[0]:
                    await asyncio.sleep(0)
                for _ in range(4):
                    group.create_task(work(1))
            for pool in pools:
                await pool.close()
            assert sink.connections < sum(sent) / 4, "sessions are used again all the same"

    asyncio.run(asyncio.wait_for(test(), 30))


def test_a_session_that_waited_long_enough_is_ended_politely() -> None:
    async def test() -> None:
        sink = Sink("h")
        async with SinkServer(sink) as server:
            host = config(server.port, idle_timeout_s=0.01)
            dialer = SmtpDialer("c.example")
            pool = Pool({"h": host}, dialer, SinkDialer({}).board(Path()), SystemClock(), LOG)
            await _send(pool)
            while server._talks:
                await asyncio.sleep(0.01)
            await pool.close()

    asyncio.run(asyncio.wait_for(test(), 10))
