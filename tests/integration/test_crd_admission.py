"""What the API server takes, completes and refuses of new TaskQueues and Tasks.

The schema is only as good as what a real API server makes of it, so every guarantee the models
state about admission is tried: defaults and bounds here, what may change in test_crd_changes.py,
the guards of a finished Task in test_crd_end.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from taskqueue.api.common import CATEGORY, GROUP
from taskqueue.api.crds import DEFINITIONS
from tests.integration.admission import (
    Api,
    Body,
    Kubectl,
    assert_refused,
    queue,
    task,
)

pytestmark = pytest.mark.cluster

CRDS = Path(__file__).parents[2] / "crds"
DRAIN_TIME = {"type": "DrainTime", "seconds": 60}


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
    assert served == {
        "tasks": "tqt",
        "taskqueues": "tq",
        "taskschedules": "tqs",
        "taskbatches": "tqb",
    }
    done = kubectl("api-resources", f"--categories={CATEGORY}", "-o", "name")
    kinds = ("taskqueues", "tasks", "taskschedules", "taskbatches")
    assert sorted(done.stdout.split()) == sorted(f"{kind}.{GROUP}" for kind in kinds)


# Defaults


def test_a_minimal_queue_gets_every_default(api: Api) -> None:
    created = api.create(queue())
    assert created["spec"] == {
        "broker": {"connectionSecret": {"name": "rabbit"}},
        "deletionPolicy": "Retain",
        "stopPolicy": "None",
        "concurrencyLimits": {"perKey": 1, "onConflict": "Queue"},
        "notifications": [],
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
    scaling = {"scaleDown": {"maxReplicasPerStep": 2}, "target": DRAIN_TIME}
    created = api.create(queue("steps", scaling=scaling))["spec"]["scaling"]
    assert created["target"] == DRAIN_TIME | {"tasksPerReplica": 5}
    assert created["scaleDown"] == {"stabilizationWindowSeconds": 30, "maxReplicasPerStep": 2}


def test_null_means_no_step_and_no_fallback(api: Api) -> None:
    scaling = {"scaleUp": None, "fallback": None, "scaleDown": {"maxReplicasPerStep": None}}
    created = api.create(queue(scaling=scaling))["spec"]["scaling"]
    assert not {"scaleUp", "fallback"} & set(created)
    assert created["scaleDown"] == {"stabilizationWindowSeconds": 30}


@pytest.mark.parametrize("policy", ["Overflow", "Always"])
def test_a_store_of_results_is_accepted(api: Api, policy: str) -> None:
    store = {"connectionSecret": {"name": "results"}}
    given = {"policy": policy, "store": store, "retentionSeconds": 60, "output": "Failed"}
    assert api.create(queue(results=given))["spec"]["results"] == given


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


def test_a_minimal_task_gets_a_pending_status_and_nothing_else(api: Api) -> None:
    created = api.create(task())
    assert created["spec"] == {"queue": "thumbnails", "handler": "resize"}
    assert created["status"] == {"phase": "Pending", "observedGeneration": -1}


def test_task_fields_are_kept_without_defaults_beside_them(api: Api) -> None:
    spec = {
        "payload": {"url": "https://example.org", "sizes": [1, {"w": 2.5}], "deep": {"n": None}},
        "payloadFrom": [{"configMapKeyRef": {"name": "sizes", "key": "all.json"}}],
        "priority": -1000,
        "concurrencyKey": "customer 1",
        "dependsOn": ["fetch-0042", "fetch.0043"],
        "startAfter": "2026-01-02T03:04:05.5+01:00",
        "retry": {"backoff": {"maxSeconds": 5}},
        "maxDeliveries": 1,
        "activeDeadlineSeconds": 60,
        "ttlSecondsAfterFinished": 0,
        "suspend": True,
        "cancel": True,
    }
    created = api.create(task(**spec))
    assert created["spec"] == {"queue": "thumbnails", "handler": "resize", **spec}


def test_status_given_at_creation_is_ignored(api: Api) -> None:
    created = api.create(task() | {"status": {"phase": "Succeeded"}})
    assert created["status"] == {"phase": "Pending", "observedGeneration": -1}


def test_null_gets_the_default(api: Api) -> None:
    fields = ("dependsOn", "startAfter", "suspend", "cancel", "concurrencyKey", "payloadFrom")
    body = task()
    body["spec"] |= dict.fromkeys(fields)
    assert api.create(body)["spec"] == task()["spec"]
    body = queue()
    body["spec"] |= dict.fromkeys(("stopPolicy", "deletionPolicy", "concurrencyLimits"))
    created = api.create(body)["spec"]
    assert (created["stopPolicy"], created["deletionPolicy"]) == ("None", "Retain")
    assert created["concurrencyLimits"] == {"perKey": 1, "onConflict": "Queue"}


# Creation


def limit(**changed: Any) -> Body:
    """Return a rate limit."""
    return {"name": "l", "attempts": 1, "periodSeconds": 1} | changed


def source(name: str, key: str = "all.json") -> Body:
    """Return a source of a payload."""
    return {"configMapKeyRef": {"name": name, "key": key}}


def scaled(**fields: Any) -> Body:
    """Return a queue whose workers are a StatefulSet's, but for the fields given."""
    ref = {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "w"} | fields
    return queue(workers={"scaleTargetRef": {k: v for k, v in ref.items() if v is not None}})


