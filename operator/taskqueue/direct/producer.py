"""Messages without a Task: straight to a TaskQueue's queue, without the Kubernetes API."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from taskqueue.direct.async_producer import AsyncProducer
from taskqueue.direct.errors import NotConfirmed
from taskqueue.loop_thread import LoopThread

#: Payloads that `Producer.send_many` takes before it waits: an iterator is the caller's code, and
#: is not run in the connection's thread.
_TAKEN = 2000


class Producer:
    """Sends direct messages: work without a Task, run with the queue's defaults.

    It connects when it is first used and again after every loss; use it with ``with``, or `close`
    it. Any thread may use it. It cannot be taken through a fork: a worker's handlers make theirs in
    a function marked with ``@on_start``.

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

    def __exit__(self, *problem: object) -> None:
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
        """Send one message; it is in the queue, on disk as the queue's type has it, on return.

        Args:
            namespace: of the TaskQueue.
            queue: name of the TaskQueue.
            payload: a dict, a pydantic model or a dataclass; None: an empty object.
            handler: name of the handler; None: the workers' default handler.
            correlation_id: repeated in the event that tells the message's end.

        Raises:
            TypeError: the payload is no JSON object.
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
        """Send many messages to one queue, pipelined; return how many, once all are confirmed.

        After an error part of the messages may be in the queue, in no particular order.

        Raises:
            NotConfirmed: as for `send`; ``confirmed`` says how many are in the queue for certain.
            TypeError: as for `send`, and so for the others.
        """
        confirmed = 0
        waiting = iter(payloads)
        while taken := list(islice(waiting, _TAKEN)):
            try:
                confirmed += self._thread.run(
                    self._producer.send_many(
                        namespace, queue, taken, handler=handler, correlation_id=correlation_id
                    )
                )
            except NotConfirmed as problem:
                problem.confirmed += confirmed
                raise
        return confirmed
