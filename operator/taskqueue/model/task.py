"""A Task inside the operator: frozen values, no I/O, times as seconds since the epoch.

The codecs convert the custom resource's pydantic models into these. Field names follow the
resource; a time is None where the resource has no value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum, auto
from itertools import islice
from sys import intern
from typing import Any

from taskqueue.defaults import (
    DEFAULT_ATTEMPT_SECONDS,
    DEFAULT_ATTEMPTS,
    DEFAULT_DELIVERIES,
    DEFAULT_FIRST_RETRY_SECONDS,
    DEFAULT_LONGEST_RETRY_SECONDS,
    DEFAULT_RETRY_FACTOR,
    DEFAULT_RETRY_JITTER,
)
from taskqueue.model.result import ResultReference


class DependencyWhen(StrEnum):
    """How a Task must end for one that depends on it; the value of spec.dependencies[].when."""

    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    FINISHED = "Finished"


class Phase(StrEnum):
    """The phase of a Task; the value of status.phase."""

    PENDING = "Pending"
    BLOCKED = "Blocked"
    SCHEDULED = "Scheduled"
    SUSPENDED = "Suspended"
    RUNNING = "Running"
    RETRYING = "Retrying"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    CANCELLED = "Cancelled"

    @property
    def terminal(self) -> bool:
        """Whether a Task in this phase never changes again."""
        return self in _TERMINAL


_TERMINAL = frozenset({Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED})


@dataclass(frozen=True, slots=True)
class RetryBackoff:
    """Exponential waiting between attempts.

    Attributes:
        initial_seconds: after the first failed attempt.
        factor: by which each further wait grows.
        max_seconds: no wait is longer.
        jitter: fraction by which a wait is varied at random, 0 to 1.
    """

    initial_seconds: float = DEFAULT_FIRST_RETRY_SECONDS
    factor: float = DEFAULT_RETRY_FACTOR
    max_seconds: float = DEFAULT_LONGEST_RETRY_SECONDS
    jitter: float = DEFAULT_RETRY_JITTER


@dataclass(frozen=True, slots=True)
class Policy:
    """All that decides how a Task is attempted, resolved from queue and Task.

    Attributes:
        max_attempts: attempts in all, the first included.
        backoff: waiting between them.
        non_retryable: error types that end the Task at once.
        attempt_timeout_seconds: how long one attempt may run.
        max_deliveries: how many workers one attempt may lose before it counts as failed.
        active_deadline_seconds: how long the Task may take in all; None: no limit.
        ttl_seconds: how long it is kept once finished; None: until it is deleted.
    """

    max_attempts: int = DEFAULT_ATTEMPTS
    backoff: RetryBackoff = field(default_factory=RetryBackoff)
    non_retryable: frozenset[str] = frozenset()
    attempt_timeout_seconds: int = DEFAULT_ATTEMPT_SECONDS
    max_deliveries: int = DEFAULT_DELIVERIES
    active_deadline_seconds: int | None = None
    ttl_seconds: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyOverrides:
    """The policy fields that a Task sets itself; None where its queue decides."""

    max_attempts: int | None = None
    initial_seconds: float | None = None
    factor: float | None = None
    max_seconds: float | None = None
    jitter: float | None = None
    non_retryable: frozenset[str] | None = None
    attempt_timeout_seconds: int | None = None
    max_deliveries: int | None = None
    active_deadline_seconds: int | None = None
    ttl_seconds: int | None = None

    def over(self, defaults: Policy) -> Policy:
        """Return the queue's defaults with this Task's own leaf fields on top."""
        if self is NO_OVERRIDES:
            return defaults
        base = defaults.backoff
        return Policy(
            max_attempts=_first(self.max_attempts, defaults.max_attempts),
            backoff=RetryBackoff(
                initial_seconds=_first(self.initial_seconds, base.initial_seconds),
                factor=_first(self.factor, base.factor),
                max_seconds=_first(self.max_seconds, base.max_seconds),
                jitter=_first(self.jitter, base.jitter),
            ),
            non_retryable=_first(self.non_retryable, defaults.non_retryable),
            attempt_timeout_seconds=_first(
                self.attempt_timeout_seconds, defaults.attempt_timeout_seconds
            ),
            max_deliveries=_first(self.max_deliveries, defaults.max_deliveries),
            active_deadline_seconds=_first(
                self.active_deadline_seconds, defaults.active_deadline_seconds
            ),
            ttl_seconds=_first(self.ttl_seconds, defaults.ttl_seconds),
        )


#: Shared by the many Tasks that override nothing.
NO_OVERRIDES = PolicyOverrides()


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One finished attempt in a Task's history; outcome is Succeeded, Failed or Cancelled."""

    attempt: int
    outcome: str
    start_time: float
    finish_time: float
    worker: str = ""
    reason: str = ""
    message: str = ""
    output: str = ""


