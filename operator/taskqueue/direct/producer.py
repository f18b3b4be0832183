"""The client for direct messages without asyncio: `AsyncProducer`, run in a thread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from taskqueue.direct.async_producer import AsyncProducer
from taskqueue.direct.errors import NotConfirmed
from taskqueue.loop_thread import LoopThread

#: Payloads that `Producer.send_many` hands over at a time: the iterator is the caller's code, which
#: must not run in the connection's thread.
_CHUNK = 2000


class Producer:
    """Sends direct messages: work without a Task, run with the queue's defaults.

    It connects on first use and again after every loss; use it with ``with``, or call `close`. Any
    thread may use it. It does not survive a fork: create it for a worker's handlers in a function
    marked with ``@on_start``.

    Arguments and errors are those of `taskqueue.client.AsyncProducer`.
    """

    def __init__(
        self,
        broker: str | Mapping[str, str],
        *,
        name: str = "taskqueue-producer",
        patience_seconds: float = 30.0,
    ) -> None:
        self._thread = LoopThread("Producer")
        self._producer = AsyncProducer(broker, name=name, patience_seconds=patience_seconds)

    def __enter__(self) -> Producer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._thread.finish(self._producer.close())

    def send(
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
        self._thread.run(
            self._producer.send(
                namespace, queue, payload, handler=handler, correlation_id=correlation_id
            )
        )

    def send_many(
        self,
        namespace: str,
        queue: str,
        payloads: Iterable[Any],
        *,
        handler: str | None = None,
        correlation_id: str | None = None,
    ) -> int:
        """Send many messages to one queue, pipelined; return their number when all are confirmed.

        After an error some of the messages may be in the queue, in any order.

        Raises:
            NotConfirmed: as of `send`; ``confirmed`` is how many are in the queue for certain.
            TypeError: as of `send`, and so the other errors.
        """
        confirmed = 0
        remaining = iter(payloads)
        while chunk := list(islice(remaining, _CHUNK)):
            try:
                confirmed += self._thread.run(
                    self._producer.send_many(
                        namespace, queue, chunk, handler=handler, correlation_id=correlation_id
                    )
                )
            except NotConfirmed as error:
                error.confirmed += confirmed
                raise
        return confirmed
