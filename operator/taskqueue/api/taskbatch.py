"""The custom resource TaskBatch: many items of work in one object.

``TaskBatchResource.model_validate(body)`` parses an object of the API server. What the work is
never changes; whether items in the object or in a ConfigMap were changed is found by the operator,
which keeps their digest in the status: for a rule of the API server they may be too many.
"""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field
from pydantic.config import JsonDict

from taskqueue.api.common import (
    ATOMIC_LIST,
    ATOMIC_MAP,
    DNS_LABEL_PATTERN,
    DNS_SUBDOMAIN_PATTERN,
    QUEUE_NAME_MAX_LENGTH,
    TASKBATCH_KIND,
    ActiveDeadlineSeconds,
    ApiModel,
    AttemptTimeoutSeconds,
    MaxDeliveries,
    Resource,
    TtlSecondsAfterFinished,
    validations,
)
from taskqueue.api.task import TaskRetry
from taskqueue.api.task_status import TERMINAL_PHASES_IN_CEL
from taskqueue.api.taskbatch_status import TaskBatchResourceStatus
from taskqueue.limits import (
    BATCH_ITEMS,
    HANDLER_NAME_LENGTH,
    INLINE_BYTES,
    INLINE_ITEMS,
    OBJECT_NAME_LENGTH,
    PAYLOAD_BYTES,
)

_UNWRITTEN_STATUS: JsonDict = {"default": {"phase": "Pending", "observedGeneration": -1}}


def _immutable(what: str) -> JsonDict:
    return validations(
        ("self == oldSelf", f"{what} is immutable: create a new TaskBatch to change it")
    )


class BatchTemplateSpec(ApiModel):
    """How each item runs."""

    handler: str = Field(
        min_length=1,
        max_length=HANDLER_NAME_LENGTH,
        pattern=r"^[!-~]+$",
        description=(
            "Name of the handler that runs the items, as a worker registers it; at most 253 "
            "printable ASCII characters without spaces."
        ),
    )
    retry: TaskRetry | None = Field(
        None,
        description=(
            "How failed attempts of an item are retried. A field that is absent comes from the "
            "TaskQueue's taskDefaults.retry."
        ),
    )
    attempt_timeout_seconds: AttemptTimeoutSeconds | None = Field(
        None,
        description=(
            "Time limit of one attempt of an item in whole seconds, 1 to 86400. When absent, the "
            "TaskQueue's taskDefaults.attemptTimeoutSeconds."
        ),
    )
    max_deliveries: MaxDeliveries | None = Field(
        None,
        description=(
            "How often one attempt of an item may be delivered to a worker, 1 to 20. When absent, "
            "the TaskQueue's taskDefaults.maxDeliveries."
        ),
    )


class BatchTemplate(ApiModel):
    """What is the same for all items."""

    spec: BatchTemplateSpec = Field(description="How each item runs: fields of a Task's spec.")


class ItemsKeyReference(ApiModel):
    """A key of a ConfigMap in the namespace of the TaskBatch."""

    name: str = Field(
        min_length=1,
        max_length=OBJECT_NAME_LENGTH,
        pattern=DNS_SUBDOMAIN_PATTERN,
        description="Name of the ConfigMap, in the namespace of the TaskBatch.",
    )
    key: str = Field(
        min_length=1,
        max_length=OBJECT_NAME_LENGTH,
        pattern=r"^[-._a-zA-Z0-9]+$",
        description="Key in the ConfigMap's data; its value has a JSON object in each line.",
    )


class ItemsFrom(ApiModel):
    """Where the items are."""

    config_map_key_ref: ItemsKeyReference = Field(
        description="The ConfigMap and the key that hold the items. Required."
    )


