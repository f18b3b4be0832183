"""Two namespaced installations and a cluster-wide one share a broker, and do not fight.

They are processes of this machine that serve an API group of the test's own. The namespaced ones
act as the ServiceAccounts of manifests/namespaced: what they do, Roles allow.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from devcluster.paths import CHECKOUT
from tests.conftest import Cluster, Kubectl, RabbitMQ
from tests.e2e import namespaced
from tests.e2e.api import VERSION, Api, Body
from tests.e2e.harness import Harness
from tests.e2e.operator_process import OperatorProcess, OperatorSources, own_group

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

#: How many Tasks run while several installations see them.
COUNT = 40


@pytest.fixture(scope="module")
def group(kubectl: Kubectl) -> Iterator[str]:
    with own_group(kubectl, "inst") as group:
        yield group


@pytest.fixture(scope="module")
def harness(api: Api, kubectl: Kubectl, rabbitmq: RabbitMQ, group: str) -> Iterator[Harness]:
    """The namespace that all installations have been told to serve."""
    harness = Harness(api, kubectl, rabbitmq, group=group)
    address = f"{rabbitmq.username}:{rabbitmq.password}@{rabbitmq.host}:{rabbitmq.port}"
    uri = f"amqp://{address}/{harness.virtual_host()}"
    harness.secret("rabbit", uri=uri, host=None, username=None, password=None)
    yield harness
    harness.close()
    harness.broker_api("DELETE", f"vhosts/{harness.namespace}")


class Installations:
    """Starts and stops operators by their names, each in a namespace of its own."""

    def __init__(
        self, harness: Harness, cluster: Cluster, kubectl: Kubectl, group: str, folder: Path
    ) -> None:
        self.prefix = group.partition(".")[0]
        self._harness, self._kubectl, self._folder = harness, kubectl, folder
        self._kubeconfig = cluster.kubeconfig
        self._group = group
        self._sources = OperatorSources(CHECKOUT, folder / "sources", group)
        self._running: dict[str, OperatorProcess] = {}
        for name in ("wide", "a", "b"):
            kubectl.ok("create", "namespace", self.namespace(name))

    def namespace(self, name: str) -> str:
        return f"{self.prefix}-{name}"

    def id(self, name: str) -> str:
        """Return what a TaskQueue's status.installation says."""
        installation = "default" if name == "wide" else self.namespace(name)
        return f"{self.namespace(name)}/{installation}"

    def start_wide(self) -> None:
        self._start("wide", self._kubeconfig, {})

    def start_namespaced(self, name: str, *also: str) -> None:
        """Start one that serves the harness's namespace; it has no Role in those of ``also``."""
        operator, served = self.namespace(name), self._harness.namespace
        overlay = self._folder / name
        namespaced.write_overlay(overlay, operator=operator, served=[served])
        objects = namespaced.rendered(self._kubectl, overlay)
        namespaced.apply_rights(self._kubectl, objects, self._group)
        kubeconfig = namespaced.kubeconfig_of(
            self._kubectl, self._kubeconfig, operator, self._folder / f"{name}.yaml"
        )
        settings = {
            "TASKQUEUE_INSTALLATION": operator,
            "TASKQUEUE_WATCH_NAMESPACES": ",".join((served, *also)),
        }
        self._start(name, kubeconfig, settings)

    def _start(self, name: str, kubeconfig: Path, settings: dict[str, str]) -> None:
        self._running[name] = OperatorProcess(
            self._sources,
            kubeconfig=kubeconfig,
            namespace=self.namespace(name),
            log=self._folder / f"{name}.log",
            settings=settings,
        )

    def log(self, name: str) -> str:
        return (self._folder / f"{name}.log").read_text()

    def stop(self, *names: str) -> None:
        for name in names or tuple(self._running):
            self._running.pop(name).stop()

    def close(self) -> None:
        self.stop()
        for name in ("wide", "a", "b"):
            self._kubectl.ok("delete", "namespace", self.namespace(name), "--wait=false")


@pytest.fixture(scope="module")
def installations(
    harness: Harness,
    cluster: Cluster,
    kubectl: Kubectl,
    group: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Installations]:
    folder = tmp_path_factory.mktemp("installations")
    installations = Installations(harness, cluster, kubectl, group, folder)
    yield installations
    installations.close()


