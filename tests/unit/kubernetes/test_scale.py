from collections.abc import Mapping
from typing import Any, cast

import pytest

from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.kubernetes.scale import Scale, ScaleTarget, TargetUnusable
from taskqueue.model.queue import ScaleTargetRef

APPS = [
    {"name": "deployments", "kind": "Deployment", "namespaced": True},
    {"name": "deployments/scale", "kind": "Scale", "namespaced": True},
    {"name": "statefulsets", "kind": "StatefulSet", "namespaced": True},
    {"name": "statefulsets/scale", "kind": "Scale", "namespaced": True},
    {"name": "daemonsets", "kind": "DaemonSet", "namespaced": True},
    {"name": "fleets", "kind": "Fleet", "namespaced": False},
    {"name": "fleets/scale", "kind": "Scale", "namespaced": False},
]
SCALE = {
    "spec": {"replicas": 3},
    "status": {"replicas": 2, "selector": "app=mails,tier in (a,b)"},
}


class FakeClient:
    """Answers by path; an ApiError is raised."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {"/apis/apps/v1": {"resources": APPS}}
        self.asked: list[tuple[str, str, Any]] = []

    async def get(self, path: str) -> Any:
        return await self.request("GET", path)

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "",
    ) -> Any:
        self.asked.append((method, path, body))
        answer = self.answers.get(path, ApiError(404, "NotFound", "not found"))
        if isinstance(answer, ApiError):
            raise answer
        return answer


@pytest.fixture
def client() -> FakeClient:
    return FakeClient()


def ref(kind: str = "Deployment", api_version: str = "apps/v1") -> ScaleTargetRef:
    return ScaleTargetRef(api_version=api_version, kind=kind, name="mails")


async def find(client: FakeClient, kind: str = "Deployment", **more: str) -> ScaleTarget:
    return await ScaleTarget.find(cast(ApiClient, client), "shop", ref(kind, **more))


async def test_target_is_found_read_and_resized(client: FakeClient) -> None:
    path = "/apis/apps/v1/namespaces/shop/deployments/mails/scale"
    client.answers[path] = SCALE
    target = await find(client)
    assert not target.ordered
    expected = Scale(replicas=3, current=2, selector="app=mails,tier in (a,b)")
    assert await target.read() == expected
    await target.resize(1)
    assert await target.first_ordinal() == 0
    assert client.asked == [
        ("GET", "/apis/apps/v1", None),
        ("GET", path, None),
        ("PATCH", path, {"spec": {"replicas": 1}}),
    ]


async def test_target_in_the_core_group(client: FakeClient) -> None:
    client.answers["/api/v1"] = {
        "resources": [
            {"name": "replicationcontrollers", "kind": "ReplicationController", "namespaced": True},
            {"name": "replicationcontrollers/scale", "kind": "Scale", "namespaced": True},
        ]
    }
    client.answers["/api/v1/namespaces/shop/replicationcontrollers/mails/scale"] = SCALE
    target = await find(client, "ReplicationController", api_version="v1")
    assert (await target.read()).replicas == 3


async def test_scale_without_replicas_is_zero(client: FakeClient) -> None:
    path = "/apis/apps/v1/namespaces/shop/deployments/mails/scale"
    client.answers[path] = {"spec": {}, "status": {"selector": "app=mails"}}
    assert await (await find(client)).read() == Scale(replicas=0, current=0, selector="app=mails")


async def test_scale_without_a_selector_is_unusable(client: FakeClient) -> None:
    path = "/apis/apps/v1/namespaces/shop/deployments/mails/scale"
    client.answers[path] = {"spec": {"replicas": 3}, "status": {"replicas": 3}}
    target = await find(client)
    with pytest.raises(TargetUnusable, match="shop/mails has no selector") as raised:
        await target.read()
    assert raised.value.reason == "ScaleTargetUnusable"


async def test_first_ordinal_of_a_stateful_set(client: FakeClient) -> None:
    path = "/apis/apps/v1/namespaces/shop/statefulsets/mails"
    target = await find(client, "StatefulSet")
    assert target.ordered
    client.answers[path] = {"spec": {"ordinals": {"start": 5}}}
    assert await target.first_ordinal() == 5
    client.answers[path] = {"spec": {}}
    assert await target.first_ordinal() == 0


@pytest.mark.parametrize(
    ("kind", "api_version", "reason", "text"),
    [
        ("Deplyment", "apps/v1", "ScaleTargetUnknown", "no kind Deplyment in apps/v1"),
        ("Rollout", "argoproj.io/v1", "ScaleTargetUnknown", "install its CustomResourceDefinition"),
        ("Scale", "apps/v1", "ScaleTargetUnknown", "no kind Scale"),
        ("DaemonSet", "apps/v1", "ScaleTargetUnusable", "DaemonSet in apps/v1 has no scale"),
        ("Fleet", "apps/v1", "ScaleTargetUnusable", "is not namespaced"),
    ],
)
async def test_kind_without_scale_is_unusable(
    client: FakeClient, kind: str, api_version: str, reason: str, text: str
) -> None:
    with pytest.raises(TargetUnusable, match=text) as raised:
        await find(client, kind, api_version=api_version)
    assert raised.value.reason == reason
    assert "spec.workers.scaleTargetRef of TaskQueues in shop" in raised.value.message


async def test_missing_object_is_unusable(client: FakeClient) -> None:
    target = await find(client)
    with pytest.raises(TargetUnusable, match="Deployment shop/mails does not exist") as raised:
        await target.read()
    assert raised.value.reason == "ScaleTargetNotFound"


async def test_forbidden_request_names_the_missing_rule(client: FakeClient) -> None:
    target = await find(client, "StatefulSet")
    path = "/apis/apps/v1/namespaces/shop/statefulsets/mails"
    client.answers[path] = client.answers[f"{path}/scale"] = ApiError(403, "Forbidden", "no")
    with pytest.raises(TargetUnusable) as raised:
        await target.resize(1)
    assert raised.value.reason == "ScaleTargetForbidden"
    assert "may not patch statefulsets/scale of StatefulSet shop/mails" in raised.value.message
    rule = '{apiGroups: ["apps"], resources: [statefulsets/scale], verbs: [get, patch]}'
    assert rule in raised.value.message
    with pytest.raises(TargetUnusable) as raised:
        await target.first_ordinal()
    assert '{apiGroups: ["apps"], resources: [statefulsets], verbs: [get]}' in raised.value.message


async def test_refused_size_says_why(client: FakeClient) -> None:
    target = await find(client)
    client.answers["/apis/apps/v1/namespaces/shop/deployments/mails/scale"] = ApiError(
        422, "Invalid", "spec.replicas: at most 3"
    )
    with pytest.raises(TargetUnusable, match=r"refuses the size: spec\.replicas: at most 3"):
        await target.resize(9)


async def test_unreachable_api_server_raises_api_error(client: FakeClient) -> None:
    target = await find(client)
    away = ApiError(503, "ServiceUnavailable", "later")
    client.answers["/apis/apps/v1/namespaces/shop/deployments/mails/scale"] = away
    with pytest.raises(ApiError):
        await target.read()
    client.answers["/apis/apps/v1"] = away
    with pytest.raises(ApiError):
        await find(client)
