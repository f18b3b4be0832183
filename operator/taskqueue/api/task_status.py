"""The status of a Task: written by the operator only, guarded by the API server.

The CEL rules refuse a writer who is late, through /status and with ``status: null`` too: a terminal
phase never changes, attempts and epoch never decrease, completionTime is never cleared.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from taskqueue.api.common import (
    ATOMIC_LIST,
    CONCURRENCY_KEY_MAX_LENGTH,
    CONDITIONS_LIST,
    CONDITIONS_MAX_ITEMS,
    MESSAGE_MAX_LENGTH,
    ApiModel,
    ResourceCondition,
    validations,
)
from taskqueue.limits import (
    HISTORY_LENGTH,
    OBJECT_NAME_LENGTH,
    PROGRESS_MESSAGE_LENGTH,
    STATUS_MESSAGE_LENGTH,
    STATUS_REASON_LENGTH,
)

Phase = Literal[
    "Pending",
    "Blocked",
    "Scheduled",
    "Suspended",
    "Running",
    "Retrying",
    "Succeeded",
    "Failed",
    "Cancelled",
]
TERMINAL_PHASES: tuple[Phase, ...] = ("Succeeded", "Failed", "Cancelled")
Outcome = Literal["Succeeded", "Failed", "Cancelled"]

AttemptNumber = Annotated[int, Field(ge=1)]
WorkerName = Annotated[str, Field(max_length=OBJECT_NAME_LENGTH)]

TERMINAL_PHASES_IN_CEL = json.dumps(TERMINAL_PHASES)


class AttemptHistoryEntry(ApiModel):
    """One attempt that has ended."""

    attempt: AttemptNumber = Field(description="Number of the attempt, from 1.")
    start_time: datetime | None = Field(
        None, description="When a worker began it. Absent when no worker is known to have."
    )
    finish_time: datetime | None = Field(None, description="When it ended.")
    worker: WorkerName = Field("", description="Name of the worker's pod.")
    outcome: Outcome = Field(description="How it ended: Succeeded, Failed or Cancelled.")
    reason: str = Field(
        "",
        max_length=STATUS_REASON_LENGTH,
        description="Why it ended so: one word, for programs, for example the type of the error.",
    )
    message: str = Field(
        "",
        max_length=STATUS_MESSAGE_LENGTH,
        description="Why it ended so: a sentence, for people; cut at 1024 characters.",
    )


class ProgressReport(ApiModel):
    """How far a running attempt is, as its handler says."""

    percent: int | None = Field(
        None, ge=0, le=100, description="How much is done, 0 to 100. Absent until it was said."
    )
    message: str = Field(
        "",
        max_length=PROGRESS_MESSAGE_LENGTH,
        description="What is being done: a sentence, for people; at most 1024 characters.",
    )


class TaskResourceStatus(ApiModel):
    """How far a Task is."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            (
                f"!(has(oldSelf.phase) && oldSelf.phase in {TERMINAL_PHASES_IN_CEL}) || "
                "(has(self.phase) && self.phase == oldSelf.phase)",
                "the phase of a finished Task never changes: create a new Task to run it again",
            ),
            (
                "!has(oldSelf.attempts) || "
                "(has(self.attempts) && self.attempts >= oldSelf.attempts)",
                "attempts never decrease: read the Task again and count on from its attempts",
            ),
            (
                "!has(oldSelf.epoch) || (has(self.epoch) && self.epoch >= oldSelf.epoch)",
                "epoch never decreases: read the Task again and go on from its epoch",
            ),
            (
                "!has(oldSelf.completionTime) || has(self.completionTime)",
                "completionTime is never cleared: create a new Task to run it again",
            ),
        )
    )

    observed_generation: int = Field(
        -1,
        description=(
            "The metadata.generation of the spec the operator acted on last; -1 until it has "
            "written a status. kubectl wait believes no condition while this is behind."
        ),
    )
    phase: Phase = Field(
        "Pending",
        description=(
            "Where the Task is. Pending: nothing written yet. Blocked: waits for what reason "
            "names. Scheduled: waits for startAfter. Suspended: spec.suspend. Running: a worker "
            "has it. Retrying: waits for nextAttemptTime. Succeeded, Failed and Cancelled are "
            "final. What lasts less than 2 seconds is not written. "
            "Selectable: kubectl get tqt --field-selector status.phase=Failed."
        ),
    )
    reason: str = Field(
        "",
        max_length=STATUS_REASON_LENGTH,
        description=(
            "Why the Task is in this phase: one CamelCase word, for programs. Blocked: "
            "QueueNotFound, UnknownHandler, DependencyNotFound, WaitingForDependencies, "
            "PayloadUnresolved or ConcurrencyLimit. Scheduled: StartAfter. Retrying: the type of "
            "the error. Failed: RetriesExhausted, NonRetryable, WorkerLost, DeadlineExceeded, "
            "DependencyFailed or Invalid. Suspended and Cancelled: the same word."
        ),
    )
    message: str = Field(
        "",
        max_length=MESSAGE_MAX_LENGTH,
        description="Why the Task is in this phase: a sentence, for people.",
    )
    attempts: int = Field(
        0, ge=0, description="How many attempts were begun. Never decreases; absent means 0."
    )
    epoch: int = Field(
        0,
        ge=0,
        description=(
            "Raised before an attempt is taken back from a worker, so that its late outcome is "
            "told from that of the attempt which follows. Never decreases; absent means 0."
        ),
    )
    history: tuple[AttemptHistoryEntry, ...] = Field(
        (),
        max_length=HISTORY_LENGTH,
        description="The last 10 attempts that have ended, oldest first.",
        json_schema_extra=ATOMIC_LIST,
    )
    start_time: datetime | None = Field(
        None, description="When a worker began the first attempt. Absent until one has."
    )
    completion_time: datetime | None = Field(
        None, description="When the Task came to its end, whichever. Absent until then."
    )
    next_attempt_time: datetime | None = Field(
        None,
        description=(
            "When the next attempt is due, unless something else still keeps the Task then. Absent "
            "when no attempt waits for a time."
        ),
    )
    worker: WorkerName = Field(
        "", description="Name of the pod which runs the Task or ran its last attempt."
    )
    concurrency_key: str = Field(
        "",
        max_length=CONCURRENCY_KEY_MAX_LENGTH,
        description=(
            "The key the Task holds while an attempt of it is dispatched. Absent while it holds "
            "none."
        ),
    )
    progress: ProgressReport | None = Field(
        None,
        description="How far the running attempt is, as its handler says. Absent until it has.",
    )
    result: dict[str, Any] | None = Field(
        None,
        description=(
            "What the handler returned: a JSON object of at most 16 KiB. Absent when it returned "
            "nothing."
        ),
    )
    conditions: tuple[ResourceCondition, ...] = Field(
        (),
        max_length=CONDITIONS_MAX_ITEMS,
        description=(
            "Finished and Complete when the Task succeeded; Finished, Failed and Stalled when it "
            "failed or was cancelled; Reconciling before that, and Suspended while spec.suspend "
            "keeps the Task. After a resume Suspended stays, False since then. "
            "Wait with: kubectl wait --for=condition=Complete."
        ),
        json_schema_extra=CONDITIONS_LIST,
    )
