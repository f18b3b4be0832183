"""The floor: the API's own cost of a Task, without anything of ours.

A bare client creates the same objects and patches each one's /status with the same body as the
operator does, and nothing else. The objects are of a copy of the Task resource, of the same schema
and rules, in a group that the operator does not watch.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from taskqueue.api.common import VERSION
from taskqueue.api.crds import DEFINITIONS, custom_resource_definition
from taskqueue.api.task import TaskResource
from taskqueue.kubernetes.client import JSON_PATCH, ApiClient
from taskqueue.kubernetes.task_codec import status_patch
from taskqueue.model.task import AttemptRecord, Phase, Task, TaskSpec, TaskState
from tests.bench import cluster as bench
from tests.bench.deadline import until
from tests.bench.load import at_once
from tests.bench.task_load import task_body

GROUP = "bench.taskqueue.dev"
API_VERSION = f"{GROUP}/{VERSION}"
COPIES = f"/apis/{API_VERSION}/namespaces/{bench.NAMESPACE}/tasks"

_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_NAME = f"tasks.{GROUP}"
_READY_SECONDS = 60


def copied_definition() -> dict[str, Any]:
    """Return the CustomResourceDefinition of Task in the floor's group, without its short names."""
    original = next(entry for entry in DEFINITIONS if entry.model is TaskResource)
    copy = custom_resource_definition(original)
    copy["metadata"]["name"] = _NAME
    copy["spec"]["group"] = GROUP
    for names in ("shortNames", "categories"):
        del copy["spec"]["names"][names]
    return copy


def final_status(worker: str, uid: str) -> bytes:
    """Return what the operator writes for a Task that succeeded at once."""
    now = time.time()
    task = Task(
        namespace=bench.NAMESPACE,
        name="floor",
        uid=uid,
        generation=1,
        created=now,
        spec=TaskSpec(queue=bench.QUEUE, handler=bench.HANDLER),
    )
    attempt = AttemptRecord(1, "Succeeded", start_time=now, finish_time=now, worker=worker)
    status = TaskState(
        phase=Phase.SUCCEEDED,
        attempts=1,
        history=(attempt,),
        start_time=now,
        completion_time=now,
        worker=worker,
    )
    return status_patch(task, status, now=now)


@asynccontextmanager
async def floor_resource(client: ApiClient) -> AsyncIterator[None]:
    """Create the copy of the Task resource in the cluster, and delete it at the end."""
    await client.request("POST", _CRDS, body=copied_definition())

    async def served() -> bool:
        return await bench.get_or_none(client, COPIES) is not None

    try:
        await until(served, seconds=_READY_SECONDS, what=f"{_NAME} being served")
        yield
    finally:
        await remove(client)


async def remove(client: ApiClient) -> None:
    """Delete the copy of the Task resource with all its objects, if it exists."""
    await bench.delete(client, f"{_CRDS}/{_NAME}", wait_seconds=_READY_SECONDS)


async def run_one(cluster: bench.Cluster, name: str) -> None:
    """Create one object and write its final status."""
    made = await cluster.load.request("POST", COPIES, body=task_body(name, API_VERSION))
    status = final_status("bench-worker-0123456789-abcde", made["metadata"]["uid"])
    await cluster.load.request(
        "PATCH", f"{COPIES}/{name}/status", body=status, content_type=JSON_PATCH
    )


async def measure(cluster: bench.Cluster, names: Sequence[str], *, clients: int) -> float:
    """Do it for all names, ``clients`` at once, and return the seconds it took."""
    start = time.perf_counter()
    await at_once(clients, names, lambda name: run_one(cluster, name))
    return time.perf_counter() - start
