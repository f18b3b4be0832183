"""The custom resource TaskQueue: a queue at a broker, its workers, and how they are scaled.

``TaskQueueResource.model_validate(body)`` parses an object of the API server. Every default is set
here, and by the API server at admission, so a stored object shows the values in effect.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from taskqueue.api.common import (
    ATOMIC_LIST,
    DNS_LABEL_PATTERN,
    DNS_SUBDOMAIN_PATTERN,
    QUEUE_NAME_MAX_LENGTH,
    TASKQUEUE_KIND,
    YEAR_SECONDS,
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
from taskqueue.api.taskqueue_flow import ConcurrencyLimits, Flow
from taskqueue.api.taskqueue_notifications import (
    BY_NAME,
    NOTIFICATIONS_MAX_ITEMS,
    Notification,
)
from taskqueue.api.taskqueue_pool import Scaling, SecretReference, Workers
from taskqueue.api.taskqueue_results import Results
from taskqueue.api.taskqueue_status import TaskQueueResourceStatus
from taskqueue.defaults import (
    DEFAULT_ATTEMPT_SECONDS,
    DEFAULT_ATTEMPTS,
    DEFAULT_DELIVERIES,
    DEFAULT_FIRST_RETRY_SECONDS,
    DEFAULT_LONGEST_RETRY_SECONDS,
    DEFAULT_MAX_PUBLISHED,
    DEFAULT_RETRY_FACTOR,
    DEFAULT_RETRY_JITTER,
)
from taskqueue.limits import LABEL_LENGTH, OBJECT_NAME_LENGTH

DeletionPolicy = Literal["Retain", "Delete"]
StopPolicy = Literal["None", "Hold", "HoldAndDrain"]
Payloads = Literal["Omit", "Keep"]
RetentionSeconds = Annotated[int, Field(ge=60, le=10 * YEAR_SECONDS)]


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
            "Namespace of the RabbitmqCluster. When absent, that of the TaskQueue. If it is "
            "another, the annotation rabbitmq.com/topology-allowed-namespaces of the "
            "RabbitmqCluster must allow the TaskQueue's namespace."
        ),
    )


class Broker(ApiModel):
    """The RabbitMQ of a TaskQueue: exactly one of the fields is given."""

    model_config = ConfigDict(
        json_schema_extra=validations(
            (
                "has(self.connectionSecret) != has(self.rabbitmqClusterReference)",
                "spec.broker must name one broker: give exactly one of connectionSecret and "
                "rabbitmqClusterReference",
            )
        )
    )

    connection_secret: SecretReference | None = Field(
        None,
        description=(
            "Secret with the connection to RabbitMQ, in the namespace of the TaskQueue. It has "
            "either the key uri (amqp:// or amqps://) or the keys host, port, username, password "
            "and vhost; for TLS also ca.crt, and tls.crt with tls.key. Absent when "
            "rabbitmqClusterReference is given."
        ),
    )
    rabbitmq_cluster_reference: RabbitmqClusterReference | None = Field(
        None,
        description=(
            "RabbitmqCluster of the RabbitMQ Cluster Operator to connect to; the operator uses the "
            "Secret that its status.binding names. Absent when connectionSecret is given."
        ),
    )


class Dispatch(ApiModel):
    """How many Tasks of a TaskQueue are at the broker at a time."""

    max_published: int = Field(
        DEFAULT_MAX_PUBLISHED,
        ge=1,
        le=100_000,
        description=(
            "Maximum number of unfinished Tasks of this queue at the broker at a time, 1 to "
            "100000; 1000 by default. The others wait in the operator, higher priority first, then "
            "older first. The operator publishes fewer while the workers need fewer."
        ),
    )


class QueueBackoff(ApiModel):
    """The delay before the next attempt, with the defaults of a queue."""

    initial_seconds: InitialSeconds = Field(
        DEFAULT_FIRST_RETRY_SECONDS,
        description="Delay after the first failed attempt in seconds, 0 to 86400; 1 by default.",
    )
    factor: Factor = Field(
        DEFAULT_RETRY_FACTOR,
        description=(
            "Factor by which the delay grows with every further failed attempt, 1 to 100; 2 by "
            "default, which doubles it each time."
        ),
    )
    max_seconds: MaxSeconds = Field(
        DEFAULT_LONGEST_RETRY_SECONDS,
        description="Longest delay between two attempts in seconds, 0 to 86400; 300 by default.",
    )
    jitter: Jitter = Field(
        DEFAULT_RETRY_JITTER,
        description=(
            "Random part of every delay, as a fraction from 0 to 1, so that Tasks that failed "
            "together are not retried together; 0.1 by default."
        ),
    )


class QueueRetry(ApiModel):
    """How failed attempts are retried, with the defaults of a queue."""

    max_attempts: MaxAttempts = Field(
        DEFAULT_ATTEMPTS,
        description=(
            "Number of attempts of a Task in total, including the first, 1 to 1000; 3 by default. "
            "With 1 a Task is never retried."
        ),
    )
    backoff: QueueBackoff = Field(
        default_factory=QueueBackoff,
        description=(
            "Delay before the next attempt of a Task: initialSeconds, multiplied by factor with "
            "every further failure, at most maxSeconds, varied by jitter."
        ),
    )
    non_retryable: ErrorTypes = Field(
        (),
        description=(
            "Error types, as the worker reports them (for example ValueError), that fail a Task at "
            "once; at most 64. Empty by default: every failure is retried unless the worker "
            "reports it as not retryable."
        ),
        json_schema_extra=ATOMIC_LIST,
    )


class TaskDefaults(ApiModel):
    """Defaults for the Tasks of a queue; a Task's own spec overrides them."""

    retry: QueueRetry = Field(
        default_factory=QueueRetry, description="How failed attempts are retried."
    )
    attempt_timeout_seconds: AttemptTimeoutSeconds = Field(
        DEFAULT_ATTEMPT_SECONDS,
        description=(
            "Time limit of one attempt in whole seconds, 1 to 86400; 300 by default. After that "
            "the attempt is stopped and counts as failed."
        ),
    )
    max_deliveries: MaxDeliveries = Field(
        DEFAULT_DELIVERIES,
        description=(
            "How often one attempt may be delivered to a worker, 1 to 20; 3 by default. An attempt "
            "that has lost that many workers counts as failed, with reason WorkerLost."
        ),
    )
    active_deadline_seconds: ActiveDeadlineSeconds | None = Field(
        None,
        description=(
            "Time limit of a whole Task in whole seconds, 1 to 31536000, from when it may first "
            "run, including waiting, attempts and delays between them. After that the Task fails "
            "with reason DeadlineExceeded. None by default: no limit."
        ),
    )
    ttl_seconds_after_finished: TtlSecondsAfterFinished | None = Field(
        None,
        description=(
            "How long after a Task has finished the operator deletes it, in whole seconds, 0 to "
            "31536000. None by default: finished Tasks stay. If the manifest of a deleted Task is "
            "still in Git, the next sync creates and runs it again."
        ),
    )


