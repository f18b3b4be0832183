"""What the API server takes, completes and refuses of TaskQueues and Tasks.

The schema is only as good as what a real API server makes of it, so every guarantee the models
state about admission is tried here: defaults, bounds, immutability, the guards of a finished Task.

The schemas are served under a group of the tests' own. The operator of the cluster does not know
it, so that nobody but the test writes a status.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from taskqueue.api.common import CATEGORY, GROUP
from taskqueue.api.crds import DEFINITIONS, custom_resource_definition, structural_schema

pytestmark = pytest.mark.cluster

CRDS = Path(__file__).parents[2] / "crds"
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


@pytest.fixture(scope="module", autouse=True)
def schemas(kubectl: Kubectl) -> Iterator[None]:
    """The generated CRDs, served under the tests' own group while the tests run."""
    names = []
    for definition in DEFINITIONS:
        crd = custom_resource_definition(definition)
        names.append(f"crd/{definition.plural}.{TEST_GROUP}")
        crd["metadata"]["name"] = f"{definition.plural}.{TEST_GROUP}"
        crd["spec"]["group"] = TEST_GROUP
        # Other people's `kubectl get tqt` must go on meaning one kind.
        del crd["spec"]["names"]["shortNames"], crd["spec"]["names"]["categories"]
        done = kubectl("apply", "--server-side", "-f", "-", input=json.dumps(crd))
        assert done.returncode == 0, done.stderr
    done = kubectl("wait", "--for=condition=Established", "--timeout=30s", *names)
    assert done.returncode == 0, done.stderr
    yield
    done = kubectl("delete", *names, "--timeout=60s")
    assert done.returncode == 0, done.stderr


@pytest.fixture
def api(kubectl: Kubectl, namespace: str) -> Api:
    return Api(kubectl, namespace)


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


# The files


@pytest.mark.parametrize("how", ["-f", "-k"])
def test_the_folder_of_crds_is_applied_in_both_ways(kubectl: Kubectl, how: str) -> None:
    done = kubectl(
        "apply", "--server-side", "--force-conflicts", "--dry-run=server", how, str(CRDS)
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("serverside-applied") == len(DEFINITIONS)


def test_short_names_and_category(kubectl: Kubectl) -> None:
    done = kubectl("api-resources", f"--api-group={GROUP}", "--no-headers")
    served = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines()}
    assert served == {"tasks": "tqt", "taskqueues": "tq"}
    done = kubectl("api-resources", f"--categories={CATEGORY}", "-o", "name")
    assert sorted(done.stdout.split()) == [f"taskqueues.{GROUP}", f"tasks.{GROUP}"]


# Defaults


def test_a_minimal_queue_gets_every_default(api: Api) -> None:
    created = api.create(queue())
    assert created["spec"] == {
        "broker": {"connectionSecret": {"name": "rabbit"}},
        "dispatch": {"maxPublished": 1000},
        "taskDefaults": {
            "retry": {
                "maxAttempts": 3,
                "backoff": {"initialSeconds": 1, "factor": 2, "maxSeconds": 300, "jitter": 0.1},
                "nonRetryable": [],
            },
            "attemptTimeoutSeconds": 300,
            "maxDeliveries": 3,
        },
        "workers": {"container": "", "replicas": 0},
        "scaling": {
            "minReplicas": 0,
            "maxReplicas": 10,
            "target": {"type": "Backlog", "tasksPerReplica": 5},
            "scaleDown": {"stabilizationWindowSeconds": 30},
            "idleSecondsBeforeZero": 60,
            "paused": False,
        },
    }
    assert created["status"] == {"observedGeneration": -1}


def test_defaults_fill_in_beside_what_is_given(api: Api) -> None:
    created = api.create(
        queue(taskDefaults={"retry": {"backoff": {"factor": 3.5}}}, scaling={"maxReplicas": 2})
    )
    assert created["spec"]["taskDefaults"]["retry"] == {
        "maxAttempts": 3,
        "backoff": {"initialSeconds": 1, "factor": 3.5, "maxSeconds": 300, "jitter": 0.1},
        "nonRetryable": [],
    }
    assert created["spec"]["scaling"]["maxReplicas"] == 2
    assert created["spec"]["scaling"]["idleSecondsBeforeZero"] == 60


def test_a_pod_template_is_kept_whole(api: Api) -> None:
    template = {
        "metadata": {"labels": {"a": "b"}},
        "spec": {
            "containers": [{"name": "worker", "image": "w:1", "resources": {"limits": {"cpu": 1}}}],
            "anythingNew": {"deep": [{"x": None}, 1, "y"]},
        },
    }
    created = api.create(queue(workers={"template": template}))
    assert created["spec"]["workers"]["template"] == template


