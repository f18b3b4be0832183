"""Converts TaskQueues between the API server's JSON and the values of `taskqueue.model`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taskqueue.api.common import GROUP, MESSAGE_MAX_LENGTH, VERSION
from taskqueue.api.taskqueue import Archive, TaskQueueResource
from taskqueue.api.taskqueue_flow import ConcurrencyLimits, Flow
from taskqueue.api.taskqueue_notifications import Notification, SecretKeyReference
from taskqueue.api.taskqueue_pool import Credentials, Scaling, ScalingTarget, Workers
from taskqueue.api.taskqueue_results import Results
from taskqueue.limits import STATUS_HANDLERS, STATUS_MESSAGE_LENGTH, STATUS_WORKERS
from taskqueue.model.flow import (
    ConcurrencyPolicy,
    FairnessPolicy,
    FlowPolicy,
    OnConflict,
    PriorityAgeing,
    RateLimit,
)
from taskqueue.model.queue import (
    ArchiveConfig,
    ClusterRef,
    Condition,
    CredentialsPolicy,
    CredentialsType,
    QueueConfig,
    QueueKey,
    QueueStatus,
    ResultsConfig,
    ScaleTargetRef,
    StopPolicy,
)
from taskqueue.model.scaling import BacklogTarget, DrainTimeTarget, ScalingPolicy
from taskqueue.model.task import Policy, RetryBackoff
from taskqueue.model.webhook import SecretKey, WebhookConfig
from taskqueue.model.worker import Worker
from taskqueue.timestamps import to_rfc3339

#: Label of everything that belongs to a TaskQueue.
QUEUE_LABEL = f"{GROUP}/queue"

#: On a TaskQueue with deletionPolicy Delete or managed credentials, and on no other.
QUEUES_FINALIZER = f"{GROUP}/broker-queues"

QUEUES_PATH = f"/apis/{GROUP}/{VERSION}/taskqueues"


def queue_path(key: QueueKey) -> str:
    """Return the path of a TaskQueue object."""
    return f"/apis/{GROUP}/{VERSION}/namespaces/{key[0]}/taskqueues/{key[1]}"


def read_queue(raw: Mapping[str, Any]) -> QueueConfig:
    """Convert a TaskQueue object.

    Raises:
        pydantic.ValidationError: the object does not follow the schema of this operator's version.
    """
    resource = TaskQueueResource.model_validate(raw)
    spec, metadata = resource.spec, resource.metadata
    secret, cluster = spec.broker.connection_secret, spec.broker.rabbitmq_cluster_reference
    defaults, stop_policy = spec.task_defaults, StopPolicy(spec.stop_policy)
    backoff = defaults.retry.backoff
    return QueueConfig(
        namespace=metadata.namespace,
        name=metadata.name,
        uid=metadata.uid,
        generation=metadata.generation,
        connection_secret=secret.name if secret else "",
        rabbitmq_cluster=(
            ClusterRef(cluster.namespace or metadata.namespace, cluster.name) if cluster else None
        ),
        stop_policy=stop_policy,
        delete_queues=spec.deletion_policy == "Delete",
        finalized=QUEUES_FINALIZER in raw["metadata"].get("finalizers", ()),
        deleting="deletionTimestamp" in raw["metadata"],
        keys=_concurrency_policy(spec.concurrency_limits),
        flow=_flow_policy(spec.flow),
        max_published=spec.dispatch.max_published,
        policy=Policy(
            max_attempts=defaults.retry.max_attempts,
            backoff=RetryBackoff(
                initial_seconds=backoff.initial_seconds,
                factor=backoff.factor,
                max_seconds=backoff.max_seconds,
                jitter=backoff.jitter,
            ),
            non_retryable=frozenset(defaults.retry.non_retryable),
            attempt_timeout_seconds=defaults.attempt_timeout_seconds,
            max_deliveries=defaults.max_deliveries,
            active_deadline_seconds=defaults.active_deadline_seconds,
            ttl_seconds=defaults.ttl_seconds_after_finished,
        ),
        archive=_archive(spec.archive),
        webhooks=tuple(map(_webhook, spec.notifications)),
        template=spec.workers.template,
        scale_target=_scale_target(spec.workers),
        container=spec.workers.container,
        managed_probes=spec.workers.probes == "Managed",
        credentials=_credentials(spec.workers.credentials),
        concurrency=spec.workers.concurrency,
        scaling=_scaling_policy(spec.scaling, spec.workers, draining=stop_policy.drains),
        results=_results(spec.results),
    )


def read_installation(raw: Mapping[str, Any]) -> str:
    """Return the installation that serves a TaskQueue, as its status says; "": none yet."""
    return str((raw.get("status") or {}).get("installation") or "")


def queue_status_patch(
    key: QueueKey, status: QueueStatus, since: Mapping[str, float]
) -> dict[str, Any]:
    """Return the JSON merge patch that sets the TaskQueue's status.

    Args:
        key: namespace and name of the TaskQueue.
        status: its new status.
        since: when each condition took its present value, by type, in seconds since the epoch.
    """
    return {
        "status": {
            "observedGeneration": status.observed_generation,
            "conditions": [
                _condition(condition, since[condition.type], status.observed_generation)
                for condition in status.conditions
            ],
            "backlog": status.backlog,
            "pending": status.pending,
            "ready": status.ready,
            "running": status.running,
            "replicas": status.replicas,
            "desiredReplicas": status.desired_replicas,
            "scaling": status.scaling[:MESSAGE_MAX_LENGTH],
            "selector": status.selector,
            "totals": {
                "succeeded": status.succeeded,
                "failed": status.failed,
                "cancelled": status.cancelled,
            },
            "deadLetters": status.dead_letters,
            "throughputPerMinute": status.throughput_per_minute,
            "meanRunSeconds": status.mean_run_seconds,
            "workers": [_worker(worker) for worker in status.workers[:STATUS_WORKERS]],
            "lastScaleTime": (
                None if status.last_scale_time is None else to_rfc3339(status.last_scale_time)
            ),
        }
    }


def _results(results: Results) -> ResultsConfig:
    return ResultsConfig(
        secret="" if results.store is None else results.store.connection_secret.name,
        always=results.policy == "Always",
        retention_seconds=results.retention_seconds,
        output=results.output,
    )


def _concurrency_policy(limits: ConcurrencyLimits) -> ConcurrencyPolicy:
    return ConcurrencyPolicy(
        per_key=limits.per_key,
        overrides=tuple((one.key_prefix, one.per_key) for one in limits.overrides),
        on_conflict=OnConflict(limits.on_conflict),
    )


def _flow_policy(flow: Flow | None) -> FlowPolicy | None:
    if flow is None:
        return None
    ageing, fairness = flow.priority_ageing, flow.fairness
    policy = FlowPolicy(
        fairness=None
        if fairness is None
        else FairnessPolicy(
            label=fairness.key.name,
            weights={one.value: one.weight for one in fairness.weights},
            default_weight=fairness.default_weight,
        ),
        rate_limits=tuple(
            RateLimit(
                name=one.name,
                per_key=one.scope == "PerKey",
                attempts=one.attempts,
                period_seconds=one.period_seconds,
                burst=one.burst,
            )
            for one in flow.rate_limits
        ),
        ageing=None if ageing is None else PriorityAgeing(ageing.per_seconds, ageing.step),
        max_waiting=flow.max_waiting,
    )
    return None if policy == FlowPolicy() else policy


def _archive(archive: Archive | None) -> ArchiveConfig | None:
    if archive is None:
        return None
    return ArchiveConfig(
        secret=archive.connection_secret.name,
        retention_seconds=archive.retention_seconds,
        keep_payloads=archive.payloads == "Keep",
    )


def _webhook(notification: Notification) -> WebhookConfig:
    url_secret = notification.url_secret_key_ref
    return WebhookConfig(
        name=notification.name,
        url=notification.url or "",
        url_secret=None if url_secret is None else _secret_key(url_secret),
        phases=notification.events,
        signing_secret=_secret_key(notification.signing_secret_key_ref),
        headers=tuple((one.name, one.value) for one in notification.headers),
        timeout_seconds=notification.timeout_seconds,
    )


def _secret_key(reference: SecretKeyReference) -> SecretKey:
    return SecretKey(reference.name, reference.key)


def _scaling_policy(scaling: Scaling, workers: Workers, *, draining: bool) -> ScalingPolicy:
    up, down, fallback = scaling.scale_up, scaling.scale_down, scaling.fallback
    return ScalingPolicy(
        min_replicas=scaling.min_replicas,
        max_replicas=scaling.max_replicas,
        target=_scaling_target(scaling.target),
        up_step=up.max_replicas_per_step if up is not None else None,
        down_step=down.max_replicas_per_step,
        stabilization_seconds=down.stabilization_window_seconds,
        idle_seconds_before_zero=scaling.idle_seconds_before_zero,
        fallback_replicas=fallback.replicas if fallback is not None else None,
        paused_replicas=workers.replicas if scaling.paused else None,
        draining=draining,
    )


def _scaling_target(target: ScalingTarget) -> BacklogTarget | DrainTimeTarget:
    if target.type == "DrainTime" and target.seconds is not None:
        return DrainTimeTarget(seconds=target.seconds, tasks_per_replica=target.tasks_per_replica)
    return BacklogTarget(target.tasks_per_replica)


def _credentials(credentials: Credentials) -> CredentialsPolicy:
    reference = credentials.secret_ref
    return CredentialsPolicy(
        type=CredentialsType(credentials.type),
        secret=reference.name if reference else "",
        rotation_seconds=credentials.rotation_seconds,
    )


def _scale_target(workers: Workers) -> ScaleTargetRef | None:
    ref = workers.scale_target_ref
    if ref is None:
        return None
    return ScaleTargetRef(api_version=ref.api_version, kind=ref.kind, name=ref.name)


def _worker(worker: Worker) -> dict[str, Any]:
    return {
        "pod": worker.pod,
        "node": worker.node,
        "cpus": worker.cpus,
        "slots": worker.slots,
        "handlers": list(worker.handlers[:STATUS_HANDLERS]),
    }


def _condition(condition: Condition, since: float, generation: int) -> dict[str, Any]:
    value = "Unknown" if condition.status is None else str(condition.status)
    return {
        "type": condition.type,
        "status": value,
        "reason": condition.reason,
        "message": condition.message[:STATUS_MESSAGE_LENGTH],
        "lastTransitionTime": to_rfc3339(since),
        "observedGeneration": generation,
    }
