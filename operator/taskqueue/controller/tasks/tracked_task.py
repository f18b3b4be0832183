"""The unfinished Tasks the operator holds.

A `TrackedTask` lives from the moment the informer shows a Task until its final status is in the API
server, or the Task is deleted. There may be 100,000 of them: no attribute without need.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Protocol

from taskqueue.amqp.channel import Delivery
from taskqueue.amqp.publisher import Publisher
from taskqueue.controller.tasks.admission import Dispatched
from taskqueue.model.queue import QueueKey
from taskqueue.model.task import Task, TaskState


class TaskStage(Enum):
    """Where an unfinished Task is, as far as dispatching goes."""

    #: Not yet admitted.
    NEW = auto()
    #: Not to be dispatched for now; its status has the reason.
    HELD = auto()
    #: In its queue's dispatch queue, or its concurrency key's, until there is room to publish it.
    WAITING = auto()
    #: Its claim of a concurrency key is being written, which must precede the publish.
    CLAIMING = auto()
    #: In the broker, or on the way there; waits for an outcome.
    PUBLISHED = auto()
    #: Has its final status, which is being written.
    FINISHED = auto()


class OutcomeSource(Protocol):
    """The broker connection a message came from."""

    @property
    def publisher(self) -> Publisher | None:
        """To publish there; None while it cannot be."""

    def dead_letter_delivery(self, delivery: Delivery, reason: str) -> None:
        """Move a message to the dead exchange, and acknowledge it when it is there."""


@dataclass(slots=True, eq=False)
class TrackedTask:
    """One unfinished Task and what the operator knows of it.

    Attributes:
        task: the object as last seen.
        status: what is true now.
        written: what the API server has.
        stage: see `TaskStage`.
        outcomes: deliveries to acknowledge when a write that contains them has succeeded.
        source: the broker the last of them came from.
        reconcile_timer: reconciles it again when time alone changes the decision.
        write_timer: timer of the next write of an unfinished status.
        after_write: (epoch, what to do once a status of at least this epoch is in the API server).
        payload: merged with what spec.payloadFrom names; None: spec.payload is all there is.
        payload_error: see `taskqueue.controller.tasks.admission.TaskEnvironment`.
        hold_until: likewise.
        key: the concurrency key it holds or waits for; "" for none.
        fence: the number its handler is given with the key.
        confirmed: the broker has confirmed the message.
        maybe_published: it holds its key, and may or may not have been published. A second copy
            could run beside the first under the same key, so it waits for an outcome instead.
        delivered_at: since when the attempt is known to be with a worker.
        stray_copy_possible: there may be a message with its present token that this process does
            not track: from a former leader, or a publish that was neither confirmed nor returned.
        status_truncated: a status was refused once and is being written in short.
        left_feed: the informer has reported it as deleted.
    """

    task: Task
    status: TaskState
    written: TaskState
    stage: TaskStage = TaskStage.NEW
    outcomes: list[Delivery] = field(default_factory=list)
    source: OutcomeSource | None = None
    reconcile_timer: asyncio.TimerHandle | None = None
    write_timer: asyncio.TimerHandle | None = None
    after_write: tuple[tuple[int, Callable[[], None]], ...] = ()
    payload: bytes | None = None
    payload_error: str | None = None
    hold_until: float = 0.0
    key: str = ""
    fence: int = 0
    confirmed: bool = False
    maybe_published: bool = False
    delivered_at: float | None = None
    stray_copy_possible: bool = False
    status_truncated: bool = False
    left_feed: bool = False

    @property
    def dispatched(self) -> Dispatched:
        """Whether a worker may have its present attempt."""
        if self.stage is TaskStage.PUBLISHED:
            return Dispatched.YES
        return Dispatched.MAYBE if self.stray_copy_possible else Dispatched.NO

    @property
    def queue_key(self) -> QueueKey:
        """(namespace, name) of the Task's TaskQueue."""
        return (self.task.namespace, self.task.spec.queue)

    def stop_timers(self) -> None:
        """Cancel both timers."""
        for timer in (self.reconcile_timer, self.write_timer):
            if timer is not None:
                timer.cancel()
        self.reconcile_timer = self.write_timer = None

    def acknowledge(self) -> None:
        """Acknowledge the outcomes that are now recorded, or need not be."""
        for delivery in self.outcomes:
            delivery.channel.ack(delivery.delivery_tag)
        self.outcomes.clear()


def log_fields(task: Task, **more: Any) -> dict[str, Any]:
    """Return the fields that every log line about a Task has."""
    return {"namespace": task.namespace, "task": task.name, "uid": task.uid, **more}
