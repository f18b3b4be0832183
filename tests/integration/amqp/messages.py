"""Messages to publish, and a consumer that collects what it gets."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass, field

from pika.spec import BasicProperties

from taskqueue.amqp.channel import Channel, Delivery
from taskqueue.amqp.publisher import Publisher, Settled

#: Longer than anything takes here; tests wait for events, never for time.
PATIENCE = 60.0


def properties() -> BasicProperties:
    return BasicProperties(message_id=uuid.uuid4().hex, delivery_mode=2)


@dataclass
class Verdicts:
    """Counts what each of many publishes was told."""

    expected: int
    told: dict[int, list[tuple[Settled, str]]] = field(default_factory=dict)
    first: asyncio.Event = field(default_factory=asyncio.Event)
    _count: int = 0
    _all: asyncio.Event = field(default_factory=asyncio.Event)

    def publish(
        self, publisher: Publisher, number: int, exchange: str, key: str, *, size: int = 0
    ) -> None:
        self.told[number] = []

        def settled(verdict: Settled, text: str) -> None:
            self.told[number].append((verdict, text))
            self.first.set()
            self._count += 1
            if self._count >= self.expected:
                self._all.set()

        body = str(number).encode().rjust(size)
        publisher.publish(exchange, key, body, properties(), settled)

    async def all(self) -> dict[int, Settled]:
        """Wait until as many as expected are settled; each must be so exactly once."""
        async with asyncio.timeout(PATIENCE):
            await self._all.wait()
        assert {len(each) for each in self.told.values()} == {1}
        return {number: each[0][0] for number, each in self.told.items()}


class Collector:
    """Takes deliveries and lets a test wait for them."""

    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []
        self.cancelled: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._more = asyncio.Event()

    def on_delivery(self, delivery: Delivery) -> None:
        self.deliveries.append(delivery)
        self._more.set()

    def on_cancel(self, reason: str) -> None:
        self.cancelled.set_result(reason)

    async def start(self, channel: Channel, queue: str) -> str:
        return await channel.consume(queue, self.on_delivery, self.on_cancel)

    async def wait(self, count: int) -> list[Delivery]:
        """Wait for that many deliveries in all."""
        async with asyncio.timeout(PATIENCE):
            while len(self.deliveries) < count:
                self._more.clear()
                await self._more.wait()
        return self.deliveries

    @property
    def bodies(self) -> list[bytes]:
        return [delivery.body for delivery in self.deliveries]


async def fill(publisher: Publisher, queue: str, count: int, *, size: int = 0) -> None:
    """Put that many messages of at least that size into a queue, through the default exchange."""
    verdicts = Verdicts(expected=count)
    for number in range(count):
        verdicts.publish(publisher, number, "", queue, size=size)
    assert set((await verdicts.all()).values()) == {Settled.CONFIRMED}
