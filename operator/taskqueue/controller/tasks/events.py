"""What may happen to a tracked Task: the inputs of `taskqueue.controller.tasks.machine.step`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from taskqueue.controller.tasks.lifecycle import AttemptEnd, AttemptFailure
from taskqueue.controller.tasks.tracked_task import Receipt
from taskqueue.model.flow import OnConflict
from taskqueue.model.result import ResultReference
from taskqueue.model.task import ProgressState, StatusDetail, Task, TaskState


class Timer(Enum):
    """What a Task may have to be woken for."""

    #: Time alone may have changed what is due.
    RECONCILE = auto()
    #: An unfinished status has lasted long enough to be worth a write.
    WRITE = auto()
    #: The object of a Task whose status was refused is to be read.
    READ = auto()
    #: A worker that has its attempt without a message may be lost by now.
    LOST = auto()


class Confirmation(Enum):
    """What the broker said of a publish."""

    CONFIRMED = auto()
    #: No queue is bound to the key: the message is nowhere.
    RETURNED = auto()
    #: It may be there or not.
    UNKNOWN = auto()


class ReadPurpose(Enum):
    """Why a Task's object was read."""

    #: The informer showed an unfinished Task leaving.
    LEFT_INFORMER = auto()
    #: The API server refused its status.
    STATUS_REJECTED = auto()
    #: As before, because another writer has raised attempts or epoch.
    STATUS_BEHIND = auto()


@dataclass(frozen=True, slots=True)
class Seen:
    """The informer shows the Task for the first time."""


@dataclass(frozen=True, slots=True)
class SpecChanged:
    """The informer shows another generation of the Task."""

    task: Task


@dataclass(frozen=True, slots=True)
class FoundUnreadable:
    """The informer shows an object that cannot be read; ``message`` says why, and what to do."""

    message: str


@dataclass(frozen=True, slots=True)
class EnvironmentChanged:
    """Its TaskQueue, its dependencies or its payload may stand otherwise now."""


@dataclass(frozen=True, slots=True)
class PayloadRefused:
    """Its payload can never be published: ``problem`` says why."""

    problem: str


@dataclass(frozen=True, slots=True)
class TurnCame:
    """The dispatch queue has room for it; ``key_granted``: it has its concurrency key."""

    key_granted: bool = False


@dataclass(frozen=True, slots=True)
class PlaceMissing:
    """As many Tasks wait for their turn as may: it waits for a place among them."""


@dataclass(frozen=True, slots=True)
class ConflictLost:
    """It ends because another Task has its concurrency key; ``other`` is that one's name."""

    other: str
    policy: OnConflict


@dataclass(frozen=True, slots=True)
class PublishSettled:
    """The broker has answered, or can no more answer, the publish of an attempt."""

    attempt: int
    epoch: int
    confirmation: Confirmation
    text: str = ""


