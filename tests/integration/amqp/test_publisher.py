"""Publishing: every message is settled exactly once, with what really became of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import uvloop
from pika.spec import BasicProperties

from taskqueue.amqp.channel import BrokerUnavailable
from taskqueue.amqp.confirms import UnconfirmedPublishes
from taskqueue.amqp.connection import Connection, connect
from taskqueue.amqp.parameters import BrokerParameters
from taskqueue.amqp.publisher import Publisher, Settled
from tests.faults.relay import relay_to
from tests.integration.amqp.messages import PATIENCE, Collector, Verdicts, properties

pytestmark = pytest.mark.broker

QUORUM = {"x-queue-type": "quorum"}


@pytest.fixture
async def publisher(connection: Connection) -> Publisher:
    return await Publisher.open(connection)


@pytest.fixture
async def queue(connection: Connection) -> str:
    channel = await connection.channel()
    await channel.declare_queue("q", arguments=QUORUM)
    await channel.close()
    return "q"


async def ready(connection: Connection, queue: str) -> int:
    channel = await connection.channel()
    count = await channel.declare_queue(queue, passive=True)
    await channel.close()
    return count


async def test_pipelined_confirms_one_by_one_and_multiple(
    connection: Connection, publisher: Publisher, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    confirms: list[bool] = []
    original = UnconfirmedPublishes.on_confirm

    def spy(self: UnconfirmedPublishes, tag: int, *, multiple: bool, acked: bool) -> None:
        confirms.append(multiple)
        original(self, tag, multiple=multiple, acked=acked)

    monkeypatch.setattr(UnconfirmedPublishes, "on_confirm", spy)
    verdicts = Verdicts(expected=3000)
    for number in range(3000):
        verdicts.publish(publisher, number, "", queue)
    assert publisher.outstanding == 3000
    assert set((await verdicts.all()).values()) == {Settled.CONFIRMED}
    assert publisher.outstanding == 0
    assert True in confirms, "the broker confirmed none together: the test says less than it should"
    assert await ready(connection, queue) == 3000


async def test_returns_are_matched_among_routable_ones(publisher: Publisher, queue: str) -> None:
    verdicts = Verdicts(expected=600)
    for number in range(600):
        verdicts.publish(publisher, number, "", queue if number % 3 else f"nowhere-{number}")
    expected = {
        number: Settled.CONFIRMED if number % 3 else Settled.RETURNED for number in range(600)
    }
    assert await verdicts.all() == expected
    assert verdicts.told[1] == [(Settled.CONFIRMED, "")]
    assert verdicts.told[3][0][1] == "312 NO_ROUTE: exchange , key nowhere-3"


async def test_a_full_queue_refuses(connection: Connection, publisher: Publisher) -> None:
    channel = await connection.channel()
    limited = {**QUORUM, "x-max-length": 5, "x-overflow": "reject-publish"}
    await channel.declare_queue("small", arguments=limited)
    told = [await publisher.publish_and_wait("", "small", b"", properties()) for _ in range(20)]
    assert told[0] == (Settled.CONFIRMED, "")
    assert told[-1][0] is Settled.UNKNOWN
    assert "queue is full" in told[-1][1]
    confirmed = [verdict for verdict, _ in told].count(Settled.CONFIRMED)
    assert await ready(connection, "small") == confirmed


@pytest.mark.parametrize("frozen", [False, True], ids=["between confirms", "before any"])
async def test_a_lost_connection_settles_everything_once(
    parameters: BrokerParameters, queue: str, frozen: bool
) -> None:
    async with relay_to(parameters) as (relay, relayed):
        connection = await connect(relayed, name="test")
        publisher = await Publisher.open(connection)
        if frozen:
            relay.freeze()
        verdicts = Verdicts(expected=5000)
        for number in range(5000):
            verdicts.publish(publisher, number, "", queue)
        if not frozen:
            await asyncio.wait_for(verdicts.first.wait(), PATIENCE)
        assert publisher.outstanding > 0
        relay.cut()
        told = await verdicts.all()
        assert publisher.outstanding == 0
        assert set(told.values()) <= {Settled.UNKNOWN, Settled.CONFIRMED}
        assert Settled.UNKNOWN in told.values()
        if frozen:
            assert set(told.values()) == {Settled.UNKNOWN}
        async with asyncio.timeout(PATIENCE):
            reason = await asyncio.shield(publisher.closed)
        assert "the connection was lost" in reason

        late = Verdicts(expected=1)
        late.publish(publisher, 0, "", queue)
        assert late.told == {0: []}, "settled before publish returned"
        assert await late.all() == {0: Settled.UNKNOWN}
        assert late.told[0][0][1] == reason
        with pytest.raises(BrokerUnavailable, match="the connection was lost"):
            await Publisher.open(connection)


async def test_a_missing_exchange_ends_the_publisher(
    connection: Connection, publisher: Publisher, queue: str
) -> None:
    verdicts = Verdicts(expected=2)
    verdicts.publish(publisher, 0, "", queue)
    verdicts.publish(publisher, 1, "no-such-exchange", "key")
    told = await verdicts.all()
    assert told[1] is Settled.UNKNOWN
    assert "404 NOT_FOUND - no exchange 'no-such-exchange'" in verdicts.told[1][0][1]
    async with asyncio.timeout(PATIENCE):
        assert "404" in await asyncio.shield(publisher.closed)
    assert not connection.closed.done()


async def test_closing_settles_what_is_left(
    parameters: BrokerParameters, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("channel", "connection"):
        monkeypatch.setattr(f"taskqueue.amqp.{module}.CLOSE_SECONDS", 0.2)
    async with relay_to(parameters) as (relay, relayed):
        connection = await connect(relayed, name="test")
        publisher = await Publisher.open(connection)
        verdicts = Verdicts(expected=3)
        relay.freeze()
        for number in range(3):
            verdicts.publish(publisher, number, "", queue)
        closing = asyncio.ensure_future(publisher.close())
        await asyncio.sleep(0)
        verdicts.expected = 4
        verdicts.publish(publisher, 3, "", queue)
        await asyncio.wait_for(closing, PATIENCE)
        assert set((await verdicts.all()).values()) == {Settled.UNKNOWN}
        assert publisher.closed.result() == "the publisher was closed by this process"


async def test_a_message_that_cannot_be_sent_is_raised_and_spends_no_tag(
    publisher: Publisher, queue: str
) -> None:
    verdicts = Verdicts(expected=2)

    def never(verdict: Settled, text: str) -> None:
        raise AssertionError("settled")

    with pytest.raises(ValueError, match="headers cannot have floats"):
        publisher.publish(
            "", queue, b"", BasicProperties(message_id="a", headers={"share": 0.5}), never
        )
    with pytest.raises(ValueError, match="cannot be encoded"):
        publisher.publish("", "k" * 300, b"", BasicProperties(message_id="b"), never)
    with pytest.raises(ValueError, match="needs a message_id"):
        publisher.publish("", queue, b"", BasicProperties(), never)
    verdicts.publish(publisher, 0, "", "nowhere")
    verdicts.publish(publisher, 1, "", queue)
    assert await verdicts.all() == {0: Settled.RETURNED, 1: Settled.CONFIRMED}


async def test_a_callback_may_raise_or_publish(publisher: Publisher, queue: str) -> None:
    reported: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: reported.append(context))
    again = Verdicts(expected=10)

    def settled(verdict: Settled, text: str) -> None:
        again.publish(publisher, len(again.told), "", queue)
        raise RuntimeError("boom")

    for _ in range(10):
        publisher.publish("", queue, b"", properties(), settled)
    assert set((await again.all()).values()) == {Settled.CONFIRMED}
    loop.set_exception_handler(None)
    assert [str(context["exception"]) for context in reported] == ["boom"] * 10


async def test_a_cancelled_wait_does_not_disturb_the_others(
    publisher: Publisher, queue: str
) -> None:
    waits = [
        asyncio.ensure_future(publisher.publish_and_wait("", queue, b"", properties()))
        for _ in range(20)
    ]
    await asyncio.sleep(0)
    for wait in waits[::2]:
        wait.cancel()
    async with asyncio.timeout(PATIENCE):
        told = await asyncio.gather(*waits[1::2])
    assert set(told) == {(Settled.CONFIRMED, "")}


async def test_large_and_empty_bodies_arrive_whole(
    connection: Connection, publisher: Publisher, queue: str
) -> None:
    bodies = [b"", b"x", bytes(range(256)) * 4000, b"y" * 131_072]
    for body in bodies:
        verdict, _ = await publisher.publish_and_wait("", queue, body, properties())
        assert verdict is Settled.CONFIRMED
    collector = Collector()
    await collector.start(await connection.channel(), queue)
    await collector.wait(4)
    assert collector.bodies == bodies


def test_all_of_it_on_uvloop(parameters: BrokerParameters) -> None:
    async def scenario() -> None:
        async with relay_to(parameters) as (relay, relayed):
            connection = await connect(relayed, name="test", heartbeat_seconds=1)
            channel = await connection.channel()
            await channel.declare_queue("u", arguments=QUORUM)
            publisher = await Publisher.open(connection)
            verdicts = Verdicts(expected=2000)
            for number in range(2000):
                verdicts.publish(publisher, number, "", "u" if number % 2 else "nowhere")
            told = await verdicts.all()
            assert {number % 2: verdict for number, verdict in told.items()} == {
                0: Settled.RETURNED,
                1: Settled.CONFIRMED,
            }
            collector = Collector()
            await collector.start(channel, "u")
            channel.ack((await collector.wait(1000))[-1].delivery_tag, multiple=True)
            await asyncio.wait({connection.closed}, timeout=2.5)
            assert not connection.closed.done(), "heartbeats"
            relay.cut()
            async with asyncio.timeout(PATIENCE):
                assert "lost" in await asyncio.shield(connection.closed)
            await connection.close()

    problems: list[dict[str, Any]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: problems.append(context))
        await scenario()
        await asyncio.sleep(1.2)  # longer than a heartbeat: no timer may be left behind

    uvloop.run(main())
    assert problems == []
