"""The status writer against a real API server: what arrives, and what must not."""

import asyncio
from typing import Any

import pytest

from taskqueue.kubernetes.client import ApiClient, load_access
from taskqueue.kubernetes.status_updater import StatusUpdater, WriteRefused, WriteResult, Written
from taskqueue.kubernetes.task_codec import read_task, status_patch, status_path
from taskqueue.model.task import Phase, TaskState
from tests.conftest import Cluster
from tests.e2e.api import Body
from tests.e2e.harness import Harness

pytestmark = pytest.mark.cluster


async def write(cluster: Cluster, raw: Body, status: TaskState) -> WriteResult:
    client = ApiClient(await load_access(str(cluster.kubeconfig)))
    writer = StatusUpdater(client)
    running = asyncio.create_task(writer.run())
    fate: asyncio.Future[WriteResult] = asyncio.get_running_loop().create_future()
    task = read_task(raw)
    try:
        patch = status_patch(task, status, now=task.created)
        writer.put(status_path(task), patch, fate.set_result)
        async with asyncio.timeout(30):
            return await fate
    finally:
        running.cancel()
        await client.close()


def make(harness: Harness, name: str) -> Body:
    # Held by nobody: the operator only says that there is no such TaskQueue, two seconds later.
    harness.task(name, queue="nobodys")
    return harness.api.get(harness.path("tasks", name))


def ended(result: dict[str, Any]) -> TaskState:
    return TaskState(phase=Phase.SUCCEEDED, attempts=1, completion_time=1.8e9, result=result)


async def test_a_result_arrives_as_it_is(harness: Harness, cluster: Cluster) -> None:
    result = {"none": None, "deep": [None, {"none": None}], "text": "ä€𝄞"}
    fate = await write(cluster, make(harness, "nulls"), ended(result))
    assert isinstance(fate, Written)
    assert fate.generation == 1
    assert harness.api.get(harness.path("tasks", "nulls"))["status"]["result"] == result


async def test_a_task_made_anew_under_the_name_is_not_touched(
    harness: Harness, cluster: Cluster
) -> None:
    former = make(harness, "phoenix")
    harness.delete_task("phoenix")
    make(harness, "phoenix")
    fate = await write(cluster, former, ended({}))
    assert isinstance(fate, WriteRefused)
    assert fate.status == 422
    assert harness.api.get(harness.path("tasks", "phoenix"))["status"]["phase"] != "Succeeded"


async def test_a_task_that_is_gone_is_not_found(harness: Harness, cluster: Cluster) -> None:
    former = make(harness, "gone")
    harness.delete_task("gone")
    fate = await write(cluster, former, ended({}))
    assert isinstance(fate, WriteRefused)
    assert fate.status == 404


async def test_the_end_that_was_written_first_stays(harness: Harness, cluster: Cluster) -> None:
    raw = make(harness, "twice")
    first = await write(cluster, raw, ended({"first": True}))
    assert isinstance(first, Written)
    now = harness.api.get(harness.path("tasks", "twice"))["metadata"]["resourceVersion"]
    assert str(first.version) == now  # the number that fences keyed Tasks off
    late = TaskState(phase=Phase.FAILED, attempts=1, completion_time=1.8e9)
    fate = await write(cluster, raw, late)
    assert isinstance(fate, WriteRefused)
    assert "the phase of a finished Task never changes" in fate.message
    assert harness.api.get(harness.path("tasks", "twice"))["status"]["result"] == {"first": True}
