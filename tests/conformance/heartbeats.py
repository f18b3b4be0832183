"""Reads the heartbeats of workers, as the operator does."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable

from taskqueue.amqp.channel import Delivery
from taskqueue.amqp.connection import Connection
from taskqueue.contract.heartbeat import Heartbeat, decode
from taskqueue.contract.names import HEARTBEATS_QUEUE, ContractError
from tests.conformance.points import Violation, expect


class HeartbeatLog:
    """Reads and validates every heartbeat of a virtual host."""

    def __init__(self) -> None:
        self._received: dict[str, list[Heartbeat]] = defaultdict(list)
        self._more = asyncio.Event()
        #: Violations of the contract.
        self.violations: list[str] = []

    async def open(self, connection: Connection) -> None:
        """Start to consume."""
        channel = await connection.channel()
        await channel.consume(HEARTBEATS_QUEUE, self._on_delivery, lambda reason: None)

    def matching(self, queue: str, holds: Callable[[Heartbeat], bool]) -> list[Heartbeat]:
        """Return the heartbeats of a TaskQueue's workers for which ``holds`` is true."""
        return [heartbeat for heartbeat in self._received[queue] if holds(heartbeat)]

    async def wait(
        self, queue: str, holds: Callable[[Heartbeat], bool], *, number: int = 1
    ) -> Heartbeat:
        """Wait for ``number`` heartbeats for which ``holds`` is true; return the last of them."""
        while len(self.matching(queue, holds)) < number:
            self._more.clear()
            await self._more.wait()
        return self.matching(queue, holds)[number - 1]

    def _on_delivery(self, delivery: Delivery) -> None:
        delivery.channel.ack(delivery.delivery_tag)
        try:
            heartbeat = decode(delivery.body)
            expect(
                delivery.routing_key == heartbeat.routing_key, "subject and routing key disagree"
            )
            expect(delivery.properties.delivery_mode != 2, "it must be transient")
            expect(
                heartbeat.busy is None or heartbeat.busy >= len(heartbeat.running),
                "busy is below running",
            )
        except (ContractError, Violation) as error:
            self.violations.append(f"{error}: {delivery.body[:200]!r}")
            return
        self._received[heartbeat.queue].append(heartbeat)
        self._more.set()
