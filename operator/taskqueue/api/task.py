"""The custom resource Task: one piece of work, run once by a worker, retried as its queue says.

``TaskResource.model_validate(body)`` parses an object of the API server; there may be 100,000s of
them, so the models carry bounds only and no validators of their own.

What must stay true, and is guarded by the API server through the CEL rules below:

- what a Task is (queue, handler, payload, payloadFrom) never changes;
- cancel is one way;
- a terminal phase never changes, attempts and epoch never decrease, completionTime is never
  cleared, through /status and with ``status: null`` too: who is late is refused, not trusted;
- the spec of a finished Task is frozen.

A field a Task may inherit from its TaskQueue has no default here: absent means inherited.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from taskqueue.api.common import (
    ATOMIC_LIST,
    CONCURRENCY_KEY_MAX_LENGTH,
    DNS_LABEL_PATTERN,
    DNS_SUBDOMAIN_PATTERN,
    QUEUE_NAME_MAX_LENGTH,
    SET_LIST,
    TASK_KIND,
    ActiveDeadlineSeconds,
    ApiModel,
    AttemptTimeoutSeconds,
    ErrorTypes,
    Factor,
    InitialSeconds,
    Jitter,
    MaxAttempts,
    MaxDeliveries,
    MaxSeconds,
    Resource,
    TtlSecondsAfterFinished,
    validations,
)
from taskqueue.api.task_status import (
    TERMINAL_PHASES_IN_CEL,
    TaskResourceStatus,
)
from taskqueue.limits import HANDLER_NAME_LENGTH, OBJECT_NAME_LENGTH

PAYLOAD_SOURCES_MAX_ITEMS = 16
DEPENDENCIES_MAX_ITEMS = 64

#: RFC 3339 as Python reads it too; the API server's own format takes offsets of 99 hours.
TIME_PATTERN = (
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]{1,9})?"
    r"(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$"
)

TaskName = Annotated[
    str, Field(min_length=1, max_length=OBJECT_NAME_LENGTH, pattern=DNS_SUBDOMAIN_PATTERN)
]


# What tells about a Task is found here, whichever file holds it.
class TaskBackoff(ApiModel):
    """The wait before the next attempt, as far as the Task itself says it."""

    initial_seconds: InitialSeconds | None = Field(
        None,
        description=(
            "Seconds to wait after the first failed attempt, 0 to 86400. "
            "When absent, the TaskQueue's taskDefaults.retry.backoff.initialSeconds."
        ),
    )
    factor: Factor | None = Field(
        None,
        description=(
            "What the wait is multiplied by after every further failed attempt, 1 to 100. "
            "When absent, the TaskQueue's taskDefaults.retry.backoff.factor."
        ),
    )
    max_seconds: MaxSeconds | None = Field(
        None,
        description=(
            "The longest wait between two attempts in seconds, 0 to 86400. "
            "When absent, the TaskQueue's taskDefaults.retry.backoff.maxSeconds."
        ),
    )
    jitter: Jitter | None = Field(
        None,
        description=(
            "The part of every wait that is random, as a fraction from 0 to 1. "
            "When absent, the TaskQueue's taskDefaults.retry.backoff.jitter."
        ),
    )


class TaskRetry(ApiModel):
    """When a failed attempt is followed by another, as far as the Task itself says it."""

    max_attempts: MaxAttempts | None = Field(
        None,
        description=(
            "How often the Task is attempted in all, the first attempt included, 1 to 1000. "
            "When absent, the TaskQueue's taskDefaults.retry.maxAttempts."
        ),
    )
    backoff: TaskBackoff | None = Field(
        None,
        description=(
            "How long the Task waits before its next attempt. Each field it leaves out comes from "
            "the TaskQueue's taskDefaults.retry.backoff."
        ),
    )
    non_retryable: ErrorTypes | None = Field(
        None,
        description=(
            "Error types, as the worker reports them (for example ValueError), after which the "
            "Task fails at once; at most 64. When absent, the TaskQueue's "
            "taskDefaults.retry.nonRetryable; a list given here, even an empty one, replaces it."
        ),
        json_schema_extra=ATOMIC_LIST,
    )


class ConfigMapKeyReference(ApiModel):
    """A key of a ConfigMap in the namespace of the Task."""

    name: str = Field(
        min_length=1,
        max_length=OBJECT_NAME_LENGTH,
        pattern=DNS_SUBDOMAIN_PATTERN,
        description="Name of the ConfigMap, in the namespace of the Task.",
    )
    key: str = Field(
        min_length=1,
        max_length=OBJECT_NAME_LENGTH,
        pattern=r"^[-._a-zA-Z0-9]+$",
        description="The key of the ConfigMap's data whose value is the JSON object.",
    )


class PayloadFromSource(ApiModel):
    """Where a part of a payload is read from."""

    config_map_key_ref: ConfigMapKeyReference = Field(
        description="The key of a ConfigMap which holds the part. Required."
    )


class TaskResourceSpec(ApiModel):
    """What a Task is asked to do."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            (
                # CEL sees no field inside an object of unknown fields, but compares it whole.
                "has(self.payload) == has(oldSelf.payload) && "
                "(!has(self.payload) || self.payload == oldSelf.payload)",
                "payload is immutable: create a new Task to run another payload",
            ),
            (
                "has(self.payloadFrom) == has(oldSelf.payloadFrom) && "
                "(!has(self.payloadFrom) || self.payloadFrom == oldSelf.payloadFrom)",
                "payloadFrom is immutable: create a new Task to run another payload",
            ),
        )
    )

    queue: str = Field(
        min_length=1,
        max_length=QUEUE_NAME_MAX_LENGTH,
        pattern=DNS_LABEL_PATTERN,
        description=(
            "Name of the TaskQueue, in the namespace of the Task, which runs it. Immutable. The "
            "Task waits while there is no such TaskQueue."
        ),
        json_schema_extra=validations(
            ("self == oldSelf", "queue is immutable: create a new Task to run it in another queue")
        ),
    )
    handler: str = Field(
        min_length=1,
        max_length=HANDLER_NAME_LENGTH,
        # It travels as an AMQP short string, 255 bytes at most: a character must be a byte.
        pattern=r"^[!-~]+$",
        description=(
            "Name under which a worker registered the code to run; at most 253 printable ASCII "
            "characters without spaces. Immutable."
        ),
        json_schema_extra=validations(
            ("self == oldSelf", "handler is immutable: create a new Task to run another handler")
        ),
    )
    payload: dict[str, Any] = Field(
        default_factory=dict,
        description=(
            "What the handler is given: a JSON object with fields of any kind; keep it near 10 kB. "
            "Immutable. When absent, the handler is given an empty object. A field that is null is "
            "kept by the API server, but dropped by kubectl apply without --server-side."
        ),
    )
    payload_from: tuple[PayloadFromSource, ...] = Field(
        default_factory=tuple,
        max_length=PAYLOAD_SOURCES_MAX_ITEMS,
        description=(
            "Keys of ConfigMaps, at most 16, each of which holds a JSON object as text. They are "
            "read once, before the first attempt, and merged in order by their top-level fields, a "
            "later one over an earlier one and payload over all; merged they may be 200 KiB. The "
            "Task is Blocked while one is missing or is no JSON object. Immutable, the ConfigMaps "
            "are not. Empty when absent. Secrets belong into the workers' pod template, never into "
            "a payload."
        ),
        json_schema_extra=ATOMIC_LIST
        | validations(
            (
                "self.all(one, self.exists_one(other, other == one))",
                "payloadFrom names a key of a ConfigMap twice: name each once, where it is to be "
                "merged",
            )
        ),
    )
    priority: int = Field(
        0,
        ge=-1000,
        le=1000,
        description=(
            "Tasks of a higher priority are dispatched first, of the same priority older ones "
            "first; -1000 to 1000, 0 by default. Without effect once the Task is dispatched."
        ),
    )
    concurrency_key: str = Field(
        "",
        max_length=CONCURRENCY_KEY_MAX_LENGTH,
        description=(
            "Of the Tasks of one TaskQueue with the same key, at most its "
            "concurrencyLimits.perKey are dispatched at a time, 1 by default; the others are "
            "Blocked. At most 253 characters. Empty by default: not limited. Without effect once "
            "the Task is dispatched."
        ),
    )
    depends_on: tuple[TaskName, ...] = Field(
        default_factory=tuple,
        max_length=DEPENDENCIES_MAX_ITEMS,
        description=(
            "Names of Tasks of the same namespace, at most 64 and each once, which must have "
            "succeeded before this one is dispatched. It waits for one that does not exist yet, "
            "and fails with reason DependencyFailed when one failed or was cancelled. Empty when "
            "absent. Without effect once the Task is dispatched."
        ),
        json_schema_extra=SET_LIST,
    )
    start_after: datetime | None = Field(
        None,
        description=(
            "The Task is not dispatched before this time, with a time zone, for example "
            "2026-01-02T03:04:05Z. When absent, or past, it need not wait. Without effect once the "
            "Task is dispatched."
        ),
        json_schema_extra={
            "pattern": TIME_PATTERN,
            **validations(
                (
                    # The format takes what is no time; a rule makes the API server parse the value.
                    "self >= timestamp('1970-01-01T00:00:00Z') && "
                    "self < timestamp('9999-01-01T00:00:00Z')",
                    "startAfter is no time of the years 1970 to 9998: correct it, or leave "
                    "startAfter out",
                )
            ),
        },
    )
    retry: TaskRetry | None = Field(
        None,
        description=(
            "When a failed attempt is followed by another one. Each field it leaves out comes from "
            "the TaskQueue's taskDefaults.retry."
        ),
    )
    attempt_timeout_seconds: AttemptTimeoutSeconds | None = Field(
        None,
        description=(
            "How long one attempt may run in whole seconds, 1 to 86400. After it the attempt is "
            "stopped and counts as failed. When absent, the TaskQueue's "
            "taskDefaults.attemptTimeoutSeconds."
        ),
    )
    max_deliveries: MaxDeliveries | None = Field(
        None,
        description=(
            "How often one attempt may be delivered to a worker, 1 to 20. An attempt that has lost "
            "its worker that often counts as failed, with reason WorkerLost. When absent, the "
            "TaskQueue's taskDefaults.maxDeliveries."
        ),
    )
    active_deadline_seconds: ActiveDeadlineSeconds | None = Field(
        None,
        description=(
            "How long the Task may take in whole seconds, 1 to 31536000, from when it may first "
            "run: the latest of its creation, startAfter, the end of its last suspension and the "
            "success of its dependencies. All waiting, attempts and pauses count. After it the "
            "Task fails with reason DeadlineExceeded and a running attempt is stopped. When "
            "absent, the TaskQueue's taskDefaults.activeDeadlineSeconds."
        ),
    )
    ttl_seconds_after_finished: TtlSecondsAfterFinished | None = Field(
        None,
        description=(
            "How long the Task stays after its completionTime in whole seconds, 0 to 31536000; "
            "then the operator deletes it, but not while an unfinished Task depends on it. When "
            "absent, the TaskQueue's taskDefaults.ttlSecondsAfterFinished. A Task deleted by its "
            "TTL whose manifest is still in Git is created, and run, again by the next sync."
        ),
    )
    suspend: bool = Field(
        False,
        description=(
            "While true the Task is not dispatched. An attempt already dispatched is stopped and "
            "taken back, and not counted. False by default."
        ),
    )
    cancel: bool = Field(
        False,
        description=(
            "True ends the Task as Cancelled, whatever its phase; a running attempt is stopped. "
            "One way: it cannot become false again. False by default."
        ),
        json_schema_extra=validations(
            (
                "self || !oldSelf",
                "cancel cannot be taken back: create a new Task to run it again, or use suspend "
                "for what is to go on later",
            )
        ),
    )


class TaskResource(Resource):
    """One piece of work for a TaskQueue. It is run again only as a new object."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            (
                "!(has(oldSelf.status) && has(oldSelf.status.phase) && "
                f"oldSelf.status.phase in {TERMINAL_PHASES_IN_CEL}) || self.spec == oldSelf.spec",
                "the spec of a finished Task is frozen: create a new Task to run it again",
            ),
            (
                "!has(self.spec.dependsOn) || !(self.metadata.name in self.spec.dependsOn)",
                "the Task depends on itself: take its own name out of spec.dependsOn",
            ),
        )
    )

    kind: str = Field(TASK_KIND, description="The kind of this object: Task.")
    spec: TaskResourceSpec = Field(description="What to run, in which queue, and how often.")
    status: TaskResourceStatus = Field(
        default_factory=TaskResourceStatus,
        description="How far the Task is. Written by the operator only.",
        json_schema_extra={"default": {"phase": "Pending", "observedGeneration": -1}},
    )
