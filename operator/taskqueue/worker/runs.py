"""What a worker runs: an attempt of a Task, or a direct message, with the message it came by.

What becomes of it is in its `taskqueue.worker.run_state.RunState`.
"""

from __future__ import annotations

from dataclasses import field
from typing import Any

from taskqueue.amqp.channel import Delivery
from taskqueue.contract.work import WorkMessage
from taskqueue.records import record
from taskqueue.worker.executor import AttemptRequest
from taskqueue.worker.run_state import Run


@record
class AttemptRun(Run):
    """A run and its attempt.

    Attributes:
        attempt: what an executor gets.
    """

    attempt: AttemptRequest = field(repr=False)

    @property
    def log_fields(self) -> dict[str, Any]:
        """Fields of log lines about it."""
        return self.attempt.log_fields


@record
class TaskRun(AttemptRun):
    """An attempt of a Task: its end is an event that repeats the token."""

    message: WorkMessage = field(repr=False)


@record
class DirectRun(AttemptRun):
    """A direct message: its end is an event and what happens to the message."""

    delivery: Delivery = field(repr=False)
