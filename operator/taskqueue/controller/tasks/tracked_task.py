"""The state of one unfinished Task, and what is known around it: frozen values, no closure.

A `TrackedTask` lives from the moment the informer shows a Task until its final status is in the
API server, or the Task is deleted. `taskqueue.controller.tasks.machine.step` alone makes the next
one. There may be 100,000 of them: no attribute without need, and no payload.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum, auto
from typing import Any

from taskqueue.controller.tasks.dependency_graph import INDEPENDENT, DependencyState
from taskqueue.controller.tasks.missing_handlers import MissingHandler
from taskqueue.model.command import CommandKind
from taskqueue.model.queue import QueueKey
from taskqueue.model.task import Phase, Policy, StatusDetail, Task, TaskState

#: Wall times, and when they come by the monotonic clock.
Anchors = tuple[tuple[float, float], ...]

#: Stands for a message of the inbox that is acknowledged later; opaque here.
Receipt = object


@dataclass(frozen=True, slots=True)
class SeenTask:
    """A Task as the informer shows it, apart from its payload.

    Attributes:
        task: what it says, its status included.
        version: its resourceVersion, as a number.
        problem: why its payload is refused; "": it is not.
    """

    task: Task
    version: int
    problem: str

    @property
    def queue_key(self) -> QueueKey:
        """(namespace, name) of its TaskQueue."""
        return (self.task.namespace, self.task.spec.queue)


class TaskStage(Enum):
    """Where an unfinished Task is, as far as dispatching goes."""

    #: Not admitted yet.
    NEW = auto()
    #: Not to be dispatched for now; its status says why.
    HELD = auto()
    #: In the dispatch queue, or queued for its concurrency key.
    WAITING = auto()
    #: Its concurrency key is being recorded, which comes before it is published.
    CLAIMING = auto()
    #: In the broker, or on the way there; an outcome is awaited.
    PUBLISHED = auto()
    #: Has its final status, which is being written, or is deleted.
    FINISHED = auto()


class Dispatched(Enum):
    """Whether a worker may have the Task's present attempt."""

    NO = auto()
    #: A former leader, or a lost connection, may have brought it to the broker.
    MAYBE = auto()
    YES = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEnvironment:
    """Everything beside a Task and its status that its decision depends on.

    Attributes:
        policy: its own settings over its queue's; None: there is no such TaskQueue.
        dependencies: the state of its dependencies.
        payload_error: why its payload cannot be put together; None: it may be.
        payload_digest: of its merged payload, if that is at hand; else "".
        now: seconds since the epoch, by the wall clock, which may be set at any moment.
        monotonic: seconds that no such step moves.
        random: a number in [0, 1) for the jitter of a back-off.
        can_publish: its queue is declared at the broker, and not held back, and its payload is at
            hand.
        leads: this process certainly leads.
        missing_handler: what is known of its handler, if no worker knew that; else None.
        is_archived: a sink of its TaskQueue, an archive or a webhook, gets every end.
    """

    policy: Policy | None
    dependencies: DependencyState = INDEPENDENT
    payload_error: str | None = None
    payload_digest: str = ""
    now: float = 0.0
    monotonic: float = 0.0
    random: float = 0.0
    can_publish: bool = False
    leads: bool = True
    missing_handler: MissingHandler | None = None
    is_archived: bool = False


