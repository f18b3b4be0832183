"""The floor: the API's own cost of a Task, without anything of ours.

A bare client creates the same objects and patches each one's /status with the same body as the
operator does, and nothing else. The objects are of a copy of the Task resource, of the same schema
and rules, in a group that the operator does not watch. There are two such copies: of the resource
as it is, and of what it was, with its statuses, at commit 0829e12. What is gained in the schema
lowers the first floor just as it lowers the cost of Tasks; the second one stays.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import yaml

from taskqueue.api.common import VERSION
from taskqueue.api.crds import DEFINITIONS, custom_resource_definition
from taskqueue.api.task import TaskResource
from taskqueue.kubernetes.client import JSON_PATCH, ApiClient
from taskqueue.kubernetes.task_codec import status_patch
from taskqueue.model.task import AttemptRecord, Phase, Task, TaskSpec, TaskState
from taskqueue.timestamps import to_rfc3339
from tests.bench import cluster as bench
from tests.bench.deadline import until
from tests.bench.load import at_once
from tests.bench.task_load import task_body

_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_READY_SECONDS = 60
_WORKER = "bench-worker-0123456789-abcde"
_BEFORE = Path(__file__).parent / "fixtures" / "0829e12"


@dataclass(frozen=True, slots=True)
class Floor:
    """A copy of the Task resource that nobody watches.

    Attributes:
        group: its API group.
        definition: makes the CustomResourceDefinition it is a copy of.
        final_patch: makes the JSON patch of a Task's status when it succeeded at once; arguments
            are the worker and the uid.
    """

    group: str
    definition: Callable[[], dict[str, Any]]
    final_patch: Callable[[str, str], bytes]

    @property
    def copies(self) -> str:
        """Path of the objects."""
        return f"/apis/{self.api_version}/namespaces/{bench.NAMESPACE}/tasks"

    @property
    def api_version(self) -> str:
        """Group and version of the objects."""
        return f"{self.group}/{VERSION}"

    @property
    def path(self) -> str:
        """Path of the CustomResourceDefinition."""
        return f"{_CRDS}/tasks.{self.group}"

    def copied_definition(self) -> dict[str, Any]:
        """Return the CustomResourceDefinition in the floor's group, without its short names."""
        copy = self.definition()
        copy["metadata"]["name"] = f"tasks.{self.group}"
        copy["spec"]["group"] = self.group
        for names in ("shortNames", "categories"):
            del copy["spec"]["names"][names]
        return copy

    @asynccontextmanager
    async def served(self, client: ApiClient) -> AsyncIterator[None]:
        """Create the resource in the cluster, and delete it at the end."""
        await client.request("POST", _CRDS, body=self.copied_definition())

        async def is_served() -> bool:
            return await bench.get_or_none(client, self.copies) is not None

        try:
            await until(is_served, seconds=_READY_SECONDS, what=f"{self.group} being served")
            yield
        finally:
            await self.remove(client)

    async def remove(self, client: ApiClient) -> None:
        """Delete the resource with all its objects, if it exists."""
        await bench.delete(client, self.path, wait_seconds=_READY_SECONDS)

    async def run_one(self, cluster: bench.Cluster, name: str) -> None:
        """Create one object and write its final status."""
        body = task_body(name, self.api_version)
        made = await cluster.load.request("POST", self.copies, body=body)
        await cluster.load.request(
            "PATCH",
            f"{self.copies}/{name}/status",
            body=self.final_patch(_WORKER, made["metadata"]["uid"]),
            content_type=JSON_PATCH,
        )

    async def measure(self, cluster: bench.Cluster, names: Sequence[str], *, clients: int) -> float:
        """Do it for all names, ``clients`` at once, and return the seconds it took."""
        start = time.perf_counter()
        await at_once(clients, names, lambda name: self.run_one(cluster, name))
        return time.perf_counter() - start


def _definition_now() -> dict[str, Any]:
    original = next(entry for entry in DEFINITIONS if entry.model is TaskResource)
    return custom_resource_definition(original)


def _definition_before() -> dict[str, Any]:
    definition: dict[str, Any] = yaml.safe_load((_BEFORE / "tasks.yaml").read_text())
    return definition


def _final_patch_now(worker: str, uid: str) -> bytes:
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


_STATUS_BEFORE = (_BEFORE / "status.json").read_text()


def _final_patch_before(worker: str, uid: str) -> bytes:
    now = to_rfc3339(time.time())
    status = _STATUS_BEFORE.replace("{now}", now).replace("{worker}", worker)
    return orjson.dumps(
        [
            {"op": "test", "path": "/metadata/uid", "value": uid},
            {"op": "add", "path": "/status", "value": orjson.Fragment(status)},
        ]
    )


NOW = Floor("bench.taskqueue.dev", _definition_now, _final_patch_now)
BEFORE = Floor("before.bench.taskqueue.dev", _definition_before, _final_patch_before)


@asynccontextmanager
async def floors(client: ApiClient) -> AsyncIterator[None]:
    """Serve both copies of the Task resource, and delete them at the end."""
    async with AsyncExitStack() as stack:
        for one in (NOW, BEFORE):
            await stack.enter_async_context(one.served(client))
        yield
