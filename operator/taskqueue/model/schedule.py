"""A TaskSchedule inside the operator: frozen values, no I/O.

Field names follow the resource. The time of a run is in whole minutes since the epoch, any other in
seconds since the epoch; a time is None where the resource has no value.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from taskqueue.model.task import Phase


class ConcurrencyPolicy(StrEnum):
    """What becomes of a run that is due while another one is active."""

    ALLOW = "Allow"
    FORBID = "Forbid"
    REPLACE = "Replace"
    BUFFER_ONE = "BufferOne"
    BUFFER_ALL = "BufferAll"


class MissedPolicy(StrEnum):
    """Which runs are made up for that were not created in time."""

    NONE = "None"
    LAST = "Last"
    ALL = "All"


@dataclass(frozen=True, slots=True)
class Backfill:
    """A stretch of the past whose runs are created once.

    Attributes:
        name: it is done once by this.
        start: its first minute.
        end: the first minute after it.
        one_at_a_time: a run waits until no other is active.
        max_per_minute: runs created in a minute.
    """

    name: str
    start: int
    end: int
    one_at_a_time: bool
    max_per_minute: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A TaskSchedule object without its template.

    Attributes, as far as the object's fields do not explain them:
        created: in seconds since the epoch.
        jitter: by how many seconds all its runs are later.
        excluded: first minute, and first minute after it, of each time without runs.
        start: the first minute with runs; None: there is no first.
        end: the first minute without runs again; None: there is none.
        pause_reason: why it was paused by hand; "": it was not.
        resumed: when it was resumed by hand; what failed before does not count.
    """

    namespace: str
    name: str
    uid: str
    generation: int
    created: float
    schedules: tuple[str, ...]
    time_zone: str = "UTC"
    concurrency_policy: ConcurrencyPolicy = ConcurrencyPolicy.ALLOW
    starting_deadline_seconds: int | None = None
    missed_policy: MissedPolicy = MissedPolicy.LAST
    missed_limit: int = 10
    jitter: int = 0
    excluded: tuple[tuple[int, int], ...] = ()
    start: int | None = None
    end: int | None = None
    suspend: bool = False
    pause_after_failures: int | None = None
    successful_history_limit: int = 3
    failed_history_limit: int = 1
    backfills: tuple[Backfill, ...] = ()
    pause_reason: str = ""
    resumed: float | None = None

    @property
    def path(self) -> str:
        """``namespace/name``, as logs and messages name it."""
        return f"{self.namespace}/{self.name}"

    @property
    def timing(self) -> tuple[object, ...]:
        """All that says when it is due: after a change of it the past counts no more."""
        return (
            self.schedules,
            self.time_zone,
            self.jitter,
            self.excluded,
            self.start,
            self.end,
        )

    def run_name(self, minute: int) -> str:
        """Return the name of a run's Task: the same for each operator that creates it."""
        return f"{self.name}-{minute}"


@dataclass(frozen=True, slots=True)
class ScheduledRun:
    """A Task that a TaskSchedule has created.

    Attributes:
        name: of the Task.
        uid: of the Task.
        minute: its time.
        phase: of the Task, as last seen.
        finished: its completionTime; None: it is active.
        cancelling: it has been cancelled, and may go on for a moment.
    """

    name: str
    uid: str
    minute: int
    phase: Phase = Phase.PENDING
    finished: float | None = None
    cancelling: bool = False

    @property
    def active(self) -> bool:
        """Whether it has not ended."""
        return self.finished is None


@dataclass(frozen=True, slots=True)
class SkippedRun:
    """A run that is not created.

    Attributes:
        minute: its time.
        reason: why, for programs.
        message: why, for people.
        at: when that was decided.
    """

    minute: int
    reason: str
    message: str
    at: float


@dataclass(frozen=True, slots=True)
class ScheduleCondition:
    """A condition as it is now."""

    type: str
    holds: bool
    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class BackfillState:
    """How far a backfill is.

    Attributes:
        name: of the backfill.
        decided: the last minute that was decided.
        until: its last minute, from when it began on.
        created: so many runs were created.
        completed: when it was done; None: it is not.
    """

    name: str
    decided: int
    until: int
    created: int = 0
    completed: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleState:
    """What is, or will be, in a TaskSchedule's status.

    Attributes, as far as the resource's fields do not explain them:
        decided: runs up to this minute are created, buffered or skipped; None: none is.
        last: the time of the last run created.
        lateness: how late that was, in seconds.
        failures: runs that failed since the last one that succeeded.
        last_finish: ends up to this time are counted.
        auto_paused: since when too many failures pause it; None: they do not.
        skipped: the last run that was skipped, if none was created since.
    """

    decided: int | None = None
    last: int | None = None
    lateness: float | None = None
    last_success: float | None = None
    missed: int = 0
    buffered: tuple[int, ...] = ()
    paused: bool = False
    failures: int = 0
    last_finish: float | None = None
    auto_paused: float | None = None
    skipped: SkippedRun | None = None
    backfills: tuple[BackfillState, ...] = field(default=())