def test_a_minimal_task_gets_priority_and_a_pending_status_and_inherits_the_rest(api: Api) -> None:
    created = api.create(task())
    assert created["spec"] == {"queue": "thumbnails", "handler": "resize", "priority": 0}
    assert created["status"] == {"phase": "Pending", "observedGeneration": -1}


def test_what_a_task_gives_is_kept_without_defaults_beside_it(api: Api) -> None:
    spec = {
        "payload": {"url": "https://example.org", "sizes": [1, {"w": 2.5}], "deep": {"n": None}},
        "priority": -1000,
        "retry": {"backoff": {"maxSeconds": 5}},
        "maxDeliveries": 1,
    }
    created = api.create(task(**spec))
    assert created["spec"] == {"queue": "thumbnails", "handler": "resize", **spec}


def test_a_status_given_at_creation_is_not_believed(api: Api) -> None:
    created = api.create(task() | {"status": {"phase": "Succeeded"}})
    assert created["status"] == {"phase": "Pending", "observedGeneration": -1}


# Creation


@pytest.mark.parametrize(
    "body",
    [
        queue("a" * 52),
        queue("0-9"),
        queue(scaling={"minReplicas": 3, "maxReplicas": 3}),
        queue(taskDefaults={"attemptTimeoutSeconds": 86_400}),
        task("with.dots.in-its-name"),
        task(priority=1000),
        task(handler="images.resize:v2"),
        task(payload={}),
        task(retry={"maxAttempts": 1, "nonRetryable": ["ValueError"]}),
    ],
    ids=lambda body: f"{body['kind']}-{body['metadata']['name'][:20]}",
)
def test_accepted(api: Api, body: Body) -> None:
    api.create(body)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (queue("a.b"), "metadata.name must not contain dots"),
        (queue("a" * 53), "metadata.name must be at most 52 characters long"),
        (queue(broker=None), "spec.broker: Required value"),
        (queue(broker={}), "spec.broker.connectionSecret: Required value"),
        (queue(broker={"connectionSecret": {"name": "Rabbit_1"}}), "should match"),
        (queue(dispatch={"maxPublished": 0}), "should be greater than or equal to 1"),
        (queue(scaling={"maxReplicas": -1}), "should be greater than or equal to 0"),
        (queue(scaling={"minReplicas": -1}), "should be greater than or equal to 0"),
        (queue(scaling={"minReplicas": 11}), "lower minReplicas or raise maxReplicas"),
        (queue(scaling={"target": {"type": "Magic"}}), 'Unsupported value: "Magic"'),
        (queue(scaling={"target": {"tasksPerReplica": 0}}), "greater than or equal to 1"),
        (queue(workers={"replicas": -1}), "should be greater than or equal to 0"),
        (queue(workers={"concurrency": 0}), "should be greater than or equal to 1"),
        (queue(workers={"template": "a string"}), "must be of type object"),
        (queue(taskDefaults={"attemptTimeoutSeconds": 86_401}), "less than or equal to 86400"),
        (queue(taskDefaults={"attemptTimeoutSeconds": 0.5}), "must be of type integer"),
        (queue(taskDefaults={"maxDeliveries": 21}), "less than or equal to 20"),
        (queue(taskDefaults={"retry": {"maxAttempts": 0}}), "greater than or equal to 1"),
        (queue(taskDefaults={"retry": {"backoff": {"jitter": 2}}}), "less than or equal to 1"),
        (queue(taskDefaults={"retry": {"backoff": {"factor": 0.5}}}), "greater than or equal to 1"),
        (queue(scalling={}), 'unknown field "spec.scalling"'),
        (task(queue=None), "spec.queue: Required value"),
        (task(queue="a.b"), "spec.queue in body should match"),
        (task(queue="a" * 53), "Too long"),
        (task(handler=None), "spec.handler: Required value"),
        (task(handler=""), "at least 1 chars long"),
        (task(handler="two words"), "spec.handler in body should match"),
        (task(handler="h" * 254), "Too long"),
        (task(payload=[1]), "must be of type object"),
        (task(payload="text"), "must be of type object"),
        (task(priority=1001), "should be less than or equal to 1000"),
        (task(priority=-1001), "should be greater than or equal to -1000"),
        (task(priority=0.5), "must be of type integer"),
        (task(retry={"maxAttempts": 1001}), "should be less than or equal to 1000"),
        (task(retry={"nonRetryable": ["E"] * 65}), "must have at most 64 items"),
        (task(attemptTimeoutSeconds=0), "should be greater than or equal to 1"),
        (task(maxDeliveries=0), "should be greater than or equal to 1"),
        (task(prioritty=1), 'unknown field "spec.prioritty"'),
    ],
)
def test_refused(api: Api, body: Body, says: str) -> None:
    assert_refused(api.run("create", "-f", "-", body=body), says)


