"""What the parts that serve Tasks ask about the items of TaskBatches.

An item is a Task without an object: its uid is ``<uid of the TaskBatch>/<index>``, and the same
machine decides for it. What differs is where its status goes and where its payload comes from; that
is known to `taskqueue.controller.batches`, which stands above this package.
"""

from __future__ import annotations

from typing import Protocol

from taskqueue.controller.tasks.effects import WriteStatus
from taskqueue.controller.tasks.tracked_task import TrackedTask
from taskqueue.model.task import Task


def item_uid(batch: str, index: int) -> str:
    """Return the uid of an item of the TaskBatch with this uid."""
    return f"{batch}/{index}"


def is_item(uid: str) -> bool:
    """Return whether a uid is that of an item."""
    return "/" in uid


class BatchItems(Protocol):
    """Serves the items of all TaskBatches."""

    def adopt(self, uid: str) -> bool:
        """Track an item that is not tracked; return whether it is now: it has not ended."""

    def payload(self, task: Task) -> bytes:
        """Return the payload of an item that is tracked."""

    def write(self, tracked: TrackedTask, effect: WriteStatus) -> None:
        """Record the status of an item; send `StatusWritten` when it is on record."""

    def on_forgotten(self, tracked: TrackedTask) -> None:
        """An item is tracked no more, and has not ended."""


class NoBatches:
    """Stands for the items of TaskBatches while nobody serves any."""

    def adopt(self, uid: str) -> bool:
        """Return False: no such item is known."""
        return False

    def payload(self, task: Task) -> bytes:
        """Raise LookupError."""
        raise LookupError(f"nobody serves the TaskBatch {task.path}")

    def write(self, tracked: TrackedTask, effect: WriteStatus) -> None:
        """Write nothing."""

    def on_forgotten(self, tracked: TrackedTask) -> None:
        """Do nothing."""
