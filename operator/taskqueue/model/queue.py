"""A TaskQueue inside the operator: frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from taskqueue.defaults import DEFAULT_MAX_PUBLISHED
from taskqueue.model.flow import ConcurrencyPolicy, FlowPolicy
from taskqueue.model.scaling import ScalingPolicy
from taskqueue.model.task import Policy
from taskqueue.model.webhook import WebhookConfig
from taskqueue.model.worker import Worker

#: (namespace, name) of a TaskQueue.
QueueKey = tuple[str, str]


class StopPolicy(StrEnum):
    """What a TaskQueue does not do while it is stopped; the value of spec.stopPolicy."""

    NONE = "None"
    HOLD = "Hold"
    HOLD_AND_DRAIN = "HoldAndDrain"

    @property
    def holds(self) -> bool:
        """Whether nothing new is published."""
        return self is not StopPolicy.NONE

    @property
    def drains(self) -> bool:
        """Whether the pool shrinks to zero as what is published ends."""
        return self is StopPolicy.HOLD_AND_DRAIN


class CredentialsType(StrEnum):
    """Whose credentials workers use at the broker; the value of spec.workers.credentials.type."""

    SHARED = "Shared"
    SECRET = "Secret"  # noqa: S105  (a word of the API)
    MANAGED = "Managed"


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialsPolicy:
    """Who a TaskQueue's workers are at the broker.

    Attributes:
        type: whose credentials they use.
        secret: name of their Secret with `CredentialsType.SECRET`, else "".
        rotation_seconds: how long managed ones are used; None: they do not change.
    """

    type: CredentialsType = CredentialsType.SHARED
    secret: str = ""
    rotation_seconds: int | None = None


@dataclass(frozen=True, slots=True)
class ClusterRef:
    """A RabbitmqCluster object of the RabbitMQ Cluster Operator."""

    namespace: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleTargetRef:
    """An object with the subresource scale, in the TaskQueue's namespace."""

    api_version: str
    kind: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultsConfig:
    """What becomes of the results of a TaskQueue's Tasks.

    Attributes:
        secret: name of the Secret with the store's address, in the TaskQueue's namespace; "": there
            is no store.
        always: every result goes to the store; else those that no status takes.
        retention_seconds: after which what is in the store is deleted; None: never.
        output: whose output is kept: None, Failed or All, as in spec.results.output.
    """

    secret: str = ""
    always: bool = False
    retention_seconds: int | None = None
    output: str = "None"


#: Of a TaskQueue that says nothing of it.
NO_RESULTS = ResultsConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveConfig:
    """Where the ends of a TaskQueue's Tasks are kept.

    Attributes:
        secret: name of the Secret with the database's address, in the TaskQueue's namespace.
        retention_seconds: how long a row is kept; None: for good.
        keep_payloads: whether rows have the payload.
    """

    secret: str
    retention_seconds: int | None = None
    keep_payloads: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueConfig:
    """What a TaskQueue asks for.

    Attributes:
        namespace: of the TaskQueue, its Tasks and its workers.
        name: of the TaskQueue.
        uid: its identity.
        generation: of the spec this was read from.
        connection_secret: name of the Secret with the broker's address, in the TaskQueue's
            namespace; "" when ``rabbitmq_cluster`` says where the broker is.
        rabbitmq_cluster: the RabbitmqCluster whose Secret is used instead.
        stop_policy: whether Tasks are published and the pool is drained.
        delete_queues: whether the broker's queues are deleted with the TaskQueue.
        finalized: whether the object has our finalizer, as last seen.
        deleting: the object has a deletionTimestamp; that is never undone.
        keys: how many Tasks of one concurrency key are dispatched at once.
        flow: how its Tasks share and wait; None: by priority and age alone.
        max_published: upper bound of the dispatch window.
        policy: what its Tasks inherit.
        archive: where the ends of its Tasks are kept; None: nowhere.
        webhooks: who is sent the ends of its Tasks.
        template: PodTemplateSpec of the workers, None when the operator does not make them.
        scale_target: what runs the workers the operator does not make; None: nothing that is
            scaled.
        container: which container gets the environment; "" for the first.
        managed_probes: whether that gets the probes that the template does not have.
        credentials: who the workers are at the broker.
        concurrency: tasks a worker runs at once; None: the worker decides by its CPUs.
        scaling: how the pool is sized.
        results: what becomes of results.
    """

    namespace: str
    name: str
    uid: str
    generation: int
    connection_secret: str = ""
    rabbitmq_cluster: ClusterRef | None = None
    stop_policy: StopPolicy = StopPolicy.NONE
    delete_queues: bool = False
    finalized: bool = False
    deleting: bool = False
    keys: ConcurrencyPolicy = field(default_factory=ConcurrencyPolicy)
    flow: FlowPolicy | None = None
    max_published: int = DEFAULT_MAX_PUBLISHED
    policy: Policy = field(default_factory=Policy)
    archive: ArchiveConfig | None = None
    webhooks: tuple[WebhookConfig, ...] = ()
    template: Mapping[str, Any] | None = None
    scale_target: ScaleTargetRef | None = None
    container: str = ""
    managed_probes: bool = False
    credentials: CredentialsPolicy = field(default_factory=CredentialsPolicy)
    concurrency: int | None = None
    scaling: ScalingPolicy = field(default_factory=ScalingPolicy)
    results: ResultsConfig = NO_RESULTS

    @property
    def has_sinks(self) -> bool:
        """Whether every end of its Tasks is passed on, to an archive or to a webhook."""
        return self.archive is not None or bool(self.webhooks)

    @property
    def scales(self) -> bool:
        """Whether there are workers to size."""
        return self.template is not None or self.scale_target is not None

    @property
    def leaves_at_broker(self) -> bool:
        """Whether there is something at the broker that is deleted with the TaskQueue."""
        return self.delete_queues or self.credentials.type is CredentialsType.MANAGED

    @property
    def key(self) -> QueueKey:
        """(namespace, name)."""
        return (self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition of a TaskQueue's status; ``status`` None means Unknown."""

    type: str
    status: bool | None
    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStatus:
    """What is, or will be, in a TaskQueue's status; None where nothing is known."""

    observed_generation: int
    conditions: tuple[Condition, ...] = ()
    backlog: int | None = None
    pending: int | None = None
    ready: int | None = None
    running: int | None = None
    replicas: int | None = None
    desired_replicas: int | None = None
    scaling: str = ""
    selector: str = ""
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    dead_letters: int | None = None
    throughput_per_minute: int | None = None
    mean_run_seconds: float | None = None
    last_scale_time: float | None = None
    workers: tuple[Worker, ...] = ()
