"""What a TaskQueue says about its workers: what they are, and how many there should be."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from taskqueue.api.common import (
    DAY_SECONDS,
    DNS_LABEL_PATTERN,
    DNS_SUBDOMAIN_PATTERN,
    GROUP,
    ApiModel,
    validations,
)
from taskqueue.limits import LABEL_LENGTH, OBJECT_NAME_LENGTH

Replicas = Annotated[int, Field(ge=0, le=10_000)]
#: Of a step or a size that makes no sense without a worker.
SomeReplicas = Annotated[int, Field(ge=1, le=10_000)]

_API_VERSION_PATTERN = f"^({DNS_SUBDOMAIN_PATTERN[1:-1]}/)?{DNS_LABEL_PATTERN[1:-1]}$"


class ScaleTargetReference(ApiModel):
    """An object with the subresource scale, in the namespace of the TaskQueue."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            (
                f'!self.apiVersion.startsWith("{GROUP}/")',
                "a TaskQueue runs no workers: name the Deployment or StatefulSet that runs them",
            )
        )
    )

    api_version: str = Field(
        min_length=1,
        max_length=OBJECT_NAME_LENGTH + 1 + LABEL_LENGTH,
        pattern=_API_VERSION_PATTERN,
        description="API version of the object: apps/v1 for a Deployment or a StatefulSet.",
    )
    kind: str = Field(
        min_length=1,
        max_length=LABEL_LENGTH,
        pattern="^[A-Z][A-Za-z0-9]*$",
        description="Kind of the object: Deployment, StatefulSet, or any that has scale.",
    )
    name: str = Field(
        min_length=1,
        max_length=OBJECT_NAME_LENGTH,
        pattern=DNS_SUBDOMAIN_PATTERN,
        description="Name of the object.",
    )


class Workers(ApiModel):
    """The workers of the queue."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            (
                "!has(self.template) || !has(self.scaleTargetRef)",
                "the workers are given in two ways: give template for a Deployment of the "
                "operator's own, or scaleTargetRef for one that exists, not both",
            )
        )
    )

    template: dict[str, Any] | None = Field(
        None,
        description=(
            "The pod template of the workers, as in a Deployment. From it the operator makes and "
            "scales the Deployment <name>-worker. None by default: the workers run elsewhere, and "
            "unless scaleTargetRef names them nothing is scaled."
        ),
    )
    scale_target_ref: ScaleTargetReference | None = Field(
        None,
        description=(
            "The Deployment, StatefulSet or other object with the subresource scale that runs the "
            "workers. The operator changes its number of replicas and nothing else; what its pods "
            "need to reach the broker they must be given where they are made. Absent when template "
            "is given."
        ),
    )
    container: str = Field(
        "",
        max_length=LABEL_LENGTH,
        description=(
            "Name of the template's container which runs the worker and gets its environment from "
            "the operator. Empty by default: the first container."
        ),
    )
    concurrency: int | None = Field(
        None,
        ge=1,
        le=1000,
        description=(
            "How many Tasks one worker runs at a time (its slots), 1 to 1000. None by default: as "
            "many as its container has CPUs, at least 1."
        ),
    )
    replicas: Replicas = Field(
        0,
        description=(
            "The number of workers while spec.scaling.paused is true, 0 to 10000; 0 by default. "
            "The scale subresource (kubectl scale, KEDA, a HorizontalPodAutoscaler) writes this "
            "field. Not obeyed while the operator scales by itself."
        ),
    )


class ScalingTarget(ApiModel):
    """What the number of workers is worked out from."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            (
                # A default of {} is tried too, before it is filled in, here and below.
                '!has(self.type) || self.type != "DrainTime" || has(self.seconds)',
                "type DrainTime needs seconds: say in how many seconds the backlog should be "
                "worked off",
            ),
            (
                '!has(self.seconds) || (has(self.type) && self.type == "DrainTime")',
                "seconds is for type DrainTime: set type to DrainTime or leave seconds out",
            ),
        )
    )

    type: Literal["Backlog", "DrainTime"] = Field(
        "Backlog",
        description=(
            "What the number of workers is worked out from. Backlog, the default: the Tasks which "
            "wait or run, divided by tasksPerReplica and rounded up. DrainTime: as many workers as "
            "work the Tasks off within seconds, by how long attempts lately ran."
        ),
    )
    seconds: float | None = Field(
        None,
        ge=1,
        le=DAY_SECONDS,
        description=(
            "With type DrainTime, and required there: within how many seconds the Tasks which wait "
            "or run should be worked off, 1 to 86400. The number of workers is the number of Tasks "
            "times the mean run time, divided by seconds and by the Tasks one worker runs at a "
            "time, rounded up. A Task that runs longer than that is not hurried."
        ),
    )
    tasks_per_replica: int = Field(
        5,
        ge=1,
        le=100_000,
        description=(
            "How many waiting and running Tasks one worker is wanted for, 1 to 100000; "
            "5 by default. With type DrainTime it holds until a run time has been measured."
        ),
    )


