"""Shared by the resources: names of the API, bounds, base models, CEL rules and conditions.

The contract of every model in this package:

- A field's description, bounds and default are written once, in its model; the CRD, the reference
  and ``kubectl explain`` are generated from it.
- A model parses objects of the API server: camelCase names, unknown fields ignored, instances
  frozen. The API server has already applied the same bounds and defaults.
- ``dict[str, Any]`` is a JSON object whose fields are kept and not interpreted; ``X | None`` is a
  field that may be absent and has no default.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from pydantic.config import JsonDict, JsonValue

from taskqueue.limits import (
    DELIVERY_LIMIT,
    LONGEST_ATTEMPT_SECONDS,
    LONGEST_RETRY_SECONDS,
    STATUS_REASON_LENGTH,
)

GROUP = "taskqueue.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
#: For `kubectl get` of all kinds. It must not be a plural such as "taskqueues": kubectl would read
#: the plural as the category, and `kubectl delete taskqueues --all` would delete Tasks too.
CATEGORY = "taskqueue-operator"

TASKQUEUE_KIND = "TaskQueue"
TASKQUEUE_PLURAL = "taskqueues"
TASK_KIND = "Task"
TASK_PLURAL = "tasks"
TASKBATCH_KIND = "TaskBatch"
TASKBATCH_PLURAL = "taskbatches"
TASKSCHEDULE_KIND = "TaskSchedule"
TASKSCHEDULE_PLURAL = "taskschedules"

#: Annotation of a Task that a TaskSchedule has created: its time, in RFC 3339.
SCHEDULED_TIME = f"{GROUP}/scheduled-time"

#: A TaskQueue's name becomes part of queue, Deployment (``<name>-worker``) and label names.
QUEUE_NAME_MAX_LENGTH = 52
#: The API server refuses longer messages, so a writer truncates them.
MESSAGE_MAX_LENGTH = 4096
CONDITIONS_MAX_ITEMS = 16
CONCURRENCY_KEY_MAX_LENGTH = 253
DAY_SECONDS = 86_400
YEAR_SECONDS = 365 * DAY_SECONDS

DNS_LABEL_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
DNS_SUBDOMAIN_PATTERN = (
    r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"  # labels joined by dots
)

# Bounds of the fields a Task may inherit from its queue's taskDefaults: the same in both places.
MaxAttempts = Annotated[int, Field(ge=1, le=1000)]
InitialSeconds = Annotated[float, Field(ge=0, le=LONGEST_RETRY_SECONDS)]
Factor = Annotated[float, Field(ge=1, le=100)]
MaxSeconds = Annotated[float, Field(ge=0, le=LONGEST_RETRY_SECONDS)]
Jitter = Annotated[float, Field(ge=0, le=1)]
ErrorType = Annotated[str, Field(min_length=1, max_length=STATUS_REASON_LENGTH)]
ErrorTypes = Annotated[tuple[ErrorType, ...], Field(max_length=64)]
AttemptTimeoutSeconds = Annotated[  # whole: a message header
    int, Field(ge=1, le=LONGEST_ATTEMPT_SECONDS)
]
MaxDeliveries = Annotated[int, Field(ge=1, le=DELIVERY_LIMIT)]
ActiveDeadlineSeconds = Annotated[int, Field(ge=1, le=YEAR_SECONDS)]
TtlSecondsAfterFinished = Annotated[int, Field(ge=0, le=YEAR_SECONDS)]

ATOMIC_LIST: JsonDict = {"x-kubernetes-list-type": "atomic"}
SET_LIST: JsonDict = {"x-kubernetes-list-type": "set"}
CONDITIONS_LIST: JsonDict = {
    "x-kubernetes-list-type": "map",
    "x-kubernetes-list-map-keys": ["type"],
}


#: Who owns the object changes it as a whole. The API server keeps no record of its fields.
ATOMIC_MAP: JsonDict = {"x-kubernetes-map-type": "atomic"}


def validations(*rules: tuple[str, str] | tuple[str, str, str]) -> JsonDict:
    """Return CEL rules for a schema.

    Args:
        rules: each an expression, a message that says what to do, and the field that a refusal
            names, if that is not the whole object.
    """
    entries: list[JsonValue] = []
    for expression, message, *field in rules:
        path: JsonDict = {"fieldPath": f".{field[0]}"} if field else {}
        entries.append({"rule": expression, "message": message, **path})
    return {"x-kubernetes-validations": entries}


class ApiModel(BaseModel):
    """The base of every model of the API."""

    model_config = ConfigDict(
        frozen=True, alias_generator=to_camel, populate_by_name=True, extra="ignore"
    )


class ObjectMeta(ApiModel):
    """The part of an object's metadata that the operator reads."""

    name: str
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: datetime | None = None
    deletion_timestamp: datetime | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)


class ResourceCondition(ApiModel):
    """One condition, in the form of Kubernetes's own conditions."""

    type: str = Field(
        min_length=1, max_length=316, description="Type of the condition, in CamelCase."
    )
    status: Literal["True", "False", "Unknown"] = Field(
        description="Whether the condition holds: True, False or Unknown."
    )
    observed_generation: int | None = Field(
        None,
        description="The metadata.generation of the object that the condition is based on.",
    )
    last_transition_time: datetime = Field(description="When status last changed.")
    reason: str = Field(
        min_length=1,
        max_length=STATUS_REASON_LENGTH,
        pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
        description="Why the condition has this status, for programs: one CamelCase word.",
    )
    message: str = Field(
        "",
        max_length=MESSAGE_MAX_LENGTH,
        description="Why the condition has this status, for people: a sentence.",
    )


class Resource(ApiModel):
    """The fields every object of the API has besides its spec and status."""

    api_version: str = Field(
        API_VERSION,
        description="The version of the schema this object is written in: taskqueue.dev/v1alpha1.",
    )
    kind: str = Field("", description="The kind of this object.")
    metadata: ObjectMeta = Field(description="The object's standard metadata.")
