"""Tasks as a benchmark makes them."""

from __future__ import annotations

import orjson

from taskqueue.api.common import API_VERSION, GROUP, TASK_KIND, VERSION
from tests.bench.cluster import HANDLER, NAMESPACE, QUEUE, Cluster

TASKS = f"/apis/{GROUP}/{VERSION}/namespaces/{NAMESPACE}/tasks"


async def create_task(cluster: Cluster, name: str) -> None:
    """Create a Task for the no-op handler."""
    await cluster.load.request("POST", TASKS, body=task_body(name, API_VERSION))


def task_body(name: str, api_version: str) -> bytes:
    """Return the object as it is sent, the same for Tasks and for the floor's copy."""
    return orjson.dumps(
        {
            "apiVersion": api_version,
            "kind": TASK_KIND,
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {"queue": QUEUE, "handler": HANDLER, "payload": {"name": name}},
        }
    )
