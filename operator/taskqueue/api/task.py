"""The custom resource Task: one piece of work for a worker, retried by the policy of its queue.

``TaskResource.model_validate(body)`` parses an object of the API server. There may be hundreds of
thousands of them, so the models have bounds only and no validators of their own.

Invariants, which the API server enforces by the CEL rules below:

- the identity of the work (queue, handler, payload, payloadFrom) never changes;
- cancel cannot be undone;
- a terminal phase never changes, attempts and epoch never decrease, and completionTime is never
  cleared, also through /status and with ``status: null``: a late writer is refused;
- the spec of a finished Task is frozen.

A field that a Task may inherit from its TaskQueue has no default here: absent means inherited.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from pydantic.config import JsonDict

from taskqueue.api.common import (
    ATOMIC_LIST,
    ATOMIC_MAP,
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
from taskqueue.api.taskqueue_notifications import NOTIFICATIONS_MAX_ITEMS, NotificationName
from taskqueue.limits import HANDLER_NAME_LENGTH, OBJECT_NAME_LENGTH, PAYLOAD_BYTES

PAYLOAD_SOURCES_MAX_ITEMS = 16
DEPENDENCIES_MAX_ITEMS = 64

#: RFC 3339 as Python parses it too; the API server's own format accepts offsets of 99 hours.
TIME_PATTERN = (
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]{1,9})?"
    r"(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$"
)

_PAYLOAD_CHANGED = "payload is immutable: create a new Task to run another payload"
_PAYLOAD_FROM_CHANGED = "payloadFrom is immutable: create a new Task to run another payload"

_UNWRITTEN_STATUS: JsonDict = {"default": {"phase": "Pending", "observedGeneration": -1}}

DependencyWhen = Literal["Succeeded", "Failed", "Finished"]
TaskName = Annotated[
    str, Field(min_length=1, max_length=OBJECT_NAME_LENGTH, pattern=DNS_SUBDOMAIN_PATTERN)
]


class TaskBackoff(ApiModel):
    """The delay before the next attempt; a field that is absent comes from the TaskQueue."""

    initial_seconds: InitialSeconds | None = Field(
        None,
        description=(
            "Delay after the first failed attempt in seconds, 0 to 86400. "
            "When absent, the TaskQueue's taskDefaults.retry.backoff.initialSeconds."
        ),
    )
    factor: Factor | None = Field(
        None,
        description=(
            "Factor by which the delay grows with every further failed attempt, 1 to 100. "
            "When absent, the TaskQueue's taskDefaults.retry.backoff.factor."
        ),
    )
    max_seconds: MaxSeconds | None = Field(
        None,
        description=(
            "Longest delay between two attempts in seconds, 0 to 86400. "
            "When absent, the TaskQueue's taskDefaults.retry.backoff.maxSeconds."
        ),
    )
    jitter: Jitter | None = Field(
        None,
        description=(
            "Random part of every delay, as a fraction from 0 to 1. "
            "When absent, the TaskQueue's taskDefaults.retry.backoff.jitter."
        ),
    )


class TaskRetry(ApiModel):
    """How failed attempts are retried; a field that is absent comes from the TaskQueue."""

    max_attempts: MaxAttempts | None = Field(
        None,
        description=(
            "Number of attempts in total, including the first, 1 to 1000. "
            "When absent, the TaskQueue's taskDefaults.retry.maxAttempts."
        ),
    )
    backoff: TaskBackoff | None = Field(
        None,
        description=(
            "Delay before the next attempt. A field that is absent comes from the TaskQueue's "
            "taskDefaults.retry.backoff."
        ),
    )
    non_retryable: ErrorTypes | None = Field(
        None,
        description=(
            "Error types, as the worker reports them (for example ValueError), that fail the Task "
            "at once; at most 64. When absent, the TaskQueue's taskDefaults.retry.nonRetryable; a "
            "list given here, even an empty one, replaces it."
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
        description="Key in the ConfigMap's data; its value is a JSON object.",
    )


class PayloadFromSource(ApiModel):
    """A source of a part of the payload."""

    config_map_key_ref: ConfigMapKeyReference = Field(
        description="The ConfigMap and the key that hold the part. Required."
    )


class TaskDependency(ApiModel):
    """Another Task that has to end first, and how."""

    name: TaskName = Field(description="Name of the Task, in the same namespace. Required.")
    when: DependencyWhen = Field(
        "Succeeded",
        description=(
            "How the Task has to end. Succeeded, the default: as with dependsOn. Failed: its phase "
            "is Failed. Finished: in any way. If a Task ends otherwise than Failed, one that waits "
            "for that ends as Cancelled with reason Skipped."
        ),
    )


class TaskResourceSpec(ApiModel):
    """The desired state of a Task."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            # The API server copies an object's schema for each field of it that a rule names. So
            # what can be said in the field's own schema is said there; that a field is added or
            # removed is seen only here.
            (
                "has(self.payload) == has(oldSelf.payload)",
                _PAYLOAD_CHANGED,
                "payload",
            ),
            (
                "has(self.payloadFrom) == has(oldSelf.payloadFrom)",
                _PAYLOAD_FROM_CHANGED,
                "payloadFrom",
            ),
            (
                "!has(oldSelf.cancel) || !oldSelf.cancel || (has(self.cancel) && self.cancel)",
                "cancel cannot be undone: create a new Task to run it again, or use suspend to "
                "pause a Task",
                "cancel",
            ),
        )
    )

    queue: str = Field(
        min_length=1,
        max_length=QUEUE_NAME_MAX_LENGTH,
        pattern=DNS_LABEL_PATTERN,
        description=(
            "Name of the TaskQueue that runs the Task, in the same namespace. Immutable. The Task "
            "waits while the TaskQueue does not exist."
        ),
        json_schema_extra=validations(
            ("self == oldSelf", "queue is immutable: create a new Task to run it in another queue")
        ),
    )
    handler: str = Field(
        min_length=1,
        max_length=HANDLER_NAME_LENGTH,
        # It is sent as an AMQP short string, 255 bytes at most: a character must be a byte.
        pattern=r"^[!-~]+$",
        description=(
            "Name of the handler that runs the Task, as a worker registers it; at most 253 "
            "printable ASCII characters without spaces. Immutable."
        ),
        json_schema_extra=validations(
            ("self == oldSelf", "handler is immutable: create a new Task to run another handler")
        ),
    )
    payload: dict[str, Any] = Field(
        default_factory=dict,
        description=(
            "Input of the handler: a JSON object with any fields; keep it near 10 kB. Immutable. "
            "When absent, the handler gets an empty object. The API server keeps a field that is "
            "null, but kubectl apply without --server-side drops it."
        ),
        # CEL sees no field inside an object of unknown fields, but compares it whole.
        json_schema_extra=ATOMIC_MAP | validations(("self == oldSelf", _PAYLOAD_CHANGED)),
    )
    payload_from: tuple[PayloadFromSource, ...] = Field(
        default_factory=tuple,
        max_length=PAYLOAD_SOURCES_MAX_ITEMS,
        description=(
            "Keys of ConfigMaps, at most 16, each with a JSON object as text. They are read when "
            "an attempt is dispatched, and merged in order by their top-level fields; later ones "
            "override earlier ones, and payload overrides all. The result may have up to "
            f"{PAYLOAD_BYTES // 1024} KiB, the texts together up to four times as many "
            "characters. An attempt after a change gets what is there then, and the condition "
            "PayloadChanged says so. "
            "The Task is Blocked while one is missing or is not a JSON object. The list is "
            "immutable, the ConfigMaps are not. Empty when absent. Put Secrets into the workers' "
            "pod template, never into a payload."
        ),
        json_schema_extra=ATOMIC_LIST
        | validations(
            ("self == oldSelf", _PAYLOAD_FROM_CHANGED),
            (
                "self.all(one, self.exists_one(other, other == one))",
                "payloadFrom names a key of a ConfigMap twice: name each once, where it is to be "
                "merged",
            ),
        ),
    )
    priority: int = Field(
        0,
        ge=-1000,
        le=1000,
        description=(
            "Tasks with a higher priority are dispatched first, and older ones first among equals; "
            "-1000 to 1000, 0 by default. No effect once the Task is dispatched."
        ),
    )
    concurrency_key: str = Field(
        "",
        max_length=CONCURRENCY_KEY_MAX_LENGTH,
        description=(
            "Limits concurrency: of the Tasks of one TaskQueue with the same key, at most "
            "concurrencyLimits.perKey of the TaskQueue are dispatched at a time, 1 by default; the "
            "others are Blocked. At most 253 characters. Empty by default: no limit. No effect "
            "once the Task is dispatched."
        ),
    )
    depends_on: tuple[TaskName, ...] = Field(
        default_factory=tuple,
        max_length=DEPENDENCIES_MAX_ITEMS,
        description=(
            "Names of Tasks in the same namespace that must succeed before this one is dispatched; "
            "at most 64, each once. The Task waits for one that does not exist yet, and fails with "
            "reason DependencyFailed when one failed or was cancelled. Empty when absent. No "
            "effect once the Task is dispatched."
        ),
        json_schema_extra=SET_LIST,
    )
    dependencies: tuple[TaskDependency, ...] = Field(
        default_factory=tuple,
        max_length=DEPENDENCIES_MAX_ITEMS,
        description=(
            "Tasks in the same namespace that must end in a certain way before this one is "
            "dispatched; at most 64 together with dependsOn, each once. Empty when absent. No "
            "effect once the Task is dispatched."
        ),
        json_schema_extra={
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"],
        },
    )
    start_after: datetime | None = Field(
        None,
        description=(
            "Time before which the Task is not dispatched, with a time zone, for example "
            "2026-01-02T03:04:05Z. When it is absent or in the past, the Task does not wait. No "
            "effect once the Task is dispatched."
        ),
        json_schema_extra={
            "pattern": TIME_PATTERN,
            **validations(
                (
                    # The format accepts impossible times; the rule makes the API server parse it.
                    "self >= timestamp('1970-01-01T00:00:00Z') && "
                    "self < timestamp('9999-01-01T00:00:00Z')",
                    "startAfter is not a time in the years 1970 to 9998: correct it, or omit it",
                )
            ),
        },
    )
    retry: TaskRetry | None = Field(
        None,
        description=(
            "How failed attempts are retried. A field that is absent comes from the TaskQueue's "
            "taskDefaults.retry."
        ),
    )
    attempt_timeout_seconds: AttemptTimeoutSeconds | None = Field(
        None,
        description=(
            "Time limit of one attempt in whole seconds, 1 to 86400. After that the attempt is "
            "stopped and counts as failed. When absent, the TaskQueue's "
            "taskDefaults.attemptTimeoutSeconds."
        ),
    )
    max_deliveries: MaxDeliveries | None = Field(
        None,
        description=(
            "How often one attempt may be delivered to a worker, 1 to 20. An attempt that has lost "
            "that many workers counts as failed, with reason WorkerLost. When absent, the "
            "TaskQueue's taskDefaults.maxDeliveries."
        ),
    )
    active_deadline_seconds: ActiveDeadlineSeconds | None = Field(
        None,
        description=(
            "Time limit of the whole Task in whole seconds, 1 to 31536000. It starts when the Task "
            "may first run: the latest of its creation, startAfter, the end of its last suspension "
            "and the success of its dependencies. It includes waiting, attempts and delays between "
            "them. After that the Task fails with reason DeadlineExceeded, and a running attempt "
            "is stopped. When absent, the TaskQueue's taskDefaults.activeDeadlineSeconds."
        ),
    )
    ttl_seconds_after_finished: TtlSecondsAfterFinished | None = Field(
        None,
        description=(
            "How long after its completionTime the operator deletes the Task, in whole seconds, 0 "
            "to 31536000; not while an unfinished Task depends on it. When absent, the TaskQueue's "
            "taskDefaults.ttlSecondsAfterFinished. If the manifest of a deleted Task is still in "
            "Git, the next sync creates and runs it again."
        ),
    )
    notification_names: tuple[NotificationName, ...] | None = Field(
        None,
        max_length=NOTIFICATIONS_MAX_ITEMS,
        description=(
            "Names of the TaskQueue's notifications that get the end of this Task; at most 8, each "
            "once. An empty list: none of them. A name that the TaskQueue does not have has no "
            "effect. When absent, all of them."
        ),
        json_schema_extra=SET_LIST,
    )
    suspend: bool = Field(
        False,
        description=(
            "While true, the Task is not dispatched. An attempt that is already dispatched is "
            "stopped and recalled, and does not count. False by default."
        ),
    )
    cancel: bool = Field(
        False,
        description=(
            "True ends an unfinished Task as Cancelled; a running attempt is stopped. It cannot "
            "become false again. False by default."
        ),
    )


