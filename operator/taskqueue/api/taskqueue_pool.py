"""The workers of a TaskQueue: their pod template, and how their number is scaled."""

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
from taskqueue.limits import (
    LABEL_LENGTH,
    OBJECT_NAME_LENGTH,
    ROTATION_SECONDS_LEAST,
    ROTATION_SECONDS_MOST,
)

Replicas = Annotated[int, Field(ge=0, le=10_000)]
#: For a step or a size that must be at least one worker.
SomeReplicas = Annotated[int, Field(ge=1, le=10_000)]

_API_VERSION_PATTERN = f"^({DNS_SUBDOMAIN_PATTERN[1:-1]}/)?{DNS_LABEL_PATTERN[1:-1]}$"


class ScaleTargetReference(ApiModel):
    """An object with a scale subresource, in the namespace of the TaskQueue."""

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
        description="Kind of the object: Deployment, StatefulSet, or any with a scale subresource.",
    )
    name: str = Field(
        min_length=1,
        max_length=OBJECT_NAME_LENGTH,
        pattern=DNS_SUBDOMAIN_PATTERN,
        description="Name of the object.",
    )


class SecretReference(ApiModel):
    """A Secret in the namespace of the TaskQueue."""

    name: str = Field(
        min_length=1,
        max_length=OBJECT_NAME_LENGTH,
        pattern=DNS_SUBDOMAIN_PATTERN,
        description="Name of the Secret.",
    )


class Credentials(ApiModel):
    """Who the workers are at the broker."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            (
                '(has(self.type) && self.type == "Secret") == has(self.secretRef)',
                "type Secret needs secretRef, and no other type has it: name the Secret, or omit "
                "secretRef",
            ),
            (
                '!has(self.rotationSeconds) || (has(self.type) && self.type == "Managed")',
                "rotationSeconds is for type Managed: set type to Managed, or omit rotationSeconds",
            ),
        )
    )

    type: Literal["Shared", "Secret", "Managed"] = Field(
        "Shared",
        description=(
            "Whose credentials the workers use at the broker. Shared, the default: those of the "
            "operator, from spec.broker; what a worker runs can then do everything the operator "
            "can there. Secret: those in secretRef. Managed: those of a broker user that the "
            "operator makes for this queue, with the permissions of a worker and no others; this "
            "needs the broker's management API (key managementUri) and a user with the tag "
            "administrator. Only Shared with scaleTargetRef. A change of type replaces the pods."
        ),
    )
    secret_ref: SecretReference | None = Field(
        None,
        description=(
            "Secret with the workers' own connection to the broker, with the same keys as "
            "spec.broker.connectionSecret. Required with type Secret, and only there."
        ),
    )
    rotation_seconds: int | None = Field(
        None,
        ge=ROTATION_SECONDS_LEAST,
        le=ROTATION_SECONDS_MOST,
        description=(
            "Time in whole seconds after which the operator gives the workers new credentials, "
            f"{ROTATION_SECONDS_LEAST} to {ROTATION_SECONDS_MOST}; running work goes on. Only with "
            "type Managed. None by default: they do not change."
        ),
    )


class Workers(ApiModel):
    """The workers of the queue."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            (
                "!has(self.template) || !has(self.scaleTargetRef)",
                "template and scaleTargetRef exclude each other: give template for a Deployment "
                "that the operator creates, or scaleTargetRef for workers that exist",
            ),
            (
                '!has(self.scaleTargetRef) || !has(self.probes) || self.probes == "None"',
                "probes Managed is for a template: the manifest of what scaleTargetRef names has "
                "its own probes",
            ),
            (
                "!has(self.scaleTargetRef) || !has(self.credentials) || "
                '!has(self.credentials.type) || self.credentials.type == "Shared"',
                "credentials are for a template: the manifest of what scaleTargetRef names says "
                "which Secret its pods use",
            ),
        )
    )

    template: dict[str, Any] | None = Field(
        None,
        description=(
            "Pod template of the workers, as in a Deployment. The operator creates the Deployment "
            "<name>-worker from it and scales it. None by default: the workers run elsewhere, and "
            "nothing is scaled unless scaleTargetRef names them."
        ),
    )
    scale_target_ref: ScaleTargetReference | None = Field(
        None,
        description=(
            "Deployment, StatefulSet or other object with a scale subresource that runs the "
            "workers. The operator changes only its number of replicas; its own manifest must give "
            "the pods what they need to connect to the broker. Absent when template is given."
        ),
    )
    container: str = Field(
        "",
        max_length=LABEL_LENGTH,
        description=(
            "Name of the template's container that runs the worker; the operator adds environment "
            "variables to it. Empty by default: the first container."
        ),
    )
    probes: Literal["None", "Managed"] = Field(
        "None",
        description=(
            "Whether the operator adds probes to the worker's container where the template has "
            "none. None, the default: it does not. Managed: a readiness probe on /readyz, a "
            "liveness probe on /healthz and, with the latter, a startup probe of 600 seconds, on "
            "the worker's health port (8081, or TASKQUEUE_HEALTH_PORT of the template). Only with "
            "template. A change replaces the pods."
        ),
    )
    credentials: Credentials = Field(
        default_factory=Credentials,
        description="Who the workers are at the broker.",
    )
    concurrency: int | None = Field(
        None,
        ge=1,
        le=1000,
        description=(
            "Number of Tasks that one worker runs at a time (its slots), 1 to 1000. None by "
            "default: the number of CPUs of its container, at least 1."
        ),
    )
    replicas: Replicas = Field(
        0,
        description=(
            "Number of workers while spec.scaling.paused is true, 0 to 10000; 0 by default. The "
            "scale subresource (kubectl scale, KEDA, a HorizontalPodAutoscaler) writes this field. "
            "Ignored while the operator scales the workers itself."
        ),
    )


