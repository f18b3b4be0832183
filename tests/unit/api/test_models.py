"""The models parse objects of the API server, ignore unknown fields, and have its defaults."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from taskqueue.api.task import TaskResource
from taskqueue.api.task_status import TERMINAL_PHASES
from taskqueue.api.taskqueue import TaskQueueResource


def task_body(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "taskqueue.dev/v1alpha1",
        "kind": "Task",
        "metadata": {
            "name": "resize-0042",
            "namespace": "shop",
            "uid": "7f1c",
            "resourceVersion": "123",
            "generation": 1,
            "creationTimestamp": "2026-01-02T03:04:05Z",
            "managedFields": [{"manager": "kubectl"}],
        },
        "spec": {"queue": "thumbnails", "handler": "resize", **spec},
        "status": {"phase": "Pending", "observedGeneration": -1},
    }


def queue_body(**spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "thumbnails"},
        "spec": {"broker": {"connectionSecret": {"name": "rabbit"}}, **spec},
    }


def test_a_task_as_it_is_created() -> None:
    task = TaskResource.model_validate(task_body(payload={"url": "x", "sizes": [1, {"w": 2}]}))
    assert task.kind == "Task"
    assert task.metadata.namespace == "shop"
    assert task.metadata.creation_timestamp == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert task.spec.payload == {"url": "x", "sizes": [1, {"w": 2}]}
    assert task.spec.priority == 0
    assert (task.spec.payload_from, task.spec.depends_on, task.spec.concurrency_key) == ((), (), "")
    assert (task.spec.start_after, task.spec.suspend, task.spec.cancel) == (None, False, False)
    assert task.status.phase == "Pending"
    assert task.status.observed_generation == -1


def test_inherited_fields_of_a_task_are_none_by_default() -> None:
    spec = TaskResource.model_validate(task_body()).spec
    assert (spec.retry, spec.attempt_timeout_seconds, spec.max_deliveries) == (None, None, None)
    assert (spec.active_deadline_seconds, spec.ttl_seconds_after_finished) == (None, None)

    own = TaskResource.model_validate(
        task_body(retry={"backoff": {"maxSeconds": 5}, "nonRetryable": []}, maxDeliveries=1)
    ).spec
    assert own.retry is not None
    assert own.retry.max_attempts is None
    assert own.retry.non_retryable == ()
    assert own.retry.backoff is not None
    assert own.retry.backoff.max_seconds == 5
    assert own.retry.backoff.factor is None
    assert own.max_deliveries == 1


def test_task_fields_that_delay_it() -> None:
    spec = TaskResource.model_validate(
        task_body(
            payloadFrom=[{"configMapKeyRef": {"name": "sizes", "key": "all.json"}}],
            concurrencyKey="customer-1",
            dependsOn=["fetch-0042", "fetch-0043"],
            startAfter="2026-01-02T03:04:05+01:00",
        )
    ).spec
    assert spec.payload_from[0].config_map_key_ref.name == "sizes"
    assert spec.payload_from[0].config_map_key_ref.key == "all.json"
    assert spec.concurrency_key == "customer-1"
    assert spec.depends_on == ("fetch-0042", "fetch-0043")
    assert spec.start_after == datetime(2026, 1, 2, 2, 4, 5, tzinfo=UTC)


def test_task_status_with_key_and_progress() -> None:
    body = task_body()
    assert TaskResource.model_validate(body).status.progress is None
    body["status"] |= {"concurrencyKey": "customer-1", "progress": {"percent": 40}}
    status = TaskResource.model_validate(body).status
    assert status.concurrency_key == "customer-1"
    assert status.progress is not None
    assert (status.progress.percent, status.progress.message) == (40, "")


def test_a_queue_of_a_rabbitmq_cluster() -> None:
    reference = {"name": "rabbit", "namespace": "brokers"}
    body = queue_body(broker={"rabbitmqClusterReference": reference})
    broker = TaskQueueResource.model_validate(body).spec.broker
    assert broker.connection_secret is None
    assert broker.rabbitmq_cluster_reference is not None
    assert broker.rabbitmq_cluster_reference.name == "rabbit"
    assert broker.rabbitmq_cluster_reference.namespace == "brokers"


def test_a_finished_task() -> None:
    body = task_body()
    body["status"] = {
        "observedGeneration": 1,
        "phase": "Failed",
        "reason": "RetriesExhausted",
        "attempts": 3,
        "epoch": 1,
        "startTime": "2026-01-02T03:04:05Z",
        "completionTime": "2026-01-02T03:04:06.250000Z",
        "worker": "thumbnails-worker-1",
        "result": {"width": 1},
        "history": [
            {
                "attempt": 3,
                "startTime": "2026-01-02T03:04:05Z",
                "finishTime": "2026-01-02T03:04:06Z",
                "worker": "thumbnails-worker-1",
                "outcome": "Failed",
                "reason": "ValueError",
                "message": "no image",
            }
        ],
        "conditions": [
            {
                "type": "Finished",
                "status": "True",
                "reason": "Failed",
                "lastTransitionTime": "2026-01-02T03:04:06Z",
            }
        ],
    }
    status = TaskResource.model_validate(body).status
    assert status.phase in TERMINAL_PHASES
    assert (status.attempts, status.epoch, status.reason) == (3, 1, "RetriesExhausted")
    assert status.history[0].outcome == "Failed"
    assert status.conditions[0].type == "Finished"
    assert status.completion_time == datetime(2026, 1, 2, 3, 4, 6, 250_000, tzinfo=UTC)


def test_fields_of_a_newer_api_are_ignored() -> None:
    body = task_body(invented="k", retry={"later": 1})
    body["status"]["invented"] = {"percent": 3}
    task = TaskResource.model_validate(body)
    assert not hasattr(task.spec, "invented")
    assert task.status.phase == "Pending"


def test_a_task_without_a_status_is_pending() -> None:
    body = task_body()
    del body["status"]
    assert TaskResource.model_validate(body).status.phase == "Pending"


def test_a_queue_gets_the_documented_defaults() -> None:
    spec = TaskQueueResource.model_validate(queue_body()).spec
    assert spec.model_dump(by_alias=True, exclude_none=True) == {
        "broker": {"connectionSecret": {"name": "rabbit"}},
        "deletionPolicy": "Retain",
        "stopPolicy": "None",
        "dispatch": {"maxPublished": 1000},
        "taskDefaults": {
            "retry": {
                "maxAttempts": 3,
                "backoff": {"initialSeconds": 1, "factor": 2, "maxSeconds": 300, "jitter": 0.1},
                "nonRetryable": (),
            },
            "attemptTimeoutSeconds": 300,
            "maxDeliveries": 3,
        },
        "notifications": (),
        "concurrencyLimits": {"perKey": 1, "overrides": (), "onConflict": "Queue"},
        "workers": {
            "container": "",
            "probes": "None",
            "credentials": {"type": "Shared"},
            "replicas": 0,
        },
        "scaling": {
            "minReplicas": 0,
            "maxReplicas": 10,
            "target": {"type": "Backlog", "tasksPerReplica": 5},
            "scaleDown": {"stabilizationWindowSeconds": 30},
            "idleSecondsBeforeZero": 60,
            "paused": False,
        },
        "results": {"policy": "Overflow", "output": "None"},
    }


def test_a_queue_keeps_its_pod_template_whole() -> None:
    template = {"spec": {"containers": [{"name": "w", "image": "i", "env": []}]}}
    queue = TaskQueueResource.model_validate(
        queue_body(workers={"template": template, "concurrency": 4})
    )
    assert queue.spec.workers.template == template
    assert queue.spec.workers.concurrency == 4


def test_queue_with_a_scale_target() -> None:
    ref = {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "resizers"}
    workers = TaskQueueResource.model_validate(
        queue_body(workers={"scaleTargetRef": ref})
    ).spec.workers
    assert workers.template is None
    assert workers.scale_target_ref is not None
    assert workers.scale_target_ref.model_dump(by_alias=True) == ref


def test_how_a_queue_is_scaled() -> None:
    given = {
        "target": {"type": "DrainTime", "seconds": 60},
        "scaleUp": {"maxReplicasPerStep": 4},
        "scaleDown": {"maxReplicasPerStep": 2},
        "fallback": {"replicas": 3},
    }
    scaling = TaskQueueResource.model_validate(queue_body(scaling=given)).spec.scaling
    assert (scaling.target.type, scaling.target.seconds) == ("DrainTime", 60)
    assert scaling.target.tasks_per_replica == 5
    assert scaling.scale_up is not None
    assert scaling.fallback is not None
    steps = (scaling.scale_up.max_replicas_per_step, scaling.scale_down.max_replicas_per_step)
    assert (steps, scaling.fallback.replicas) == ((4, 2), 3)
    assert scaling.scale_down.stabilization_window_seconds == 30


def test_unknown_counts_of_a_queue_are_none() -> None:
    status = TaskQueueResource.model_validate(queue_body()).status
    counts = (status.backlog, status.pending, status.ready, status.running)
    assert counts == (None, None, None, None)
    assert (status.totals.succeeded, status.observed_generation) == (0, -1)
    measured = (status.dead_letters, status.throughput_per_minute, status.mean_run_seconds)
    assert measured == (None, None, None)


@pytest.mark.parametrize(
    "spec",
    [
        {"priority": 1001},
        {"queue": "a.b"},
        {"handler": "two words"},
        {"retry": {"maxAttempts": 0}},
        {"attemptTimeoutSeconds": 86_401},
        {"maxDeliveries": 21},
        {"payload": ["not", "an", "object"]},
        {"payloadFrom": [{}]},
        {"payloadFrom": [{"configMapKeyRef": {"name": "a", "key": "with/slash"}}]},
        {"concurrencyKey": "k" * 254},
        {"dependsOn": ["Upper"]},
        {"dependsOn": ["a..b"]},
        {"startAfter": "tomorrow"},
        {"activeDeadlineSeconds": 0},
        {"ttlSecondsAfterFinished": -1},
    ],
)
def test_bad_tasks_are_refused_here_too(spec: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TaskResource.model_validate(task_body(**spec))


@pytest.mark.parametrize(
    "spec",
    [
        {"scaling": {"target": {"type": "DrainTime", "seconds": 0}}},
        {"scaling": {"scaleUp": {"maxReplicasPerStep": 0}}},
        {"scaling": {"scaleDown": {"maxReplicasPerStep": 0}}},
        {"scaling": {"fallback": {}}},
        {"scaling": {"fallback": {"replicas": 0}}},
        {"workers": {"scaleTargetRef": {"kind": "Deployment", "name": "w"}}},
        {"workers": {"scaleTargetRef": {"apiVersion": "apps/", "kind": "K", "name": "w"}}},
        {"workers": {"scaleTargetRef": {"apiVersion": "v1", "kind": "pods", "name": "w"}}},
    ],
)
def test_bad_queues_are_refused_here_too(spec: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TaskQueueResource.model_validate(queue_body(**spec))


def test_models_are_frozen_and_take_python_names() -> None:
    task = TaskResource.model_validate(task_body())
    with pytest.raises(ValidationError):
        task.spec.priority = 3  # type: ignore[misc]
    assert task.spec.model_copy(update={"max_deliveries": 2}).max_deliveries == 2
