"""Shared by the tests of the resources' schemas: the API group they use, and manifests.

The schemas are served under a group of the tests' own. The operator of the cluster does not know
it, so that nobody but the test writes a status.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from subprocess import CompletedProcess
from typing import Any

from taskqueue.api.common import GROUP
from taskqueue.api.crds import Definition, custom_resource_definition

TEST_GROUP = f"admission-{uuid.uuid4().hex[:6]}.{GROUP}"  # two sessions may share a cluster
TASKS = f"tasks.{TEST_GROUP}"
QUEUES = f"taskqueues.{TEST_GROUP}"
Kubectl = Callable[..., "CompletedProcess[str]"]
Body = dict[str, Any]

STARTED = "2026-01-02T03:04:05Z"
FINISHED = "2026-01-02T03:04:09Z"
SUCCEEDED = {"phase": "Succeeded", "attempts": 1, "completionTime": FINISHED}


@dataclass(frozen=True)
class Api:
    """The API server, seen from one namespace."""

    kubectl: Kubectl
    namespace: str

    def run(self, *args: str, body: Body | None = None) -> CompletedProcess[str]:
        text = None if body is None else json.dumps(body)
        return self.kubectl("-n", self.namespace, *args, input=text)

    def json(self, *args: str, body: Body | None = None) -> Body:
        done = self.run(*args, "-o", "json", body=body)
        assert done.returncode == 0, done.stderr
        answer: Body = json.loads(done.stdout)
        return answer

    def create(self, body: Body) -> Body:
        return self.json("create", "-f", "-", body=body)

    def patch(self, what: str, patch: Body, *args: str) -> CompletedProcess[str]:
        return self.run("patch", what, "--type=merge", "-p", json.dumps(patch), *args)

    def patch_status(self, what: str, status: Body | None) -> CompletedProcess[str]:
        return self.patch(what, {"status": status}, "--subresource=status")


def served(definition: Definition, group: str) -> Body:
    """Return the CustomResourceDefinition under a group of the tests' own."""
    crd = custom_resource_definition(definition)
    crd["metadata"]["name"] = f"{definition.plural}.{group}"
    crd["spec"]["group"] = group
    # `kubectl get tqt` must stay unambiguous for others on the cluster.
    del crd["spec"]["names"]["shortNames"], crd["spec"]["names"]["categories"]
    return crd


def task(name: str = "t", /, **spec: Any) -> Body:
    """Return a Task's manifest; a field given as None is left out."""
    fields = {"queue": "thumbnails", "handler": "resize"} | spec
    return {
        "apiVersion": f"{TEST_GROUP}/v1alpha1",
        "kind": "Task",
        "metadata": {"name": name},
        "spec": {key: value for key, value in fields.items() if value is not None},
    }


def queue(name: str = "thumbnails", /, **spec: Any) -> Body:
    """Return a TaskQueue's manifest; a field given as None is left out."""
    fields = {"broker": {"connectionSecret": {"name": "rabbit"}}} | spec
    return {
        "apiVersion": f"{TEST_GROUP}/v1alpha1",
        "kind": "TaskQueue",
        "metadata": {"name": name},
        "spec": {key: value for key, value in fields.items() if value is not None},
    }


def assert_refused(done: CompletedProcess[str], *says: str) -> None:
    assert done.returncode != 0, f"accepted: {done.stdout}"
    for part in says:
        assert part in done.stderr