@dataclass(frozen=True, slots=True)
class OwedCommand:
    """A command to send once a status of at least ``after_epoch`` is in the API server.

    Attributes:
        after_epoch: the raised epoch that makes the attempt's outcome stale.
        kind: CANCEL or RELEASE.
        attempt: the attempt to stop, with its ``epoch``: they make its token.
        epoch: see ``attempt``.
    """

    after_epoch: int
    kind: CommandKind
    attempt: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """The API server has refused a status for good; forgotten when one is written.

    Attributes:
        status: the one it refused last.
        detail: how much of it is written instead.
        why: in the API server's words.
        is_behind: because another writer has raised attempts or epoch.
        reads: how often the object was read since because of other refusals, and was there.
        is_reported: a Kubernetes Event says so, and no outcome is held for the status.
    """

    status: TaskState
    detail: StatusDetail
    why: str = ""
    is_behind: bool = False
    reads: int = 0
    is_reported: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedTask:
    """One unfinished Task.

    Attributes:
        task: the object as last seen.
        status: what is true now.
        written: what the API server has.
        stage: see `TaskStage`.
        receipts: outcomes to acknowledge when a write that contains them has succeeded.
        checkpoint_receipt: of these, the last checkpoint; an earlier one is not waited for.
        deliveries: how many of the present attempt were lost without progress in between.
        source: the broker that the last counted report came from; opaque here.
        owed: commands that wait for a write.
        anchors: the times its decision depends on. Each is converted once, when it is first seen:
            what has begun to wait waits as long as it should, however the wall clock is set.
        reconcile_at: when time alone may change what is due, in seconds since the epoch.
        write_at: when a timer will write the unfinished status, by the monotonic clock.
        hold_until: an obstacle its status names is met until then, such as a handler nobody has;
            0.0: there is none.
        is_handler_missing: the worker that had it last did not know its handler.
        key: the concurrency key it holds or waits for; "" for none.
        fence: the number its handler gets with the key.
        maybe_published: it holds its key and was perhaps never published. A second copy beside the
            first would be two of the key at once, so the first is waited for.
        stray_copy_possible: a message of its present token may exist that this process knows
            nothing of: published by a former leader, or the broker did not say what became of it.
        published_elsewhere: another process may have published its present attempt, with a time
            limit that is not known here.
        lost_at: when the worker that has said it runs the attempt is lost, unless it says so again,
            in monotonic seconds; None: no worker has.
        returned: deliveries to count if that worker is lost, because another one has given the
            message of the attempt back; 0: none has.
        refusal: what the API server refused, and what is done about it; None: nothing.
        has_left_informer: the informer has shown it leaving.
        metadata: what its object had then, if its end is to be archived; None: not known.
    """

    task: Task
    status: TaskState
    written: TaskState
    stage: TaskStage = TaskStage.NEW
    receipts: tuple[Receipt, ...] = field(default=(), repr=False)
    checkpoint_receipt: Receipt | None = field(default=None, repr=False)
    deliveries: int = 0
    source: object = field(default=None, repr=False)
    owed: tuple[OwedCommand, ...] = ()
    anchors: Anchors = ()
    reconcile_at: float | None = None
    write_at: float | None = None
    hold_until: float = 0.0
    is_handler_missing: bool = False
    key: str = ""
    fence: int = 0
    maybe_published: bool = False
    stray_copy_possible: bool = False
    published_elsewhere: bool = True
    lost_at: float | None = None
    returned: int = 0
    refusal: Refusal | None = None
    has_left_informer: bool = False
    metadata: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)

    @property
    def uid(self) -> str:
        """The Task's identity."""
        return self.task.uid

    @property
    def is_running(self) -> bool:
        """Whether a worker is known to run the present attempt."""
        return self.status.phase is Phase.RUNNING

    @property
    def dispatched(self) -> Dispatched:
        """Whether a worker may have its present attempt."""
        if self.stage is TaskStage.PUBLISHED:
            return Dispatched.YES
        return Dispatched.MAYBE if self.stray_copy_possible else Dispatched.NO

    def attempt_seconds(self, policy: Policy) -> int:
        """Return how long its present attempt may run: as published, whatever the policy is now."""
        return self.status.time_limit or policy.attempt_timeout_seconds

    @property
    def detail(self) -> tuple[StatusDetail, str]:
        """How much of the present status is written, and why not all."""
        refusal = self.refusal
        if refusal is None or refusal.status is not self.status:
            return StatusDetail.FULL, ""
        return refusal.detail, refusal.why

    @property
    def queue_key(self) -> QueueKey:
        """(namespace, name) of the Task's TaskQueue."""
        return (self.task.namespace, self.task.spec.queue)


_FIELDS = tuple(one.name for one in fields(TrackedTask))


def copy_of(tracked: TrackedTask) -> TrackedTask:
    """Return a copy; half the time of `dataclasses.replace`."""
    copy: TrackedTask = object.__new__(TrackedTask)
    for name in _FIELDS:
        object.__setattr__(copy, name, getattr(tracked, name))
    return copy


def log_fields(task: Task, **more: Any) -> dict[str, Any]:
    """Return the fields that every log line about a Task has."""
    return {"namespace": task.namespace, "task": task.name, "uid": task.uid, **more}
