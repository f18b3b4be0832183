"""The custom resource TaskSchedule: Tasks that are created by the clock.

``TaskScheduleResource.model_validate(body)`` parses an object of the API server. An expression with
a number out of its bounds is refused by CEL; what CEL cannot know (a time zone that does not exist,
a day that no month has) becomes a condition.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.config import JsonDict

from taskqueue.api.common import (
    ATOMIC_LIST,
    ATOMIC_MAP,
    DAY_SECONDS,
    DNS_LABEL_PATTERN,
    SET_LIST,
    TASKSCHEDULE_KIND,
    YEAR_SECONDS,
    ApiModel,
    Resource,
    validations,
)
from taskqueue.api.task import TIME_PATTERN
from taskqueue.api.task_template import TaskTemplate
from taskqueue.api.taskschedule_status import TaskScheduleResourceStatus
from taskqueue.limits import CRON_LENGTH, LABEL_LENGTH, MISSED_RUNS

#: A run's name is that of its schedule with up to eleven characters more, and a label has it.
SCHEDULE_NAME_MAX_LENGTH = 52
SCHEDULES_MAX_ITEMS = 16
EXCLUDE_MAX_ITEMS = 64
BACKFILLS_MAX_ITEMS = 16

ConcurrencyPolicy = Literal["Allow", "Forbid", "Replace", "BufferOne", "BufferAll"]
BackfillConcurrencyPolicy = Literal["Allow", "BufferAll"]
MissedRunsPolicy = Literal["None", "Last", "All"]
HistoryLimit = Annotated[int, Field(ge=0, le=100)]


def _cron_pattern() -> str:
    """Return the regular expression (RE2) of a cron expression, numbers in their bounds."""

    def field(number: str, special: str = "") -> str:
        item = f"([*]|{number}(-{number})?)(/[1-9][0-9]?)?{special}"
        return f"({item})(,({item}))*"

    months = "JAN|FEB|MAR|APR|MAY|JUN|JUL|AUG|SEP|OCT|NOV|DEC"
    weekday = "([0-7]|SUN|MON|TUE|WED|THU|FRI|SAT)"
    fields = (
        field("[0-5]?[0-9]"),
        field("([01]?[0-9]|2[0-3])"),
        field("(0?[1-9]|[12][0-9]|3[01])", "|LW?"),
        field(f"(0?[1-9]|1[0-2]|{months})"),
        field(weekday, f"|{weekday}#[1-5]|[0-7]L"),
    )
    return f"(?i)^{' +'.join(fields)}$"


CRON_PATTERN = _cron_pattern()

_UNWRITTEN_STATUS: JsonDict = {"default": {"observedGeneration": -1}}

CronExpression = Annotated[
    str,
    Field(
        min_length=9,
        max_length=CRON_LENGTH,
        json_schema_extra=validations(
            (
                f"self.matches(r'{CRON_PATTERN}')",
                "a schedule has five fields: minute 0-59, hour 0-23, day of month 1-31, month 1-12 "
                "or JAN-DEC, day of week 0-7 or SUN-SAT; in each *, a number, a range 1-5, a list "
                "1,3,5 or a step */15. Write for example '30 3 * * MON-FRI'",
            )
        ),
    ),
]


def _time(description: str) -> datetime:
    field: datetime = Field(description=description, json_schema_extra={"pattern": TIME_PATTERN})
    return field


_IN_ORDER = validations(
    (
        "self.startTime < self.endTime",
        "startTime must be before endTime: exchange or correct them",
    )
)


class MissedRuns(ApiModel):
    """What becomes of runs that were not created in time."""

    policy: MissedRunsPolicy = Field(
        "Last",
        description=(
            "Which of the runs are made up for that the operator did not create within 60 seconds "
            "of their time: None; Last, the latest one, unless a later run is due; All, the latest "
            "ones up to limit. Last by default."
        ),
    )
    limit: int = Field(
        10,
        ge=1,
        le=MISSED_RUNS,
        description=(
            f"With All: how many runs are made up for at most, 1 to {MISSED_RUNS}; earlier ones "
            "are skipped. 10 by default."
        ),
    )


class ExcludedTime(ApiModel):
    """A time without runs."""

    model_config = ConfigDict(json_schema_extra=_IN_ORDER)

    start_time: datetime = _time("The first time without runs.")
    end_time: datetime = _time("The first time with runs again.")


class Backfill(ApiModel):
    """A stretch of the past whose runs are created once."""

    model_config = ConfigDict(json_schema_extra=_IN_ORDER)

    name: str = Field(
        min_length=1,
        max_length=LABEL_LENGTH,
        pattern=DNS_LABEL_PATTERN,
        description=(
            "Name of the backfill. It is done once by this name, also when it stays in the spec: "
            "use another one to do it again."
        ),
    )
    start_time: datetime = _time("Runs from this time on are created.")
    end_time: datetime = _time(
        "Runs before this time are created, and not those that are not due yet when it begins."
    )
    concurrency_policy: BackfillConcurrencyPolicy = Field(
        "BufferAll",
        description=(
            "BufferAll: each run waits until no other of the schedule is active. Allow: they are "
            "created whatever runs. BufferAll by default."
        ),
    )
    max_per_minute: int = Field(
        60, ge=1, le=600, description="Runs created in a minute at most, 1 to 600. 60 by default."
    )


class TaskScheduleResourceSpec(ApiModel):
    """The desired state of a TaskSchedule."""

    schedules: tuple[CronExpression, ...] = Field(
        min_length=1,
        max_length=SCHEDULES_MAX_ITEMS,
        description=(
            f"Cron expressions, at most {SCHEDULES_MAX_ITEMS}: a run is due where any of them "
            "matches. Each has five fields (minute, hour, day of month, month, day of week) with "
            "the meaning of Debian's cron; L is the last day of a month, LW its last working day, "
            "FRI#2 its second Friday, 5L its last one."
        ),
        json_schema_extra=SET_LIST,
    )
    time_zone: str = Field(
        "UTC",
        min_length=1,
        max_length=64,
        pattern=r"^[A-Za-z][A-Za-z0-9_+/-]*$",
        description=(
            "Time zone of the schedules, a name of the IANA database such as Europe/Berlin. UTC by "
            "default."
        ),
    )
    task_template: TaskTemplate = Field(
        description=(
            "What each Task is made of. Its name is that of the schedule with the minutes from "
            "1970 to its time, such as nightly-29412180."
        )
    )
    concurrency_policy: ConcurrencyPolicy = Field(
        "Allow",
        description=(
            "What becomes of a run that is due while another one is active. Allow: it is created. "
            "Forbid: it is skipped. Replace: the active ones are cancelled, and it is created. "
            "BufferOne: it waits, and others that are due meanwhile are skipped. BufferAll: all "
            "wait, up to 100, and run one after the other. Allow by default."
        ),
    )
    starting_deadline_seconds: int | None = Field(
        None,
        ge=1,
        le=YEAR_SECONDS,
        description=(
            "How many seconds after its time a run may still be created, 1 to 31536000; later it "
            "is skipped, whether it was missed or buffered. When absent, there is no deadline."
        ),
    )
    missed_runs: MissedRuns = Field(
        default_factory=MissedRuns,
        description=(
            "What becomes of runs that were not created in time: because no operator ran, or the "
            "API server refused them."
        ),
    )
    jitter_seconds: int = Field(
        0,
        ge=0,
        le=DAY_SECONDS,
        description=(
            "Longest delay of the runs in seconds, 0 to 86400. All runs of a schedule are delayed "
            "by the same time, which follows from its uid, so schedules of the same minute are "
            "spread. 0 by default."
        ),
    )
    exclude: tuple[ExcludedTime, ...] = Field(
        default_factory=tuple,
        max_length=EXCLUDE_MAX_ITEMS,
        description=f"Times without runs, at most {EXCLUDE_MAX_ITEMS}. Empty when absent.",
        json_schema_extra=ATOMIC_LIST,
    )
    start_time: datetime | None = Field(
        None,
        description="There are no runs before this time. When absent, from the creation on.",
        json_schema_extra={"pattern": TIME_PATTERN},
    )
    end_time: datetime | None = Field(
        None,
        description="There are no runs from this time on. When absent, there is no end.",
        json_schema_extra={"pattern": TIME_PATTERN},
    )
    suspend: bool = Field(
        False,
        description=(
            "While true, no run is created; active ones go on. What would have been due meanwhile "
            "is not made up for. Where Git has the spec, pause by hand with the annotation "
            "taskqueue.dev/paused instead. False by default."
        ),
    )
    pause_after_failures: int | None = Field(
        None,
        ge=1,
        le=1000,
        description=(
            "Number of failed runs in a row, 1 to 1000, after which no further run is created "
            "until the annotation taskqueue.dev/resumed-at has a later time. When absent, failures "
            "do not pause the schedule."
        ),
    )
    successful_history_limit: HistoryLimit = Field(
        3,
        description=(
            "How many Tasks are kept that ended as Succeeded, 0 to 100; the oldest are deleted. 3 "
            "by default."
        ),
    )
    failed_history_limit: HistoryLimit = Field(
        1,
        description=(
            "How many Tasks are kept that ended as Failed or Cancelled, 0 to 100; the oldest are "
            "deleted. 1 by default."
        ),
    )
    backfills: tuple[Backfill, ...] = Field(
        default_factory=tuple,
        max_length=BACKFILLS_MAX_ITEMS,
        description=(
            f"Stretches of the past whose runs are created, each once, at most "
            f"{BACKFILLS_MAX_ITEMS}, one after the other. A run whose Task exists is not created "
            "again. Empty when absent."
        ),
        json_schema_extra={
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"],
        },
    )


class TaskScheduleResource(Resource):
    """Creates a Task at each time of a schedule."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            (
                f"size(self.metadata.name) <= {SCHEDULE_NAME_MAX_LENGTH}",
                f"metadata.name must be at most {SCHEDULE_NAME_MAX_LENGTH} characters long, "
                "because the names of its Tasks are made from it: choose a shorter name",
            ),
            (
                "!has(self.spec.startTime) || !has(self.spec.endTime) || "
                "self.spec.startTime < self.spec.endTime",
                "spec.startTime must be before spec.endTime: exchange or correct them",
            ),
        )
    )

    kind: str = Field(TASKSCHEDULE_KIND, description="The kind of this object: TaskSchedule.")
    spec: TaskScheduleResourceSpec = Field(description="When Tasks are created, and of what.")
    status: TaskScheduleResourceStatus = Field(
        default_factory=TaskScheduleResourceStatus,
        description="What became of its runs. Written by the operator only.",
        json_schema_extra=_UNWRITTEN_STATUS | ATOMIC_MAP,
    )