class Archive(ApiModel):
    """The database that keeps a row of each Task that has ended."""

    connection_secret: SecretReference = Field(
        description=(
            "Secret with the key uri, the address of a PostgreSQL database (postgresql://), in the "
            "namespace of the TaskQueue. Required."
        ),
    )
    retention_seconds: RetentionSeconds | None = Field(
        None,
        description=(
            "How long after the end of a Task its row is kept, in whole seconds, 60 to 315360000. "
            "None by default: rows stay until somebody deletes them."
        ),
    )
    payloads: Payloads = Field(
        "Omit",
        description=(
            "Whether rows have spec.payload. Omit, the default: they do not. Keep: they do, and "
            "can be searched by it; the completion events of this queue then have the payload, too."
        ),
    )


class TaskQueueResourceSpec(ApiModel):
    """The desired state of a TaskQueue."""

    broker: Broker = Field(description="The RabbitMQ that has the queue. Required.")
    deletion_policy: DeletionPolicy = Field(
        "Retain",
        description=(
            "What happens to the queues at the broker when the TaskQueue is deleted. Retain, the "
            "default: they stay, with their messages. Delete: the work queue and the dead queue "
            "are deleted with their messages; a broker that is unreachable delays the deletion of "
            "the TaskQueue by a minute at most."
        ),
    )
    stop_policy: StopPolicy = Field(
        "None",
        description=(
            "Whether the queue is held. None, the default: it is not. Hold: nothing new is "
            "dispatched; what is dispatched continues. HoldAndDrain: as that work ends, the "
            "workers are removed too, even below minReplicas. Waiting Tasks keep their phase."
        ),
    )
    dispatch: Dispatch = Field(
        default_factory=Dispatch,
        description="How many Tasks are at the broker at a time.",
    )
    task_defaults: TaskDefaults = Field(
        default_factory=TaskDefaults,
        description=(
            "Defaults for the Tasks of this queue; a Task's own spec overrides them. Read when an "
            "attempt is dispatched, so a change also applies to Tasks that still wait."
        ),
    )
    concurrency_limits: ConcurrencyLimits = Field(
        default_factory=ConcurrencyLimits,
        description="Limits on the Tasks with the same spec.concurrencyKey.",
    )
    flow: Flow | None = Field(
        None,
        description=(
            "How the Tasks of this queue share what is dispatched, how fast they are dispatched, "
            "and how many wait. None by default: by priority and age, without limits."
        ),
    )
    archive: Archive | None = Field(
        None,
        description=(
            "Where a row is kept of each Task of this queue that has ended, for longer than its "
            "object. None by default."
        ),
    )
    notifications: tuple[Notification, ...] = Field(
        (),
        max_length=NOTIFICATIONS_MAX_ITEMS,
        description=(
            "Webhooks: who is sent the ends of the Tasks of this queue over HTTP, at most 8. A "
            "Task gets all of them unless its spec.notificationNames chooses. None by default."
        ),
        json_schema_extra=BY_NAME,
    )
    workers: Workers = Field(
        default_factory=Workers, description="The workers that run the Tasks of this queue."
    )
    scaling: Scaling = Field(
        default_factory=Scaling,
        description=(
            "How the number of workers follows the backlog. Needs spec.workers.template or "
            "spec.workers.scaleTargetRef."
        ),
    )
    results: Results = Field(
        default_factory=Results,
        description="Where results are kept that are too large for a status, and for how long.",
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
        description="The broker, the defaults of Tasks, the workers and their scaling."
    )
    status: TaskQueueResourceStatus = Field(
        default_factory=TaskQueueResourceStatus,
        description="The observed state of the queue. Written by the operator only.",
        json_schema_extra={"default": {"observedGeneration": -1}},
    )
