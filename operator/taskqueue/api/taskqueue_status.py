"""The status of a TaskQueue: written by the operator only, at most once a second.

A number that is not known is absent, never 0.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import Field

from taskqueue.api.common import (
    ATOMIC_LIST,
    CONDITIONS_LIST,
    CONDITIONS_MAX_ITEMS,
    MESSAGE_MAX_LENGTH,
    ApiModel,
    ResourceCondition,
    validations,
)
from taskqueue.limits import (
    HANDLER_NAME_LENGTH,
    LABEL_LENGTH,
    OBJECT_NAME_LENGTH,
    STATUS_HANDLERS,
    STATUS_WORKERS,
)

Count = Annotated[int, Field(ge=0)]
Measure = Annotated[float, Field(ge=0)]


class FinishedTotals(ApiModel):
    """Finished Tasks, counted since the TaskQueue was created."""

    succeeded: Count = Field(0, description="Tasks that ended as Succeeded.")
    failed: Count = Field(0, description="Tasks that ended as Failed.")
    cancelled: Count = Field(0, description="Tasks that ended as Cancelled.")


#: Workers that a status lists, and handlers of each.


class RegisteredWorker(ApiModel):
    """A live worker, registered by its heartbeats."""

    pod: str = Field(max_length=OBJECT_NAME_LENGTH, description="Name of its pod.")
    node: str = Field(
        "",
        max_length=OBJECT_NAME_LENGTH,
        description="Node it runs on; empty when unknown.",
    )
    cpus: Measure = Field(0, description="CPUs it may use.")
    slots: Count = Field(0, description="Number of attempts it runs at a time.")
    handlers: tuple[Annotated[str, Field(max_length=HANDLER_NAME_LENGTH)], ...] = Field(
        (),
        max_length=STATUS_HANDLERS,
        description=f"Handlers it has registered, the first {STATUS_HANDLERS}.",
        json_schema_extra=ATOMIC_LIST,
    )


class TaskQueueResourceStatus(ApiModel):
    """The observed state of a TaskQueue; written at most once a second."""

    observed_generation: int = Field(
        -1,
        description=(
            "The metadata.generation of the spec that the operator last acted on; -1 until it has "
            "seen this TaskQueue."
        ),
    )
    installation: str = Field(
        "",
        max_length=2 * LABEL_LENGTH + 1,
        description=(
            "The installation of the operator that serves this TaskQueue, as the namespace of its "
            "operator and its name: taskqueue-system/default. Others leave it alone until this is "
            "cleared."
        ),
        json_schema_extra=validations(
            (
                "oldSelf == '' || self == '' || self == oldSelf",
                "another installation of the operator serves this TaskQueue: take its namespace "
                "from that one, then clear status.installation",
            )
        ),
    )
    conditions: tuple[ResourceCondition, ...] = Field(
        (),
        max_length=CONDITIONS_MAX_ITEMS,
        description=(
            "Ready, BrokerConnected, CredentialsReady, WorkersAvailable, ScalingActive and others; "
            "Reconciling and Stalled while they hold."
        ),
        json_schema_extra=CONDITIONS_LIST,
    )
    backlog: Count | None = Field(
        None,
        description=(
            "Unfinished Tasks that may run: those that are pending in the operator, ready at the "
            "broker, or with a worker. Absent while unknown."
        ),
    )
    pending: Count | None = Field(
        None, description="Tasks that wait in the operator to be published. Absent while unknown."
    )
    ready: Count | None = Field(
        None,
        description="Messages at the broker that no worker has yet. Absent while unknown.",
    )
    running: Count | None = Field(
        None,
        description=(
            "Messages delivered to a worker and not yet acknowledged. Absent while unknown."
        ),
    )
    replicas: Count | None = Field(
        None, description="Worker pods that exist. Absent when the workers run elsewhere."
    )
    desired_replicas: Count | None = Field(
        None,
        description="Worker pods that are wanted. Absent when the workers run elsewhere.",
    )
    scaling: str = Field(
        "",
        max_length=MESSAGE_MAX_LENGTH,
        description="How desiredReplicas was computed, for people: a sentence.",
    )
    selector: str = Field(
        "",
        max_length=MESSAGE_MAX_LENGTH,
        description="Label selector of the worker pods, for the scale subresource.",
    )
    totals: FinishedTotals = Field(
        default_factory=FinishedTotals,
        description=(
            "Finished Tasks by final phase, as the operator has counted them since the TaskQueue "
            "was created. Tasks that ended in the last second before an operator was killed may be "
            "missing."
        ),
    )
    dead_letters: Count | None = Field(
        None,
        description="Messages in the queue's dead queue at the broker. Absent while unknown.",
    )
    throughput_per_minute: Measure | None = Field(
        None, description="Tasks that ended in the last minute. Absent while unknown."
    )
    mean_run_seconds: Measure | None = Field(
        None, description="Mean run time of recent attempts. Absent while unknown."
    )
    workers: tuple[RegisteredWorker, ...] = Field(
        (),
        max_length=STATUS_WORKERS,
        description=(
            f"The live workers that have registered, the first {STATUS_WORKERS} by name. Written "
            "when one joins or leaves."
        ),
        json_schema_extra=ATOMIC_LIST,
    )
    last_scale_time: datetime | None = Field(
        None, description="When desiredReplicas last changed. Absent until it has."
    )
