"""What spec.workers.scaleTargetRef names: read now and then, sized, and told when it cannot be."""

from dataclasses import replace
from typing import Any, cast

import pytest

from taskqueue.controller.pool.referenced_workload import ReferencedWorkload
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.model.queue import QueueConfig, ScaleTargetRef

REF = ScaleTargetRef(api_version="apps/v1", kind="StatefulSet", name="encoders")
CONFIG = QueueConfig(
    namespace="shop",
    name="q",
    uid="u",
    generation=1,
    connection_secret="rabbit",
    scale_target=REF,
)
SCALE = "/apis/apps/v1/namespaces/shop/statefulsets/encoders/scale"


class FakeClient:
    """An API server with one StatefulSet, which may be missing."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.sizes: list[int] = []
        self.there = True
        self.replicas = 3

    async def get(self, path: str, **_: str) -> dict[str, Any]:
        self.asked.append(path)
        if path == "/apis/apps/v1":
            names = ("statefulsets", "statefulsets/scale")
            kinds = ("StatefulSet", "Scale")
            return {
                "resources": [
                    {"name": name, "kind": kind, "namespaced": True}
                    for name, kind in zip(names, kinds, strict=True)
                ]
            }
        if not self.there:
            raise ApiError(404, "NotFound", "no")
        if path == SCALE:
            return self._scale()
        return {"spec": {"ordinals": {"start": 2}}}

    async def request(self, method: str, path: str, *, body: Any, **_: Any) -> dict[str, Any]:
        assert (method, path) == ("PATCH", SCALE)
        if not self.there:
            raise ApiError(404, "NotFound", "no")
        self.replicas = body["spec"]["replicas"]
        self.sizes.append(self.replicas)
        return self._scale()

    def _scale(self) -> dict[str, Any]:
        return {
            "spec": {"replicas": self.replicas},
            "status": {"replicas": self.replicas, "selector": "app=encoder"},
        }


class Case:
    def __init__(self) -> None:
        self.client, self.now = FakeClient(), 0.0
        self.workload = ReferencedWorkload(cast(ApiClient, self.client), monotonic=lambda: self.now)

    async def read(self, config: QueueConfig = CONFIG) -> None:
        await self.workload.read(config, conflict="")
        self.now += 5.0


@pytest.fixture
def case() -> Case:
    return Case()


async def test_it_is_read_and_sized(case: Case) -> None:
    await case.read()
    state = case.workload.state
    assert state is not None
    assert (state.desired, state.replicas, state.available) == (3, 3, 0)
    assert case.workload.selector(CONFIG) == "app=encoder"
    assert await case.workload.first_ordinal(CONFIG) == 2
    await case.workload.resize(CONFIG, 5)
    assert case.client.sizes == [5]
    assert case.workload.state is not None
    assert case.workload.state.desired == 5


async def test_its_ready_pods_are_counted_by_others(case: Case) -> None:
    await case.read()
    case.workload.set_available(2)
    await case.read()
    assert case.workload.state is not None
    assert case.workload.state.available == 2


async def test_scale_is_not_read_at_each_reconcile(case: Case) -> None:
    for _ in range(10):
        await case.workload.read(CONFIG, conflict="")
    assert case.client.asked.count(SCALE) == 1


async def test_missing_workload_is_reported_and_used_when_it_appears(case: Case) -> None:
    case.client.there = False
    await case.read()
    assert case.workload.state is None
    assert case.workload.refusal is not None
    assert case.workload.refusal.reason == "ScaleTargetNotFound"
    assert "shop/encoders" in case.workload.refusal.message
    case.client.there = True
    await case.read()
    assert case.workload.refusal is None
    assert case.workload.state is not None


@pytest.mark.parametrize("step", ["resize", "first_ordinal"])
async def test_one_that_goes_meanwhile_has_no_state_any_more(case: Case, step: str) -> None:
    await case.read()
    case.client.there = False
    if step == "resize":
        await case.workload.resize(CONFIG, 1)
    else:
        assert await case.workload.first_ordinal(CONFIG) is None
    assert case.workload.state is None
    assert case.workload.refusal is not None


async def test_another_reference_is_another_workload(case: Case) -> None:
    await case.read()
    await case.read(replace(CONFIG, scale_target=replace(REF, kind="Nothing")))
    assert case.workload.state is None
    assert case.workload.refusal is not None
    assert case.workload.refusal.reason == "ScaleTargetUnknown"
    await case.read(replace(CONFIG, scale_target=None))
    assert case.workload.refusal is None