SECRET = {"connectionSecret": {"name": "rabbit"}}
REFERENCE = {"rabbitmqClusterReference": {"name": "rabbit", "namespace": "brokers"}}


@pytest.mark.parametrize(
    "body",
    [
        queue("a" * 52),
        queue("0-9"),
        queue(scaling={"minReplicas": 3, "maxReplicas": 3}),
        queue(scaling={"target": {"type": "DrainTime", "seconds": 1}}),
        queue(scaling={"target": {"type": "DrainTime", "seconds": 86_400, "tasksPerReplica": 1}}),
        queue(scaling={"scaleUp": {"maxReplicasPerStep": 1}}),
        queue(scaling={"scaleUp": {}}),
        queue(scaling={"scaleDown": {"maxReplicasPerStep": 10_000}}),
        queue(scaling={"fallback": {"replicas": 10}}),
        queue(scaling={"fallback": {"replicas": 1}, "minReplicas": 3}),
        scaled(),
        scaled(apiVersion="v1", kind="ReplicationController"),
        scaled(apiVersion="argoproj.io/v1alpha1", kind="Rollout", name="a.b"),
        queue(taskDefaults={"attemptTimeoutSeconds": 86_400}),
        queue(broker=REFERENCE),
        queue(broker={"rabbitmqClusterReference": {"name": "rabbit"}}),
        queue(deletionPolicy="Delete", stopPolicy="HoldAndDrain"),
        queue(concurrencyLimits={"perKey": 1000}),
        queue(taskDefaults={"activeDeadlineSeconds": 31_536_000, "ttlSecondsAfterFinished": 0}),
        task("with.dots.in-its-name"),
        task(payloadFrom=[source("c" * 253, f"{n}.json") for n in range(16)]),
        task(concurrencyKey="k" * 253),
        task(dependsOn=[f"{n:d>253}" for n in range(64)]),
        task(dependsOn=[]),
        task(dependsOn=["a"], dependencies=[{"name": "b"}, {"name": "c", "when": "Finished"}]),
        task(dependencies=[{"name": f"{n:d>253}", "when": "Failed"} for n in range(64)]),
        queue(
            concurrencyLimits={"perKey": 2, "overrides": [{"keyPrefix": "a/", "perKey": 5}]},
            flow={
                "fairness": {
                    "key": {"type": "Label", "name": "example.com/team"},
                    "weights": [{"value": "", "weight": 2}, {"value": "a", "weight": 1000}],
                },
                "rateLimits": [limit(), limit(name="each", scope="PerKey", burst=5)],
                "priorityAgeing": {"perSeconds": 60, "step": 1},
                "maxWaiting": 1,
            },
        ),
        queue(concurrencyLimits={"onConflict": "CancelRunning"}),
        task(startAfter="1970-01-01T00:00:00Z"),
        task(startAfter="9998-12-31T23:59:59.999999999+23:59"),
        task(activeDeadlineSeconds=31_536_000, ttlSecondsAfterFinished=31_536_000),
        task(suspend=True, cancel=True),
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
        (queue(broker={}), "give exactly one of connectionSecret and rabbitmqClusterReference"),
        (queue(broker=SECRET | REFERENCE), "exactly one of connectionSecret and"),
        (queue(broker={"rabbitmqClusterReference": {}}), "name: Required value"),
        (queue(broker={"rabbitmqClusterReference": {"name": "R"}}), "should match"),
        (queue(broker={"rabbitmqClusterReference": {"name": "a..b"}}), "should match"),
        (
            queue(broker={"rabbitmqClusterReference": {"name": "r", "namespace": "a.b"}}),
            "spec.broker.rabbitmqClusterReference.namespace in body should match",
        ),
        (
            queue(broker={"rabbitmqClusterReference": {"name": "r", "namespace": ""}}),
            "at least 1 chars long",
        ),
        (
            queue(broker={"rabbitmqClusterRef": {"name": "r"}}),
            'unknown field "spec.broker.rabbitmqClusterRef"',
        ),
        (queue(deletionPolicy="delete"), 'Unsupported value: "delete": supported values: "Retain"'),
        (queue(stopPolicy="Drain"), 'Unsupported value: "Drain": supported values: "None", "Hold"'),
        (queue(stopPolicy=True), "must be of type string"),
        (queue(concurrencyLimits={"perKey": 0}), "should be greater than or equal to 1"),
        (queue(concurrencyLimits={"perKey": 1001}), "should be less than or equal to 1000"),
        (queue(concurrencyLimits={"perkey": 2}), 'unknown field "spec.concurrencyLimits.perkey"'),
        (queue(taskDefaults={"activeDeadlineSeconds": 0}), "greater than or equal to 1"),
        (
            queue(taskDefaults={"activeDeadlineSeconds": 31_536_001}),
            "less than or equal to 31536000",
        ),
        (queue(taskDefaults={"ttlSecondsAfterFinished": -1}), "greater than or equal to 0"),
        (
            queue(taskDefaults={"ttlSecondsAfterFinished": 31_536_001}),
            "less than or equal to 31536000",
        ),
        (queue(taskDefaults={"ttlSecondsAfterFinished": "1h"}), "must be of type integer"),
        (queue(taskDefaults={"suspend": True}), 'unknown field "spec.taskDefaults.suspend"'),
        (queue(broker={"connectionSecret": {"name": "Rabbit_1"}}), "should match"),
        (queue(dispatch={"maxPublished": 0}), "should be greater than or equal to 1"),
        (queue(scaling={"maxReplicas": -1}), "should be greater than or equal to 0"),
        (queue(scaling={"minReplicas": -1}), "should be greater than or equal to 0"),
        (queue(scaling={"minReplicas": 11}), "lower minReplicas or raise maxReplicas"),
        (queue(scaling={"target": {"type": "Magic"}}), 'Unsupported value: "Magic"'),
        (queue(scaling={"target": {"tasksPerReplica": 0}}), "greater than or equal to 1"),
        (queue(scaling={"target": {"type": "DrainTime"}}), "set the time in which the workers"),
        (queue(scaling={"target": DRAIN_TIME | {"seconds": 0.5}}), "greater than or equal to 1"),
        (queue(scaling={"target": DRAIN_TIME | {"seconds": 86_401}}), "less than or equal to"),
        (queue(scaling={"target": DRAIN_TIME | {"seconds": "60s"}}), "must be of type number"),
        (queue(scaling={"target": DRAIN_TIME | {"seconds": None}}), "set the time in which"),
        (queue(scaling={"target": {"seconds": 60}}), "set type to DrainTime, or omit seconds"),
        (
            queue(scaling={"target": {"type": "Backlog", "seconds": 60}}),
            "set type to DrainTime, or omit seconds",
        ),
        (queue(scaling={"scaleUp": {"maxReplicasPerStep": 0}}), "greater than or equal to 1"),
        (queue(scaling={"scaleDown": {"maxReplicasPerStep": 0}}), "greater than or equal to 1"),
        (queue(scaling={"scaleDown": {"maxReplicasPerStep": 0.5}}), "must be of type integer"),
        (queue(scaling={"fallback": {}}), "fallback.replicas: Required value"),
        (queue(scaling={"fallback": {"replicas": 0}}), "greater than or equal to 1"),
        (queue(scaling={"fallback": {"replicas": 11}}), "lower fallback.replicas or raise max"),
        (
            queue(
                workers={
                    "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "w"},
                    "probes": "Managed",
                }
            ),
            "probes Managed is for a template",
        ),
        (queue(workers={"probes": "managed"}), 'supported values: "None", "Managed"'),
        (
            queue(
                workers={
                    "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "w"},
                    "credentials": {"type": "Managed"},
                }
            ),
            "credentials are for a template",
        ),
        (queue(workers={"credentials": {"type": "Secret"}}), "type Secret needs secretRef"),
        (
            queue(workers={"credentials": {"type": "Managed", "secretRef": {"name": "s"}}}),
            "type Secret needs secretRef, and no other type has it",
        ),
        (
            queue(workers={"credentials": {"rotationSeconds": 3600}}),
            "rotationSeconds is for type Managed",
        ),
        (
            queue(workers={"credentials": {"type": "Managed", "rotationSeconds": 599}}),
            "should be greater than or equal to 600",
        ),
        (scaled(apiVersion=None), "scaleTargetRef.apiVersion: Required value"),
        (scaled(kind=None), "scaleTargetRef.kind: Required value"),
        (scaled(name=None), "scaleTargetRef.name: Required value"),
        (scaled(name=""), "at least 1 chars long"),
        (scaled(name="apps/w"), "scaleTargetRef.name in body should match"),
        (scaled(apiVersion="apps/v1/v1"), "scaleTargetRef.apiVersion in body should match"),
        (scaled(kind="statefulsets"), "scaleTargetRef.kind in body should match"),
        (scaled(namespace="other"), 'unknown field "spec.workers.scaleTargetRef.namespace"'),
        (scaled(apiVersion=f"{GROUP}/v1alpha1", kind="TaskQueue"), "a TaskQueue runs no workers"),
        (
            queue(workers={"template": {}} | scaled()["spec"]["workers"]),
            "give template for a Deployment that the operator creates, or scaleTargetRef",
        ),
        (queue(workers={"replicas": -1}), "should be greater than or equal to 0"),
        (queue(workers={"concurrency": 0}), "should be greater than or equal to 1"),
        (queue(workers={"template": "a string"}), "must be of type object"),
        (queue(taskDefaults={"attemptTimeoutSeconds": 86_401}), "less than or equal to 86400"),
        (queue(taskDefaults={"attemptTimeoutSeconds": 0.5}), "must be of type integer"),
        (queue(taskDefaults={"maxDeliveries": 21}), "less than or equal to 20"),
        (queue(taskDefaults={"retry": {"maxAttempts": 0}}), "greater than or equal to 1"),
        (queue(taskDefaults={"retry": {"backoff": {"jitter": 2}}}), "less than or equal to 1"),
        (queue(taskDefaults={"retry": {"backoff": {"factor": 0.5}}}), "greater than or equal to 1"),
        (
            queue(concurrencyLimits={"perKey": 2, "onConflict": "KeepNewest"}),
            "onConflict other than Queue lets one Task of a key run",
        ),
        (
            queue(
                concurrencyLimits={
                    "onConflict": "Reject",
                    "overrides": [{"keyPrefix": "a", "perKey": 1}],
                }
            ),
            "onConflict other than Queue lets one Task of a key run",
        ),
        (
            queue(flow={"rateLimits": [limit(scope="PerKey")]}),
            "a rate limit of scope PerKey needs spec.flow.fairness",
        ),
        (queue(flow={"rateLimits": [limit(), limit()]}), "Duplicate value"),
        (queue(flow={"rateLimits": [limit(attempts=0)]}), "greater than or equal to 1"),
        (queue(flow={"maxWaiting": 0}), "greater than or equal to 1"),
        (queue(flow={"priorityAgeing": {"step": 1}}), "perSeconds: Required value"),
        (queue(flow={"fairness": {}}), "flow.fairness.key: Required value"),
        (
            queue(flow={"fairness": {"key": {"type": "Label", "name": "a b"}}}),
            "fairness.key.name in body should match",
        ),
        (
            queue(flow={"fairness": {"key": {"type": "PayloadField", "name": "a"}}}),
            'Unsupported value: "PayloadField"',
        ),
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
        (task(payloadFrom=source("a")), 'unknown field "spec.payloadFrom.configMapKeyRef"'),
        (task(payloadFrom="a"), "must be of type array"),
        (task(payloadFrom=[{}]), "spec.payloadFrom[0].configMapKeyRef: Required value"),
        (task(payloadFrom=[{"configMapKeyRef": {"name": "a"}}]), "key: Required value"),
        (task(payloadFrom=[{"configMapKeyRef": {"key": "a"}}]), "name: Required value"),
        (task(payloadFrom=[{"secretKeyRef": {}}]), 'field "spec.payloadFrom[0].secretKeyRef"'),
        (task(payloadFrom=[source("a/b")]), "configMapKeyRef.name in body should match"),
        (task(payloadFrom=[source("a" * 254)]), "Too long"),
        (task(payloadFrom=[source("a", "b/c")]), "configMapKeyRef.key in body should match"),
        (task(payloadFrom=[source("a", "b" * 254)]), "Too long"),
        (task(payloadFrom=[source(f"a{n}") for n in range(17)]), "must have at most 16 items"),
        (task(payloadFrom=[source("a"), source("b"), source("a")]), "twice: name each once"),
        (task(concurrencyKey="k" * 254), "Too long"),
        (task(concurrencyKey=7), "must be of type string"),
        (task("t", dependsOn=["a", "t"]), "remove its own name from spec.dependsOn"),
        (task("t", dependencies=[{"name": "t"}]), "spec.dependencies names the Task itself"),
        (
            task(dependsOn=["a"], dependencies=[{"name": "a", "when": "Failed"}]),
            "name each other Task once",
        ),
        (
            task(
                dependsOn=[f"a{n}" for n in range(60)],
                dependencies=[{"name": f"b{n}"} for n in range(5)],
            ),
            "more than 64 names",
        ),
        (task(dependencies=[{"name": "a", "when": "Cancelled"}]), "Unsupported value"),
        (task(dependencies=[{"name": "a"}, {"name": "a", "when": "Failed"}]), "Duplicate value"),
        (task(dependsOn=["a", "b", "a"]), 'spec.dependsOn[2]: Duplicate value: "a"'),
        (task(dependsOn=[f"a{n}" for n in range(65)]), "must have at most 64 items"),
        (task(dependsOn="a"), "must be of type array"),
        (task(dependsOn=[{"name": "a"}]), 'unknown field "spec.dependsOn[0].name"'),
        (task(dependsOn=["Fetch_1"]), "spec.dependsOn[0] in body should match"),
        (task(dependsOn=["shop/a"]), "spec.dependsOn[0] in body should match"),
        (task(dependsOn=["a..b"]), "spec.dependsOn[0] in body should match"),
        (task(dependsOn=[""]), "at least 1 chars long"),
        (task(dependsOn=["a" * 254]), "Too long"),
        (task(startAfter="tomorrow"), "must be of type date-time"),
        (task(startAfter="2026-01-02"), "must be of type date-time"),
        (task(startAfter="2026-01-02T03:04:05"), "must be of type date-time"),  # no zone
        (task(startAfter="2026-02-30T03:04:05Z"), "must be of type date-time"),
        (task(startAfter="2026-01-02 03:04:05Z"), "spec.startAfter in body should match"),
        (task(startAfter="2026-01-02T03:04:05+24:00"), "spec.startAfter in body should match"),
        (task(startAfter=1_767_322_000), "must be of type date-time"),
        (
            task(startAfter="0026-01-02T03:04:05Z"),
            "not a time in the years 1970 to 9998: correct it",
        ),
        (
            task(startAfter="9999-01-01T00:00:00Z"),
            "not a time in the years 1970 to 9998: correct it",
        ),
        (queue(results={"policy": "Always"}), "spec.results.policy Always needs a store"),
        (queue(results={"policy": "Never"}), 'Unsupported value: "Never"'),
        (queue(results={"output": "Some"}), 'Unsupported value: "Some"'),
        (queue(results={"store": {}}), "connectionSecret: Required value"),
        (queue(results={"retentionSeconds": 59}), "should be greater than or equal to 60"),
        (task(activeDeadlineSeconds=0), "should be greater than or equal to 1"),
        (task(activeDeadlineSeconds=31_536_001), "should be less than or equal to 31536000"),
        (task(activeDeadlineSeconds="5m"), "must be of type integer"),
        (task(ttlSecondsAfterFinished=-1), "should be greater than or equal to 0"),
        (task(ttlSecondsAfterFinished=31_536_001), "should be less than or equal to 31536000"),
        (task(suspend="true"), "must be of type boolean"),
        (task(cancel="yes"), "must be of type boolean"),
        (task(stopPolicy="Hold"), 'unknown field "spec.stopPolicy"'),
    ],
)
def test_refused(api: Api, body: Body, says: str) -> None:
    assert_refused(api.try_create(body), says)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (task(startAfte="2026-01-02T03:04:05Z"), ".spec.startAfte: field not declared in schema"),
        (queue(stoppolicy="Hold"), ".spec.stoppolicy: field not declared in schema"),
    ],
)
def test_a_misspelt_field_is_refused_without_strict_validation(
    api: Api, body: Body, says: str
) -> None:
    """As Flux and Argo CD apply: on the server's side, and without asking for strictness."""
    apply = ("apply", "--server-side", "--validate=ignore", "--field-manager=gitops", "-f", "-")
    assert_refused(api.run(*apply, body=body), says)
