"""Connects again when it cannot publish, instead of opening another channel."""

from __future__ import annotations

from taskqueue.amqp.channel import BrokerUnavailable, ChannelRefused
from taskqueue.amqp.connection import Connection
from taskqueue.worker.outcome_publisher import OutcomePublisher
from tests.conformance.broken import start


async def _publish_once(self: OutcomePublisher, connection: Connection) -> None:
    try:
        reason = await self._publish(connection, lambda: None)
    except ChannelRefused as refusal:
        reason = str(refusal)
    raise BrokerUnavailable(reason)


if __name__ == "__main__":
    OutcomePublisher._publish_on = _publish_once  # type: ignore[method-assign]
    start()
