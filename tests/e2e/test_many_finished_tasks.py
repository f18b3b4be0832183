"""Finished Tasks pile up: the TaskQueue says so before etcd is full, and what to do about it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from devcluster.paths import CHECKOUT
from tests.conftest import Cluster, Kubectl, RabbitMQ
from tests.e2e.api import Api
from tests.e2e.harness import Harness
from tests.e2e.operator_process import OperatorProcess, OperatorSources, own_group
from tests.integration.admission import SUCCEEDED

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

#: So many are many here.
MANY = 3

#: The operator counts once a minute, and here every second.
COUNT_LINE, OFTEN = "COUNT_SECONDS = 60.0\n", "COUNT_SECONDS = 1.0\n"


@pytest.fixture(scope="module")
def harness(api: Api, kubectl: Kubectl, rabbitmq: RabbitMQ) -> Iterator[Harness]:
    """A namespace that only the operator of this module knows."""
    with own_group(kubectl, "many") as group:
        harness = Harness(api, kubectl, rabbitmq, group=group)
        yield harness
        harness.close()


@pytest.fixture
def operator(cluster: Cluster, harness: Harness, tmp_path: Path) -> Iterator[OperatorProcess]:
    """An operator for which a few finished Tasks are many."""
    sources = OperatorSources(CHECKOUT, tmp_path / "sources", harness.group)
    sources.change_line("controller/tasks/stored_tasks.py", COUNT_LINE, OFTEN)
    operator = OperatorProcess(
        sources,
        kubeconfig=cluster.kubeconfig,
        namespace=harness.namespace,
        log=tmp_path / "log",
        settings={"TASKQUEUE_MANY_FINISHED_TASKS": str(MANY)},
    )
    yield operator
    operator.stop()


def reasons(harness: Harness) -> set[str]:
    """Return the reasons of the Events about the TaskQueue."""
    path = f"/apis/events.k8s.io/v1/namespaces/{harness.namespace}/events"
    found = harness.api.get(path)["items"]
    return {one["reason"] for one in found if one["regarding"]["kind"] == "TaskQueue"}


def test_many_finished_tasks_are_reported_and_the_command_of_the_message_deletes_them(
    harness: Harness, request: pytest.FixtureRequest
) -> None:
    # Of a TaskQueue that does not exist: such Tasks fill etcd as well.
    for number in range(MANY):
        name = harness.task(f"done-{number}", queue="former")
        harness.api.patch(harness.path("tasks", name, "status"), {"status": SUCCEEDED})
    harness.task("unfinished", queue="former")
    request.getfixturevalue("operator")
    harness.queue(workers=None)
    message = harness.condition("ManyFinishedTasks", "True", "FinishedTasksKept")
    assert message.startswith(f"{MANY} finished Tasks are kept in namespace {harness.namespace}")
    harness.until(lambda: "FinishedTasksKept" in reasons(harness), what="an Event")
    _, _, command = message.partition("kubectl ")
    harness.kubectl.ok(*shlex.split(command))
    harness.condition("ManyFinishedTasks", "False", "Few")
    left = harness.api.get(harness.path("tasks"))["items"]
    assert [one["metadata"]["name"] for one in left] == ["unfinished"]
