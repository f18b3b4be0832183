"""The broker in memory keeps what operator and workers rely on, whatever they do."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from taskqueue.amqp.channel import Delivery
from taskqueue.amqp.properties import BasicProperties
from taskqueue.amqp.publisher import Settled
from taskqueue.contract.names import DEAD_EXCHANGE, WORK_EXCHANGE
from taskqueue.dev.memory_broker import MemoryBroker
from taskqueue.limits import DELIVERY_LIMIT
from taskqueue.worker.runtime import Runtime

KEY = "shop.q"


class Consumer:
    """Settles its deliveries as it is told."""

    def __init__(self, prefetch: int) -> None:
        self.prefetch = prefetch
        self.held: list[Delivery] = []
        self.seen: list[tuple[bytes, bool, int]] = []
        self.most = 0

    def on_channel_opened(self, channel: Any) -> None: ...

    def on_command(self, command: Any) -> None: ...

    def on_delivery(self, delivery: Delivery) -> None:
        self.held.append(delivery)
        self.most = max(self.most, len(self.held))
        count = (delivery.properties.headers or {}).get("x-delivery-count", 0)
        self.seen.append((delivery.body, delivery.redelivered, count))


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def publish(broker: MemoryBroker, body: bytes, settled: list[Settled]) -> None:
    broker.publisher.publish(
        WORK_EXCHANGE, KEY, body, BasicProperties(), lambda verdict, _: settled.append(verdict)
    )


@given(
    st.lists(st.sampled_from(["publish", "ack", "requeue", "ack all"]), max_size=40),
    st.integers(1, 3),
)
def test_every_message_is_kept_until_it_is_acknowledged(actions: list[str], prefetch: int) -> None:
    async def play() -> None:
        broker = MemoryBroker(asyncio.get_running_loop(), on_inbox=lambda delivery: None)
        consumer = Consumer(prefetch)
        broker.consume(KEY, cast(Runtime, consumer))
        alive: set[bytes] = set()
        settled: list[Settled] = []
        for number, action in enumerate(actions):
            if action == "publish":
                body = b"%d" % number
                publish(broker, body, settled)
                assert len(settled) < len(actions)
                alive.add(body)
            elif consumer.held:
                last = consumer.held[-1] if action == "ack all" else consumer.held[0]
                if action == "requeue":
                    last.channel.nack(last.delivery_tag, requeue=True)
                    consumer.held.remove(last)
                else:
                    several = action == "ack all"
                    last.channel.ack(last.delivery_tag, multiple=several)
                    gone = [one for one in consumer.held if one.delivery_tag <= last.delivery_tag]
                    gone = gone if several else [last]
                    consumer.held = [one for one in consumer.held if one not in gone]
                    alive -= {one.body for one in gone}
            await turns()
            assert {one.body for one in consumer.held} <= alive
            assert len(consumer.held) == min(len(alive), prefetch)
            assert broker.ready(KEY) == len(alive) - len(consumer.held)
        assert consumer.most <= prefetch
        assert settled == [Settled.CONFIRMED] * actions.count("publish")
        assert all(again == (count > 0) for _, again, count in consumer.seen)

    asyncio.run(play())


def test_message_that_comes_back_too_often_is_a_dead_letter() -> None:
    async def play() -> None:
        inbox: list[Delivery] = []
        dead: list[str] = []
        broker = MemoryBroker(
            asyncio.get_running_loop(),
            on_inbox=inbox.append,
            on_dead_letter=lambda key, _: dead.append(key),
        )
        consumer = Consumer(1)
        broker.consume(KEY, cast(Runtime, consumer))
        publish(broker, b"{}", [])
        for _ in range(DELIVERY_LIMIT + 1):
            await turns()
            (one,) = consumer.held
            consumer.held.clear()
            one.channel.reject(one.delivery_tag, requeue=True)
        await turns()
        assert (dead, consumer.held, len(consumer.seen)) == ([KEY], [], DELIVERY_LIMIT + 1)
        (letter,) = inbox
        assert letter.exchange == DEAD_EXCHANGE
        assert (letter.properties.headers or {})["x-last-death-reason"] == "delivery_limit"

    asyncio.run(play())
