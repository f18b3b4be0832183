"""The broker's password is where it must be, and nowhere else: a canary is looked for."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.e2e.harness import OPERATOR_NAMESPACE, OPERATOR_PODS, Harness
from tests.faults.node_shell import NodeShell

pytestmark = pytest.mark.cluster


@dataclass(frozen=True)
class Canary:
    """A password, in the forms in which it could be shown."""

    password: str

    @property
    def forms(self) -> tuple[str, ...]:
        return (self.password, base64.b64encode(self.password.encode()).decode())

    def is_in(self, text: str) -> bool:
        return any(form in text for form in self.forms)

    @property
    def pattern(self) -> str:
        """A regular expression that finds it, and does not contain it: it is an argument."""
        return "|".join(f"{form[:4]}[{form[4]}]{form[5:]}" for form in self.forms)


@pytest.fixture(scope="module")
def canary(harness: Harness) -> Iterator[Canary]:
    """A password whose TaskQueue has had all kinds of trouble."""
    canary = Canary(f"canary{uuid.uuid4().hex}")
    user = harness.virtual_host()
    harness.broker_api("PUT", f"users/{user}", {"password": canary.password, "tags": ""})
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    harness.broker_api("PUT", f"permissions/{user}/{user}", everything)
    # A statistics address with the password in it, at which nobody answers.
    statistics = f"http://{user}:{canary.password}@127.0.0.1:9"
    settings = {"username": user, "password": canary.password, "vhost": user}
    harness.secret("own", managementUri=statistics, **settings)
    harness.secret("refused", **{**settings, "username": "nobody"})
    harness.secret("broken", uri=f"amqp://{user}:{canary.password}@[", host=None)
    harness.queue(
        broker={"connectionSecret": {"name": "own"}}, scaling={"minReplicas": 1, "maxReplicas": 1}
    )
    for name in ("refused", "broken"):
        harness.queue(name, broker={"connectionSecret": {"name": name}}, workers=None)
    yield canary
    harness.broker_api("DELETE", f"vhosts/{user}")
    harness.broker_api("DELETE", f"users/{user}")


@pytest.fixture(scope="module")
def seen(harness: Harness, canary: Canary) -> Canary:
    assert harness.finished(harness.task("good"))["phase"] == "Succeeded"
    harness.finished(harness.task("bad", "give_up"))
    for name in ("refused", "broken"):
        harness.queue_status(
            lambda status: any(
                one["type"] == "BrokerConnected" and one["status"] == "False"
                for one in status.get("conditions", ())
            ),
            name,
            what="no connection",
        )
    harness.until(lambda: len(events(harness)) > 1, what="Kubernetes Events of the trouble")
    return canary


def events(harness: Harness) -> list[object]:
    path = f"/apis/events.k8s.io/v1/namespaces/{harness.namespace}/events"
    return list(harness.api.get(path)["items"])


def operator_pods(harness: Harness) -> list[str]:
    path = f"/api/v1/namespaces/{OPERATOR_NAMESPACE}/pods"
    found = harness.api.get(path, labelSelector=OPERATOR_PODS)["items"]
    return [pod["metadata"]["name"] for pod in found]


def test_the_password_is_in_no_log(harness: Harness, seen: Canary) -> None:
    assert not seen.is_in(harness.worker_log())
    for name in operator_pods(harness):
        text = harness.api.text(f"/api/v1/namespaces/{OPERATOR_NAMESPACE}/pods/{name}/log")
        assert text
        assert not seen.is_in(text)


def test_the_password_is_in_no_object_but_its_secret(harness: Harness, seen: Canary) -> None:
    resources = [
        *(harness.core(one) for one in ("pods", "configmaps", "services")),
        *(harness.path(one) for one in ("tasks", "taskqueues")),
        f"/apis/apps/v1/namespaces/{harness.namespace}/deployments",
        f"/apis/apps/v1/namespaces/{harness.namespace}/replicasets",
        f"/api/v1/namespaces/{OPERATOR_NAMESPACE}/configmaps",
    ]
    for path in resources:
        assert not seen.is_in(json.dumps(harness.api.get(path))), path
    assert not seen.is_in(json.dumps(events(harness)))
    assert seen.is_in(json.dumps(harness.api.get(harness.core("secrets", "own"))))


def test_the_password_is_in_no_metric(harness: Harness, seen: Canary) -> None:
    for name in operator_pods(harness):
        path = f"/api/v1/namespaces/{OPERATOR_NAMESPACE}/pods/{name}:8080/proxy/metrics"
        text = harness.api.text(path)
        assert "taskqueue_" in text
        assert not seen.is_in(text)


def test_the_password_is_in_no_argument_and_in_no_environment(
    harness: Harness, seen: Canary
) -> None:
    nodes = [node["metadata"]["name"] for node in harness.api.get("/api/v1/nodes")["items"]]
    namespaces = 0
    for node in nodes:
        shell = NodeShell(node)

        def processes(pattern: str, place: str, shell: NodeShell = shell) -> list[str]:
            found = shell.run("bash", "-c", f"grep -lsaE '{pattern}' /proc/[0-9]*/{place} || true")
            return found.split()

        for place in ("environ", "cmdline"):
            assert not processes(seen.pattern, place)
        namespaces += len(processes(f"TASKQUEUE_NAMESPACE={harness.namespace}", "environ"))
    assert namespaces, "the search does not even see the workers' environment"
