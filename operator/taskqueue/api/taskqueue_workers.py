"""What a TaskQueue says about its workers: what they are, and how many there should be."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from taskqueue.api.common import DAY_SECONDS, ApiModel, validations

Replicas = Annotated[int, Field(ge=0, le=10_000)]


class Workers(ApiModel):
    """The workers of the queue."""

    template: dict[str, Any] | None = Field(
        None,
        description=(
            "The pod template of the workers, as in a Deployment. From it the operator makes and "
            "scales the Deployment <name>-worker. None by default: the workers run elsewhere and "
            "nothing is scaled."
        ),
    )
    container: str = Field(
        "",
        max_length=63,
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

    type: Literal["Backlog"] = Field(
        "Backlog",
        description=(
            "What the number of workers is worked out from. Backlog, the default: the Tasks which "
            "wait or run, divided by tasksPerReplica and rounded up."
        ),
    )
    tasks_per_replica: int = Field(
        5,
        ge=1,
        le=100_000,
        description=(
            "How many waiting and running Tasks one worker is wanted for, 1 to 100000; "
            "5 by default."
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


class Scaling(ApiModel):
    """How the number of workers follows the backlog."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            (
                # The API server tries the rule on a default of {} too, before it fills it in.
                "!has(self.minReplicas) || !has(self.maxReplicas) || "
                "self.minReplicas <= self.maxReplicas",
                "minReplicas is above maxReplicas: lower minReplicas or raise maxReplicas",
            )
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
    paused: bool = Field(
        False,
        description=(
            "While true the operator does not scale by itself: spec.workers.replicas is the number "
            "of workers. False by default."
        ),
    )
