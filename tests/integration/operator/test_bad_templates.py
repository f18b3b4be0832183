"""Pod templates that make no workers: each TaskQueue says what to change, and heals then."""

from dataclasses import dataclass

import pytest

from tests.e2e.api import Body
from tests.e2e.harness import Harness, conditions, true_conditions

pytestmark = pytest.mark.cluster

GOOD_CONTAINER: Body = {
    "name": "worker",
    "image": "taskqueue-operator:dev",
    "args": ["worker", "handlers"],
    "volumeMounts": [{"name": "handlers", "mountPath": "/handlers"}],
}
VOLUME: Body = {"name": "handlers", "configMap": {"name": "handlers"}}


def containers(*those: Body) -> Body:
    return {"template": {"spec": {"containers": list(those)}}}


@dataclass(frozen=True)
class Trouble:
    """spec.workers that is wrong, what the TaskQueue says of it, and the change that mends it."""

    name: str
    workers: Body
    says: str
    mend: Body


TROUBLES = [
    Trouble(
        "empty",
        containers(),
        "spec.workers.template.spec.containers is empty: give at least one container",
        containers(GOOD_CONTAINER),
    ),
    Trouble(
        "no-spec",
        {"template": {"spec": None, "metadata": {"labels": {"a": "b"}}}},
        "spec.workers.template.spec.containers is empty",
        {"template": {"spec": {"containers": [GOOD_CONTAINER], "volumes": [VOLUME]}}},
    ),
    Trouble(
        "wrong-type",
        containers({**GOOD_CONTAINER, "ports": [{"containerPort": "eighty"}]}),
        "containerPort",
        containers(GOOD_CONTAINER),
    ),
    Trouble(
        "unknown-field",
        containers({**GOOD_CONTAINER, "imaeg": "typo"}),
        "imaeg",
        containers(GOOD_CONTAINER),
    ),
    Trouble(
        "no-image-name",
        containers({**GOOD_CONTAINER, "name": "Not A Name"}),
        "Not A Name",
        containers(GOOD_CONTAINER),
    ),
    Trouble(
        "no-such-container",
        {"container": "wroker"},
        "spec.workers.container 'wroker' is none of the template's containers ['worker']",
        {"container": "worker"},
    ),
    Trouble(
        "containers-no-list",
        {"template": {"spec": {"containers": {"name": "worker"}}}},
        "spec.workers.template.spec.containers must be a list of objects",
        containers(GOOD_CONTAINER),
    ),
    Trouble(
        "env-no-list",
        containers({**GOOD_CONTAINER, "env": "A=B"}),
        "env of container 'worker' in spec.workers.template must be a list of objects",
        containers(GOOD_CONTAINER),
    ),
    Trouble(
        "labels-no-map",
        {"template": {"metadata": {"labels": "a=b"}}},
        "labels",
        {"template": {"metadata": None}},
    ),
]
NAMES = [trouble.name for trouble in TROUBLES]


@pytest.fixture(scope="module", autouse=True)
def queues(harness: Harness) -> None:
    for trouble in TROUBLES:
        harness.queue(trouble.name, workers=trouble.workers, scaling={"maxReplicas": 1})
        harness.task(f"for-{trouble.name}", queue=trouble.name)


@pytest.mark.parametrize("trouble", TROUBLES, ids=NAMES)
def test_a_wrong_template_is_explained(harness: Harness, trouble: Trouble) -> None:
    message = harness.condition("WorkersAvailable", "False", "InvalidTemplate", trouble.name)
    assert trouble.says in message
    assert message.endswith(": fix spec.workers.template")
    # Ready tells of the broker first, which is being connected to when the operator has just begun.
    assert harness.condition("Ready", "False", "InvalidTemplate", trouble.name) == message
    status = harness.queues.versions(trouble.name)[-1]["status"]
    assert "Stalled" in true_conditions(status)
    # The work itself is safe.
    assert conditions(status)["BrokerConnected"]["status"] == "True"
    assert harness.tasks.versions(f"for-{trouble.name}")[-1]["status"]["phase"] == "Pending"


def test_other_queues_go_on(harness: Harness) -> None:
    harness.queue(scaling={"maxReplicas": 1})
    harness.task("undisturbed")
    assert harness.finished("undisturbed")["phase"] == "Succeeded"


def test_all_heal_when_the_templates_are_mended(harness: Harness) -> None:
    for trouble in TROUBLES:
        harness.change_queue(trouble.name, workers=trouble.mend)
    for name in NAMES:
        harness.ready(name)
    for trouble in (TROUBLES[0], TROUBLES[5]):
        assert harness.finished(f"for-{trouble.name}")["phase"] == "Succeeded"


def test_a_refused_pod_is_explained_and_comes_when_it_may(harness: Harness) -> None:
    label = "pod-security.kubernetes.io/enforce"
    namespace = f"/api/v1/namespaces/{harness.namespace}"
    harness.api.patch(namespace, {"metadata": {"labels": {label: "restricted"}}})
    harness.queue("forbidden", scaling={"maxReplicas": 1})
    harness.task("for-forbidden", queue="forbidden")
    message = harness.condition("WorkersAvailable", "False", "ReplicaFailure", "forbidden")
    assert 'violates PodSecurity "restricted' in message
    assert "0 of 1 workers are available" in message
    harness.api.patch(namespace, {"metadata": {"labels": {label: None}}})
    # Kubernetes itself waits ever longer before it tries a refused pod again.
    assert harness.finished("for-forbidden", seconds=180)["phase"] == "Succeeded"
    harness.ready("forbidden")