class TaskResource(Resource):
    """One piece of work for a TaskQueue. To run it again, create a new Task."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            (
                f'!(oldSelf.?status.?phase.orValue("") in {TERMINAL_PHASES_IN_CEL}) || '
                "self.spec == oldSelf.spec",
                "the spec of a finished Task is frozen: create a new Task to run it again",
            ),
            (
                "!has(self.spec.dependsOn) || !(self.metadata.name in self.spec.dependsOn)",
                "the Task depends on itself: remove its own name from spec.dependsOn",
            ),
            (
                "!has(self.spec.dependencies) || self.spec.dependencies.all(one, "
                "one.name != self.metadata.name && (!has(self.spec.dependsOn) || "
                "size(self.spec.dependsOn) + size(self.spec.dependencies) <= "
                f"{DEPENDENCIES_MAX_ITEMS} && !(one.name in self.spec.dependsOn)))",
                "spec.dependencies names the Task itself or one of spec.dependsOn, or both have "
                f"more than {DEPENDENCIES_MAX_ITEMS} names: name each other Task once",
            ),
        )
    )

    kind: str = Field(TASK_KIND, description="The kind of this object: Task.")
    spec: TaskResourceSpec = Field(description="The work, its queue, and when and how it runs.")
    status: TaskResourceStatus = Field(
        default_factory=TaskResourceStatus,
        description="The progress of the Task. Written by the operator only.",
        json_schema_extra=_UNWRITTEN_STATUS | ATOMIC_MAP,
    )
