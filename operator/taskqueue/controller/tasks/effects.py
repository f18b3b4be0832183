"""What is to be done for a tracked Task: the outputs of `taskqueue.controller.tasks.machine.step`.

The runner executes them in order and decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from taskqueue.controller.tasks.events import ReadPurpose, Timer
from taskqueue.controller.tasks.missing_handlers import MissingHandler
from taskqueue.controller.tasks.tracked_task import Receipt
from taskqueue.model.command import CommandKind
from taskqueue.model.task import StatusDetail, TaskState


@dataclass(frozen=True, slots=True)
class Enqueue:
    """Put the Task into the dispatch queue, by its priority and age."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Take the Task out of the dispatch queue and of what is published."""


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Dispatch the Task no more; ``finished``: it counts for the rate of ends."""

    finished: bool


@dataclass(frozen=True, slots=True)
class AdoptKey:
    """A former leader recorded that the Task holds its key: it counts as published."""

    key: str


@dataclass(frozen=True, slots=True)
class ReleaseKey:
    """The Task holds its key, or waits for it, no more."""

    key: str


@dataclass(frozen=True, slots=True)
class HoldKey:
    """Keep the key for an attempt that is being stopped, until its worker answers or this long."""

    key: str
    attempt: int
    epoch: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Publish:
    """Publish the present attempt; ``fence`` only with a concurrency key.

    ``deliveries`` of it are spent, by messages that came before this one.
    """

    attempt: int
    epoch: int
    fence: int | None
    deliveries: int = 0


@dataclass(frozen=True, slots=True)
class MarkConfirmed:
    """The attempt is with the broker, as far as can be known: its time may begin to run."""


@dataclass(frozen=True, slots=True)
class MarkDelivered:
    """The attempt has been with a worker for these seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class AwaitWorker:
    """Send `AttemptMissed` when a heartbeat of this worker does not name the attempt."""

    worker: str


@dataclass(frozen=True, slots=True)
class NoteHandlerMissing:
    """A worker did not know the Task's handler."""

    missing: MissingHandler


@dataclass(frozen=True, slots=True)
class NoteHandlerFound:
    """A worker knows the Task's handler, which was missing."""


@dataclass(frozen=True, slots=True)
class PauseDispatch:
    """Publish nothing of the queue for a moment."""


@dataclass(frozen=True, slots=True)
class ReportMissingQueue:
    """The broker has no queue to route to."""


@dataclass(frozen=True, slots=True)
class WriteStatus:
    """Write a status that contains these outcomes; ``why`` it is not written in full."""

    status: TaskState
    receipts: tuple[Receipt, ...] = field(repr=False)
    urgent: bool
    detail: StatusDetail = StatusDetail.FULL
    why: str = ""


@dataclass(frozen=True, slots=True)
class ReportRefusal:
    """Tell people that the API server refuses even the least of the Task's status."""

    why: str


@dataclass(frozen=True, slots=True)
class SendCommand:
    """Command the workers about an attempt; kept until the broker has it."""

    kind: CommandKind
    attempt: int
    epoch: int


@dataclass(frozen=True, slots=True)
class StopStray:
    """Command the worker of an attempt nobody waits for to stop it; may be lost."""

    token: str
    source: Any = field(repr=False)


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Acknowledge messages of the inbox; ``dropped`` says why they changed nothing, if so."""

    receipts: tuple[Receipt, ...] = field(repr=False)
    dropped: str = ""


@dataclass(frozen=True, slots=True)
class CountDropped:
    """Count a report that changed nothing and is acknowledged later."""

    reason: str


@dataclass(frozen=True, slots=True)
class PublishCompletion:
    """Publish the event about the end; ``reported``: an outcome waits for its confirm.

    ``metadata``: of the object, as last known; None: not at all. ``status``: of an end on no
    record, because the object is gone; None: that of the Task.
    """

    reported: bool
    metadata: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)
    status: TaskState | None = None


@dataclass(frozen=True, slots=True)
class RecordEnd:
    """The final status is in the API server: track the Task no more, and let others know."""


@dataclass(frozen=True, slots=True)
class StartTtl:
    """Nothing more waits for the object: its time to live may delete it."""


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Send `TimerFired` after these seconds; None: cancel the timer."""

    timer: Timer
    seconds: float | None


@dataclass(frozen=True, slots=True)
class CancelTimers:
    """Send no `TimerFired` any more."""


@dataclass(frozen=True, slots=True)
class TrackDependencies:
    """Follow the Tasks it depends on."""


@dataclass(frozen=True, slots=True)
class Reconcile:
    """Send `EnvironmentChanged`, after the effects before it."""


@dataclass(frozen=True, slots=True)
class ReadObject:
    """Read the object; send `ObjectRead`."""

    purpose: ReadPurpose


@dataclass(frozen=True, slots=True)
class Forget:
    """Track the Task no more; ``found`` is its final status, None: it is deleted."""

    found: TaskState | None


@dataclass(frozen=True, slots=True)
class Log:
    """Write a line to the log about the Task."""

    level: str
    event: str
    fields: Mapping[str, Any] = field(default_factory=dict)


Effect = (
    Enqueue
    | Hold
    | Withdraw
    | AdoptKey
    | ReleaseKey
    | HoldKey
    | Publish
    | MarkConfirmed
    | MarkDelivered
    | AwaitWorker
    | NoteHandlerMissing
    | NoteHandlerFound
    | PauseDispatch
    | ReportMissingQueue
    | WriteStatus
    | ReportRefusal
    | SendCommand
    | StopStray
    | Acknowledge
    | CountDropped
    | PublishCompletion
    | RecordEnd
    | StartTtl
    | SetTimer
    | CancelTimers
    | TrackDependencies
    | Reconcile
    | ReadObject
    | Forget
    | Log
)
