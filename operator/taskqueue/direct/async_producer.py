"""The asyncio client for direct messages; `taskqueue.direct.producer` is the same without it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from taskqueue.amqp.parameters import BrokerParameters
from taskqueue.contract.names import routing_key
from taskqueue.direct.errors import NotConfirmed
from taskqueue.direct.publish_batch import BatchMessage, PublishBatch
from taskqueue.direct.reconnecting_publisher import ReconnectingPublisher
from taskqueue.exact_json import encode

#: RabbitMQ's default limit: it closes the channel, with all its messages, over a larger one.
_MAX_BYTES = 16 * 1024 * 1024


class AsyncProducer:
    """Sends direct messages: work without a Task, run with the queue's defaults.

    It connects on first use and again after every loss; use it with ``async with``, or call
    `close`. Any number of calls may run concurrently.

    Args:
        broker: an ``amqp://`` or ``amqps://`` URI, or the content of a connection Secret: ``uri``,
            or ``host``, ``username``, ``password`` and more (docs/reference/api.md).
        name: of the connection, as the broker lists it.
        patience_seconds: how long a call waits while none of its messages is confirmed.

    Raises:
        BrokerConfigurationError: a ValueError whose text names the key.
    """

    def __init__(
        self,
        broker: str | Mapping[str, str],
        *,
        name: str = "taskqueue-producer",
        patience_seconds: float = 30.0,
    ) -> None:
        data = {"uri": broker} if isinstance(broker, str) else broker
        self._parameters = BrokerParameters.from_mapping(data)
        self._publisher = ReconnectingPublisher(self._parameters, name=name)
        self._patience = patience_seconds
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> AsyncProducer:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection. Idempotent."""
        self._closed = True
        await self._publisher.close()

    async def send(
        self,
        namespace: str,
        queue: str,
        payload: Any = None,
        *,
        handler: str | None = None,
        correlation_id: str | None = None,
    ) -> None:
        """Send one message; on return it is in the queue, as durable as the queue's type is.

        Args:
            namespace: of the TaskQueue.
            queue: name of the TaskQueue.
            payload: a dict, a pydantic model or a dataclass; None: an empty object.
            handler: name of the handler; None: the workers' default handler.
            correlation_id: repeated in the completion event of the message.

        Raises:
            TypeError: the payload is not a JSON object.
            ValueError: it is larger than 16 MiB, or a name cannot be sent.
            Unroutable: no TaskQueue has declared this queue.
            Refused: the broker does not allow it.
            NotConfirmed: not confirmed in time: it may be in the queue or not.
        """
        message = BatchMessage(_encoded(payload), handler, correlation_id)
        await self._deliver(namespace, queue, iter((message,)))

    async def send_many(
        self,
        namespace: str,
        queue: str,
        payloads: Iterable[Any],
        *,
        handler: str | None = None,
        correlation_id: str | None = None,
    ) -> int:
        """Send many messages to one queue, pipelined; return their number when all are confirmed.

        ``payloads`` is read as fast as messages are confirmed. After an error some of the messages
        may be in the queue, in any order.

        Raises:
            NotConfirmed: as of `send`; ``confirmed`` is how many are in the queue for certain.
            TypeError: as of `send`, and so the other errors.
        """
        messages = (BatchMessage(_encoded(each), handler, correlation_id) for each in payloads)
        return await self._deliver(namespace, queue, messages)

    async def _deliver(self, namespace: str, queue: str, messages: Iterator[BatchMessage]) -> int:
        self._check_open()
        loop = asyncio.get_running_loop()
        if self._loop not in (None, loop):
            raise RuntimeError("this producer was used in another event loop: make one in each")
        self._loop = loop

        def extend_timeout() -> None:
            if not over:
                scope.reschedule(loop.time() + self._patience)

        batch = PublishBatch(
            messages,
            key=routing_key(namespace, queue),
            queue=f"{namespace}/{queue}",
            address=self._parameters.address,
            on_progress=extend_timeout,
        )
        over = True
        try:
            async with asyncio.timeout(self._patience) as scope:
                over = False
                try:
                    while not batch.is_done:
                        self._check_open()
                        publisher = await self._publisher.publisher()
                        await batch.publish(publisher, self._publisher.exchange)
                finally:
                    over = True  # late confirms must not reschedule a scope that has ended
        except TimeoutError:
            cause = self._publisher.last_error or batch.last_error or "it does not answer"
            raise NotConfirmed(
                f"RabbitMQ at {self._parameters.address} has confirmed nothing for TaskQueue "
                f"{namespace}/{queue} within {self._patience:g} s ({cause}): the messages may "
                "be in the queue or not; send them again if they may run twice",
                confirmed=batch.confirmed,
            ) from None
        return batch.confirmed

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("this producer is closed: make another")


def _encoded(payload: Any) -> bytes:
    body = encode({} if payload is None else payload, "payload")
    if not body.startswith(b"{"):
        raise TypeError(
            f"a payload is a JSON object, not {type(payload).__name__}: give a dict, a pydantic "
            "model or a dataclass"
        )
    if len(body) > _MAX_BYTES:
        raise ValueError(
            f"the payload is {len(body)} bytes of JSON, a message may have {_MAX_BYTES}: store it "
            "elsewhere and send a reference to it"
        )
    return body
