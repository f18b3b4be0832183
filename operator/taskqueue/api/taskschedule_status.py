"""The status of a TaskSchedule: written by the operator only.

The CEL rule refuses a late writer: what is decided stays decided.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import ConfigDict, Field

from taskqueue.api.common import (
    ATOMIC_LIST,
    CONDITIONS_LIST,
    CONDITIONS_MAX_ITEMS,
    MESSAGE_MAX_LENGTH,
    ApiModel,
    ResourceCondition,
    validations,
)
from taskqueue.limits import BUFFERED_RUNS, LABEL_LENGTH

#: Times that nextTimes has.
NEXT_TIMES = 3
#: Backfills that a status remembers.
BACKFILLS_REMEMBERED = 64

Count = Annotated[int, Field(ge=0)]


class BackfillStatus(ApiModel):
    """How far a backfill is."""

    name: str = Field(
        min_length=1, max_length=LABEL_LENGTH, description="Name of the backfill in the spec."
    )
    created: Count = Field(0, description="Tasks that it has created.")
    decided_time: datetime = Field(description="All its runs up to this time are decided.")
    until_time: datetime = Field(
        description="Its last run is not after this: endTime, or the time when it began."
    )
    completion_time: datetime | None = Field(
        None, description="When its last Task was created. Absent until then."
    )


class TaskScheduleResourceStatus(ApiModel):
    """The observed state of a TaskSchedule."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            (
                "!has(oldSelf.decidedTime) || "
                "(has(self.decidedTime) && self.decidedTime >= oldSelf.decidedTime)",
                "decidedTime never decreases, or runs would be created twice: read the "
                "TaskSchedule again and continue from its decidedTime",
            )
        )
    )

    observed_generation: int = Field(
        -1,
        description=(
            "The metadata.generation of the spec that the operator last acted on; -1 until it has "
            "written a status."
        ),
    )
    description: str = Field(
        "",
        max_length=MESSAGE_MAX_LENGTH,
        description="The schedules in words, with their time zone.",
    )
    next_times: tuple[datetime, ...] = Field(
        (),
        max_length=NEXT_TIMES,
        description=(
            "The next three times, in UTC and without jitter. Empty while it is paused, and when "
            "there is none."
        ),
        json_schema_extra=ATOMIC_LIST,
    )
    last_schedule_time: datetime | None = Field(
        None,
        description=(
            "The time of the latest run that was created, as the schedule has it. Absent until "
            "then."
        ),
    )
    last_successful_time: datetime | None = Field(
        None, description="When a run last ended as Succeeded. Absent until then."
    )
    lateness_seconds: float | None = Field(
        None,
        ge=0,
        description=(
            "How long after its time, with jitter, the last run was created. Absent until then."
        ),
    )
    active: Count = Field(0, description="Runs that have not ended.")
    missed: Count = Field(
        0,
        description=(
            "Runs, counted since the TaskSchedule was created, that were not created in time and "
            "not made up for. Of a long absence of the operator the last 100 count."
        ),
    )
    paused: bool = Field(
        False,
        description=(
            "Whether no run is created: because of spec.suspend, of the annotation "
            "taskqueue.dev/paused, or of too many failures. The condition Paused says which."
        ),
    )
    consecutive_failures: Count = Field(
        0, description="Runs that ended as Failed since the last one that succeeded."
    )
    decided_time: datetime | None = Field(
        None,
        description=(
            "All runs up to this time are decided: created, buffered or skipped. Never decreases."
        ),
    )
    last_finish_time: datetime | None = Field(
        None, description="All ends of runs up to this time are counted."
    )
    buffered: tuple[datetime, ...] = Field(
        (),
        max_length=BUFFERED_RUNS,
        description="The times of the runs that wait for the active one, oldest first.",
        json_schema_extra=ATOMIC_LIST,
    )
    backfills: tuple[BackfillStatus, ...] = Field(
        (),
        max_length=BACKFILLS_REMEMBERED,
        description=(
            "The backfills that have begun, by name. One that is here with a completionTime is "
            "not done again."
        ),
        json_schema_extra={
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"],
        },
    )
    conditions: tuple[ResourceCondition, ...] = Field(
        (),
        max_length=CONDITIONS_MAX_ITEMS,
        description=(
            "Ready: the operator serves the schedule; False, with Stalled, when it cannot be read: "
            "the message says what to write instead. Paused: no run is created, and why. "
            "RunSkipped: whether the last run that was due was skipped, and why."
        ),
        json_schema_extra=CONDITIONS_LIST,
    )