class ScaleUp(ApiModel):
    """How the number of workers grows."""

    max_replicas_per_step: SomeReplicas | None = Field(
        None,
        description=(
            "How many workers may be starting at a time, 1 to 10000: the next ones are asked for "
            "when as many are available. None by default: all that are wanted start at once."
        ),
    )


class ScaleDown(ApiModel):
    """How the number of workers shrinks."""

    stabilization_window_seconds: float = Field(
        30,
        ge=0,
        le=3600,
        description=(
            "How many seconds back the largest number of wanted workers still counts before "
            "workers are taken away, 0 to 3600; 30 by default."
        ),
    )
    max_replicas_per_step: SomeReplicas | None = Field(
        None,
        description=(
            "How many workers may be on their way out at a time, 1 to 10000; each finishes what it "
            "runs first. None by default: all that are not wanted any more."
        ),
    )


class Fallback(ApiModel):
    """What holds when the backlog is unknown."""

    replicas: SomeReplicas = Field(
        description=(
            "The number of workers when the backlog has been unknown for "
            "stabilizationWindowSeconds, 1 to 10000 and not above maxReplicas; busy workers stay "
            "beyond it. Required: without it leave out fallback."
        ),
    )


class Scaling(ApiModel):
    """How the number of workers follows the backlog."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            (
                "!has(self.minReplicas) || !has(self.maxReplicas) || "
                "self.minReplicas <= self.maxReplicas",
                "minReplicas is above maxReplicas: lower minReplicas or raise maxReplicas",
            ),
            (
                "!has(self.fallback) || !has(self.fallback.replicas) || !has(self.maxReplicas) || "
                "self.fallback.replicas <= self.maxReplicas",
                "fallback.replicas is above maxReplicas: lower fallback.replicas or raise "
                "maxReplicas",
            ),
        )
    )

    min_replicas: Replicas = Field(
        0,
        description=(
            "The fewest workers, 0 to 10000; 0 by default: without Tasks there are no workers."
        ),
    )
    max_replicas: Replicas = Field(
        10,
        description="The most workers, 0 to 10000 and not below minReplicas; 10 by default.",
    )
    target: ScalingTarget = Field(
        default_factory=ScalingTarget,
        description="What the number of workers between minReplicas and maxReplicas follows.",
    )
    scale_up: ScaleUp | None = Field(
        None,
        description="How the number of workers grows. None by default: at once.",
    )
    scale_down: ScaleDown = Field(
        default_factory=ScaleDown,
        description="How the number of workers shrinks.",
    )
    idle_seconds_before_zero: float = Field(
        60,
        ge=0,
        le=DAY_SECONDS,
        description=(
            "How many seconds the queue must have been empty before the last worker is taken away, "
            "0 to 86400; 60 by default. Without effect when minReplicas is above 0."
        ),
    )
    fallback: Fallback | None = Field(
        None,
        description=(
            "How many workers there are while the backlog is unknown, because the broker is away. "
            "None by default: as many as there were."
        ),
    )
    paused: bool = Field(
        False,
        description=(
            "While true the operator does not scale by itself: spec.workers.replicas is the number "
            "of workers. False by default."
        ),
    )
