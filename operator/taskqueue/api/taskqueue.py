"""The custom resource TaskQueue: a queue in a broker, the workers that empty it, and their scaling.

``TaskQueue.model_validate(body)`` parses an object of the API server. Every default is stated here
and set by the API server at admission, so a stored object shows what it runs with.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from taskqueue.api.common import (
    ATOMIC_LIST,
    CONDITIONS_LIST,
    CONDITIONS_MAX_ITEMS,
    DAY_SECONDS,
    DNS_LABEL_PATTERN,
    DNS_SUBDOMAIN_PATTERN,
    MESSAGE_MAX_LENGTH,
    OBJECT_NAME_MAX_LENGTH,
    QUEUE_NAME_MAX_LENGTH,
    TASKQUEUE_KIND,
    ActiveDeadlineSeconds,
    ApiModel,
    AttemptTimeoutSeconds,
    Condition,
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

Replicas = Annotated[int, Field(ge=0, le=10_000)]
Count = Annotated[int, Field(ge=0)]
Measure = Annotated[float, Field(ge=0)]
DeletionPolicy = Literal["Retain", "Delete"]
StopPolicy = Literal["None", "Hold", "HoldAndDrain"]


class SecretReference(ApiModel):
    """A Secret in the namespace of the TaskQueue."""

    name: str = Field(
        min_length=1,
        max_length=OBJECT_NAME_MAX_LENGTH,
        pattern=DNS_SUBDOMAIN_PATTERN,
        description="Name of the Secret.",
    )


class RabbitmqClusterReference(ApiModel):
    """A RabbitmqCluster of the RabbitMQ Cluster Operator."""

    name: str = Field(
        min_length=1,
        max_length=OBJECT_NAME_MAX_LENGTH,
        pattern=DNS_SUBDOMAIN_PATTERN,
        description="Name of the RabbitmqCluster.",
    )
    namespace: str | None = Field(
        None,
        min_length=1,
        max_length=63,
        pattern=DNS_LABEL_PATTERN,
        description=(
            "Namespace of the RabbitmqCluster. When absent, that of the TaskQueue. Another one "
            "must be allowed by the RabbitmqCluster's annotation "
            "rabbitmq.com/topology-allowed-namespaces."
        ),
    )


class Broker(ApiModel):
    """Where the RabbitMQ of a TaskQueue is: exactly one of the fields is given."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            (
                "has(self.connectionSecret) != has(self.rabbitmqClusterReference)",
                "the broker must be given in one way: give exactly one of connectionSecret and "
                "rabbitmqClusterReference",
            )
        )
    )

    connection_secret: SecretReference | None = Field(
        None,
        description=(
            "The Secret, in the namespace of the TaskQueue, which says how to connect to RabbitMQ. "
            "It holds either the key uri (amqp:// or amqps://) or the keys host, port, username, "
            "password and vhost; for TLS also ca.crt, and tls.crt with tls.key. Absent when "
            "rabbitmqClusterReference is given."
        ),
    )
    rabbitmq_cluster_reference: RabbitmqClusterReference | None = Field(
        None,
        description=(
            "The RabbitmqCluster of the RabbitMQ Cluster Operator to connect to; the operator "
            "takes the Secret its status.binding names. Absent when connectionSecret is given."
        ),
    )


class Dispatch(ApiModel):
    """How much of a TaskQueue is in the broker at a time."""

    max_published: int = Field(
        1000,
        ge=1,
        le=100_000,
        description=(
            "The most unfinished Tasks of this queue that are in the broker at a time, 1 to "
            "100000; 1000 by default. The others wait in the operator, higher priority first, then "
            "older first. The operator publishes fewer while the workers need fewer."
        ),
    )


class Backoff(ApiModel):
    """The wait before the next attempt, with the defaults of a queue."""

    initial_seconds: InitialSeconds = Field(
        1,
        description="Seconds to wait after the first failed attempt, 0 to 86400; 1 by default.",
    )
    factor: Factor = Field(
        2,
        description=(
            "What the wait is multiplied by after every further failed attempt, 1 to 100; "
            "2 by default, which doubles it each time."
        ),
    )
    max_seconds: MaxSeconds = Field(
        300,
        description="The longest wait between two attempts in seconds, 0 to 86400; 300 by default.",
    )
    jitter: Jitter = Field(
        0.1,
        description=(
            "The part of every wait that is random, as a fraction from 0 to 1, so that Tasks which "
            "failed together do not come back together; 0.1 by default."
        ),
    )


