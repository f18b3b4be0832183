"""Producers of direct messages, one for each TaskQueue that somebody sends to."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from taskqueue.amqp.parameters import BrokerConfigurationError
from taskqueue.client.access import ApiConnection
from taskqueue.direct.async_producer import AsyncProducer
from taskqueue.gateway.problems import Problem, gateways_own
from taskqueue.kubernetes.broker_secret import read_broker_secret
from taskqueue.kubernetes.secret_values import SecretUnusable, SecretValues
from taskqueue.kubernetes.taskqueue_codec import queue_path, read_queue
from taskqueue.model.queue import QueueKey

#: How long a Secret counts as unchanged, in seconds.
_FRESH_SECONDS = 60.0
#: TaskQueues with a connection; the one that was used least lately is closed.
_PRODUCERS = 32
#: How long a message may wait for its confirm, in seconds.
_PATIENCE_SECONDS = 10.0


@dataclass(slots=True)
class _Open:
    producer: AsyncProducer
    secret: SecretValues
    checked: float


class Producers:
    """Opens producers, and closes them.

    Args:
        clock: seconds from any start.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: OrderedDict[QueueKey, _Open] = OrderedDict()
        self._opening = asyncio.Lock()

    async def producer(self, own: ApiConnection, key: QueueKey) -> AsyncProducer:
        """Return the producer of a TaskQueue, with the address that its Secret has now.

        Raises:
            Problem: the gateway cannot find the broker out.
        """
        async with self._opening:
            known = self._open.get(key)
            if known is not None and self._clock() - known.checked < _FRESH_SECONDS:
                self._open.move_to_end(key)
                return known.producer
            secret = await _secret_of(own, key)
            if known is not None and known.secret == secret:
                known.checked = self._clock()
                return known.producer
            producer = _producer(secret, key)
            await self._remove(key)
            self._open[key] = _Open(producer, secret, self._clock())
            while len(self._open) > _PRODUCERS:
                await self._remove(next(iter(self._open)))
            return producer

    async def close(self) -> None:
        """Close all."""
        for key in list(self._open):
            await self._remove(key)

    async def _remove(self, key: QueueKey) -> None:
        known = self._open.pop(key, None)
        if known is not None:
            await known.producer.close()


def _producer(secret: SecretValues, key: QueueKey) -> AsyncProducer:
    try:
        return AsyncProducer(
            secret.data, name="taskqueue: gateway", patience_seconds=_PATIENCE_SECONDS
        )
    except BrokerConfigurationError as error:
        detail = f"TaskQueue {'/'.join(key)}: {secret.where}: {error}"
        raise Problem(502, "BrokerConfiguration", detail) from None


async def _secret_of(own: ApiConnection, key: QueueKey) -> SecretValues:
    where = f"TaskQueue {'/'.join(key)}"
    try:
        with gateways_own():
            raw = await own.requests.get(queue_path(key))
            return await read_broker_secret(own.requests, read_queue(raw))
    except SecretUnusable as error:
        raise Problem(502, error.reason, f"the gateway, for {where}: {error}") from None
    except ValueError as error:
        raise Problem(502, "TaskQueueUnreadable", f"{where} cannot be read: {error}") from None
