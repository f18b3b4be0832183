"""Clients for programs: submit Tasks and wait for them, or send direct messages to a queue.

`TaskClient` and `AsyncTaskClient` use the Kubernetes API, `Producer` and `AsyncProducer` use
RabbitMQ. Each is imported on first access: a program that only sends messages does not load the
Kubernetes client, and vice versa. See docs/guides/clients.md.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from taskqueue.client.errors import (
    BatchFailed,
    BatchGone,
    NoArchive,
    QuotaExceeded,
    ResultExpired,
    ResultUnavailable,
    TaskCancelled,
    TaskConflict,
    TaskFailed,
    TaskGone,
    Unavailable,
    WaitTimeout,
)
from taskqueue.client.status import TaskProgress, TaskResult, TaskStatus
from taskqueue.direct.errors import ClientError, NotConfirmed, Refused, Unroutable
from taskqueue.model.result import ResultReference
from taskqueue.results.binary import BinaryResult

if TYPE_CHECKING:
    from taskqueue.archive.rows import ArchivedTask
    from taskqueue.client.async_handle import AsyncTaskHandle
    from taskqueue.client.async_tasks import AsyncTaskClient
    from taskqueue.client.batches import AsyncBatches, AsyncBatchHandle, BatchErrors, BatchStatus
    from taskqueue.client.history import HistoryPage
    from taskqueue.client.tasks import Batches, BatchHandle, TaskClient, TaskHandle
    from taskqueue.direct.async_producer import AsyncProducer
    from taskqueue.direct.producer import Producer

__all__ = [
    "ArchivedTask",
    "AsyncBatchHandle",
    "AsyncBatches",
    "AsyncProducer",
    "AsyncTaskClient",
    "AsyncTaskHandle",
    "BatchErrors",
    "BatchFailed",
    "BatchGone",
    "BatchHandle",
    "BatchStatus",
    "Batches",
    "BinaryResult",
    "ClientError",
    "HistoryPage",
    "NoArchive",
    "NotConfirmed",
    "Producer",
    "QuotaExceeded",
    "Refused",
    "ResultExpired",
    "ResultReference",
    "ResultUnavailable",
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

_LAZY_IMPORTS = {
    "ArchivedTask": "taskqueue.archive.rows",
    "AsyncBatchHandle": "taskqueue.client.batches",
    "AsyncBatches": "taskqueue.client.batches",
    "AsyncProducer": "taskqueue.direct.async_producer",
    "AsyncTaskClient": "taskqueue.client.async_tasks",
    "AsyncTaskHandle": "taskqueue.client.async_handle",
    "BatchErrors": "taskqueue.client.batches",
    "BatchHandle": "taskqueue.client.tasks",
    "BatchStatus": "taskqueue.client.batches",
    "Batches": "taskqueue.client.tasks",
    "HistoryPage": "taskqueue.client.history",
    "Producer": "taskqueue.direct.producer",
    "TaskClient": "taskqueue.client.tasks",
    "TaskHandle": "taskqueue.client.tasks",
}


def __getattr__(name: str) -> Any:
    module = _LAZY_IMPORTS.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)
