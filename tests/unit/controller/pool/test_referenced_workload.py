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


class Stage:
    def __init__(self) -> None:
        self.client, self.now = FakeClient(), 0.0
        self.workload = ReferencedWorkload(cast(ApiClient, self.client), monotonic=lambda: self.now)

    async def read(self, config: QueueConfig = CONFIG) -> None:
        await self.workload.read(config, conflict="")
        self.now += 5.0


@pytest.fixture
def stage() -> Stage:
    return Stage()


async def test_it_is_read_and_sized(stage: Stage) -> None:
    await stage.read()
    state = stage.workload.state
    assert state is not None
    assert (state.desired, state.replicas, state.available) == (3, 3, 0)
    assert stage.workload.selector(CONFIG) == "app=encoder"
    assert await stage.workload.first_ordinal(CONFIG) == 2
    await stage.workload.resize(CONFIG, 5)
    assert stage.client.sizes == [5]
    assert stage.workload.state is not None
    assert stage.workload.state.desired == 5


async def test_its_ready_pods_are_counted_by_others(stage: Stage) -> None:
    await stage.read()
    stage.workload.set_available(2)
    await stage.read()
    assert stage.workload.state is not None
    assert stage.workload.state.available == 2


async def test_it_is_not_read_at_each_wake(stage: Stage) -> None:
    for _ in range(10):
        await stage.workload.read(CONFIG, conflict="")
    assert stage.client.asked.count(SCALE) == 1


async def test_one_that_is_missing_is_told_and_taken_when_it_comes(stage: Stage) -> None:
    stage.client.there = False
    await stage.read()
    assert stage.workload.state is None
    assert stage.workload.refusal is not None
    assert stage.workload.refusal.reason == "ScaleTargetNotFound"
    assert "shop/encoders" in stage.workload.refusal.message
    stage.client.there = True
    await stage.read()
    assert stage.workload.refusal is None
    assert stage.workload.state is not None


@pytest.mark.parametrize("step", ["resize", "first_ordinal"])
async def test_one_that_goes_meanwhile_has_no_state_any_more(stage: Stage, step: str) -> None:
    await stage.read()
    stage.client.there = False
    if step == "resize":
        await stage.workload.resize(CONFIG, 1)
    else:
        assert await stage.workload.first_ordinal(CONFIG) is None
    assert stage.workload.state is None
    assert stage.workload.refusal is not None


async def test_another_reference_is_another_workload(stage: Stage) -> None:
    await stage.read()
    await stage.read(replace(CONFIG, scale_target=replace(REF, kind="Nothing")))
    assert stage.workload.state is None
    assert stage.workload.refusal is not None
    assert stage.workload.refusal.reason == "ScaleTargetUnknown"
    await stage.read(replace(CONFIG, scale_target=None))
    assert stage.workload.refusal is None
