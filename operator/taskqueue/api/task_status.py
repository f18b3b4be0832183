"""The status of a Task: written by the operator only, protected by the API server.

The CEL rules refuse a late writer, also through /status and with ``status: null``: a terminal phase
never changes, attempts and epoch never decrease, completionTime is never cleared.
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
    MEDIA_TYPE_LENGTH,
    OBJECT_NAME_LENGTH,
    PROGRESS_MESSAGE_LENGTH,
    STATUS_MESSAGE_LENGTH,
    STATUS_OUTPUT_BYTES,
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

#: Namespace, queue, uid, attempt and epoch of a Task, in a key.
KEY_MAX_LENGTH = 512

AttemptNumber = Annotated[int, Field(ge=1)]
WorkerName = Annotated[str, Field(max_length=OBJECT_NAME_LENGTH)]

TERMINAL_PHASES_IN_CEL = json.dumps(TERMINAL_PHASES)

_ATTEMPTS_DECREASE = "attempts never decrease: read the Task again and continue from its attempts"
_EPOCH_DECREASES = "epoch never decreases: read the Task again and continue from its epoch"
#: What the API server says to a writer that does not know how far another one has come.
NEVER_DECREASES = (_ATTEMPTS_DECREASE, _EPOCH_DECREASES)


class AttemptHistoryEntry(ApiModel):
    """One attempt that has ended."""

    attempt: AttemptNumber = Field(description="Number of the attempt, from 1.")
    start_time: datetime | None = Field(
        None, description="When a worker started it. Absent when no worker is known to have."
    )
    finish_time: datetime | None = Field(None, description="When it ended.")
    worker: WorkerName = Field("", description="Name of the worker's pod.")
    outcome: Outcome = Field(description="How it ended: Succeeded, Failed or Cancelled.")
    reason: str = Field(
        "",
        max_length=STATUS_REASON_LENGTH,
        description="Why it ended so, for programs: one word, for example the type of the error.",
    )
    message: str = Field(
        "",
        max_length=STATUS_MESSAGE_LENGTH,
        description="Why it ended so, for people: a sentence, truncated to 1024 characters.",
    )
    output: str = Field(
        "",
        max_length=STATUS_OUTPUT_BYTES,
        description=(
            "The last 4 KiB of what a failed attempt printed, if spec.results.output of the "
            "TaskQueue asks for it and there is no store. Absent otherwise."
        ),
    )


class ProgressReport(ApiModel):
    """The progress of a running attempt, as its handler reports it."""

    percent: int | None = Field(
        None, ge=0, le=100, description="How much is done, 0 to 100. Absent until reported."
    )
    message: str = Field(
        "",
        max_length=PROGRESS_MESSAGE_LENGTH,
        description="What is being done, for people: a sentence of at most 1024 characters.",
    )


class ResultRef(ApiModel):
    """A result in the store of the TaskQueue."""

    key: str = Field(
        min_length=1,
        max_length=KEY_MAX_LENGTH,
        description="Its key in the store: namespace/queue/uid/attempt-epoch.",
    )
    size_bytes: int = Field(ge=0, description="How many bytes it has.")
    content_type: str = Field(
        max_length=MEDIA_TYPE_LENGTH,
        description="Its media type: application/json, or what the handler gave with bytes.",
    )
    sha256: str = Field(
        max_length=64,
        pattern="^[0-9a-f]{64}$",
        description="SHA-256 of its bytes, in hexadecimal digits.",
    )
    expiration_time: datetime | None = Field(
        None,
        description=(
            "When it may be deleted, by spec.results.retentionSeconds of the TaskQueue as it was. "
            "Absent: never."
        ),
    )


class TaskResourceStatus(ApiModel):
    """The observed state of a Task."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            (
                f'!(oldSelf.?phase.orValue("") in {TERMINAL_PHASES_IN_CEL}) || '
                "(has(self.phase) && self.phase == oldSelf.phase)",
                "the phase of a finished Task never changes: create a new Task to run it again",
            ),
            (
                "!has(oldSelf.attempts) || "
                "(has(self.attempts) && self.attempts >= oldSelf.attempts)",
                _ATTEMPTS_DECREASE,
            ),
            (
                "!has(oldSelf.epoch) || (has(self.epoch) && self.epoch >= oldSelf.epoch)",
                _EPOCH_DECREASES,
            ),
            (
                "!has(oldSelf.completionTime) || has(self.completionTime)",
                "completionTime is never cleared: create a new Task to run it again",
            ),
            (
                '!has(self.resultRef) || (has(self.phase) && self.phase == "Succeeded")',
                "only a Task that succeeded has a resultRef: leave it out",
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
    phase: Phase = Field(
        "Pending",
        description=(
            "State of the Task. Pending: nothing is written yet. Blocked: waits for what reason "
            "names. Scheduled: waits for startAfter, or for the time its handler asked for. "
            "Suspended: by spec.suspend. Running: a worker runs it. Retrying: waits for "
            "nextAttemptTime. Succeeded, Failed and Cancelled are final. A state that lasts less "
            "than 2 seconds is not written. "
            "Selectable: kubectl get tqt --field-selector status.phase=Failed."
        ),
    )
    reason: str = Field(
        "",
        max_length=STATUS_REASON_LENGTH,
        description=(
            "Why the Task is in this phase, for programs: one CamelCase word. Blocked: "
            "QueueNotFound, UnknownHandler, DependencyNotFound, WaitingForDependencies, "
            "PayloadUnresolved, ConcurrencyLimit or QueueFull. Scheduled: StartAfter or Snoozed. "
            "Retrying: the type of the error. Failed: RetriesExhausted, NonRetryable, WorkerLost, "
            "DeadlineExceeded, DependencyFailed or Invalid. Cancelled: Cancelled, Superseded, "
            "Rejected or Skipped. Suspended: the same word."
        ),
    )
    message: str = Field(
        "",
        max_length=MESSAGE_MAX_LENGTH,
        description="Why the Task is in this phase, for people: a sentence.",
    )
    attempts: int = Field(
        0, ge=0, description="Number of attempts started. Never decreases; absent means 0."
    )
    epoch: int = Field(
        0,
        ge=0,
        description=(
            "Raised before an attempt is recalled, so that its late outcome is not mistaken for "
            "that of the next attempt. Never decreases; absent means 0."
        ),
    )
    history: tuple[AttemptHistoryEntry, ...] = Field(
        (),
        max_length=HISTORY_LENGTH,
        description="The last 10 attempts that have ended, oldest first.",
        json_schema_extra=ATOMIC_LIST,
    )
    start_time: datetime | None = Field(
        None, description="When a worker started the first attempt. Absent until then."
    )
    completion_time: datetime | None = Field(
        None, description="When the Task ended in any final phase. Absent until then."
    )
    next_attempt_time: datetime | None = Field(
        None,
        description=(
            "When the next attempt is due, unless something else still holds the Task. Absent when "
            "no attempt waits for a time."
        ),
    )
    worker: WorkerName = Field(
        "", description="Name of the pod that runs the Task or ran its last attempt."
    )
    concurrency_key: str = Field(
        "",
        max_length=CONCURRENCY_KEY_MAX_LENGTH,
        description=(
            "The concurrency key that the Task holds while an attempt is dispatched. Absent while "
            "it holds none."
        ),
    )
    attempt_timeout_seconds: int = Field(
        0,
        ge=0,
        description=(
            "How long the running attempt may take, in seconds: as it was when the attempt was "
            "dispatched, whatever the defaults are now. Absent while no worker is known to run one."
        ),
    )
    snoozes: int = Field(
        0,
        ge=0,
        description="How often the handler asked to be called later, at most 1000 times.",
    )
    progress: ProgressReport | None = Field(
        None,
        description=(
            "Progress of the running attempt, as its handler reports it. Absent until then."
        ),
    )
    checkpoint: dict[str, Any] | None = Field(
        None,
        description=(
            "What the handler saved last with ctx.checkpoint, for its next start: a JSON object of "
            "at most 16 KiB. Written at most every 10 seconds, and with each end of an attempt. "
            "Absent when it saved nothing."
        ),
    )
    payload_digest: str = Field(
        "",
        max_length=64,
        description=(
            "Beginning of the SHA-256 of the merged payload that was published first, as JSON. "
            "Absent without payloadFrom, and until something is written after that."
        ),
    )
    result: dict[str, Any] | None = Field(
        None,
        description=(
            "Return value of the handler: a JSON object of at most 16 KiB. Absent when it returned "
            "nothing, and when it is in a store: see resultRef."
        ),
    )
    result_ref: ResultRef | None = Field(
        None,
        description=(
            "Where the return value of the handler is, when the TaskQueue has a store and it is "
            "not in result. Absent otherwise."
        ),
    )
    conditions: tuple[ResourceCondition, ...] = Field(
        (),
        max_length=CONDITIONS_MAX_ITEMS,
        description=(
            "Finished and Complete when the Task succeeded; Finished, Failed and Stalled when it "
            "failed or was cancelled; Reconciling before that, and Suspended while spec.suspend "
            "holds the Task. After a resume Suspended stays, as False since then. PayloadChanged "
            "when an attempt got another merged payload than the first. "
            "Wait with: kubectl wait --for=condition=Complete."
        ),
        json_schema_extra=CONDITIONS_LIST,
    )