# Changes


@dataclass(frozen=True)
class Change:
    """A patch to a Task, and what the refusal says."""

    patch: Body
    says: str
    before: Body = field(default_factory=dict)


PAYLOAD = {"payload": {"a": {"b": [1, {"c": 2}]}, "d": 1}}


@pytest.mark.parametrize(
    "change",
    [
        Change({"queue": "other"}, "queue is immutable: create a new Task"),
        Change({"handler": "other"}, "handler is immutable: create a new Task"),
        Change({"payload": {"a": {"b": [1, {"c": 3}]}}}, "payload is immutable", PAYLOAD),
        Change({"payload": {"d": None}}, "payload is immutable", PAYLOAD),
        Change({"payload": {"e": 1}}, "payload is immutable", PAYLOAD),
        Change({"payload": None}, "payload is immutable: create a new Task", PAYLOAD),
        Change({"payload": {"a": 1}}, "payload is immutable"),
    ],
    ids=["queue", "handler", "nested", "field removed", "field added", "removed", "added"],
)
def test_what_a_task_is_never_changes(api: Api, change: Change) -> None:
    api.create(task(**change.before))
    assert_refused(api.patch(f"{TASKS}/t", {"spec": change.patch}), change.says)


def test_what_may_change_before_the_end(api: Api) -> None:
    api.create(task(**PAYLOAD))
    change = {"priority": 7, "retry": {"maxAttempts": 9}, "attemptTimeoutSeconds": 5}
    done = api.patch(f"{TASKS}/t", {"spec": change | PAYLOAD})
    assert done.returncode == 0, done.stderr
    spec = api.json("get", f"{TASKS}/t")["spec"]
    assert {key: spec[key] for key in change} == change


def test_a_queue_name_rule_does_not_stop_other_changes(api: Api) -> None:
    api.create(queue())
    done = api.patch(f"{QUEUES}/thumbnails", {"spec": {"scaling": {"minReplicas": 1}}})
    assert done.returncode == 0, done.stderr
    refused = api.patch(f"{QUEUES}/thumbnails", {"spec": {"scaling": {"maxReplicas": 0}}})
    assert_refused(refused, "lower minReplicas or raise maxReplicas")


# The end


RUNNING = {"phase": "Running", "attempts": 2, "startTime": STARTED}


@pytest.mark.parametrize(
    ("before", "status", "says"),
    [
        (SUCCEEDED, {"phase": "Running"}, "the phase of a finished Task never changes"),
        (SUCCEEDED, {"phase": "Failed"}, "the phase of a finished Task never changes"),
        (SUCCEEDED, {"phase": None}, "the phase of a finished Task never changes"),
        (SUCCEEDED, None, "the phase of a finished Task never changes"),
        (SUCCEEDED | {"phase": "Failed"}, {"phase": "Succeeded"}, "phase of a finished Task"),
        (SUCCEEDED | {"phase": "Cancelled"}, {"phase": "Succeeded"}, "phase of a finished Task"),
        ({"phase": "Cancelled"}, None, "the phase of a finished Task never changes"),
        (SUCCEEDED, {"completionTime": None}, "completionTime is never cleared"),
        (RUNNING, {"attempts": 1}, "attempts never decrease"),
        (RUNNING, {"attempts": None}, "attempts never decrease"),
        (RUNNING, None, "attempts never decrease"),
        (RUNNING, {"phase": "Done"}, 'Unsupported value: "Done"'),
        (RUNNING, {"message": "m" * 4097}, "Too long"),
        (RUNNING, {"history": [{"attempt": 1, "outcome": "Failed"}] * 11}, "at most 10 items"),
        (RUNNING, {"history": [{"attempt": 1, "outcome": "Odd"}]}, 'Unsupported value: "Odd"'),
        (RUNNING, {"result": [1]}, "must be of type object"),
        (RUNNING, {"completionTime": "yesterday"}, "must be of type date-time"),
    ],
)
def test_refused_status(api: Api, before: Body, status: Body | None, says: str) -> None:
    api.create(task())
    done = api.patch_status(f"{TASKS}/t", before)
    assert done.returncode == 0, done.stderr
    assert_refused(api.patch_status(f"{TASKS}/t", status), says)