class TaskBatchResourceSpec(ApiModel):
    """The desired state of a TaskBatch."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            (
                "has(self.items) && !has(self.count) && !has(self.itemsFrom) || "
                "!has(self.items) && has(self.count) != has(self.itemsFrom)",
                "where the items come from must be clear: give exactly one of items, count and "
                "itemsFrom",
            ),
            (
                "has(self.items) == has(oldSelf.items) && has(self.count) == has(oldSelf.count)",
                "where the items come from is immutable: create a new TaskBatch to change it",
            ),
            (
                "!has(oldSelf.cancel) || !oldSelf.cancel || (has(self.cancel) && self.cancel)",
                "cancel cannot be undone: create a new TaskBatch to run it again, or use suspend "
                "to pause a TaskBatch",
                "cancel",
            ),
        )
    )

    queue: str = Field(
        min_length=1,
        max_length=QUEUE_NAME_MAX_LENGTH,
        pattern=DNS_LABEL_PATTERN,
        description=(
            "Name of the TaskQueue that runs the items, in the same namespace. Immutable. The "
            "TaskBatch waits while the TaskQueue does not exist."
        ),
        json_schema_extra=_immutable("queue"),
    )
    template: BatchTemplate = Field(
        description="What is the same for all items. Immutable.",
        json_schema_extra=_immutable("template"),
    )
    items: tuple[dict[str, Any], ...] | None = Field(
        None,
        max_length=INLINE_ITEMS,
        description=(
            f"The payloads of the items, JSON objects, at most {INLINE_ITEMS} with "
            f"{INLINE_BYTES // 1024} KiB together, because each write of the status stores the "
            "object again. Do not change them: what was changed is found when the operator starts "
            "again, and fails the TaskBatch."
        ),
        json_schema_extra=ATOMIC_LIST,
    )
    count: int | None = Field(
        None,
        ge=0,
        le=BATCH_ITEMS,
        description=(
            f"Number of items, 0 to {BATCH_ITEMS}. The payload of each is its index, 0 to count - "
            '1: {"index": 0}. Immutable.'
        ),
        json_schema_extra=_immutable("count"),
    )
    items_from: ItemsFrom | None = Field(
        None,
        description=(
            f"Where the payloads of the items are: JSON lines, at most {BATCH_ITEMS}, each an "
            f"object of at most {PAYLOAD_BYTES // 1024} KiB. The TaskBatch is Blocked until it is "
            "there; leave it unchanged and in place until the TaskBatch has ended. Immutable."
        ),
        json_schema_extra=_immutable("itemsFrom"),
    )
    parallelism: int | None = Field(
        None,
        ge=1,
        le=BATCH_ITEMS,
        description=(
            "How many items may be under way at once, those included that wait for a retry, 1 to "
            "100000. When absent, as many as keep the workers of the TaskQueue busy."
        ),
    )
    max_failed_items: int | None = Field(
        None,
        ge=0,
        le=BATCH_ITEMS,
        description=(
            "How many items may fail, 0 to 100000. With one more the TaskBatch fails at once with "
            "reason TooManyFailures, and what has not ended is cancelled; with as many or less it "
            "succeeds. When absent, all items run, and the TaskBatch fails if one of them does."
        ),
    )
    priority: int = Field(
        0,
        ge=-1000,
        le=1000,
        description=(
            "Priority of the items among the Tasks of the TaskQueue, -1000 to 1000, 0 by default. "
            "Higher ones are dispatched first, and of TaskBatches the older one. No effect on "
            "items that have begun."
        ),
    )
    active_deadline_seconds: ActiveDeadlineSeconds | None = Field(
        None,
        description=(
            "Time limit of the whole TaskBatch in whole seconds, 1 to 31536000, from its creation "
            "or the end of its last suspension on. After that it fails with reason "
            "DeadlineExceeded, and what has not ended is cancelled. When absent, there is none: "
            "the TaskQueue's default is for Tasks."
        ),
    )
    ttl_seconds_after_finished: TtlSecondsAfterFinished | None = Field(
        None,
        description=(
            "How long after its completionTime the operator deletes the TaskBatch, in whole "
            "seconds, 0 to 31536000. When absent, the TaskQueue's "
            "taskDefaults.ttlSecondsAfterFinished. If the manifest of a deleted TaskBatch is still "
            "in Git, the next sync creates and runs it again."
        ),
    )
    suspend: bool = Field(
        False,
        description=(
            "While true, no item is dispatched. Attempts that are already dispatched are stopped "
            "and recalled, and do not count. False by default."
        ),
    )
    cancel: bool = Field(
        False,
        description=(
            "True ends an unfinished TaskBatch as Cancelled; running attempts are stopped. It "
            "cannot become false again. False by default."
        ),
    )


class TaskBatchResource(Resource):
    """Many items of work for one handler, in one object. To run it again, create a new one."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            (
                f'!(oldSelf.?status.?phase.orValue("") in {TERMINAL_PHASES_IN_CEL}) || '
                "(self.spec.?suspend.orValue(false) == oldSelf.spec.?suspend.orValue(false) "
                "&& "
                "self.spec.?cancel.orValue(false) == oldSelf.spec.?cancel.orValue(false))",
                "a finished TaskBatch stays finished: create a new TaskBatch to run it again",
            ),
        )
    )

    kind: str = Field(TASKBATCH_KIND, description="The kind of this object: TaskBatch.")
    spec: TaskBatchResourceSpec = Field(
        description="The items, their queue, and when and how they run."
    )
    status: TaskBatchResourceStatus = Field(
        default_factory=TaskBatchResourceStatus,
        description="The progress of the TaskBatch. Written by the operator only.",
        json_schema_extra=_UNWRITTEN_STATUS | ATOMIC_MAP,
    )
