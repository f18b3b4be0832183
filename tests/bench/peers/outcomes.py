"""Consumes our workers' outcomes from the operator's inbox and discards them.

Acknowledges many at once, as the operator may.
"""

from __future__ import annotations

import asyncio
import os
import signal

import uvloop

from taskqueue.amqp.channel import Delivery
from taskqueue.amqp.connection import connect
from taskqueue.amqp.parameters import BrokerParameters
from taskqueue.contract.names import INBOX_QUEUE

_PREFETCH = 2000
_ACKNOWLEDGE_SECONDS = 0.1


async def main() -> None:
    """Consume until SIGTERM."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    parameters = BrokerParameters.from_mapping({"uri": os.environ["BENCH_BROKER_URI"]})
    connection = await connect(parameters, name="bench outcomes")
    channel = await connection.channel()
    last = acknowledged = 0

    def on_delivery(delivery: Delivery) -> None:
        nonlocal last
        last = delivery.delivery_tag

    await channel.set_prefetch(_PREFETCH)
    await channel.consume(INBOX_QUEUE, on_delivery, lambda reason: None)
    while not stopped.is_set():
        try:
            async with asyncio.timeout(_ACKNOWLEDGE_SECONDS):
                await stopped.wait()
        except TimeoutError:
            pass
        if last != acknowledged:
            acknowledged = last
            channel.ack(last, multiple=True)
    await connection.close()


if __name__ == "__main__":
    uvloop.run(main())
