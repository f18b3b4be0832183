"""Brokers that cannot be reached: each TaskQueue says why and what to do, and heals by itself."""

from dataclasses import dataclass, field

import pytest

from tests.e2e.api import Body
from tests.e2e.harness import Lab, conditions, true_conditions

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
        "(spec.broker.connectionSecret) does not exist: create it with key uri, or host",
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
def queues(lab: Lab) -> None:
    for trouble in TROUBLES:
        if trouble.secret is not None:
            lab.secret(secret_name(trouble.name), **trouble.secret)
        make_queue(lab, trouble.name)


def make_queue(lab: Lab, name: str) -> None:
    broker = {"connectionSecret": {"name": secret_name(name)}}
    lab.queue(name, broker=broker, workers=NO_WORKERS)


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.name)
def test_a_wrong_secret_is_explained(lab: Lab, trouble: Trouble) -> None:
    message = lab.condition("BrokerConnected", "False", trouble.reason, trouble.name)
    assert trouble.says in message
    if trouble.reason.startswith("Secret"):
        assert f"Secret {lab.namespace}/{secret_name(trouble.name)}" in message
    assert "only-for-trying-out" not in message
    status = lab.queues.versions(trouble.name)[-1]["status"]
    assert conditions(status)["Ready"]["message"] == message
    assert conditions(status)["Ready"]["reason"] == trouble.reason
    kind = "Reconciling" if trouble.reconciling else "Stalled"
    assert true_conditions(status) & {"Reconciling", "Stalled"} == {kind}
    assert "backlog" not in status  # unknown is not zero


def test_other_queues_go_on(lab: Lab) -> None:
    lab.queue(scaling={"maxReplicas": 1})
    lab.task("undisturbed")
    assert lab.finished("undisturbed")["phase"] == "Succeeded"


def test_all_heal_when_the_secrets_are_mended(lab: Lab) -> None:
    operators = restarts(lab)
    for trouble in TROUBLES:
        lab.secret(secret_name(trouble.name))
    for trouble in TROUBLES:
        lab.ready(trouble.name)
        status = lab.queues.versions(trouble.name)[-1]["status"]
        assert not true_conditions(status) & {"Reconciling", "Stalled"}
    assert restarts(lab) == operators


def test_a_broker_that_comes_later(lab: Lab) -> None:
    """At first a Service without endpoints: nothing listens where the Secret points to."""
    ports = [{"name": "amqp", "port": 5672}]
    lab.create_core("services", "later", spec={"clusterIP": "None", "ports": ports})
    lab.secret(secret_name("later"), host=f"later.{lab.namespace}.svc.cluster.local")
    make_queue(lab, "later")
    lab.task("first", queue="later")
    message = lab.condition("BrokerConnected", "False", "BrokerUnavailable", "later")
    assert f"later.{lab.namespace}.svc.cluster.local:5672" in message

    broker = lab.api.get("/api/v1/namespaces/rabbitmq/pods/rabbitmq-0")["status"]["podIP"]
    slice_ = {
        "metadata": {"name": "later", "labels": {"kubernetes.io/service-name": "later"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [broker], "conditions": {"ready": True}}],
        "ports": [{"name": "amqp", "port": 5672, "protocol": "TCP"}],
    }
    path = f"/apis/discovery.k8s.io/v1/namespaces/{lab.namespace}/endpointslices"
    lab.api.request("POST", path, slice_)
    # Another address of the broker that all others use: one inbox, read over either.
    lab.ready("later", seconds=120)
    lab.queue_status(lambda status: status.get("ready") == 1, "later", what="published")


def restarts(lab: Lab) -> dict[str, int]:
    return {
        pod["metadata"]["name"]: sum(
            one["restartCount"] for one in pod["status"]["containerStatuses"]
        )
        for pod in lab.operator_pods()
    }
