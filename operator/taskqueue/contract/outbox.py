"""Outboxes: the queues with the ends of a TaskQueue's Tasks that a sink has yet to get.

Each sink has an outbox of its own, bounded in bytes and bound to the events exchange, so that none
waits for another. One with `retry_seconds` has a queue beside it for each: what is published there
is in the outbox again after that time, while the others are drained.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from taskqueue.contract.names import ARCHIVE, operator_name, routing_key
from taskqueue.limits import OUTBOX_BYTES, WEBHOOK_OUTBOX_BYTES, WEBHOOK_QUEUE_SECONDS

#: After how many seconds a webhook is tried again: by the number of failures, see `retry_delay`.
RETRY_SECONDS = (5, 60, 900)
#: Failures up to which each of these counts, but the last.
_FAILURES = (3, 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outbox:
    """The outbox of one sink of a TaskQueue.

    Attributes:
        sink: what drains it; one word, which is in the names of its queues.
        events: what it gets, such as ``task.failed``; ``#``: all.
        limit_bytes: of it, and of each queue beside it.
        retry_seconds: of each queue beside it, after which it gives a message back.
        expiry_seconds: after so long without a declaration the queues are deleted; None: they stay.
    """

    sink: str
    events: tuple[str, ...] = ("#",)
    limit_bytes: int = OUTBOX_BYTES
    retry_seconds: tuple[int, ...] = ()
    expiry_seconds: int | None = None

    def name(self, namespace: str, queue: str, installation: str) -> str:
        """Return the name of the queue.

        Args:
            namespace: of the TaskQueue.
            queue: its name.
            installation: of the operator.
        """
        return f"{operator_name(installation)}.{self.sink}.{routing_key(namespace, queue)}"

    def retry_name(self, seconds: int, namespace: str, queue: str, installation: str) -> str:
        """Return the name of the queue that gives back after ``seconds``; the others as `name`."""
        sink = f"{self.sink}.retry-{seconds}"  # no sink has a dot
        return f"{operator_name(installation)}.{sink}.{routing_key(namespace, queue)}"

    def binding_keys(self, namespace: str, queue: str) -> Iterable[str]:
        """Return the keys by which it gets its events."""
        return [f"{routing_key(namespace, queue)}.{event}" for event in self.events]

    def queues(
        self, namespace: str, queue: str, installation: str
    ) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Return the names and arguments of its queues, in the order of declaring."""
        name = self.name(namespace, queue, installation)
        # A sink that is away does not fill the disk: what does not fit is refused, and the operator
        # keeps the finished Task until it has been passed on.
        shared = {
            "x-queue-type": "quorum",
            "x-delivery-limit": -1,
            "x-max-length-bytes": self.limit_bytes,
            "x-overflow": "reject-publish",
        }
        if self.expiry_seconds is not None:
            shared["x-expires"] = self.expiry_seconds * 1000
        yield name, shared | {"x-single-active-consumer": True}
        for seconds in self.retry_seconds:
            yield (
                self.retry_name(seconds, namespace, queue, installation),
                shared
                | {
                    "x-message-ttl": seconds * 1000,
                    "x-dead-letter-exchange": "",
                    "x-dead-letter-routing-key": name,
                    "x-dead-letter-strategy": "at-least-once",
                },
            )


#: Of the sink that writes rows to a database.
ARCHIVE_OUTBOX = Outbox(sink=ARCHIVE)


def webhook_outbox(name: str, events: Iterable[str]) -> Outbox:
    """Return the outbox of a webhook.

    Args:
        name: of the notification; a DNS label.
        events: what it gets, such as ``task.failed``.
    """
    return Outbox(
        sink=f"webhook-{name}",
        events=tuple(sorted(events)),
        limit_bytes=WEBHOOK_OUTBOX_BYTES,
        retry_seconds=RETRY_SECONDS,
        expiry_seconds=WEBHOOK_QUEUE_SECONDS,
    )


def retry_delay(failures: int) -> int:
    """Return after how many seconds a webhook is tried again that has failed so often, from 1."""
    for most, seconds in zip(_FAILURES, RETRY_SECONDS, strict=False):
        if failures <= most:
            return seconds
    return RETRY_SECONDS[-1]
