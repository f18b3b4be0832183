"""The operator's side of the broker: what workers said of themselves, by TaskQueue."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable

from taskqueue.amqp.channel import Delivery
from taskqueue.amqp.connection import Connection
from taskqueue.contract.heartbeat import Heartbeat, decode
from taskqueue.contract.names import HEARTBEATS_QUEUE, ContractError
from tests.conformance.points import Violation, expect


class Beats:
    """Takes every heartbeat of a virtual host."""

    def __init__(self) -> None:
        self._told: dict[str, list[Heartbeat]] = defaultdict(list)
        self._more = asyncio.Event()
        #: What is wrong with heartbeats.
        self.wrong: list[str] = []

    async def open(self, connection: Connection) -> None:
        """Read from now on."""
        channel = await connection.channel()
        await channel.consume(HEARTBEATS_QUEUE, self._take, lambda reason: None)

    def told(self, queue: str, holds: Callable[[Heartbeat], bool]) -> list[Heartbeat]:
        """Return the heartbeats of a TaskQueue's workers of which something holds."""
        return [beat for beat in self._told[queue] if holds(beat)]

    async def wait(
        self, queue: str, holds: Callable[[Heartbeat], bool], *, number: int = 1
    ) -> Heartbeat:
        """Wait for that many heartbeats of which something holds, and return the last of them."""
        while len(self.told(queue, holds)) < number:
            self._more.clear()
            await self._more.wait()
        return self.told(queue, holds)[number - 1]

    def _take(self, delivery: Delivery) -> None:
        delivery.channel.ack(delivery.delivery_tag)
        try:
            beat = decode(delivery.body)
            expect(delivery.routing_key == beat.routing_key, "subject and routing key disagree")
            expect(delivery.properties.delivery_mode != 2, "it must be transient")
            expect(beat.busy is None or beat.busy >= len(beat.running), "busy is below running")
        except (ContractError, Violation) as problem:
            self.wrong.append(f"{problem}: {delivery.body[:200]!r}")
            return
        self._told[beat.queue].append(beat)
        self._more.set()
