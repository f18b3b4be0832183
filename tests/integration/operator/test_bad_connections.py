"""Brokers that cannot be reached: each TaskQueue says why and what to do, and heals by itself."""

from dataclasses import dataclass, field

import pytest

from tests.e2e.api import Body
from tests.e2e.harness import Harness, conditions, true_conditions

pytestmark = pytest.mark.cluster

NO_WORKERS: Body = {"template": None}


@dataclass(frozen=True)
class Trouble:
    """A connection Secret that is wrong, and what the TaskQueue says of it."""

    name: str
    reason: str
    says: str
    #: Keys of the Secret that are changed, or left out (None); None: there is no Secret.
    secret: dict[str, str | None] | None = field(default_factory=dict)
    #: Whether it heals by itself, for kstatus.
    reconciling: bool = False


TROUBLES = [
    Trouble(
        "missing",
        "SecretNotFound",
        "(spec.broker.connectionSecret) does not exist: create it with the key uri, or with host",
        secret=None,
    ),
    Trouble("no-host", "SecretInvalid", "host", {"host": None}),
    Trouble("no-password", "SecretInvalid", "password", {"password": None}),
    Trouble("bad-port", "SecretInvalid", "port", {"port": "many"}),
    Trouble("bad-uri", "SecretInvalid", "uri", {"uri": "http://somewhere", "host": None}),
    Trouble(
        "wrong-password",
        "BrokerUnavailable",
        "username and password",
        {"password": "guessed"},
        reconciling=True,
    ),
    Trouble(
        "wrong-host",
        "BrokerUnavailable",
        "nowhere.invalid",
        {"host": "nowhere.invalid"},
        reconciling=True,
    ),
    Trouble("wrong-port", "BrokerUnavailable", ":1", {"port": "1"}, reconciling=True),
]


def secret_name(name: str) -> str:
    return f"rabbit-{name}"


@pytest.fixture(scope="module", autouse=True)
def queues(harness: Harness) -> None:
    for trouble in TROUBLES:
        if trouble.secret is not None:
            harness.secret(secret_name(trouble.name), **trouble.secret)
        make_queue(harness, trouble.name)


def make_queue(harness: Harness, name: str) -> None:
    broker = {"connectionSecret": {"name": secret_name(name)}}
    harness.queue(name, broker=broker, workers=NO_WORKERS)


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.name)
def test_a_wrong_secret_is_explained(harness: Harness, trouble: Trouble) -> None:
    message = harness.condition("BrokerConnected", "False", trouble.reason, trouble.name)
    assert trouble.says in message
    if trouble.reason.startswith("Secret"):
        assert f"Secret {harness.namespace}/{secret_name(trouble.name)}" in message
    assert "only-for-trying-out" not in message
    status = harness.queues.versions(trouble.name)[-1]["status"]
    assert conditions(status)["Ready"]["message"] == message
    assert conditions(status)["Ready"]["reason"] == trouble.reason
    kind = "Reconciling" if trouble.reconciling else "Stalled"
    assert true_conditions(status) & {"Reconciling", "Stalled"} == {kind}
    assert "backlog" not in status  # unknown is not zero


def test_other_queues_go_on(harness: Harness) -> None:
    harness.queue(scaling={"maxReplicas": 1})
    harness.task("undisturbed")
    assert harness.finished("undisturbed")["phase"] == "Succeeded"


def test_all_heal_when_the_secrets_are_mended(harness: Harness) -> None:
    operators = restarts(harness)
    for trouble in TROUBLES:
        harness.secret(secret_name(trouble.name))
    for trouble in TROUBLES:
        harness.ready(trouble.name)
        status = harness.queues.versions(trouble.name)[-1]["status"]
        assert not true_conditions(status) & {"Reconciling", "Stalled"}
    assert restarts(harness) == operators


def test_a_broker_that_comes_later(harness: Harness) -> None:
    """At first a Service without endpoints: nothing listens where the Secret points to."""
    ports = [{"name": "amqp", "port": 5672}]
    harness.create_core("services", "later", spec={"clusterIP": "None", "ports": ports})
    harness.secret(secret_name("later"), host=f"later.{harness.namespace}.svc.cluster.local")
    make_queue(harness, "later")
    harness.task("first", queue="later")
    message = harness.condition("BrokerConnected", "False", "BrokerUnavailable", "later")
    assert f"later.{harness.namespace}.svc.cluster.local:5672" in message

    broker = harness.api.get("/api/v1/namespaces/rabbitmq/pods/rabbitmq-0")["status"]["podIP"]
    slice_ = {
        "metadata": {"name": "later", "labels": {"kubernetes.io/service-name": "later"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [broker], "conditions": {"ready": True}}],
        "ports": [{"name": "amqp", "port": 5672, "protocol": "TCP"}],
    }
    path = f"/apis/discovery.k8s.io/v1/namespaces/{harness.namespace}/endpointslices"
    harness.api.request("POST", path, slice_)
    # Another address of the broker that all others use: one inbox, read over either.
    harness.ready("later", seconds=120)
    harness.queue_status(lambda status: status.get("ready") == 1, "later", what="published")


def restarts(harness: Harness) -> dict[str, int]:
    return {
        pod["metadata"]["name"]: sum(
            one["restartCount"] for one in pod["status"]["containerStatuses"]
        )
        for pod in harness.operator_pods()
    }
