"""Tasks and TaskQueues stored before a field existed live on under the schema which has it."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator

import pytest

from taskqueue.api.common import GROUP
from taskqueue.api.crds import DEFINITIONS
from tests.e2e.api import Api as ApiServer
from tests.integration.admission import (
    SUCCEEDED,
    Api,
    Body,
    Kubectl,
    assert_refused,
    queue,
    served,
    task,
)

pytestmark = pytest.mark.cluster

UPGRADE_GROUP = f"upgrade-{uuid.uuid4().hex[:6]}.{GROUP}"
TASKS, QUEUES = f"tasks.{UPGRADE_GROUP}", f"taskqueues.{UPGRADE_GROUP}"
#: What the first schemas had; every other field of a spec came later.
FIRST_FIELDS = {
    *("queue", "handler", "payload", "priority", "retry", "attemptTimeoutSeconds"),
    *("maxDeliveries", "broker", "dispatch", "taskDefaults", "workers", "scaling"),
}
#: What came later to objects the first schemas had.
LATER_FIELDS = {
    "scaling": {"scaleUp", "fallback"},
    "scaling.target": {"seconds"},
    "scaling.scaleDown": {"maxReplicasPerStep"},
    "workers": {"scaleTargetRef"},
}


def first_schema(crd: Body) -> Body:
    """Return the definition without the fields of the spec that came later, nor their rules."""
    first: Body = json.loads(json.dumps(crd))
    schema = first["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    fields = schema["properties"]["spec"]["properties"]
    later = set(fields) - FIRST_FIELDS
    for name in later:
        del fields[name]
    for owner in (schema, schema["properties"]["spec"]):
        rules = owner.get("x-kubernetes-validations", [])
        kept = [rule for rule in rules if not any(name in rule["rule"] for name in later)]
        owner["x-kubernetes-validations"] = kept
    assert later
    if "scaling" in fields:
        without_later_fields(fields)
    return first


def without_later_fields(fields: Body) -> None:
    for path, later in LATER_FIELDS.items():
        parent: Body = {"properties": fields}
        for name in path.split("."):
            parent = parent["properties"][name]
        for name in later:
            del parent["properties"][name]
        rules = parent.pop("x-kubernetes-validations", [])
        kept = [rule for rule in rules if not any(name in rule["rule"] for name in later)]
        if kept:
            parent["x-kubernetes-validations"] = kept
    fields["scaling"]["properties"]["target"]["properties"]["type"]["enum"] = ["Backlog"]


@pytest.fixture
def serve(kubectl: Kubectl) -> Iterator[Callable[[list[Body]], None]]:
    """Serves definitions, in the place of those served before."""
    names = [f"crd/{definition.plural}.{UPGRADE_GROUP}" for definition in DEFINITIONS]

    def apply(crds: list[Body]) -> None:
        for crd in crds:
            done = kubectl("apply", "--server-side", "-f", "-", input=json.dumps(crd))
            assert done.returncode == 0, done.stderr
        done = kubectl("wait", "--for=condition=Established", "--timeout=30s", *names)
        assert done.returncode == 0, done.stderr

    yield apply
    done = kubectl("delete", *names, "--timeout=60s", "--ignore-not-found")
    assert done.returncode == 0, done.stderr


def wait_for_field(api: Api, what: str, name: str) -> Body:
    """Return the object once the API server reads it by the schema that has the field."""
    deadline = time.monotonic() + 30
    while name not in (body := api.get(what))["spec"]:
        if time.monotonic() > deadline:
            pytest.fail(f"{what} has no spec.{name} after 30 s: {body['spec']}")
        time.sleep(0.1)
    return body


def wait_until_served(api: Api, what: str) -> None:
    """Wait until the API server keeps a field of a Task that only the newest schema has."""
    change = {"spec": {"suspend": True}}
    deadline = time.monotonic() + 30
    while True:
        done = api.patch(what, change, dry_run=True)
        assert done.returncode == 0, done.stderr
        changed = json.loads(done.stdout)
        if "suspend" in changed["spec"]:
            return
        if time.monotonic() > deadline:
            pytest.fail(f"spec.suspend of {what} is dropped after 30 s: {changed['spec']}")
        time.sleep(0.1)


def test_an_upgrade_keeps_what_is_stored(
    kubectl: Kubectl,
    namespace: str,
    api_server: ApiServer,
    serve: Callable[[list[Body]], None],
) -> None:
    api = Api(kubectl, namespace, api_server)
    newest = [served(definition, UPGRADE_GROUP) for definition in DEFINITIONS]
    version = {"apiVersion": f"{UPGRADE_GROUP}/v1alpha1"}
    manifests = [task("done") | version, task("waits") | version, queue() | version]
    client_side = ("apply", "-f", "-")
    flux = ("apply", "--server-side", "--field-manager=kustomize-controller", "-f", "-")

    serve([first_schema(crd) for crd in newest])
    for manifest, how in zip(manifests, (client_side, flux, flux), strict=True):
        done = api.run(*how, body=manifest)
        assert done.returncode == 0, done.stderr
    done = api.patch_status(f"{TASKS}/done", SUCCEEDED)
    assert done.returncode == 0, done.stderr
    stored = api.get(f"{TASKS}/done")
    assert "cancel" not in stored["spec"]
    scaling = api.get(f"{QUEUES}/thumbnails")["spec"]["scaling"]
    assert scaling["target"] == {"type": "Backlog", "tasksPerReplica": 5}

    serve(newest)
    wait_until_served(api, f"{TASKS}/waits")
    finished = api.get(f"{TASKS}/done")
    assert finished["metadata"]["resourceVersion"] == stored["metadata"]["resourceVersion"]
    again = api.run(*client_side, body=manifests[0])
    assert (again.returncode, "unchanged" in again.stdout) == (0, True), again.stderr
    done = api.patch(f"{TASKS}/done", {"metadata": {"labels": {"kept": "yes"}}})
    assert done.returncode == 0, done.stderr
    refused = api.patch(f"{TASKS}/done", {"spec": {"cancel": True}})
    assert_refused(refused, "the spec of a finished Task is frozen")

    done = api.patch(f"{TASKS}/waits", {"spec": {"cancel": True}})
    assert done.returncode == 0, done.stderr
    wait_for_field(api, f"{QUEUES}/thumbnails", "stopPolicy")
    again = api.run(*flux, body=manifests[2])
    assert again.returncode == 0, again.stderr
    assert api.get(f"{QUEUES}/thumbnails")["spec"]["scaling"] == scaling
    changes: list[Body] = [
        {"stopPolicy": "Hold"},
        {"scaling": {"target": {"type": "DrainTime", "seconds": 60}}},
    ]
    for change in changes:
        done = api.patch(f"{QUEUES}/thumbnails", {"spec": change})
        assert done.returncode == 0, done.stderr
