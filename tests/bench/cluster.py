"""The cluster a benchmark runs on: its clients, its namespace, and what is put there.

Everything made here is in the namespace `NAMESPACE`, which is deleted at the end, or is the floor's
copy of the Task resource (see `tests.bench.floor`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from kubernetes.aio.config import ConfigException

from taskqueue.api.common import API_VERSION, TASKQUEUE_KIND
from taskqueue.kubernetes.client import ApiAccess, ApiClient, ApiError, load_access
from taskqueue.kubernetes.deployments import deployment_path
from taskqueue.kubernetes.taskqueue_codec import queue_path
from tests.bench.deadline import BenchError, until

NAMESPACE = "taskqueue-bench"
QUEUE = "bench"
IMAGE = "taskqueue-operator:dev"
HANDLER = "noop"
MANAGER = "taskqueue-bench"

#: Marks the namespace as ours to delete.
_OWN = {"taskqueue.dev/bench": "true"}
_BROKER_SECRET = "/api/v1/namespaces/rabbitmq/secrets/rabbitmq"
_HANDLERS = """\
import time

from taskqueue import task

RUNS = "/tmp/bench-runs"


@task
def noop(payload):
    return None


@task
def counted(payload):
    with open(RUNS, "a") as file:
        file.write(f"{payload['name']} {time.time():.3f}\\n")


@task
def runs(payload):
    with open(RUNS) as file:
        lines = [line.split() for line in file]
    prefix = payload["prefix"]
    named = [(name.removeprefix(prefix), at) for name, at in lines if name.startswith(prefix)]
    return {"runs": [[number, float(at)] for number, at in named]}
"""
_READY_SECONDS = 120
_GONE_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Cluster:
    """Clients of one API server.

    Attributes:
        access: where it is, and as whom.
        kubeconfig: where that is read from.
        client: for what is not measured.
        watcher: for watches, so that they never wait for a connection.
        load: for what is measured.
    """

    access: ApiAccess
    kubeconfig: Path
    client: ApiClient
    watcher: ApiClient
    load: ApiClient

    @property
    def host(self) -> str:
        """The API server's host name or address."""
        return urlsplit(self.access.base_url).hostname or ""


@asynccontextmanager
async def connected(kubeconfig: Path, *, clients: int) -> AsyncIterator[Cluster]:
    """Give clients of the cluster that the kubeconfig names.

    Args:
        kubeconfig: a file, as for kubectl.
        clients: connections for the load.

    Raises:
        BenchError: it names no cluster.
    """
    try:
        access = await load_access(str(kubeconfig))
    except ConfigException as problem:
        raise BenchError(
            f"kubeconfig {kubeconfig}: {problem}; start a cluster: make deploy"
        ) from problem
    pools = [ApiClient(access, max_connections=n, timeout_seconds=60) for n in (4, 8, clients)]
    try:
        yield Cluster(access, kubeconfig, *pools)
    finally:
        for pool in pools:
            await pool.close()


@asynccontextmanager
async def bench_namespace(cluster: Cluster) -> AsyncIterator[None]:
    """Make the namespace with the broker's Secret and the handlers; delete it at the end.

    Raises:
        BenchError: RabbitMQ is not in the cluster, or the namespace is somebody else's.
    """
    await _remove_leftover(cluster.client)
    try:
        await _prepare(cluster.client)
        yield
    finally:
        # The TaskQueue first: its workers stop while their configuration is still there.
        await delete(cluster.client, queue_path((NAMESPACE, QUEUE)), wait_seconds=30)
        await delete(cluster.client, f"/api/v1/namespaces/{NAMESPACE}", wait_seconds=_GONE_SECONDS)


async def apply_queue(
    client: ApiClient,
    *,
    scaling: Mapping[str, Any],
    concurrency: int,
    name: str = QUEUE,
    **spec: Any,
) -> None:
    """Put a TaskQueue of the benchmark in place; its workers run the no-op handler.

    Args:
        client: of the API server.
        scaling: spec.scaling.
        concurrency: Tasks a worker runs at once.
        name: of the TaskQueue.
        spec: other fields of its spec.
    """
    worker = {
        "name": "worker",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "args": ["worker", "bench_handlers"],
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": 8081}, "periodSeconds": 1},
        "volumeMounts": [{"name": "handlers", "mountPath": "/handlers"}],
    }
    pod = {
        "terminationGracePeriodSeconds": 10,
        "containers": [worker],
        "volumes": [{"name": "handlers", "configMap": {"name": "handlers"}}],
    }
    await client.apply(
        queue_path((NAMESPACE, name)),
        {
            "apiVersion": API_VERSION,
            "kind": TASKQUEUE_KIND,
            "metadata": {"name": name, "namespace": NAMESPACE},
            "spec": {
                **spec,
                "broker": {"connectionSecret": {"name": "rabbit"}},
                "workers": {"template": {"spec": pod}, "concurrency": concurrency},
                "scaling": dict(scaling),
            },
        },
        manager=MANAGER,
    )


