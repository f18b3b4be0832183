"""The SDK: what a user's module imports to become a worker's handler.

``from taskqueue import task, Context, Retry, Fail``. A handler is a plain function, sync or async,
that takes the payload (a dict, or a model of its own) and, if it wants one, a `Context`. What it
returns is the Task's result; what it raises is a failed attempt, retried by the Task's policy. Only
the standard library is imported here, so a user's tests and a worker's start stay fast.
pydantic is imported once a handler annotates its payload with a model (`payloads`).
"""

from taskqueue.results.binary import BinaryResult
from taskqueue.worker.sdk.checkpoints import CheckpointNeeded
from taskqueue.worker.sdk.context import Context, Progress, mark_cancelled, mark_ended
from taskqueue.worker.sdk.decorators import on_start, on_stop, redact_output, registry, task
from taskqueue.worker.sdk.failures import Cancelled, Fail, InvalidPayload, Retry, Snooze
from taskqueue.worker.sdk.handlers import Handler, HandlerRegistry, Hook

__all__ = [
    "BinaryResult",
    "Cancelled",
    "CheckpointNeeded",
    "Context",
    "Fail",
    "Handler",
    "HandlerRegistry",
    "Hook",
    "InvalidPayload",
    "Progress",
    "Retry",
    "Snooze",
    "mark_cancelled",
    "mark_ended",
    "on_start",
    "on_stop",
    "redact_output",
    "registry",
    "task",
]
