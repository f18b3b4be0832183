"""Conversion of TaskQueues between the API server's JSON and the model."""

from typing import Any

import pytest

from taskqueue.api.taskqueue_status import TaskQueueResourceStatus
from taskqueue.kubernetes.taskqueue_codec import QUEUES_FINALIZER, queue_status_patch, read_queue
from taskqueue.model.queue import (
    ClusterRef,
    Condition,
    CredentialsPolicy,
    CredentialsType,
    QueueStatus,
    ResultsConfig,
    ScaleTargetRef,
    StopPolicy,
)
from taskqueue.model.scaling import BacklogTarget, DrainTimeTarget, ScalingPolicy


def raw(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "taskqueue.dev/v1alpha1",
        "kind": "TaskQueue",
        "metadata": {
            "namespace": "shop",
            "name": "q",
            "uid": "u",
            "generation": 3,
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {"broker": {"connectionSecret": {"name": "rabbit"}}, **spec},
    }


def test_read_queue_with_defaults() -> None:
    config = read_queue(raw())
    assert (config.connection_secret, config.rabbitmq_cluster) == ("rabbit", None)
    assert config.stop_policy is StopPolicy.NONE
    assert not config.stop_policy.holds
    assert not any((config.delete_queues, config.finalized, config.deleting))
    assert config.keys.per_key == 1
    assert config.policy.active_deadline_seconds is None
    assert config.policy.ttl_seconds is None
    assert (config.template, config.scale_target) == (None, None)
    assert config.scaling == ScalingPolicy()  # the schema's defaults are the domain's


def test_read_queue_with_every_field() -> None:
    config = read_queue(
        raw(
            deletionPolicy="Delete",
            stopPolicy="HoldAndDrain",
            concurrencyLimits={"perKey": 4},
            taskDefaults={"activeDeadlineSeconds": 60, "ttlSecondsAfterFinished": 0},
        )
    )
    assert config.stop_policy is StopPolicy.HOLD_AND_DRAIN
    assert config.stop_policy.holds
    assert config.scaling.draining
    assert config.delete_queues
    assert config.keys.per_key == 4
    assert (config.policy.active_deadline_seconds, config.policy.ttl_seconds) == (60, 0)


def test_read_queue_with_and_without_results() -> None:
    assert read_queue(raw()).results == ResultsConfig()
    store = {"connectionSecret": {"name": "results"}}
    given = {"policy": "Always", "store": store, "retentionSeconds": 3600, "output": "Failed"}
    assert read_queue(raw(results=given)).results == ResultsConfig(
        secret="results", always=True, retention_seconds=3600, output="Failed"
    )
    assert read_queue(raw(results={"store": store})).results == ResultsConfig(secret="results")


def test_read_queue_with_every_scaling_field() -> None:
    config = read_queue(
        raw(
            scaling={
                "minReplicas": 1,
                "maxReplicas": 20,
                "target": {"type": "DrainTime", "seconds": 90.5, "tasksPerReplica": 7},
                "scaleUp": {"maxReplicasPerStep": 4},
                "scaleDown": {"stabilizationWindowSeconds": 15, "maxReplicasPerStep": 2},
                "idleSecondsBeforeZero": 5,
                "fallback": {"replicas": 3},
                "paused": True,
            },
            workers={"replicas": 9},
        )
    )
    assert config.scaling == ScalingPolicy(
        min_replicas=1,
        max_replicas=20,
        target=DrainTimeTarget(seconds=90.5, tasks_per_replica=7),
        up_step=4,
        down_step=2,
        stabilization_seconds=15,
        idle_seconds_before_zero=5,
        fallback_replicas=3,
        paused_replicas=9,
    )


def test_read_queue_with_a_backlog_target() -> None:
    config = read_queue(raw(scaling={"target": {"type": "Backlog", "tasksPerReplica": 7}}))
    assert config.scaling.target == BacklogTarget(7)


@pytest.mark.parametrize(
    ("workers", "managed"),
    [({}, False), ({"probes": "None"}, False), ({"probes": "Managed"}, True)],
)
def test_read_queue_with_probes(workers: dict[str, Any], managed: bool) -> None:
    assert read_queue(raw(workers=workers)).managed_probes is managed


@pytest.mark.parametrize(
    ("credentials", "expected"),
    [
        (None, CredentialsPolicy()),
        ({"type": "Shared"}, CredentialsPolicy()),
        (
            {"type": "Secret", "secretRef": {"name": "own"}},
            CredentialsPolicy(type=CredentialsType.SECRET, secret="own"),
        ),
        (
            {"type": "Managed", "rotationSeconds": 3600},
            CredentialsPolicy(type=CredentialsType.MANAGED, rotation_seconds=3600),
        ),
    ],
)
def test_read_queue_with_credentials(
    credentials: dict[str, Any] | None, expected: CredentialsPolicy
) -> None:
    workers = {} if credentials is None else {"credentials": credentials}
    config = read_queue(raw(workers=workers))
    assert config.credentials == expected
    assert config.leaves_at_broker is (expected.type is CredentialsType.MANAGED)


def test_read_queue_with_a_scale_target() -> None:
    ref = {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "resizers"}
    config = read_queue(raw(workers={"scaleTargetRef": ref}))
    assert config.scale_target == ScaleTargetRef(
        api_version="apps/v1", kind="StatefulSet", name="resizers"
    )
    assert config.template is None


@pytest.mark.parametrize(("namespace", "found"), [("broker", "broker"), (None, "shop")])
def test_read_queue_with_a_rabbitmq_cluster(namespace: str | None, found: str) -> None:
    reference = {"name": "rabbit", **({"namespace": namespace} if namespace else {})}
    config = read_queue(raw(broker={"rabbitmqClusterReference": reference}))
    assert config.connection_secret == ""
    assert config.rabbitmq_cluster == ClusterRef(found, "rabbit")


def test_read_queue_that_is_being_deleted() -> None:
    body = raw()
    body["metadata"] |= {
        "finalizers": ["other", QUEUES_FINALIZER],
        "deletionTimestamp": "2026-01-02T00:00:00Z",
    }
    config = read_queue(body)
    assert config.finalized
    assert config.deleting


def test_status_patch_removes_unknown_fields() -> None:
    patch = queue_status_patch(("shop", "q"), QueueStatus(observed_generation=3), {})["status"]
    for name in ("deadLetters", "throughputPerMinute", "meanRunSeconds", "backlog"):
        assert patch[name] is None
    status = QueueStatus(
        observed_generation=3, dead_letters=0, throughput_per_minute=840, mean_run_seconds=0.8
    )
    patch = queue_status_patch(("shop", "q"), status, {})["status"]
    assert patch["deadLetters"] == 0
    assert (patch["throughputPerMinute"], patch["meanRunSeconds"]) == (840, 0.8)


def test_status_patch_truncates_texts() -> None:
    wordy = Condition("Ready", False, "Why", "x" * 10_000)
    status = QueueStatus(observed_generation=1, conditions=(wordy,), scaling="y" * 10_000)
    patch = queue_status_patch(("shop", "q"), status, {"Ready": 0.0})
    TaskQueueResourceStatus.model_validate(patch["status"])
