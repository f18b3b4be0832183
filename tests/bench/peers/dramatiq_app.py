"""Dramatiq with one actor that does nothing; run as a module it publishes so many messages."""

from __future__ import annotations

import os
import sys

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker

QUEUE = "bench-dramatiq"

broker = RabbitmqBroker(url=os.environ["BENCH_BROKER_URI"])
dramatiq.set_broker(broker)


@dramatiq.actor(queue_name=QUEUE)
def noop() -> None:
    """Do nothing."""


if __name__ == "__main__":
    for _ in range(int(sys.argv[1])):
        noop.send()
    broker.close()
