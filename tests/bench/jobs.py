"""The peer: Kubernetes Job, which starts a pod for every task."""

from __future__ import annotations

import time
from typing import Any

from tests.bench.cluster import IMAGE, NAMESPACE, Cluster, delete, no_pods
from tests.bench.watches import EndWatch

JOBS = f"/apis/batch/v1/namespaces/{NAMESPACE}/jobs"

#: What `product.md`'s figure was measured with, and a size that fits a small node.
PARALLELISM = 10


def no_op_job(name: str, *, completions: int, parallelism: int) -> dict[str, Any]:
    """Return an indexed Job whose pods run the same image and do nothing."""
    container = {
        "name": "task",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["true"],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "completionMode": "Indexed",
            "completions": completions,
            "parallelism": parallelism,
            "backoffLimit": 0,
            "template": {"spec": {"restartPolicy": "Never", "containers": [container]}},
        },
    }


async def measure(
    cluster: Cluster, name: str, *, completions: int = 1, deadline: float = 60
) -> float:
    """Run one Job, delete it with its pods, and return the seconds from create to Complete seen.

    Raises:
        BenchError: it failed or did not end in time.
    """
    body = no_op_job(name, completions=completions, parallelism=min(completions, PARALLELISM))
    async with EndWatch(cluster.watcher, JOBS) as watch:
        start = time.perf_counter()
        await cluster.load.request("POST", JOBS, body=body)
        seen = await watch.all_ended([name], seconds=deadline)
    await delete(cluster.client, f"{JOBS}/{name}", wait_seconds=60)
    await no_pods(cluster.client, f"job-name={name}")
    return seen[name] - start