def test_a_whole_status_replaced_by_none_is_refused(api: Api) -> None:
    api.create(task())
    api.patch_status(f"{TASKS}/t", SUCCEEDED)
    body = api.json("get", f"{TASKS}/t")
    late_writes: list[Body] = [{"status": None}, {"status": {}}, {"status": {"phase": "Retrying"}}]
    for late in late_writes:
        done = api.run("replace", "--subresource=status", "-f", "-", body=body | late)
        assert_refused(done, "the phase of a finished Task never changes")
    without = {key: value for key, value in body.items() if key != "status"}
    done = api.run("replace", "--subresource=status", "-f", "-", body=without)
    assert_refused(done, "the phase of a finished Task never changes")
    remove = json.dumps([{"op": "remove", "path": "/status"}])
    done = api.run("patch", f"{TASKS}/t", "--subresource=status", "--type=json", "-p", remove)
    assert_refused(done, "the phase of a finished Task never changes")
    assert api.json("get", f"{TASKS}/t")["status"] == SUCCEEDED | {"observedGeneration": -1}


def test_a_life_in_status_is_accepted(api: Api) -> None:
    api.create(task())
    condition = {"status": "True", "reason": "Done", "lastTransitionTime": FINISHED}
    attempt = {"attempt": 1, "outcome": "Failed", "finishTime": STARTED, "reason": "ValueError"}
    steps: list[Body] = [
        {"phase": "Running", "attempts": 1, "startTime": STARTED, "worker": "w-1"},
        {"phase": "Retrying", "nextAttemptTime": "2026-01-02T03:04:06.500000Z"},
        {"phase": "Pending", "history": [attempt], "epoch": 1},
        SUCCEEDED | {"attempts": 2, "nextAttemptTime": None, "result": {"any": [{"thing": 1}]}},
        {"conditions": [{"type": "Finished", **condition}, {"type": "Complete", **condition}]},
    ]
    for status in steps:
        done = api.patch_status(f"{TASKS}/t", status)
        assert done.returncode == 0, done.stderr
    assert api.json("get", f"{TASKS}/t")["status"]["result"] == {"any": [{"thing": 1}]}


def test_kubectl_wait_believes_a_condition_of_the_newest_generation_only(api: Api) -> None:
    api.create(task())
    complete = {"type": "Complete", "status": "True", "reason": "Done"}
    status = SUCCEEDED | {"conditions": [complete | {"lastTransitionTime": FINISHED}]}
    wait = ("wait", f"{TASKS}/t", "--for=condition=Complete")
    api.patch_status(f"{TASKS}/t", status)
    assert_refused(api.run(*wait, "--timeout=1s"), "timed out")  # observedGeneration is still -1
    api.patch_status(f"{TASKS}/t", {"observedGeneration": 1})
    done = api.run(*wait, "--timeout=10s")
    assert done.returncode == 0, done.stderr


def test_nulls_in_payload_and_result_are_kept(api: Api) -> None:
    free = {"none": None, "deep": [None, {"none": None}]}
    body = api.create(task(payload=free))
    assert body["spec"]["payload"] == free
    body["status"] |= {"result": free}
    body = api.json("replace", "--subresource=status", "-f", "-", body=body)
    assert body["status"]["result"] == free


def test_the_spec_of_a_finished_task_is_frozen_and_nothing_else(api: Api) -> None:
    manifest = task(**PAYLOAD)
    assert api.run("apply", "-f", "-", body=manifest).returncode == 0
    api.patch_status(f"{TASKS}/t", SUCCEEDED)
    for change in ({"priority": 1}, {"retry": {"maxAttempts": 5}}, {"maxDeliveries": 2}):
        refused = api.patch(f"{TASKS}/t", {"spec": change})
        assert_refused(refused, "the spec of a finished Task is frozen: create a new Task")
    done = api.patch(f"{TASKS}/t", {"metadata": {"labels": {"kept": "yes"}}})
    assert done.returncode == 0, done.stderr
    again = api.run("apply", "-f", "-", body=manifest)
    assert again.returncode == 0, again.stderr
    assert "unchanged" in again.stdout
    assert api.json("get", f"{TASKS}/t")["status"]["phase"] == "Succeeded"


# What people see


