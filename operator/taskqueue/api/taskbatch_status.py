"""The status of a TaskBatch: written by the operator only, protected by the API server.

The CEL rules refuse a late writer: a terminal phase never changes, counts and epoch never decrease.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

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
from taskqueue.api.task_status import TERMINAL_PHASES_IN_CEL
from taskqueue.limits import BATCH_ITEMS, STATUS_REASON_LENGTH

BatchPhase = Literal[
    "Pending", "Blocked", "Suspended", "Running", "Succeeded", "Failed", "Cancelled"
]
#: Groups of errors, and indexes that each shows.
ERROR_GROUPS, ERROR_INDEXES = 10, 3
#: Characters of an encoded set of indexes.
RECORD_MAX_LENGTH = 6_000

Count = Annotated[int, Field(ge=0, le=BATCH_ITEMS)]


class ItemErrorGroup(ApiModel):
    """Items that failed with errors of one type."""

    type: str = Field(
        min_length=1, max_length=64, description="Type of the error, such as ValueError."
    )
    count: Count = Field(0, description="How many items failed so.")
    indexes: tuple[Count, ...] = Field(
        (),
        max_length=ERROR_INDEXES,
        description="The lowest indexes of these items.",
        json_schema_extra=ATOMIC_LIST,
    )
    message: str = Field("", max_length=256, description="What the error said that came first.")


class TaskBatchResourceStatus(ApiModel):
    """The observed state of a TaskBatch."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            (
                f'!(oldSelf.?phase.orValue("") in {TERMINAL_PHASES_IN_CEL}) || '
                "(has(self.phase) && self.phase == oldSelf.phase)",
                "the phase of a finished TaskBatch never changes: create a new one to run it again",
            ),
            (
                "self.?succeeded.orValue(0) + self.?failed.orValue(0) >= "
                "oldSelf.?succeeded.orValue(0) + oldSelf.?failed.orValue(0)",
                "items that have ended never decrease: read the TaskBatch again and continue from "
                "its status",
            ),
            (
                "self.?epoch.orValue(0) >= oldSelf.?epoch.orValue(0)",
                "epoch never decreases: read the TaskBatch again and continue from its epoch",
            ),
        )
    )

    observed_generation: int = Field(
        -1,
        description=(
            "The metadata.generation of the spec that the operator last acted on; -1 until it has "
            "written a status. kubectl wait ignores conditions while this is behind."
        ),
    )
    phase: BatchPhase = Field(
        "Pending",
        description=(
            "State of the TaskBatch. Pending: no item has begun. Blocked: waits for what reason "
            "names. Suspended: by spec.suspend. Running: items have begun. Succeeded, Failed and "
            "Cancelled are final. "
            "Selectable: kubectl get tqb --field-selector status.phase=Failed."
        ),
    )
    reason: str = Field(
        "",
        max_length=STATUS_REASON_LENGTH,
        description=(
            "Why the TaskBatch is in this phase, for programs: one CamelCase word. Blocked: "
            "QueueNotFound, ItemsNotFound, or what its items wait for, such as UnknownHandler. "
            "Failed: ItemsFailed, TooManyFailures, DeadlineExceeded, ItemsChanged or Invalid. "
            "Suspended and Cancelled: the same word."
        ),
    )
    message: str = Field(
        "",
        max_length=MESSAGE_MAX_LENGTH,
        description="Why the TaskBatch is in this phase, for people: a sentence.",
    )
    total: int | None = Field(
        None, ge=0, le=BATCH_ITEMS, description="Number of items. Absent until it is known."
    )
    succeeded: Count = Field(0, description="Items that have succeeded. Absent means 0.")
    failed: Count = Field(0, description="Items that have failed. Absent means 0.")
    cancelled: Count = Field(
        0,
        description=(
            "Items that had neither succeeded nor failed when the TaskBatch ended. Absent means 0."
        ),
    )
    active: Count = Field(
        0, description="Items that are with the broker or a worker. Absent means 0."
    )
    retried: int = Field(
        0,
        ge=0,
        description=(
            "Attempts beyond the first, of all items that have ended; those before a restart of "
            "the operator do not count. Absent means 0."
        ),
    )
    percent: int = Field(
        0, ge=0, le=100, description="Share of the items that have ended. Absent means 0."
    )
    failed_indexes: str = Field(
        "",
        max_length=512,
        description="The first items that failed, as ranges such as 0,3-5. Absent: none has.",
    )
    failed_indexes_truncated: bool = Field(
        False, description="Whether failedIndexes leaves some out. Absent means false."
    )
    errors: tuple[ItemErrorGroup, ...] = Field(
        (),
        max_length=ERROR_GROUPS,
        description=(
            "Why items failed, by the type of the last error of each, at most 10: further types "
            "are counted together as Other."
        ),
        json_schema_extra={
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
        },
    )
    begun: Count = Field(
        0, description="Items with an index below this have begun. Absent means 0."
    )
    open_items: str = Field(
        "",
        max_length=RECORD_MAX_LENGTH,
        description="Those of them that have not ended, encoded. Absent: there is none.",
    )
    failed_items: str = Field(
        "",
        max_length=RECORD_MAX_LENGTH,
        description=(
            "All items that failed, encoded. Absent: none has, or they are too many and too "
            "scattered to be written here."
        ),
    )
    epoch: int = Field(
        0,
        ge=0,
        description=(
            "Raised before attempts are recalled, so that their late outcomes are not mistaken for "
            "those of the next attempts. Never decreases; absent means 0."
        ),
    )
    items_digest: str = Field(
        "",
        max_length=64,
        description="Beginning of the SHA-256 of the items the TaskBatch began with.",
    )
    start_time: datetime | None = Field(
        None, description="When the first item was dispatched. Absent until then."
    )
    completion_time: datetime | None = Field(
        None, description="When the TaskBatch ended in any final phase. Absent until then."
    )
    conditions: tuple[ResourceCondition, ...] = Field(
        (),
        max_length=CONDITIONS_MAX_ITEMS,
        description=(
            "Finished and Complete when the TaskBatch succeeded; Finished, Failed and Stalled when "
            "it failed or was cancelled; Reconciling before that, and Suspended while spec.suspend "
            "holds it. After a resume Suspended stays, as False since then. "
            "Wait with: kubectl wait --for=condition=Complete."
        ),
        json_schema_extra=CONDITIONS_LIST,
    )
