"""A batch that is served: the object, its items, what is true of it and what is written."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from taskqueue.controller.batches.decisions import Problem
from taskqueue.controller.batches.items import Items
from taskqueue.controller.batches.progress import BatchProgress
from taskqueue.controller.tasks.batch_items import item_uid
from taskqueue.controller.tasks.effects import WriteStatus
from taskqueue.controller.tasks.tracked_task import TrackedTask
from taskqueue.model.batch import Batch, BatchState
from taskqueue.model.task import PENDING, Task, TaskSpec, TaskState


@dataclass(slots=True, eq=False)
class TrackedBatch:
    """A batch as it is served.

    Attributes:
        batch: the object.
        state: what is true of it; its record is that of the last flush.
        sent: the state that was put on its way last, or was there.
        stray_below: a former leader may have published items below this index.
        progress: of its items; None: they are not known.
        items: their payloads; None: they are not known.
        invalid: why they can never be used.
        unresolved: why they are not known yet.
        held: what those wait for that have begun.
        uids: of the items that are tracked and have not ended, by index.
        pending: statuses of items that the next flush records.
        unrecorded: how many are on their way to be recorded, with ``pending``.
        flushed_at: when it was flushed last, by the monotonic clock.
        is_urgent: a command waits for the next flush.
        waits_until: when its items are read again, by the monotonic clock.
        loading: reads them now.
        is_discarded: it is served no more.
    """

    batch: Batch
    state: BatchState
    sent: BatchState
    stray_below: int = 0
    progress: BatchProgress | None = None
    items: Items | None = None
    invalid: Problem | None = None
    unresolved: Problem | None = None
    held: Problem | None = None
    uids: dict[int, str] = field(default_factory=dict)
    pending: list[tuple[str, WriteStatus]] = field(default_factory=list)
    unrecorded: int = 0
    flushed_at: float = float("-inf")
    is_urgent: bool = False
    waits_until: float = 0.0
    loading: asyncio.Task[None] | None = None
    is_discarded: bool = False

    @property
    def uid(self) -> str:
        """The batch's identity."""
        return self.batch.uid

    @property
    def is_ready(self) -> bool:
        """Whether its items are known, and it is not over."""
        return (
            self.progress is not None
            and self.items is not None
            and self.invalid is None
            and not self.state.phase.terminal
        )

    def item(self, index: int) -> Task:
        """Return an item as a Task, by what the batch asks for now."""
        batch = self.batch
        return Task(
            namespace=batch.namespace,
            name=batch.name,
            uid=item_uid(batch.uid, index),
            generation=batch.generation,
            created=batch.created,
            spec=TaskSpec(
                queue=batch.queue,
                handler=batch.handler,
                priority=batch.priority,
                suspend=batch.suspend,
                cancel=batch.cancel or self.is_discarded or self.state.phase.terminal,
                overrides=batch.overrides,
            ),
            index=index,
        )

    def begin(self, index: int, epoch: int) -> TrackedTask:
        """Return the state of an item that begins; its attempts are counted from the first."""
        task = self.item(index)
        self.uids[index] = task.uid
        status = TaskState(epoch=epoch) if epoch else PENDING
        stray = index < self.stray_below
        return TrackedTask(task=task, status=status, written=status, stray_copy_possible=stray)