@pytest.fixture(scope="module")
def three(harness: Harness, installations: Installations) -> Installations:
    """Installation a has the TaskQueue q; then the others come."""
    installations.start_namespaced("a")
    harness.queue("q", scaling={"minReplicas": 1, "maxReplicas": 1})
    assert harness.finished(harness.task("first"))["phase"] == "Succeeded"
    with ThreadPoolExecutor(2) as pool:
        wide = pool.submit(installations.start_wide)
        other = pool.submit(installations.start_namespaced, "b", installations.namespace("a"))
        wide.result()
        other.result()
    return installations


def installation_of(harness: Harness, queue: str) -> str:
    status: Body = harness.api.get(harness.path("taskqueues", queue)).get("status") or {}
    return str(status.get("installation", ""))


def refusals(harness: Harness, queue: str) -> list[Body]:
    """Return the Events by which installations say that another has a TaskQueue."""
    found = harness.api.get(f"/apis/events.k8s.io/v1/namespaces/{harness.namespace}/events")
    return [
        one
        for one in found["items"]
        if one["reason"] == "ServedElsewhere" and one["regarding"]["name"] == queue
    ]


def test_a_namespaced_installation_serves_by_roles_alone(
    harness: Harness, three: Installations
) -> None:
    assert installation_of(harness, "q") == three.id("a")
    assert "namespace.refused" not in three.log("a")
    assert "Forbidden" not in three.log("a")


def test_the_other_installations_say_who_has_a_taskqueue(
    harness: Harness, three: Installations
) -> None:
    harness.until(lambda: len(refusals(harness, "q")) == 2, what="two others that say so")
    assert all(three.id("a") in one["note"] for one in refusals(harness, "q"))
    assert len({one["reportingInstance"] for one in refusals(harness, "q")}) == 2
    for name in ("b", "wide"):
        assert "queue.served_elsewhere" in three.log(name)


def test_only_the_one_that_has_it_touches_its_tasks(harness: Harness, three: Installations) -> None:
    names = harness.batch("shared", COUNT)
    for status in harness.all_finished(names):
        assert (status["phase"], status["attempts"]) == ("Succeeded", 1)
    harness.all_counted(COUNT + 1)
    for name in ("b", "wide"):
        assert "shared-0" not in three.log(name)


def test_a_namespace_without_its_role_is_left_out(harness: Harness, three: Installations) -> None:
    assert "namespace.refused" in three.log("b")


def test_what_one_installation_alone_serves_is_its_own(
    harness: Harness, three: Installations, group: str
) -> None:
    namespace = three.namespace("b")
    path = f"/apis/{group}/{VERSION}/namespaces/{namespace}/taskqueues"
    body = {
        "apiVersion": f"{group}/{VERSION}",
        "kind": "TaskQueue",
        "metadata": {"name": "lonely"},
        "spec": {"broker": {"connectionSecret": {"name": "rabbit"}}},
    }
    harness.api.request("POST", path, body)

    def holder() -> str:
        status = harness.api.get(f"{path}/lonely").get("status") or {}
        return str(status.get("installation", ""))

    harness.until(lambda: holder() == three.id("wide"), what="claimed by the cluster-wide one")


def test_an_edit_reaches_the_installation_that_has_it(
    harness: Harness, three: Installations
) -> None:
    harness.change_queue("q", dispatch={"maxPublished": 77})
    harness.queue_status(lambda status: True, what="the new spec observed")


def test_a_cleared_taskqueue_goes_to_one_of_the_others(
    harness: Harness, three: Installations
) -> None:
    three.stop("a")
    harness.task("orphan")
    time.sleep(0.5)
    assert installation_of(harness, "q") == three.id("a")
    path = f"{harness.path('taskqueues', 'q')}/status"
    harness.api.patch(path, {"status": {"installation": ""}})
    others = {three.id("b"), three.id("wide")}
    harness.until(lambda: installation_of(harness, "q") in others, what="claimed by another")
    assert harness.finished("orphan")["phase"] == "Succeeded"
    first = installation_of(harness, "q")
    assert harness.finished(harness.task("after"))["attempts"] == 1
    assert installation_of(harness, "q") == first
