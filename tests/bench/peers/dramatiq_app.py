"""Dramatiq with one actor that does nothing; run as a module it publishes so many messages.

As it comes, or, with `QUORUM` set in the environment, with what our workers have: a quorum queue,
and a confirm of each message that is published.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

QUEUE = "bench-dramatiq"
QUORUM = "BENCH_DRAMATIQ_QUORUM"


class QuorumBroker(RabbitmqBroker):  # type: ignore[misc]
    """Declares quorum queues; Dramatiq has no setting for that."""

    def _build_queue_arguments(self, queue_name: str) -> dict[str, Any]:
        arguments: dict[str, Any] = super()._build_queue_arguments(queue_name)
        return arguments | {"x-queue-type": "quorum"}


_uri = os.environ["BENCH_BROKER_URI"]
broker = (
    QuorumBroker(url=_uri, confirm_delivery=True)
    if QUORUM in os.environ
    else RabbitmqBroker(url=_uri)
)
dramatiq.set_broker(broker)


@dramatiq.actor(queue_name=QUEUE + "-quorum" * (QUORUM in os.environ))
def noop() -> None:
    """Do nothing."""


if __name__ == "__main__":
    for _ in range(int(sys.argv[1])):
        noop.send()
    broker.close()
