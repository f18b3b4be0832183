"""The unfinished Tasks the operator holds.

An `Entry` lives from the moment the feed shows a Task until its final status is in the API server
(or the Task is gone). There may be 100,000 of them: no attribute without need.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from taskqueue.broker.connection import Delivery
from taskqueue.domain.queue import QueueKey
from taskqueue.domain.task import Task, TaskStatus


class Stage(Enum):
    """Where an unfinished Task is, as far as dispatching goes."""

    #: Not taken up yet.
    NEW = auto()
    #: In its queue's line, to be published when there is room.
    WAITING = auto()
    #: Until the time of its next attempt.
    DELAYED = auto()
    #: In the broker, or on the way there; an outcome is awaited.
    PUBLISHED = auto()
    #: Has its final status, which is being written.
    FINISHED = auto()


@dataclass(slots=True, eq=False)
class Entry:
    """One unfinished Task.

    Attributes:
        task: the object as last seen.
        status: what is true now.
        written: what the API server has.
        stage: see `Stage`.
        outcomes: deliveries to acknowledge when a write that contains them has succeeded.
        due: timer of the next attempt, while DELAYED.
        flush: timer of the next write of an unfinished status.
        reduced: a status was refused once and is being written in short.
        left_feed: the feed has shown it leaving.
    """

    task: Task
    status: TaskStatus
    written: TaskStatus
    stage: Stage = Stage.NEW
    outcomes: list[Delivery] = field(default_factory=list)
    due: asyncio.TimerHandle | None = None
    flush: asyncio.TimerHandle | None = None
    reduced: bool = False
    left_feed: bool = False

    @property
    def queue_key(self) -> QueueKey:
        """(namespace, name) of the Task's TaskQueue."""
        return (self.task.namespace, self.task.spec.queue)

    def stop_timers(self) -> None:
        """Cancel whatever was to happen later."""
        for timer in (self.due, self.flush):
            if timer is not None:
                timer.cancel()
        self.due = self.flush = None

    def acknowledge(self) -> None:
        """Acknowledge the outcomes that are now recorded, or need not be."""
        for delivery in self.outcomes:
            delivery.channel.ack(delivery.delivery_tag)
        self.outcomes.clear()


def log_fields(task: Task, **more: Any) -> dict[str, Any]:
    """Return the fields that every log line about a Task has."""
    return {"namespace": task.namespace, "task": task.name, "uid": task.uid, **more}
