"""Publishes the messages of one call, pipelined, and republishes them until they are confirmed.

Every message is confirmed, or the call ends with an error. A message that a full queue refused, or
that was not confirmed before the connection was lost, is published again: the queue may then have
it twice.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from taskqueue.amqp.publisher import Publisher, Settled
from taskqueue.backoff import Backoff
from taskqueue.contract.names import DIRECT_EXCHANGE
from taskqueue.direct.errors import ClientError, Refused, Unroutable
from taskqueue.direct.message import direct_properties

#: Unconfirmed messages of one call; more do not increase the throughput.
WINDOW = 500


@dataclass(frozen=True, slots=True)
class BatchMessage:
    """One message to publish."""

    body: bytes
    handler: str | None
    correlation_id: str | None


class PublishBatch:
    """Publishes the messages of one call to one queue.

    Args:
        messages: consumed as they can be published.
        key: the routing key.
        queue: ``namespace/name`` of the TaskQueue, for errors.
        address: of the broker, for errors.
        on_progress: called with every confirm.
    """

    def __init__(
        self,
        messages: Iterator[BatchMessage],
        *,
        key: str,
        queue: str,
        address: str,
        on_progress: Callable[[], None],
    ) -> None:
        self._messages = messages
        self._key = key
        self._queue = queue
        self._address = address
        self._on_progress = on_progress
        self._to_republish: deque[BatchMessage] = deque()
        self._in_flight = 0
        self._exhausted = False
        self._error: ClientError | None = None
        self._progress = asyncio.Event()
        self._backoff = Backoff()
        self.confirmed = 0
        #: Why the latest unconfirmed message was not confirmed.
        self.last_error = ""

    @property
    def is_done(self) -> bool:
        """Whether everything is confirmed."""
        return self._exhausted and not self._to_republish and not self._in_flight

    async def publish(self, publisher: Publisher, exchange: str) -> None:
        """Publish to an exchange until everything is confirmed or the publisher is closed.

        Raises:
            Unroutable: the queue does not exist.
            Refused: the broker does not allow it.
        """
        while not self.is_done:
            self._fill(publisher, exchange)
            if self.is_done:
                return
            await self._progress.wait()
            self._progress.clear()
            if self._error is not None:
                raise self._error
            if publisher.closed.done() and not self._in_flight:
                return
            if self._to_republish and not publisher.closed.done():
                await asyncio.sleep(self._backoff.next_delay())  # the queue is full

    def _fill(self, publisher: Publisher, exchange: str) -> None:
        while self._in_flight < WINDOW:
            message = (
                self._to_republish.popleft() if self._to_republish else next(self._messages, None)
            )
            if message is None:
                self._exhausted = True
                return
            publisher.publish(
                exchange,
                self._key,
                message.body,
                direct_properties(handler=message.handler, correlation_id=message.correlation_id),
                partial(self._on_settled, message),
            )
            self._in_flight += 1

    def _on_settled(self, message: BatchMessage, verdict: Settled, text: str) -> None:
        self._in_flight -= 1
        if verdict is Settled.CONFIRMED:
            self.confirmed += 1
            self._backoff.reset()
            self._on_progress()
        elif verdict is Settled.RETURNED:
            self._error = self._unroutable_error()
        else:
            self.last_error = text
            self._error = self._error or self._final_error(text)
            self._to_republish.append(message)
        self._progress.set()

    def _final_error(self, text: str) -> ClientError | None:
        """Return the error for a channel that the broker closed because of a publish; else None."""
        code = text.partition(" ")[0]
        if code == "404":
            return Unroutable(
                f"RabbitMQ at {self._address} has no exchange {DIRECT_EXCHANGE}: no operator has "
                f"declared anything there: create TaskQueue {self._queue}, and check that its "
                "broker and virtual host are these"
            )
        if code in ("403", "406"):
            advice = (
                f": give the user write permission on the exchange {DIRECT_EXCHANGE}, and topic "
                f"write permission on {self._key}"
                if code == "403"
                else ""
            )
            return Refused(
                f"RabbitMQ at {self._address} refuses messages for TaskQueue {self._queue}: "
                f"{text}{advice}",
                status=int(code),
            )
        return None

    def _unroutable_error(self) -> Unroutable:
        return Unroutable(
            f"no TaskQueue {self._queue} has declared its queue at RabbitMQ {self._address}: "
            "create the TaskQueue, or check namespace, name and that this is its broker and "
            "virtual host (kubectl get taskqueue: Ready must be True)"
        )
