"""The names of the message contract, version 1: exchanges, queues, their arguments, headers.

Operator, workers and producers of any language rely on them; docs/reference/message-contract.md
explains each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taskqueue.contract.text import cut
from taskqueue.defaults import DEFAULT_INSTALLATION
from taskqueue.limits import (
    COMMAND_RETENTION_DAYS,
    DEAD_REASON_BYTES,
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


#: Old heartbeats are useless, and must not pile up.
HEARTBEATS_ARGUMENTS: Mapping[str, Any] = {
    "x-queue-type": "classic",
    "x-message-ttl": round(3 * HEARTBEAT_SECONDS * 1000),
    "x-max-length": 10_000,
    "x-overflow": "drop-head",
}


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


#: Header of an end that a webhook has not accepted: how often.
FAILURES_HEADER = "tq-failures"


INBOX_ARGUMENTS: Mapping[str, Any] = {
    "x-queue-type": "quorum",
    "x-single-active-consumer": True,
    "x-delivery-limit": -1,
    "x-consumer-timeout": CONSUMER_TIMEOUT_MS,
}


DEAD_QUEUE_ARGUMENTS: Mapping[str, Any] = {"x-queue-type": "quorum", "x-delivery-limit": -1}


#: The sink that writes rows to a database.
ARCHIVE = "archive"


#: Retention looks only when a segment is full, hence the small segments.
CONTROL_ARGUMENTS: Mapping[str, Any] = {
    "x-queue-type": "stream",
    "x-max-age": f"{COMMAND_RETENTION_DAYS}D",
    "x-max-length-bytes": 20_000_000,
    "x-stream-max-segment-size-bytes": 500_000,
}


#: Of a namespace and a queue in a routing key, in bytes: what follows them must fit, too.
QUEUE_KEY_BYTES = SHORT_STRING_BYTES - len(".worker.heartbeat")


#: What is named after an operator, of whatever installation, begins with this.
OPERATOR = "taskqueue-operator"


class ContractError(ValueError):
    """A message that breaks the contract; the text names what is wrong with it.

    It may quote what the message has, of any length, so it is cut to what a dead letter carries.
    """

    def __init__(self, text: str) -> None:
        super().__init__(cut(text, DEAD_REASON_BYTES))


def operator_name(installation: str) -> str:
    """Return what the operators of an installation are called: at the broker, and as its Lease."""
    return OPERATOR if installation == DEFAULT_INSTALLATION else f"{OPERATOR}.{installation}"


def inbox_queue(installation: str) -> str:
    """Return the name of an installation's inbox: outcomes and dead letters of its TaskQueues."""
    return f"{operator_name(installation)}.inbox"


def heartbeats_queue(installation: str) -> str:
    """Return the name of the queue for heartbeats of the workers of an installation."""
    return f"{operator_name(installation)}.heartbeats"


def marker_key(installation: str) -> str:
    """Return the routing key by which an installation sends a message to its own inbox."""
    return f"{operator_name(installation)}.marker"


#: Of the installation `default`.
INBOX_QUEUE = inbox_queue(DEFAULT_INSTALLATION)
HEARTBEATS_QUEUE = heartbeats_queue(DEFAULT_INSTALLATION)


def routing_key(namespace: str, queue: str) -> str:
    """Return the routing key of a TaskQueue's work and dead letters; its events add a suffix."""
    return f"{namespace}.{queue}"


def events_key(namespace: str, queue: str) -> str:
    """Return the binding key of all events and heartbeats of a TaskQueue's workers.

    It has no wildcard before its end: names of namespaces and TaskQueues have no dots.
    """
    return f"{routing_key(namespace, queue)}.#"


def queue_of_key(key: str) -> tuple[str, str]:
    """Return (namespace, name) of the TaskQueue that a routing key names; either may be empty."""
    namespace, _, rest = key.partition(".")
    return namespace, rest.partition(".")[0]


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
