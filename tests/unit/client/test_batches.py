"""TaskBatches for programs, against a few objects in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import pytest

from taskqueue.client import BatchFailed, BatchGone, Refused, TaskClient, WaitTimeout
from taskqueue.client.access import ApiConnection
from taskqueue.kubernetes.client import ApiClient, ApiError

PATH = "/apis/taskqueue.dev/v1alpha1/namespaces/shop/taskbatches"


class FakeBatches:
    """An API server with TaskBatches; asks for as little as the client does."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}

    async def request(self, method: str, path: str, *, body: Any = None, **_: Any) -> Any:
        if method == "POST":
            assert path == PATH
            name = body["metadata"]["name"]
            if name in self.objects:
                raise ApiError(409, "AlreadyExists", f"{name} already exists")
            metadata = {**body["metadata"], "namespace": "shop", "uid": f"uid-{name}"}
            self.objects[name] = {**body, "metadata": metadata, "status": {"phase": "Pending"}}
            return self.objects[name]
        name = path.removeprefix(f"{PATH}/")
        if name not in self.objects:
            raise ApiError(404, "NotFound", f"{name} not found")
        found = self.objects[name]
        if method == "PATCH":
            assert body["metadata"]["uid"] == found["metadata"]["uid"]
            found["spec"] |= body["spec"]
        return found

    async def close(self) -> None:
        """Do nothing."""


@dataclass
class Item:
    n: int


@pytest.fixture
def server() -> FakeBatches:
    return FakeBatches()


@pytest.fixture
def client(server: FakeBatches) -> Iterator[TaskClient]:
    async def connect() -> ApiConnection:
        api = cast(ApiClient, server)
        return ApiConnection(requests=api, watches=api, namespace="shop")

    with TaskClient(connect=connect) as client:
        yield client


def test_a_batch_is_created_with_what_was_given_and_no_more(
    server: FakeBatches, client: TaskClient
) -> None:
    made = client.batches.create(
        "q", "h", [{"n": 1}, Item(2)], name="b", retry={"max_attempts": 2}, max_failed_items=3
    )
    assert (made.namespace, made.name, made.uid) == ("shop", "b", "uid-b")
    assert server.objects["b"]["spec"] == {
        "queue": "q",
        "template": {"spec": {"handler": "h", "retry": {"maxAttempts": 2}}},
        "items": [{"n": 1}, {"n": 2}],
        "maxFailedItems": 3,
    }


def test_items_may_be_counted_or_elsewhere(server: FakeBatches, client: TaskClient) -> None:
    client.batches.create("q", "h", count=7, name="counted")
    client.batches.create("q", "h", items_from={"name": "c", "key": "k"}, name="lines")
    assert server.objects["counted"]["spec"]["count"] == 7
    reference = {"configMapKeyRef": {"name": "c", "key": "k"}}
    assert server.objects["lines"]["spec"]["itemsFrom"] == reference
    assert client.batches.create("q", "h", count=0).name.startswith("q-")


def test_the_end_is_waited_for(server: FakeBatches, client: TaskClient) -> None:
    batch = client.batches.create("q", "h", count=2, name="b")
    with pytest.raises(WaitTimeout, match="has not ended within"):
        batch.wait(0.05)
    server.objects["b"]["status"] = {"phase": "Succeeded", "total": 2, "succeeded": 2}
    assert batch.wait(5).succeeded == 2
    errors = [{"type": "Boom", "count": 1, "indexes": [0], "message": "why"}]
    failed = {"phase": "Failed", "reason": "ItemsFailed", "total": 2, "failed": 1}
    server.objects["b"]["status"] = {**failed, "errors": errors}
    with pytest.raises(BatchFailed, match="ItemsFailed") as raised:
        batch.wait()
    assert raised.value.status.errors[0].indexes == (0,)


def test_a_cancel_is_asked_for_once(server: FakeBatches, client: TaskClient) -> None:
    batch = client.batches.create("q", "h", count=2, name="b")
    batch.cancel()
    assert server.objects["b"]["spec"]["cancel"] is True
    server.objects["b"] |= {"spec": {}, "status": {"phase": "Cancelled"}}
    batch.cancel()
    assert server.objects["b"]["spec"] == {}


def test_a_batch_that_is_not_there_any_more_is_gone(
    server: FakeBatches, client: TaskClient
) -> None:
    batch = client.batches.create("q", "h", count=2, name="b")
    assert client.batches.get("b").uid == batch.uid
    server.objects["b"]["metadata"]["uid"] = "another"
    with pytest.raises(BatchGone, match="made again"):
        batch.status()
    server.objects.clear()
    with pytest.raises(BatchGone, match="does not exist"):
        client.batches.get("b")


def test_a_name_that_is_taken_is_refused(client: TaskClient) -> None:
    client.batches.create("q", "h", count=2, name="b")
    with pytest.raises(Refused, match="already exists"):
        client.batches.create("q", "h", count=2, name="b")


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({}, ValueError, "exactly one of items"),
        ({"count": 1, "items": [{}]}, ValueError, "exactly one of items"),
        ({"count": -1}, ValueError, "count: "),
        ({"items": [{}] * 1001}, ValueError, "1001 items"),
        ({"items": [{"a": "x" * 300_000}]}, ValueError, "256 KiB"),
        ({"items": [1]}, TypeError, "a payload is a JSON object"),
        ({"count": 1, "payload": {}}, TypeError, "no argument payload"),
    ],
)
def test_what_cannot_be_a_batch_is_said_before_anything_is_sent(
    client: TaskClient, arguments: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        client.batches.create("q", "h", **arguments)
