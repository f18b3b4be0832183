"""The custom resource TaskQueue: a queue in a broker, the workers that empty it, and their scaling.

``TaskQueueResource.model_validate(body)`` parses an object of the API server. Every default is
stated here and set by the API server at admission, so a stored object shows what it runs with.
"""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from taskqueue.api.common import (
    ATOMIC_LIST,
    DNS_LABEL_PATTERN,
    DNS_SUBDOMAIN_PATTERN,
    QUEUE_NAME_MAX_LENGTH,
    TASKQUEUE_KIND,
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
from taskqueue.api.taskqueue_status import TaskQueueResourceStatus
from taskqueue.api.taskqueue_workers import Scaling, Workers
from taskqueue.limits import (
    DEFAULT_ATTEMPT_SECONDS,
    DEFAULT_ATTEMPTS,
    DEFAULT_DELIVERIES,
    DEFAULT_FIRST_RETRY_SECONDS,
    DEFAULT_LONGEST_RETRY_SECONDS,
    DEFAULT_MAX_PUBLISHED,
    DEFAULT_RETRY_FACTOR,
    DEFAULT_RETRY_JITTER,
    LABEL_LENGTH,
    OBJECT_NAME_LENGTH,
)

DeletionPolicy = Literal["Retain", "Delete"]
StopPolicy = Literal["None", "Hold", "HoldAndDrain"]


class SecretReference(ApiModel):
    """A Secret in the namespace of the TaskQueue."""

    name: str = Field(
        min_length=1,
        max_length=OBJECT_NAME_LENGTH,
        pattern=DNS_SUBDOMAIN_PATTERN,
        description="Name of the Secret.",
    )


class RabbitmqClusterReference(ApiModel):
    """A RabbitmqCluster of the RabbitMQ Cluster Operator."""

    name: str = Field(
        min_length=1,
        max_length=OBJECT_NAME_LENGTH,
        pattern=DNS_SUBDOMAIN_PATTERN,
        description="Name of the RabbitmqCluster.",
    )
    namespace: str | None = Field(
        None,
        min_length=1,
        max_length=LABEL_LENGTH,
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
        DEFAULT_MAX_PUBLISHED,
        ge=1,
        le=100_000,
        description=(
            "The most unfinished Tasks of this queue that are in the broker at a time, 1 to "
            "100000; 1000 by default. The others wait in the operator, higher priority first, then "
            "older first. The operator publishes fewer while the workers need fewer."
        ),
    )


class QueueBackoff(ApiModel):
    """The wait before the next attempt, with the defaults of a queue."""

    initial_seconds: InitialSeconds = Field(
        DEFAULT_FIRST_RETRY_SECONDS,
        description="Seconds to wait after the first failed attempt, 0 to 86400; 1 by default.",
    )
    factor: Factor = Field(
        DEFAULT_RETRY_FACTOR,
        description=(
            "What the wait is multiplied by after every further failed attempt, 1 to 100; "
            "2 by default, which doubles it each time."
        ),
    )
    max_seconds: MaxSeconds = Field(
        DEFAULT_LONGEST_RETRY_SECONDS,
        description="The longest wait between two attempts in seconds, 0 to 86400; 300 by default.",
    )
    jitter: Jitter = Field(
        DEFAULT_RETRY_JITTER,
        description=(
            "The part of every wait that is random, as a fraction from 0 to 1, so that Tasks which "
            "failed together do not come back together; 0.1 by default."
        ),
    )


class QueueRetry(ApiModel):
    """When a failed attempt is followed by another, with the defaults of a queue."""

    max_attempts: MaxAttempts = Field(
        DEFAULT_ATTEMPTS,
        description=(
            "How often a Task is attempted in all, the first attempt included, 1 to 1000; "
            "3 by default. With 1 a Task is never retried."
        ),
    )
    backoff: QueueBackoff = Field(
        default_factory=QueueBackoff,
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

    retry: QueueRetry = Field(
        default_factory=QueueRetry, description="When a failed attempt is followed by another one."
    )
    attempt_timeout_seconds: AttemptTimeoutSeconds = Field(
        DEFAULT_ATTEMPT_SECONDS,
        description=(
            "How long one attempt may run in whole seconds, 1 to 86400; 300 by default. After it "
            "the attempt is stopped and counts as failed."
        ),
    )
    max_deliveries: MaxDeliveries = Field(
        DEFAULT_DELIVERIES,
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


class TaskQueueResourceSpec(ApiModel):
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
        description=(
            "How the number of workers follows the backlog. Needs spec.workers.template or "
            "spec.workers.scaleTargetRef."
        ),
    )


class TaskQueueResource(Resource):
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
    spec: TaskQueueResourceSpec = Field(
        description="What the queue, its Tasks and its workers should be."
    )
    status: TaskQueueResourceStatus = Field(
        default_factory=TaskQueueResourceStatus,
        description="What the operator has found and done. Written by the operator only.",
        json_schema_extra={"default": {"observedGeneration": -1}},
    )
