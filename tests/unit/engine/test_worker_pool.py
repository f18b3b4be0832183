"""The pool's size is put in place whatever became of its template."""

from dataclasses import replace
from typing import Any, cast

import pytest

from taskqueue.cluster.client import ApiClient, ApiError
from taskqueue.cluster.deployments import PoolState
from taskqueue.domain.queue import ClusterRef, QueueConfig
from taskqueue.domain.scaling import BacklogTarget, ScalingPolicy
from taskqueue.engine.worker_pool import WorkerPool

CONFIG = QueueConfig(
    namespace="shop",
    name="q",
    uid="u",
    generation=1,
    connection_secret="rabbit",
    template={"spec": {"containers": [{"name": "main"}]}},
    scaling=ScalingPolicy(target=BacklogTarget(1)),
)


class FakeClient:
    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.applied: list[int] = []
        self.refusal: ApiError | None = None

    async def request(self, method: str, path: str, *, body: Any, **_: Any) -> dict[str, Any]:
        assert path.endswith("/scale")
        self.sizes.append(body["spec"]["replicas"])
        return {}

    async def apply(self, path: str, body: Any, *, manager: str) -> dict[str, Any]:
        if self.refusal is not None:
            raise self.refusal
        self.applied.append(body["spec"]["replicas"])
        return {"metadata": {"generation": 1}, "spec": body["spec"]}


@pytest.fixture
def client() -> FakeClient:
    return FakeClient()


@pytest.fixture
def pool(client: FakeClient) -> WorkerPool:
    pool = WorkerPool(cast(ApiClient, client), clock=lambda: 1e9, monotonic=lambda: 100.0)
    pool.observed(PoolState(desired=2, replicas=2, available=2, observed=True, message=""))
    return pool


async def test_a_template_is_applied_once_and_a_size_alone_goes_through_scale(
    pool: WorkerPool, client: FakeClient
) -> None:
    await pool.reconcile(CONFIG, backlog=2)
    await pool.reconcile(CONFIG, backlog=4)
    await pool.reconcile(CONFIG, backlog=4)
    assert (client.applied, client.sizes) == ([2], [4])


async def test_a_withdrawn_template_takes_its_workers_along(
    pool: WorkerPool, client: FakeClient
) -> None:
    await pool.reconcile(replace(CONFIG, template=None), backlog=5)
    await pool.reconcile(replace(CONFIG, template=None), backlog=5)
    assert client.sizes == [0]


async def test_the_former_pool_is_resized_while_a_changed_template_is_refused(
    pool: WorkerPool, client: FakeClient
) -> None:
    client.refusal = ApiError(422, "Invalid", "no such field")
    await pool.reconcile(CONFIG, backlog=7)
    assert client.sizes == [7]
    assert pool.refused
    workers, _ = pool.conditions(CONFIG)
    assert (workers.status, workers.reason) == (False, "InvalidTemplate")


OF_CLUSTER = replace(CONFIG, connection_secret="", rabbitmq_cluster=ClusterRef("broker", "rabbit"))


async def test_a_pool_waits_for_the_secret_of_a_rabbitmq_cluster(
    pool: WorkerPool, client: FakeClient
) -> None:
    here = replace(OF_CLUSTER, rabbitmq_cluster=ClusterRef("shop", "rabbit"))
    await pool.reconcile(here, backlog=3)
    assert (client.applied, client.sizes) == ([], [3])  # what is there is sized all the same
    await pool.reconcile(here, backlog=3, secret=("shop", "rabbit-default-user"))
    await pool.reconcile(here, backlog=3, secret=("shop", "rabbit-default-user"))
    assert client.applied == [3]
    await pool.reconcile(here, backlog=3, secret=("shop", "renamed"))
    assert client.applied == [3, 3]


async def test_workers_of_another_namespace_than_the_cluster_need_an_address_of_their_own(
    pool: WorkerPool, client: FakeClient
) -> None:
    await pool.reconcile(OF_CLUSTER, backlog=3, secret=("broker", "rabbit-default-user"))
    assert client.applied == []
    workers, _ = pool.conditions(OF_CLUSTER)
    assert (workers.status, workers.reason) == (False, "InvalidTemplate")
    assert "TASKQUEUE_BROKER_URI" in workers.message