@dataclass(frozen=True, slots=True)
class MessagesLost:
    """The broker has lost the queue with the Task's message in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedAttempt:
    """Which attempt a genuine report is about, and the message it came with.

    Attributes:
        attempt: 1-based, with its ``epoch``.
        epoch: see ``attempt``.
        token: of the attempt.
        receipt: to acknowledge the message.
        source: the broker it came from.
    """

    attempt: int
    epoch: int
    token: str
    receipt: Receipt = field(repr=False)
    source: object = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class AttemptReport:
    """A genuine report about an attempt: its token is proven."""

    about: ReportedAttempt


@dataclass(frozen=True, slots=True)
class AttemptStarted(AttemptReport):
    """A worker runs the attempt, for half a second by now."""

    worker: str


@dataclass(frozen=True, slots=True)
class AttemptReleased(AttemptReport):
    """``worker`` gave the attempt back unfinished.

    ``deliveries``: how often the broker had delivered its message before.
    """

    deliveries: int = 0
    worker: str = ""


@dataclass(frozen=True, slots=True)
class CheckpointSaved(AttemptReport):
    """The handler saved a JSON object for its next start."""

    checkpoint: bytes


@dataclass(frozen=True, slots=True)
class AttemptStopped(AttemptReport):
    """A worker stopped the attempt, by a command nobody knows any more."""


@dataclass(frozen=True, slots=True)
class AttemptSnoozed(AttemptReport):
    """The handler asked to be called again after some seconds; no attempt is spent."""

    end: AttemptEnd
    seconds: float


@dataclass(frozen=True, slots=True)
class HandlerUnknown(AttemptReport):
    """No worker that took the attempt knows its handler."""

    message: str


@dataclass(frozen=True, slots=True)
class HandlerRegistered:
    """A worker may know the handler now that no worker knew."""


@dataclass(frozen=True, slots=True)
class AttemptSucceeded(AttemptReport):
    """The attempt succeeded."""

    end: AttemptEnd
    result: dict[str, object] | None
    result_ref: ResultReference | None = None


@dataclass(frozen=True, slots=True)
class AttemptFailed(AttemptReport):
    """The attempt failed, or was lost."""

    end: AttemptEnd
    failure: AttemptFailure


@dataclass(frozen=True, slots=True)
class HeartbeatSeen:
    """A worker says that it runs the present attempt."""

    worker: str
    progress: ProgressState | None = None


@dataclass(frozen=True, slots=True)
class AttemptMissed:
    """The worker whose attempt's message was given back says no more that it runs it."""

    worker: str


@dataclass(frozen=True, slots=True)
class ReportsResumed:
    """Workers can report again; for a while nobody could be heard."""


@dataclass(frozen=True, slots=True)
class AttemptUnreported:
    """A worker has had the attempt for these seconds, and its time is up without an outcome."""

    seconds: float


@dataclass(frozen=True, slots=True)
class StatusWritten:
    """A status is in the API server.

    Attributes:
        status: the one that was to be written.
        receipts: of the outcomes it contains.
        generation: of the object; 0: not known.
        version: of the object, a number that grows with every write; 0: not known.
        metadata: of the object, as the API server has it; None: not known.
    """

    status: TaskState
    receipts: tuple[Receipt, ...] = field(repr=False)
    generation: int = 0
    version: int = 0
    metadata: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class StatusRejected:
    """The API server will never take a status in this detail; ``code`` is its HTTP answer.

    ``is_behind``: because another writer has raised attempts or epoch.
    """

    status: TaskState
    code: int
    message: str
    is_behind: bool = False
    detail: StatusDetail = StatusDetail.FULL


@dataclass(frozen=True, slots=True)
class CompletionConfirmed:
    """The event about its end is with the broker, or was given up for good."""


@dataclass(frozen=True, slots=True)
class TimerFired:
    """A timer that was set has come."""

    timer: Timer


@dataclass(frozen=True, slots=True)
class LeftInformer:
    """The informer shows the Task no more: it is finished or deleted.

    ``metadata``: of the object as last seen; None: not known.
    """

    metadata: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class ServedElsewhere:
    """Another installation serves the Task's TaskQueue."""


@dataclass(frozen=True, slots=True)
class ObjectRead:
    """The object was read: ``found`` is its status, None: the Task is deleted."""

    purpose: ReadPurpose
    found: TaskState | None


Event = (
    Seen
    | SpecChanged
    | FoundUnreadable
    | EnvironmentChanged
    | PayloadRefused
    | TurnCame
    | PlaceMissing
    | ConflictLost
    | PublishSettled
    | MessagesLost
    | AttemptReport
    | HandlerRegistered
    | HeartbeatSeen
    | AttemptMissed
    | ReportsResumed
    | AttemptUnreported
    | StatusWritten
    | StatusRejected
    | CompletionConfirmed
    | TimerFired
    | LeftInformer
    | ServedElsewhere
    | ObjectRead
)
