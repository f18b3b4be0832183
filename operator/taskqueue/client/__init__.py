"""For programs: submit Tasks and wait for them, or send messages straight to a queue.

`TaskClient` and `AsyncTaskClient` speak to the Kubernetes API, `Producer` and `AsyncProducer` to
RabbitMQ. Each is imported when it is first asked for: who only sends messages pays nothing for the
Kubernetes client, and the other way round. See docs/guides/clients.md.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from taskqueue.client.errors import (
    ClientError,
    NotConfirmed,
    Refused,
    TaskCancelled,
    TaskConflict,
    TaskFailed,
    TaskGone,
    Unavailable,
    Unroutable,
    WaitTimeout,
)
from taskqueue.client.status import TaskProgress, TaskResult, TaskStatus

if TYPE_CHECKING:
    from taskqueue.client.async_producer import AsyncProducer
    from taskqueue.client.async_tasks import AsyncTaskClient, AsyncTaskHandle
    from taskqueue.client.producer import Producer
    from taskqueue.client.tasks import TaskClient, TaskHandle

__all__ = [
    "AsyncProducer",
    "AsyncTaskClient",
    "AsyncTaskHandle",
    "ClientError",
    "NotConfirmed",
    "Producer",
    "Refused",
    "TaskCancelled",
    "TaskClient",
    "TaskConflict",
    "TaskFailed",
    "TaskGone",
    "TaskHandle",
    "TaskProgress",
    "TaskResult",
    "TaskStatus",
    "Unavailable",
    "Unroutable",
    "WaitTimeout",
]

_LATER = {
    "AsyncProducer": "async_producer",
    "AsyncTaskClient": "async_tasks",
    "AsyncTaskHandle": "async_tasks",
    "Producer": "producer",
    "TaskClient": "tasks",
    "TaskHandle": "tasks",
}


def __getattr__(name: str) -> Any:
    module = _LATER.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
