"""Flux and the operator at the same objects: neither undoes what the other wrote.

A server-side apply by another field manager stands for Flux. The operator of the cluster is at work
meanwhile: it writes the statuses and makes the worker Deployment.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.e2e.api import Body
from tests.e2e.harness import Harness

pytestmark = pytest.mark.cluster

FLUX = "kustomize-controller"
PAYLOAD = {"any": [1, {"thing": None}]}


def manifest(kind: str, name: str, spec: Body) -> Body:
    return {
        "apiVersion": "taskqueue.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": name, "labels": {"from": "git"}},
        "spec": spec,
    }


def task(name: str, queue: str, **spec: Any) -> Body:
    return manifest("Task", name, {"queue": queue, "handler": "echo", **spec})


def apply(harness: Harness, body: Body) -> Body:
    """Apply as Flux does, without forcing; return the object."""
    text = harness.kubectl.ok(
        *("-n", harness.namespace, "apply", "--server-side", f"--field-manager={FLUX}"),
        *("-f", "-", "-o", "json"),
        input=json.dumps(body),
    )
    shown: Body = json.loads(text)
    return shown


def read(harness: Harness, kind: str, name: str) -> Body:
    return harness.api.get(harness.path(f"{kind.lower()}s", name))


def apart_from_status(body: Body) -> Body:
    """Return the object without what a write of its status changes."""
    metadata = {k: v for k, v in body["metadata"].items() if k != "resourceVersion"}
    metadata["managedFields"] = [
        entry for entry in metadata["managedFields"] if entry.get("subresource") != "status"
    ]
    return {**{k: v for k, v in body.items() if k != "status"}, "metadata": metadata}


def assert_only_status_is_the_operators(body: Body) -> None:
    """Of a TaskQueue the operator also has annotations, with the prefix of our group."""
    entries = body["metadata"]["managedFields"]
    others = [entry for entry in entries if entry["manager"] != FLUX]
    assert [e for e in others if e.get("subresource") == "status"], "no status of the operator"
    for entry in others:
        fields = entry["fieldsV1"]
        if entry.get("subresource") == "status":
            assert set(fields) == {"f:status"}, entry
        else:
            assert body["kind"] == "TaskQueue", entry
            assert set(fields) == {"f:metadata"}, entry
            assert set(fields["f:metadata"]) == {"f:annotations"}, entry
            names = set(fields["f:metadata"]["f:annotations"]) - {"."}
            assert all(name.startswith("f:taskqueue.dev/") for name in names), entry
    (own,) = (entry for entry in entries if entry["manager"] == FLUX)
    assert "f:status" not in own["fieldsV1"]


def noted(queue: Body) -> bool:
    """Whether the operator has recorded the spec of a TaskQueue it handled: its last write."""
    annotations = queue["metadata"].get("annotations", {})
    return "taskqueue.dev/last-handled-configuration" in annotations


def assert_settled(harness: Harness, body: Body) -> None:
    """Apply again: nothing but the status may have changed since the first time, or change now."""
    kind, name = body["kind"], body["metadata"]["name"]
    if kind == "TaskQueue":
        harness.queues.wait(name, noted, what="noted as handled")
    before = read(harness, kind, name)
    again = apply(harness, body)
    assert apart_from_status(read(harness, kind, name)) == apart_from_status(before)
    assert again["metadata"]["generation"] == 1
    assert_only_status_is_the_operators(read(harness, kind, name))


def test_a_finished_task_and_its_queue(harness: Harness) -> None:
    harness.queue("made-by-hand")
    spec = read(harness, "TaskQueue", "made-by-hand")["spec"]
    # Also what the API server would fill in, as a dump of an object in Git has it.
    queue = manifest("TaskQueue", "worked", spec)
    work = task("work", "worked", payload=PAYLOAD)
    apply(harness, queue)
    apply(harness, work)
    assert harness.finished("work")["phase"] == "Succeeded"
    harness.ready("worked")
    assert_settled(harness, queue)
    finished = read(harness, "Task", "work")
    assert (
        apply(harness, work)["metadata"]["resourceVersion"]
        == finished["metadata"]["resourceVersion"]
    )
    assert_settled(harness, work)
    assert read(harness, "Task", "work") == finished


def test_a_task_that_waits(harness: Harness) -> None:
    work = task("waits", "nowhere", priority=5)
    apply(harness, work)
    assert harness.phase("waits", "Blocked")["reason"] == "QueueNotFound"
    blocked = read(harness, "Task", "waits")
    assert (
        apply(harness, work)["metadata"]["resourceVersion"]
        == blocked["metadata"]["resourceVersion"]
    )
    assert_settled(harness, work)


def test_a_queue_without_a_broker(harness: Harness) -> None:
    queue = manifest("TaskQueue", "lost", {"broker": {"connectionSecret": {"name": "none"}}})
    apply(harness, queue)
    harness.condition("Ready", "False", "SecretNotFound", "lost")
    assert_settled(harness, queue)


def test_a_change_in_git_is_one_change(harness: Harness) -> None:
    apply(harness, task("changed", "nowhere", priority=5))
    harness.phase("changed", "Blocked")
    changed = apply(harness, task("changed", "nowhere"))
    assert changed["metadata"]["generation"] == 2
    assert "priority" not in changed["spec"]  # taken out of Git, it is the default again


def scale(harness: Harness, name: str, replicas: int) -> None:
    """Write the size as a HorizontalPodAutoscaler does."""
    harness.api.request(
        "PATCH",
        harness.path("taskqueues", name, "scale"),
        {"spec": {"replicas": replicas}},
        content_type="application/merge-patch+json",
        fieldManager="kube-controller-manager",
    )


def scaled_by_others(name: str, **workers: int) -> Body:
    broker = {"connectionSecret": {"name": "none"}}
    spec = {"broker": broker, "scaling": {"paused": True}, "workers": workers}
    return manifest("TaskQueue", name, spec)


def test_flux_keeps_a_size_set_by_others(harness: Harness) -> None:
    apply(harness, scaled_by_others("scaled"))
    scale(harness, "scaled", 3)
    apply(harness, scaled_by_others("scaled"))
    assert read(harness, "TaskQueue", "scaled")["spec"]["workers"]["replicas"] == 3


def test_argo_cd_ignores_a_size_set_by_others(harness: Harness) -> None:
    """By managedFieldsManagers, which manifests/argocd sets, also with a size in Git."""
    apply(harness, scaled_by_others("sized", replicas=1))
    scale(harness, "sized", 3)
    owners = [
        entry["manager"]
        for entry in read(harness, "TaskQueue", "sized")["metadata"]["managedFields"]
        if "f:replicas" in entry["fieldsV1"].get("f:spec", {}).get("f:workers", {})
    ]
    assert owners == ["kube-controller-manager"]
