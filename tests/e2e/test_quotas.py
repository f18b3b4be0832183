"""A namespace with as many Tasks as its ResourceQuota allows, as docs/guides/quotas.md has it."""

from __future__ import annotations

from contextlib import suppress

import pytest
import yaml

from taskqueue.client import QuotaExceeded, TaskClient
from tests.conftest import Cluster
from tests.e2e.api import Refused
from tests.e2e.guides import blocks
from tests.e2e.harness import Harness

pytestmark = pytest.mark.cluster

#: Tasks that the namespace may have here.
ROOM = 2


@pytest.fixture(scope="module", autouse=True)
def quota(harness: Harness) -> None:
    harness.queue(scaling={"minReplicas": 1, "maxReplicas": 1})
    (body,) = (
        one
        for block in blocks("quotas.md", "yaml")
        for one in yaml.safe_load_all(block.text)
        if one.get("kind") == "ResourceQuota"
    )
    body["spec"]["hard"]["count/tasks.taskqueue.dev"] = str(ROOM)
    harness.api.request("POST", harness.core("resourcequotas"), body)
    path = harness.core("resourcequotas", body["metadata"]["name"])
    harness.until(lambda: "used" in harness.api.get(path).get("status", {}), what="a counted quota")


def test_a_full_quota_refuses_tasks_until_finished_ones_are_deleted(
    harness: Harness, cluster: Cluster
) -> None:
    for name in ("a", "b"):
        harness.task(name)
    for name in ("a", "b"):
        assert harness.finished(name)["phase"] == "Succeeded"
    with pytest.raises(Refused, match="exceeded quota: tasks, ") as refused:
        harness.task("c")  # finished ones count as well
    assert refused.value.status == 403
    with TaskClient(namespace=harness.namespace, kubeconfig=str(cluster.kubeconfig)) as tasks:
        with pytest.raises(QuotaExceeded, match="submit it again later"):
            tasks.submit("q", "echo", name="c")
        assert tasks.submit("q", "echo", name="a").wait(timeout=60).phase == "Succeeded"

    harness.change_queue(taskDefaults={"ttlSecondsAfterFinished": 0})
    for name in ("a", "b"):
        harness.tasks.wait_deleted(name)

    def is_taken() -> bool:
        with suppress(Refused):
            return bool(harness.task("c"))
        return False

    harness.until(is_taken, what="room for another Task")
    harness.tasks.wait_deleted("c")
