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

from taskqueue.api.common import GROUP, VERSION
from taskqueue.api.crds import DEFINITIONS, Definition, custom_resource_definition
from tests.e2e.api import Api as ApiServer
from tests.e2e.api import Refused

TEST_GROUP = f"admission-{uuid.uuid4().hex[:6]}.{GROUP}"  # two sessions may share a cluster
TASKS = f"tasks.{TEST_GROUP}"
QUEUES = f"taskqueues.{TEST_GROUP}"
Kubectl = Callable[..., "CompletedProcess[str]"]
Body = dict[str, Any]

STARTED = "2026-01-02T03:04:05Z"
FINISHED = "2026-01-02T03:04:09Z"
SUCCEEDED = {"phase": "Succeeded", "attempts": 1, "completionTime": FINISHED}


_PLURALS = {definition.kind: definition.plural for definition in DEFINITIONS}


@dataclass(frozen=True)
class Api:
    """The API server, seen from one namespace.

    Requests are sent without kubectl, as a kubectl for each would cost more than all else in these
    tests. They end as kubectl would: a refusal is a return code above 0, with the server's message.
    `run` is for what kubectl itself does.
    """

    kubectl: Kubectl
    namespace: str
    server: ApiServer

    def run(self, *args: str, body: Body | None = None) -> CompletedProcess[str]:
        text = None if body is None else json.dumps(body)
        return self.kubectl("-n", self.namespace, *args, input=text)

    def json(self, *args: str, body: Body | None = None) -> Body:
        return _accepted(self.run(*args, "-o", "json", body=body))

    def try_create(self, body: Body) -> CompletedProcess[str]:
        """Create an object; unknown fields are refused, as kubectl has it."""
        group, _, _ = body["apiVersion"].partition("/")
        path = self._path(f"{_PLURALS[body['kind']]}.{group}")
        return self._send("POST", path, body, fieldValidation="Strict")

    def create(self, body: Body) -> Body:
        return _accepted(self.try_create(body))

    def get(self, what: str) -> Body:
        return _accepted(self._send("GET", self._path(what)))

    def patch(
        self, what: str, patch: Body, *, subresource: str = "", dry_run: bool = False
    ) -> CompletedProcess[str]:
        """Patch by JSON merge."""
        options = {"dryRun": "All"} if dry_run else {}
        path = self._path(what, subresource)
        merge = "application/merge-patch+json"
        return self._send("PATCH", path, patch, content_type=merge, **options)

    def patch_status(self, what: str, status: Body | None) -> CompletedProcess[str]:
        return self.patch(what, {"status": status}, subresource="status")

    def json_patch(
        self, what: str, patch: list[Body], *, subresource: str = ""
    ) -> CompletedProcess[str]:
        path = self._path(what, subresource)
        return self._send("PATCH", path, patch, content_type="application/json-patch+json")

    def clear(self) -> None:
        """Delete all that is in the namespace of the tests' own group."""
        for definition in DEFINITIONS:
            self.server.request("DELETE", self._path(f"{definition.plural}.{TEST_GROUP}"))

    def _path(self, what: str, subresource: str = "") -> str:
        resource, _, name = what.partition("/")
        plural, _, group = resource.partition(".")
        parts = [f"/apis/{group}/{VERSION}/namespaces/{self.namespace}", plural, name, subresource]
        return "/".join(part for part in parts if part)

    def _send(
        self, method: str, path: str, body: object = None, **options: str
    ) -> CompletedProcess[str]:
        words = [method, path]
        try:
            answer = self.server.request(method, path, body, **options)
        except Refused as refused:
            return CompletedProcess(words, 1, "", json.loads(refused.text)["message"])
        return CompletedProcess(words, 0, json.dumps(answer), "")


def _accepted(done: CompletedProcess[str]) -> Body:
    assert done.returncode == 0, done.stderr
    answer: Body = json.loads(done.stdout)
    return answer


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
