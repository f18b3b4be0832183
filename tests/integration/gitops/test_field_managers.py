"""Flux and the operator at the same objects: neither undoes what the other wrote.

A server-side apply by another field manager stands for Flux. The operator of the cluster is at work
meanwhile: it writes the statuses and makes the worker Deployment.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.e2e.api import Body
from tests.e2e.harness import Lab

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


def apply(lab: Lab, body: Body) -> Body:
    """Apply as Flux does, without forcing; return the object."""
    text = lab.kubectl.ok(
        *("-n", lab.namespace, "apply", "--server-side", f"--field-manager={FLUX}"),
        *("-f", "-", "-o", "json"),
        input=json.dumps(body),
    )
    shown: Body = json.loads(text)
    return shown


def read(lab: Lab, kind: str, name: str) -> Body:
    return lab.api.get(lab.path(f"{kind.lower()}s", name))


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
    """Tell whether the operator has noted which spec of a TaskQueue it handled: its last write."""
    annotations = queue["metadata"].get("annotations", {})
    return "taskqueue.dev/last-handled-configuration" in annotations


def assert_settled(lab: Lab, body: Body) -> None:
    """Apply again: nothing but the status may have changed since the first time, or change now."""
    kind, name = body["kind"], body["metadata"]["name"]
    if kind == "TaskQueue":
        lab.queues.wait(name, noted, what="noted as handled")
    before = read(lab, kind, name)
    again = apply(lab, body)
    assert apart_from_status(read(lab, kind, name)) == apart_from_status(before)
    assert again["metadata"]["generation"] == 1
    assert_only_status_is_the_operators(read(lab, kind, name))


def test_a_finished_task_and_its_queue(lab: Lab) -> None:
    lab.queue("made-by-hand")
    spec = read(lab, "TaskQueue", "made-by-hand")["spec"]
    # Also what the API server would fill in, as a dump of an object in Git has it.
    queue = manifest("TaskQueue", "worked", spec)
    work = task("work", "worked", payload=PAYLOAD)
    apply(lab, queue)
    apply(lab, work)
    assert lab.finished("work")["phase"] == "Succeeded"
    lab.ready("worked")
    assert_settled(lab, queue)
    finished = read(lab, "Task", "work")
    assert (
        apply(lab, work)["metadata"]["resourceVersion"] == finished["metadata"]["resourceVersion"]
    )
    assert_settled(lab, work)
    assert read(lab, "Task", "work") == finished


def test_a_task_that_waits(lab: Lab) -> None:
    work = task("waits", "nowhere", priority=5)
    apply(lab, work)
    assert lab.phase("waits", "Blocked")["reason"] == "QueueNotFound"
    blocked = read(lab, "Task", "waits")
    assert apply(lab, work)["metadata"]["resourceVersion"] == blocked["metadata"]["resourceVersion"]
    assert_settled(lab, work)


def test_a_queue_without_a_broker(lab: Lab) -> None:
    queue = manifest("TaskQueue", "lost", {"broker": {"connectionSecret": {"name": "none"}}})
    apply(lab, queue)
    lab.condition("Ready", "False", "SecretNotFound", "lost")
    assert_settled(lab, queue)


def test_a_change_in_git_is_one_change(lab: Lab) -> None:
    apply(lab, task("changed", "nowhere", priority=5))
    lab.phase("changed", "Blocked")
    changed = apply(lab, task("changed", "nowhere"))
    assert changed["metadata"]["generation"] == 2
    assert changed["spec"]["priority"] == 0  # taken out of Git, it is the default again


def scale(lab: Lab, name: str, replicas: int) -> None:
    """Write the size as a HorizontalPodAutoscaler does."""
    lab.api.request(
        "PATCH",
        lab.path("taskqueues", name, "scale"),
        {"spec": {"replicas": replicas}},
        content_type="application/merge-patch+json",
        fieldManager="kube-controller-manager",
    )


def scaled_by_others(name: str, **workers: int) -> Body:
    broker = {"connectionSecret": {"name": "none"}}
    spec = {"broker": broker, "scaling": {"paused": True}, "workers": workers}
    return manifest("TaskQueue", name, spec)


def test_who_scales_is_not_undone(lab: Lab) -> None:
    apply(lab, scaled_by_others("scaled"))
    scale(lab, "scaled", 3)
    apply(lab, scaled_by_others("scaled"))
    assert read(lab, "TaskQueue", "scaled")["spec"]["workers"]["replicas"] == 3


def test_argo_cd_can_tell_who_scaled(lab: Lab) -> None:
    """By managedFieldsManagers, which manifests/argocd sets, also with a size in Git."""
    apply(lab, scaled_by_others("sized", replicas=1))
    scale(lab, "sized", 3)
    owners = [
        entry["manager"]
        for entry in read(lab, "TaskQueue", "sized")["metadata"]["managedFields"]
        if "f:replicas" in entry["fieldsV1"].get("f:spec", {}).get("f:workers", {})
    ]
    assert owners == ["kube-controller-manager"]