class ScalingTarget(ApiModel):
    """What the number of workers is computed from."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            (
                # The API server also validates a default of {} before it sets fields, also below.
                '!has(self.type) || self.type != "DrainTime" || has(self.seconds)',
                "type DrainTime needs seconds: set the time in which the workers should empty the "
                "queue",
            ),
            (
                '!has(self.seconds) || (has(self.type) && self.type == "DrainTime")',
                "seconds is for type DrainTime: set type to DrainTime, or omit seconds",
            ),
        )
    )

    type: Literal["Backlog", "DrainTime"] = Field(
        "Backlog",
        description=(
            "What the number of workers is computed from. Backlog, the default: the waiting and "
            "running Tasks, divided by tasksPerReplica and rounded up. DrainTime: as many workers "
            "as empty the queue within seconds, by the mean run time of recent attempts."
        ),
    )
    seconds: float | None = Field(
        None,
        ge=1,
        le=DAY_SECONDS,
        description=(
            "Time in which the workers should empty the queue in seconds, 1 to 86400; only with "
            "type DrainTime, and required there. The number of workers is the number of waiting "
            "and running Tasks times the mean run time, divided by seconds and by the slots of a "
            "worker, rounded up. A Task that runs longer is not interrupted."
        ),
    )
    tasks_per_replica: int = Field(
        5,
        ge=1,
        le=100_000,
        description=(
            "Number of waiting and running Tasks per worker, 1 to 100000; 5 by default. With type "
            "DrainTime it is used until a run time has been measured."
        ),
    )


class ScaleUp(ApiModel):
    """How the number of workers grows."""

    max_replicas_per_step: SomeReplicas | None = Field(
        None,
        description=(
            "Number of workers that may be starting at a time, 1 to 10000; more are added when "
            "these are available. None by default: all start at once."
        ),
    )


class ScaleDown(ApiModel):
    """How the number of workers shrinks."""

    stabilization_window_seconds: float = Field(
        30,
        ge=0,
        le=3600,
        description=(
            "Time in seconds over which the largest wanted number of workers counts before workers "
            "are removed, 0 to 3600; 30 by default."
        ),
    )
    max_replicas_per_step: SomeReplicas | None = Field(
        None,
        description=(
            "Number of workers that may be draining at a time, 1 to 10000; each finishes what it "
            "runs first. None by default: all that are no longer wanted."
        ),
    )


class Fallback(ApiModel):
    """The number of workers while the backlog is unknown."""

    replicas: SomeReplicas = Field(
        description=(
            "Number of workers once the backlog has been unknown for stabilizationWindowSeconds, 1 "
            "to 10000 and not above maxReplicas; busy workers beyond it stay. Required; without "
            "it, omit fallback."
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
            "Minimum number of workers, 0 to 10000; 0 by default: without Tasks there are none."
        ),
    )
    max_replicas: Replicas = Field(
        10,
        description=(
            "Maximum number of workers, 0 to 10000 and not below minReplicas; 10 by default."
        ),
    )
    target: ScalingTarget = Field(
        default_factory=ScalingTarget,
        description=(
            "What the number of workers is computed from, within minReplicas and maxReplicas."
        ),
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
            "Time in seconds for which the queue must be empty before the last worker is removed, "
            "0 to 86400; 60 by default. No effect when minReplicas is above 0."
        ),
    )
    fallback: Fallback | None = Field(
        None,
        description=(
            "Number of workers while the backlog is unknown because the broker is unreachable. "
            "None by default: the number does not change."
        ),
    )
    paused: bool = Field(
        False,
        description=(
            "While true, the operator does not scale the workers itself: spec.workers.replicas is "
            "their number. False by default."
        ),
    )
