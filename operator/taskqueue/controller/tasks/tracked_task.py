"""The unfinished Tasks the operator holds.

A `TrackedTask` lives from the moment the informer shows a Task until its final status is in the API
server (or the Task is gone). There may be 100,000 of them: no attribute without need.
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

    #: Not taken up yet.
    NEW = auto()
    #: Not to be dispatched for now; its status tells why.
    HELD = auto()
    #: In its queue's line, or its concurrency key's, to be published when there is room.
    WAITING = auto()
    #: Its concurrency key is being recorded, which comes before it is published.
    CLAIMING = auto()
    #: In the broker, or on the way there; an outcome is awaited.
    PUBLISHED = auto()
    #: Has its final status, which is being written.
    FINISHED = auto()


class OutcomeSource(Protocol):
    """The broker a message came from."""

    @property
    def publisher(self) -> Publisher | None:
        """To publish there; None while it cannot be."""

    def dead_letter_delivery(self, delivery: Delivery, reason: str) -> None:
        """Move a message to the dead exchange, and acknowledge it when it is there."""


@dataclass(slots=True, eq=False)
class TrackedTask:
    """One unfinished Task.

    Attributes:
        task: the object as last seen.
        status: what is true now.
        written: what the API server has.
        stage: see `TaskStage`.
        outcomes: deliveries to acknowledge when a write that contains them has succeeded.
        source: the broker the last of them came from.
        alarm: when it is to be looked at again, whatever happens.
        flush: timer of the next write of an unfinished status.
        after_write: (epoch, what to do once a status of at least this epoch is in the API server).
        payload: merged with what spec.payloadFrom names; None: spec.payload is all there is.
        payload_problem: as `taskqueue.controller.tasks.admission.Surroundings` has it.
        hold_until: likewise.
        key: the concurrency key it holds or waits for; "" for none.
        fence: the number its handler is given with the key.
        confirmed: the broker has said that it has the message.
        unsure: it holds its key, and was perhaps never published: a second copy beside the first
            would be two of the key at once, so it is waited for instead.
        delivered_at: since when the attempt is known to be with a worker.
        astray: a message of its present token may be about that this process knows nothing of:
            published by a former leader, or with a fate the broker did not tell.
        reduced: a status was refused once and is being written in short.
        left_feed: the feed has shown it leaving.
    """

    task: Task
    status: TaskState
    written: TaskState
    stage: TaskStage = TaskStage.NEW
    outcomes: list[Delivery] = field(default_factory=list)
    source: OutcomeSource | None = None
    alarm: asyncio.TimerHandle | None = None
    flush: asyncio.TimerHandle | None = None
    after_write: tuple[tuple[int, Callable[[], None]], ...] = ()
    payload: bytes | None = None
    payload_problem: str | None = None
    hold_until: float = 0.0
    key: str = ""
    fence: int = 0
    confirmed: bool = False
    unsure: bool = False
    delivered_at: float | None = None
    astray: bool = False
    reduced: bool = False
    left_feed: bool = False

    @property
    def dispatched(self) -> Dispatched:
        """Whether a worker may have its present attempt."""
        if self.stage is TaskStage.PUBLISHED:
            return Dispatched.YES
        return Dispatched.MAYBE if self.astray else Dispatched.NO

    @property
    def queue_key(self) -> QueueKey:
        """(namespace, name) of the Task's TaskQueue."""
        return (self.task.namespace, self.task.spec.queue)

    def stop_timers(self) -> None:
        """Cancel whatever was to happen later."""
        for timer in (self.alarm, self.flush):
            if timer is not None:
                timer.cancel()
        self.alarm = self.flush = None

    def acknowledge(self) -> None:
        """Acknowledge the outcomes that are now recorded, or need not be."""
        for delivery in self.outcomes:
            delivery.channel.ack(delivery.delivery_tag)
        self.outcomes.clear()


def log_fields(task: Task, **more: Any) -> dict[str, Any]:
    """Return the fields that every log line about a Task has."""
    return {"namespace": task.namespace, "task": task.name, "uid": task.uid, **more}