def table(api: Api, *args: str) -> list[str]:
    """Return kubectl's table, the header first, one space between two cells."""
    done = api.run("get", *args)
    assert done.returncode == 0, done.stderr
    return [" ".join(line.split()) for line in done.stdout.splitlines()]


def test_columns_of_tasks(api: Api) -> None:
    api.create(task("done"))
    api.create(task("new"))
    api.patch_status(f"{TASKS}/done", SUCCEEDED | {"reason": "AllGood"})
    header, done, new = table(api, TASKS)
    assert header == "NAME QUEUE HANDLER PHASE ATTEMPTS REASON FINISHED AGE"
    assert done.startswith("done thumbnails resize Succeeded 1 AllGood ")
    assert new.startswith("new thumbnails resize Pending ")
    assert table(api, TASKS, "-o", "wide")[0] == f"{header} WORKER MESSAGE"


def test_columns_of_queues(api: Api) -> None:
    api.create(queue())
    ready = {"type": "Ready", "status": "True", "reason": "Up", "lastTransitionTime": STARTED}
    status = {
        "conditions": [ready],
        "backlog": 12,
        "running": 3,
        "replicas": 4,
        "desiredReplicas": 5,
        "totals": {"succeeded": 6, "failed": 7, "cancelled": 8},
    }
    done = api.patch_status(f"{QUEUES}/thumbnails", status)
    assert done.returncode == 0, done.stderr
    header, row = table(api, QUEUES)
    assert header == "NAME READY BACKLOG RUNNING WORKERS DESIRED SUCCEEDED FAILED AGE"
    assert row.startswith("thumbnails True 12 3 4 5 6 7 ")


def test_tasks_are_selected_by_phase_and_queue(api: Api) -> None:
    for name in ("a", "b", "c"):
        api.create(task(name, queue="slow" if name == "c" else "fast"))
    api.patch_status(f"{TASKS}/b", SUCCEEDED)

    def selected(selector: str) -> list[str]:
        done = api.run("get", TASKS, "--field-selector", selector, "-o", "name")
        assert done.returncode == 0, done.stderr
        return [line.removeprefix(f"task.{TEST_GROUP}/") for line in done.stdout.split()]

    assert selected("status.phase=Pending") == ["a", "c"]
    assert selected("status.phase!=Pending") == ["b"]
    assert selected("status.phase!=Succeeded,status.phase!=Failed") == ["a", "c"]
    assert selected("spec.queue=slow") == ["c"]
    assert selected("spec.queue=fast,status.phase=Succeeded") == ["b"]


def test_the_scale_subresource(api: Api) -> None:
    api.create(queue())
    api.patch_status(
        f"{QUEUES}/thumbnails", {"replicas": 2, "selector": "taskqueue.dev/queue=thumbnails"}
    )
    done = api.run("scale", f"{QUEUES}/thumbnails", "--replicas=3")
    assert done.returncode == 0, done.stderr
    assert api.json("get", f"{QUEUES}/thumbnails")["spec"]["workers"]["replicas"] == 3
    scale = api.json("get", f"{QUEUES}/thumbnails", "--subresource=scale")
    assert scale["spec"] == {"replicas": 3}
    assert scale["status"] == {"replicas": 2, "selector": "taskqueue.dev/queue=thumbnails"}


def explained() -> Iterator[tuple[str, dict[str, str]]]:
    """Yield every object field of the resources, and what its own fields are explained by."""

    def walk(path: str, schema: Body) -> Iterator[tuple[str, dict[str, str]]]:
        fields = schema.get("properties", {})
        if fields:
            yield path, {name: below.get("description", "") for name, below in fields.items()}
        for name, below in fields.items():
            yield from walk(f"{path}.{name}", below.get("items", below))

    for definition in DEFINITIONS:
        schema = structural_schema(definition.model)
        for part in ("spec", "status"):
            yield from walk(f"{definition.plural}.{part}", schema["properties"][part])


def test_kubectl_explains_every_field(api: Api) -> None:
    for path, fields in explained():
        text = explain(api, path)
        for name, description in fields.items():
            assert f" {name} <" in text, path
            assert " ".join(description.split()) in text, f"{path}.{name}"


def explain(api: Api, path: str) -> str:
    """Return kubectl's words on a field; the API server publishes a new CRD's within seconds."""
    deadline = time.monotonic() + 30
    args = ("explain", path, f"--api-version={TEST_GROUP}/v1alpha1")
    while (done := api.run(*args)).returncode != 0 and time.monotonic() < deadline:
        time.sleep(0.5)
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.replace("\t", " ").split())