class Retry(ApiModel):
    """When a failed attempt is followed by another, with the defaults of a queue."""

    max_attempts: MaxAttempts = Field(
        3,
        description=(
            "How often a Task is attempted in all, the first attempt included, 1 to 1000; "
            "3 by default. With 1 a Task is never retried."
        ),
    )
    backoff: Backoff = Field(
        default_factory=Backoff,
        description=(
            "How long a Task waits before its next attempt: initialSeconds, multiplied by factor "
            "after every further failure, at most maxSeconds, varied by jitter."
        ),
    )
    non_retryable: ErrorTypes = Field(
        (),
        description=(
            "Error types, as the worker reports them (for example ValueError), after which a Task "
            "fails at once; at most 64. Empty by default: every failure is retried unless the "
            "worker itself reports it as not retryable."
        ),
        json_schema_extra=ATOMIC_LIST,
    )


class TaskDefaults(ApiModel):
    """What a Task of the queue gets where its own spec says nothing."""

    retry: Retry = Field(
        default_factory=Retry, description="When a failed attempt is followed by another one."
    )
    attempt_timeout_seconds: AttemptTimeoutSeconds = Field(
        300,
        description=(
            "How long one attempt may run in whole seconds, 1 to 86400; 300 by default. After it "
            "the attempt is stopped and counts as failed."
        ),
    )
    max_deliveries: MaxDeliveries = Field(
        3,
        description=(
            "How often one attempt may be delivered to a worker, 1 to 20; 3 by default. An attempt "
            "that has lost its worker that often counts as failed, with reason WorkerLost."
        ),
    )
    active_deadline_seconds: ActiveDeadlineSeconds | None = Field(
        None,
        description=(
            "How long a Task may take in whole seconds, 1 to 31536000, from when it may first run, "
            "all waiting, attempts and pauses included. After it the Task fails with reason "
            "DeadlineExceeded. None by default: a Task may take any time."
        ),
    )
    ttl_seconds_after_finished: TtlSecondsAfterFinished | None = Field(
        None,
        description=(
            "How long a finished Task stays in whole seconds, 0 to 31536000; then the operator "
            "deletes it. None by default: finished Tasks stay. A Task deleted by its TTL whose "
            "manifest is still in Git is created, and run, again by the next sync."
        ),
    )


class ConcurrencyLimits(ApiModel):
    """How many Tasks of a queue may be dispatched at a time."""

    per_key: int = Field(
        1,
        ge=1,
        le=1000,
        description=(
            "The most Tasks with the same spec.concurrencyKey that are dispatched at a time, 1 to "
            "1000; 1 by default."
        ),
    )


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


class TaskQueueSpec(ApiModel):
    """What a TaskQueue is asked to be."""

    broker: Broker = Field(description="The RabbitMQ which holds the queue. Required.")
    deletion_policy: DeletionPolicy = Field(
        "Retain",
        description=(
            "What becomes of the queues in the broker when the TaskQueue is deleted. Retain, the "
            "default: they stay, with their messages. Delete: the work queue and the dead queue "
            "are deleted, with what is in them; a broker that cannot be reached delays the "
            "deletion of the TaskQueue by a minute at most."
        ),
    )
    stop_policy: StopPolicy = Field(
        "None",
        description=(
            "Whether the queue stands still. None, the default: it does not. Hold: nothing new is "
            "dispatched; what is dispatched runs on. HoldAndDrain: also the workers go, below "
            "minReplicas too, as what is dispatched ends. Tasks that wait keep their phase."
        ),
    )
    dispatch: Dispatch = Field(
        default_factory=Dispatch,
        description="How many Tasks are in the broker at a time.",
    )
    task_defaults: TaskDefaults = Field(
        default_factory=TaskDefaults,
        description=(
            "What holds for the Tasks of this queue where their own spec says nothing. Read when "
            "an attempt is dispatched, so a change reaches the Tasks which still wait."
        ),
    )
    concurrency_limits: ConcurrencyLimits = Field(
        default_factory=ConcurrencyLimits,
        description="How many Tasks with the same spec.concurrencyKey are dispatched at a time.",
    )
    workers: Workers = Field(
        default_factory=Workers, description="The workers which run the Tasks of this queue."
    )
    scaling: Scaling = Field(
        default_factory=Scaling,
        description="How the number of workers follows the backlog. Needs spec.workers.template.",
    )