async def workers_ready(client: ApiClient, count: int) -> None:
    """Wait until this many workers consume and the queue says that it is ready.

    Raises:
        BenchError: they do not become ready; the queue's conditions are in the text.
    """
    path = deployment_path((NAMESPACE, QUEUE))

    async def ready() -> bool:
        pool = await get_or_none(client, path) or {}
        consuming = (pool.get("status") or {}).get("readyReplicas", 0)
        return consuming == count and (await _conditions(client)).get("Ready") == "True"

    try:
        await until(ready, seconds=_READY_SECONDS, what=f"{count} workers becoming ready")
    except BenchError as problem:
        raise BenchError(f"{problem}; the TaskQueue says: {await describe_queue(client)}") from None


async def no_pods(client: ApiClient, selector: str) -> None:
    """Wait until no pod with these labels is left, those that are being stopped included."""
    path = f"/api/v1/namespaces/{NAMESPACE}/pods"

    async def none() -> bool:
        return not (await client.get(path, labelSelector=selector))["items"]

    await until(none, seconds=_GONE_SECONDS, what=f"the pods with {selector} going away")


async def describe_queue(client: ApiClient) -> str:
    """Return the TaskQueue's conditions as one line of text."""
    raw = await get_or_none(client, queue_path((NAMESPACE, QUEUE))) or {}
    conditions = (raw.get("status") or {}).get("conditions") or []
    return "; ".join(
        f"{c['type']}={c['status']} {c['reason']} {c['message']}".strip() for c in conditions
    )


async def delete_all(client: ApiClient, path: str) -> None:
    """Delete a collection and wait until it is empty."""
    await client.request("DELETE", path)

    async def empty() -> bool:
        return not (await client.get(path, limit="1"))["items"]

    await until(empty, seconds=_GONE_SECONDS, what=f"deleting everything at {path}")


async def delete(client: ApiClient, path: str, *, wait_seconds: float) -> None:
    """Delete an object, if it exists, and wait until it has disappeared."""
    try:
        await client.request("DELETE", path, body={"propagationPolicy": "Background"})
    except ApiError as problem:
        if problem.status != 404:
            raise

    async def is_deleted() -> bool:
        return await get_or_none(client, path) is None

    await until(is_deleted, seconds=wait_seconds, what=f"deleting {path}")


async def get_or_none(client: ApiClient, path: str) -> dict[str, Any] | None:
    """Return an object, or None where there is none."""
    try:
        return await client.get(path)
    except ApiError as problem:
        if problem.status == 404:
            return None
        raise


async def _conditions(client: ApiClient) -> dict[str, str]:
    raw = await get_or_none(client, queue_path((NAMESPACE, QUEUE))) or {}
    found = (raw.get("status") or {}).get("conditions") or ()
    return {condition["type"]: condition["status"] for condition in found}


async def _remove_leftover(client: ApiClient) -> None:
    path = f"/api/v1/namespaces/{NAMESPACE}"
    found = await get_or_none(client, path)
    if found is None:
        return
    if not _OWN.items() <= (found["metadata"].get("labels") or {}).items():
        raise BenchError(f"namespace {NAMESPACE} was not made by a benchmark: delete or rename it")
    await delete(client, path, wait_seconds=_GONE_SECONDS)


async def _prepare(client: ApiClient) -> None:
    secret = await get_or_none(client, _BROKER_SECRET)
    if secret is None:
        raise BenchError("Secret rabbitmq/rabbitmq is not in this cluster: make deploy")
    await client.request(
        "POST",
        "/api/v1/namespaces",
        body={
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": NAMESPACE, "labels": _OWN},
        },
    )
    within_namespace = f"/api/v1/namespaces/{NAMESPACE}"
    await client.request(
        "POST",
        f"{within_namespace}/secrets",
        body={"metadata": {"name": "rabbit"}, "data": secret["data"]},
    )
    await client.request(
        "POST",
        f"{within_namespace}/configmaps",
        body={"metadata": {"name": "handlers"}, "data": {"bench_handlers.py": _HANDLERS}},
    )
    account = f"{within_namespace}/serviceaccounts/default"

    async def accounted() -> bool:
        return await get_or_none(client, account) is not None

    # Made by a controller a moment later; pods are refused before.
    await until(accounted, seconds=_READY_SECONDS, what=f"{NAMESPACE} getting its service account")