@dataclass(frozen=True, slots=True)
class ProgressState:
    """The progress a running attempt reports: 0 to 100 or None, and a line for people."""

    percent: int | None = None
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskState:
    """What is, or will be, in a Task's status.

    Attributes, as far as the resource's fields do not explain them:
        concurrency_key: held while an attempt is dispatched; "" otherwise.
        snoozes: how often its handler asked to be called later.
        checkpoint: what its handler saved last, a JSON object in UTF-8, at most 16 KiB.
        payload_digest: of the merged payload that was published first; "" without payloadFrom.
            Written when anything is.
        payload_changed_time: when another one was published; None: the first is the only one.
        resumed_time: when the last suspension ended; the condition Suspended keeps it.
        time_limit: seconds the present attempt was published with; 0: not known. Written while a
            worker runs it, so that another leader judges it by that.
        running_since: when the attempt that runs began; not written, so unknown after a restart.
    """

    phase: Phase = Phase.PENDING
    reason: str = ""
    message: str = ""
    attempts: int = 0
    epoch: int = 0
    history: tuple[AttemptRecord, ...] = ()
    start_time: float | None = None
    completion_time: float | None = None
    next_attempt_time: float | None = None
    worker: str = ""
    progress: ProgressState | None = None
    concurrency_key: str = ""
    snoozes: int = 0
    resumed_time: float | None = None
    time_limit: int = field(default=0, compare=False)
    running_since: float | None = field(default=None, compare=False)
    checkpoint: bytes | None = None
    payload_digest: str = field(default="", compare=False)
    payload_changed_time: float | None = field(default=None, compare=False)
    result: Mapping[str, Any] | None = None
    result_ref: ResultReference | None = None

    @property
    def current_attempt(self) -> int:
        """The attempt whose outcome is awaited: one after the last finished one, 1-based."""
        return self.history[-1].attempt + 1 if self.history else 1

    @property
    def is_snoozed(self) -> bool:
        """Whether the time of its next attempt, if it has one, is that of an attempt begun before.

        A retry has not begun, and what waits for startAfter has not either.
        """
        return self.attempts >= self.current_attempt


class StatusDetail(Enum):
    """How much of a status is written."""

    FULL = auto()
    #: Without what may be large: result, checkpoint, texts, all attempts but the last.
    SHORT = auto()
    #: Only what another leader must know.
    BARE = auto()

    @property
    def less(self) -> StatusDetail | None:
        """The next shorter one; None: there is none."""
        return {StatusDetail.FULL: StatusDetail.SHORT, StatusDetail.SHORT: StatusDetail.BARE}.get(
            self
        )


#: Shared by all Tasks whose status was never written.
PENDING = TaskState()


@dataclass(frozen=True, slots=True)
class PayloadSource:
    """A key of a ConfigMap in the Task's namespace that holds a JSON object."""

    config_map: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """What a Task asks for.

    Attributes:
        queue: name of the TaskQueue in the Task's namespace.
        handler: name a worker registered.
        payload_from: objects merged below its payload, in order. The payload itself is not here:
            see `taskqueue.controller.tasks.payloads`.
        priority: -1000 to 1000, higher first.
        concurrency_key: Tasks of one key are dispatched a few at a time; "" for none.
        depends_on: names of the Tasks that must have ended first.
        whens: how some of these must have ended; the others must be Complete.
        start_after: not dispatched before.
        suspend: not dispatched while True, and recalled if it was.
        cancel: ended at once.
        notification_names: the webhooks of its TaskQueue that get its end; None: all.
        overrides: the Task's own retry and time settings.
    """

    queue: str
    handler: str
    payload_from: tuple[PayloadSource, ...] = ()
    priority: int = 0
    concurrency_key: str = ""
    depends_on: tuple[str, ...] = ()
    whens: tuple[tuple[str, DependencyWhen], ...] = ()
    start_after: float | None = None
    suspend: bool = False
    cancel: bool = False
    notification_names: tuple[str, ...] | None = None
    overrides: PolicyOverrides = NO_OVERRIDES


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A Task object as last seen: its identity is the uid, a name may be used again.

    Attributes, as far as the object's fields do not explain them:
        is_outline: the object cannot be read as a whole: spec and status have some fields only.
        deleting: it has a deletionTimestamp, and a finalizer keeps it; that is never undone.
        scheduled_time: of the run of a TaskSchedule, in RFC 3339 in UTC; "": it is none.
        index: of an item of a TaskBatch, whose name it has; None: it is a Task with an object.
        labels: names and values in turn, as `flat_labels` returns them.
    """

    namespace: str
    name: str
    uid: str
    generation: int
    created: float
    spec: TaskSpec
    status: TaskState = PENDING
    is_outline: bool = False
    deleting: bool = False
    scheduled_time: str = ""
    index: int | None = None
    labels: tuple[str, ...] = ()

    def label(self, name: str) -> str:
        """Return the value of a label; "": it has none."""
        names = self.labels[::2]
        return self.labels[2 * names.index(name) + 1] if name in names else ""

    @property
    def path(self) -> str:
        """``namespace/name``, as logs and messages name it."""
        return f"{self.namespace}/{self.name}"


#: Labels of a Task that are kept: its spec is bounded, its labels are not.
_LABELS_KEPT = 32


def flat_labels(labels: Mapping[str, str] | None) -> tuple[str, ...]:
    """Return the first 32 labels as names and values in turn: many Tasks have the same texts."""
    if not labels:
        return ()
    return tuple(intern(text) for pair in islice(labels.items(), _LABELS_KEPT) for text in pair)


def _first(own: Any, default: Any) -> Any:
    return default if own is None else own
