"""The operators of the cluster: how many there are, which of them leads, and how to lose that one.

Processes of pods are reached as in the tests (`tests.faults.processes`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from devcluster.cluster import engine
from taskqueue.kubernetes.client import ApiClient
from tests.bench.cluster import NAMESPACE, Cluster, delete, get_or_none
from tests.bench.deadline import BenchError, until
from tests.conftest import Cluster as TestCluster
from tests.conftest import Kubectl
from tests.e2e.api import Api
from tests.faults.processes import Process, Processes, operator

OPERATOR_NAMESPACE = "taskqueue-system"
DEPLOYMENT = f"/apis/apps/v1/namespaces/{OPERATOR_NAMESPACE}/deployments/taskqueue-operator"
_PODS = f"/api/v1/namespaces/{OPERATOR_NAMESPACE}/pods"
_LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{OPERATOR_NAMESPACE}/leases/taskqueue-operator"
_LABELS = "app.kubernetes.io/name=taskqueue-operator"
_SETTLE_SECONDS = 180.0
#: As its manifest has them: one that leads, and a standby.
SHIPPED = 2


async def operator_pods(client: ApiClient) -> list[dict[str, Any]]:
    """Return the operator's pods."""
    pods: list[dict[str, Any]] = (await client.get(_PODS, labelSelector=_LABELS))["items"]
    return pods


@asynccontextmanager
async def replicas(client: ApiClient, count: int) -> AsyncIterator[None]:
    """Have this many operators, and one and the same leader from beginning to end.

    At the end there are as many as before.

    Raises:
        BenchError: they do not run, or one restarted meanwhile, which makes results meaningless.
    """
    deployment = await get_or_none(client, DEPLOYMENT)
    if not ((deployment or {}).get("status") or {}).get("availableReplicas"):
        raise BenchError("the operator is not running in this cluster: make deploy")
    assert deployment is not None
    former = deployment["spec"]["replicas"]
    try:
        await scale(client, count)
        before = await _starts(client)
        yield
        if await _starts(client) != before:
            raise BenchError("the operator restarted during the measurement: measure again")
    finally:
        await scale(client, former)


async def scale(client: ApiClient, count: int) -> None:
    """Have this many operators, all ready, and one of them leading."""
    await client.merge(f"{DEPLOYMENT}/scale", {"spec": {"replicas": count}})
    await until(
        lambda: _are_settled(client, count),
        seconds=_SETTLE_SECONDS,
        what=f"{count} operators being ready, and one of them leading",
    )


async def _starts(client: ApiClient) -> set[tuple[str, int]]:
    """Return (pod, restarts) of all that run the operator."""
    return {
        (pod["metadata"]["name"], state["restartCount"])
        for pod in await operator_pods(client)
        for state in pod["status"].get("containerStatuses") or ()
    }


async def _are_settled(client: ApiClient, count: int) -> bool:
    pods = await operator_pods(client)
    ready = [pod["metadata"]["name"] for pod in pods if _is_ready(pod)]
    return len(pods) == len(ready) == count and (not count or await leader(client) in ready)


def _is_ready(pod: dict[str, Any]) -> bool:
    conditions = {one["type"]: one["status"] for one in pod["status"].get("conditions") or ()}
    return "deletionTimestamp" not in pod["metadata"] and conditions.get("Ready") == "True"


async def leader(client: ApiClient) -> str:
    """Return the pod that holds the Lease; "": none does."""
    lease = await get_or_none(client, _LEASE) or {}
    holder: str = (lease.get("spec") or {}).get("holderIdentity") or ""
    return holder.rpartition("_")[0]


class Operators:
    """Two operators, of which the one that leads is lost again and again."""

    def __init__(self, client: ApiClient, processes: Processes) -> None:
        self._client = client
        self._processes = processes

    @classmethod
    async def open(cls, target: Cluster) -> Operators:
        """Find the way to their processes.

        Raises:
            BenchError: there are not two of them.
        """
        deployment = await get_or_none(target.client, DEPLOYMENT) or {}
        if (deployment.get("spec") or {}).get("replicas") != SHIPPED:
            raise BenchError("two operators are needed, as manifests/base has them: make deploy")

        def reach() -> Processes:
            kubectl = Kubectl(TestCluster(target.kubeconfig, engine().kubectl))
            processes = Processes(Api(target.kubeconfig), kubectl, NAMESPACE)
            processes.prepare()
            return processes

        return cls(target.client, await asyncio.to_thread(reach))

    async def settled(self) -> str:
        """Wait until both are ready and one leads; return the pod of that one."""
        await until(
            lambda: _are_settled(self._client, SHIPPED),
            seconds=_SETTLE_SECONDS,
            what="two operators being ready, and one of them leading",
        )
        return await leader(self._client)

    async def led_by_another(self, pod: str, *, seconds: float) -> None:
        """Wait until another one leads."""

        async def another() -> bool:
            return await leader(self._client) not in ("", pod)

        await until(another, seconds=seconds, what=f"another operator than {pod} leading")

    async def signal(self, pod: str, name: str) -> float:
        """Send a signal to an operator; return when, in seconds since the epoch."""
        found = await self._processes_of(pod)
        at = time.time()
        await asyncio.to_thread(self._processes.kill, found, signal=name)
        return at

    @asynccontextmanager
    async def paused(self, pod: str) -> AsyncIterator[float]:
        """Stop an operator for the block, and let it go on; yield when, as of `signal`."""
        pausing = self._processes.stopped(await self._processes_of(pod), seconds=120)
        at = time.time()
        await asyncio.to_thread(pausing.__enter__)
        try:
            yield at
        finally:
            await asyncio.to_thread(pausing.__exit__, None, None, None)

    async def replace(self, pod: str) -> None:
        """Replace a pod: the kubelet starts a container that has ended often ever later."""
        await delete(self._client, f"{_PODS}/{pod}", wait_seconds=_SETTLE_SECONDS)

    async def _processes_of(self, pod: str) -> list[Process]:
        role = replace(operator(OPERATOR_NAMESPACE), pod=pod)
        return await asyncio.to_thread(self._processes.find, role)
