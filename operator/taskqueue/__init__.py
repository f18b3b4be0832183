"""taskqueue: a task queue for Kubernetes over RabbitMQ.

The package holds the operator (``python -m taskqueue operator``) and the worker
(``python -m taskqueue worker MODULE...``). Users import the worker's SDK from here.
"""

from taskqueue.typed_task import task
from taskqueue.worker.sdk import (
    BinaryResult,
    Cancelled,
    Context,
    Fail,
    InvalidPayload,
    Progress,
    Retry,
    Snooze,
    on_start,
    on_stop,
    redact_output,
)

#: The version of the project, and the only place that has it. CHANGELOG.md says what is in it.
__version__ = "0.1.0"

__all__ = [
    "BinaryResult",
    "Cancelled",
    "Context",
    "Fail",
    "InvalidPayload",
    "Progress",
    "Retry",
    "Snooze",
    "on_start",
    "on_stop",
    "redact_output",
    "task",
]
