"""Messages of one call on their way to the broker: pipelined, published again until confirmed.

A message ends confirmed, or the call ends with an error. One that was refused by a full queue, or
whose fate a lost connection hides, is published again: a queue may then have it twice.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from taskqueue.amqp.publisher import Publisher, Settled
from taskqueue.backoff import Backoff
from taskqueue.contract.names import WORK_EXCHANGE
from taskqueue.direct.errors import ClientError, Refused, Unroutable
from taskqueue.direct.message import direct_properties

#: Published and not confirmed, of one call; more brings no more throughput.
WINDOW = 500


@dataclass(frozen=True, slots=True)
class BatchMessage:
    """What is to be published."""

    body: bytes
    handler: str | None
    correlation_id: str | None


class PublishBatch:
    """The messages of one call, all to one queue.

    Args:
        messages: taken as they can be published.
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
        self._again: deque[BatchMessage] = deque()
        self._in_flight = 0
        self._exhausted = False
        self._error: ClientError | None = None
        self._settling = asyncio.Event()
        self._backoff = Backoff()
        self.confirmed = 0
        #: Why the last message that was not confirmed was not.
        self.trouble = ""

    @property
    def over(self) -> bool:
        """Whether everything is confirmed."""
        return self._exhausted and not self._again and not self._in_flight

    async def go(self, publisher: Publisher) -> None:
        """Publish until everything is confirmed or the publisher is closed.

        Raises:
            Unroutable: there is no such queue.
            Refused: the broker does not allow it.
        """
        while not self.over:
            self._fill(publisher)
            if self.over:
                return
            await self._settling.wait()
            self._settling.clear()
            if self._error is not None:
                raise self._error
            if publisher.closed.done() and not self._in_flight:
                return
            if self._again and not publisher.closed.done():
                await asyncio.sleep(self._backoff.next_delay())  # the queue is full

    def _fill(self, publisher: Publisher) -> None:
        while self._in_flight < WINDOW:
            message = self._again.popleft() if self._again else next(self._messages, None)
            if message is None:
                self._exhausted = True
                return
            publisher.publish(
                WORK_EXCHANGE,
                self._key,
                message.body,
                direct_properties(handler=message.handler, correlation_id=message.correlation_id),
                partial(self._settled, message),
            )
            self._in_flight += 1

    def _settled(self, message: BatchMessage, verdict: Settled, text: str) -> None:
        self._in_flight -= 1
        if verdict is Settled.CONFIRMED:
            self.confirmed += 1
            self._backoff.reset()
            self._on_progress()
        elif verdict is Settled.RETURNED:
            self._error = self._unroutable()
        else:
            self.trouble = text
            self._error = self._error or self._final(text)
            self._again.append(message)
        self._settling.set()

    def _final(self, text: str) -> ClientError | None:
        """Return the error for a channel the broker closed over what was published."""
        code = text.partition(" ")[0]
        if code == "404":
            return Unroutable(
                f"RabbitMQ at {self._address} has no exchange {WORK_EXCHANGE}: no operator has "
                f"declared anything there: create TaskQueue {self._queue}, and check that its "
                "broker and virtual host are these"
            )
        if code in ("403", "406"):
            advice = (
                f": give the user write permission on the exchange {WORK_EXCHANGE}, and topic "
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

    def _unroutable(self) -> Unroutable:
        return Unroutable(
            f"no TaskQueue {self._queue} has declared its queue at RabbitMQ {self._address}: "
            "create the TaskQueue, or check namespace, name and that this is its broker and "
            "virtual host (kubectl get taskqueue: Ready must be True)"
        )
