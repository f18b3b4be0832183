"""The names of the message contract, version 1: exchanges, queues, their arguments, headers.

Operator, workers and producers of any language rely on them; docs/reference/message-contract.md
explains each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taskqueue.limits import (
    COMMAND_RETENTION_DAYS,
    DELIVERY_LIMIT,
    HEARTBEAT_SECONDS,
    LONGEST_ATTEMPT_SECONDS,
    SHORT_STRING_BYTES,
)

#: Exchanges, all durable topic exchanges: topic permissions have no effect on other kinds.
#: Attempts of Tasks, published by the operator.
WORK_EXCHANGE = "taskqueue.work"


#: Direct messages: anybody may be permitted to publish here, and nothing that comes by it is taken
#: for an attempt of a Task.
DIRECT_EXCHANGE = "taskqueue.direct"


DEAD_EXCHANGE = "taskqueue.dead"


OUTCOMES_EXCHANGE = "taskqueue.outcomes"


#: Completion events, for anybody who binds a queue.
EVENTS_EXCHANGE = "taskqueue.events"


#: Heartbeats of workers.
HEARTBEATS_EXCHANGE = "taskqueue.heartbeats"


HEARTBEATS_QUEUE = "taskqueue-operator.heartbeats"


#: Old heartbeats are useless, and must not pile up.
HEARTBEATS_ARGUMENTS: Mapping[str, Any] = {
    "x-queue-type": "classic",
    "x-message-ttl": round(3 * HEARTBEAT_SECONDS * 1000),
    "x-max-length": 10_000,
    "x-overflow": "drop-head",
}


#: The operator's inbox: every outcome and every dead letter.
INBOX_QUEUE = "taskqueue-operator.inbox"


#: Commands to all workers (`taskqueue.contract.command`): a stream, so that a new worker reads past
#: ones too. They are published through the default exchange with this name as the key.
CONTROL_STREAM = "taskqueue.control"


#: One hour above the longest attempt. A number: RabbitMQ silently ignores a string.
CONSUMER_TIMEOUT_MS = (LONGEST_ATTEMPT_SECONDS + 3600) * 1000


APP_ID = "taskqueue"


CONTENT_TYPE_JSON = "application/json"


#: Header of a dead-lettered message with the reason.
ERROR_HEADER = "tq-error"
#: Names the headers that were left out of a copy, because they cannot be published again.
CUT_HEADER = "tq-cut"


#: Header of a message that a worker or the operator dead-lettered: the exchange it came by.
EXCHANGE_HEADER = "tq-exchange"


INBOX_ARGUMENTS: Mapping[str, Any] = {
    "x-queue-type": "quorum",
    "x-single-active-consumer": True,
    "x-delivery-limit": -1,
    "x-consumer-timeout": CONSUMER_TIMEOUT_MS,
}


DEAD_QUEUE_ARGUMENTS: Mapping[str, Any] = {"x-queue-type": "quorum", "x-delivery-limit": -1}


#: Retention looks only when a segment is full, hence the small segments.
CONTROL_ARGUMENTS: Mapping[str, Any] = {
    "x-queue-type": "stream",
    "x-max-age": f"{COMMAND_RETENTION_DAYS}D",
    "x-max-length-bytes": 20_000_000,
    "x-stream-max-segment-size-bytes": 500_000,
}


#: Of a namespace and a queue in a routing key, in bytes: what follows them must fit, too.
QUEUE_KEY_BYTES = SHORT_STRING_BYTES - len(".worker.heartbeat")


class ContractError(ValueError):
    """A message that breaks the contract; the text names what is wrong with it."""


def routing_key(namespace: str, queue: str) -> str:
    """Return the routing key of a TaskQueue: bindings to it have no wildcards."""
    return f"{namespace}.{queue}"


def work_queue(namespace: str, queue: str) -> str:
    """Return the name of the queue that holds work which may run now."""
    return f"taskqueue.{namespace}.{queue}"


def dead_queue(namespace: str, queue: str) -> str:
    """Return the name of the queue that keeps dead letters for people."""
    return f"taskqueue-dead.{namespace}.{queue}"


def work_queue_arguments(namespace: str, queue: str) -> dict[str, Any]:
    """Return the declare arguments of a work queue; they never change once declared."""
    return {
        "x-queue-type": "quorum",
        "x-dead-letter-exchange": DEAD_EXCHANGE,
        "x-dead-letter-routing-key": routing_key(namespace, queue),
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
        "x-delivery-limit": DELIVERY_LIMIT,
        "x-consumer-timeout": CONSUMER_TIMEOUT_MS,
    }