class Totals(ApiModel):
    """Finished Tasks, counted since the TaskQueue was created."""

    succeeded: Count = Field(0, description="Tasks which ended as Succeeded.")
    failed: Count = Field(0, description="Tasks which ended as Failed.")
    cancelled: Count = Field(0, description="Tasks which ended as Cancelled.")


class TaskQueueStatus(ApiModel):
    """What the operator has found and done; written at most once a second."""

    observed_generation: int = Field(
        -1,
        description=(
            "The metadata.generation of the spec the operator acted on last; -1 until it has seen "
            "this TaskQueue."
        ),
    )
    conditions: tuple[Condition, ...] = Field(
        (),
        max_length=CONDITIONS_MAX_ITEMS,
        description=(
            "Ready, BrokerConnected, WorkersAvailable and ScalingActive; Reconciling and Stalled "
            "while they hold."
        ),
        json_schema_extra=CONDITIONS_LIST,
    )
    backlog: Count | None = Field(
        None,
        description=(
            "Unfinished Tasks that may run: those pending in the operator, ready in the broker and "
            "with a worker. Absent while unknown."
        ),
    )
    pending: Count | None = Field(
        None, description="Tasks which wait in the operator to be published. Absent while unknown."
    )
    ready: Count | None = Field(
        None,
        description="Messages in the broker which no worker has taken yet. Absent while unknown.",
    )
    running: Count | None = Field(
        None,
        description=(
            "Messages a worker has taken and not yet acknowledged. Absent while unknown, which is "
            "never taken for 0."
        ),
    )
    replicas: Count | None = Field(
        None, description="Worker pods there are. Absent when the workers run elsewhere."
    )
    desired_replicas: Count | None = Field(
        None,
        description="Worker pods there should be. Absent when the workers run elsewhere.",
    )
    scaling: str = Field(
        "",
        max_length=MESSAGE_MAX_LENGTH,
        description="How desiredReplicas was worked out, as a sentence for people.",
    )
    selector: str = Field(
        "",
        max_length=MESSAGE_MAX_LENGTH,
        description="Label selector of the worker pods, for the scale subresource.",
    )
    totals: Totals = Field(
        default_factory=Totals,
        description="Finished Tasks by how they ended, since the TaskQueue was created.",
    )
    dead_letters: Count | None = Field(
        None,
        description="Messages in the queue's dead queue in the broker. Absent while unknown.",
    )
    throughput_per_minute: Measure | None = Field(
        None, description="Attempts that lately ended in a minute. Absent while unknown."
    )
    mean_run_seconds: Measure | None = Field(
        None, description="How long attempts lately ran on average. Absent while unknown."
    )
    last_scale_time: datetime | None = Field(
        None, description="When desiredReplicas last changed. Absent until it has."
    )


class TaskQueue(Resource):
    """A queue of Tasks in RabbitMQ, the workers that run them, and how the workers are scaled."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            (
                '!self.metadata.name.contains(".")',
                "metadata.name must not contain dots, because queue, Deployment and label names "
                "are made from it: use dashes",
            ),
            (
                f"size(self.metadata.name) <= {QUEUE_NAME_MAX_LENGTH}",
                f"metadata.name must be at most {QUEUE_NAME_MAX_LENGTH} characters long, because "
                "queue, Deployment and label names are made from it: choose a shorter name",
            ),
        )
    )

    kind: str = Field(TASKQUEUE_KIND, description="The kind of this object: TaskQueue.")
    spec: TaskQueueSpec = Field(description="What the queue, its Tasks and its workers should be.")
    status: TaskQueueStatus = Field(
        default_factory=TaskQueueStatus,
        description="What the operator has found and done. Written by the operator only.",
        json_schema_extra={"default": {"observedGeneration": -1}},
    )
