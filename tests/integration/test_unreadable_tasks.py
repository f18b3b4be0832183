"""Tasks that are nested too deep or too large, among others, on a real API server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest

from taskqueue.controller.tasks.finished_tasks import finished_tasks
from taskqueue.kubernetes.client import (
    JSON_PATCH,
    METADATA,
    OBJECT_BYTES,
    PROBLEMS,
    TABLE,
    UNREADABLE,
    ApiClient,
    load_access,
)
from taskqueue.kubernetes.informer import Informer, Key
from taskqueue.kubernetes.task_codec import FINISHED, UNFINISHED, read_outline, status_patch
from taskqueue.kubernetes.task_table import WITH_METADATA, outlines
from taskqueue.model.task import Phase
from taskqueue.timestamps import from_rfc3339
from tests.conftest import Cluster
from tests.integration.admission import FINISHED as END
from tests.integration.admission import SUCCEEDED, TEST_GROUP, Body, task

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("schemas")]

#: orjson goes 1,024 levels deep. The managed fields of objects are as deep as these, of lists not.
LEVELS = 1100
DEEP_LISTS = '{"a":' + "[" * LEVELS + "]" * LEVELS + "}"
DEEP_OBJECTS = '{"a":' * LEVELS + "1" + "}" * LEVELS
#: 1.4 MB, of which Python makes more than 20 times as much.
FAT = '{"a":[' + ",".join(["[]"] * 466_000) + "]}"

SMALL = 300


class CountingClient(ApiClient):
    """Counts the requests of lists and objects, and the bytes of their answers."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.requests = 0
        self.lengths: list[int] = []

    async def send(self, *args: Any, **more: Any) -> bytes:
        self.requests += 1
        raw = await super().send(*args, **more)
        self.lengths.append(len(raw))
        return raw


class Listener:
    """Takes what the informer shows."""

    def __init__(self) -> None:
        self.held: set[str] = set()
        self.problems: dict[str, str] = {}
        self.deleted: list[str] = []

    def on_upserted(self, raw: dict[str, Any]) -> None:
        self.held.add(raw["metadata"]["name"])

    def on_unreadable(self, raw: dict[str, Any], problem: str) -> None:
        self.problems[raw["metadata"]["name"]] = problem

    def on_deleted(self, key: Key, uid: str, metadata: Mapping[str, Any] | None = None) -> None:
        self.deleted.append(key[1])


@pytest.fixture
async def client(cluster: Cluster) -> AsyncIterator[CountingClient]:
    client = CountingClient(await load_access(str(cluster.kubeconfig)), timeout_seconds=60)
    yield client
    await client.close()


@pytest.fixture
def path(namespace: str) -> str:
    return f"/apis/{TEST_GROUP}/v1alpha1/namespaces/{namespace}/tasks"


async def create(
    client: ApiClient, path: str, names: Sequence[str], payload: str = "{}", **spec: Any
) -> None:
    async def one(name: str) -> None:
        text = json.dumps(task(name, payload="PAYLOAD", **spec)).replace('"PAYLOAD"', payload)
        await client.request("POST", path, body=text.encode(), accept=METADATA, levels=2)

    for start in range(0, len(names), 20):
        await asyncio.gather(*map(one, names[start : start + 20]))


async def outline_of(client: ApiClient, path: str, name: str) -> dict[str, Any]:
    """Return an outline of a Task, as `get_outline` does of the group that is in use."""
    table = await client.request(
        "GET", f"{path}/{name}", params=WITH_METADATA, accept=TABLE, levels=5
    )
    return next(outlines(table))


@asynccontextmanager
async def informing(client: ApiClient, path: str) -> AsyncIterator[Listener]:
    listener = Listener()
    informer = Informer(client, path, listener, selectors={"fieldSelector": UNFINISHED})
    running = asyncio.create_task(informer.run())
    try:
        await asyncio.wait_for(informer.synced.wait(), 60)
        yield listener
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def eventually(holds: Any) -> None:
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110  (conditions of any kind, not events)
            await asyncio.sleep(0.05)


async def test_deep_and_fat_tasks_among_others(client: CountingClient, path: str) -> None:
    small = [f"t{number:03}" for number in range(SMALL)]
    await create(client, path, small)
    await create(client, path, ["t120-deep"], DEEP_LISTS)
    await create(client, path, ["t200-fat", "t201-fat"], FAT)
    client.requests, client.lengths = 0, []
    async with informing(client, path) as listener:
        assert listener.held == {*small, "t200-fat", "t201-fat"}
        assert listener.problems == {"t120-deep": PROBLEMS[UNREADABLE]}
        # Four pages, ten more requests for the deep one, and the sizes around the fat ones.
        assert client.requests <= 4 + 10 + 18
        assert max(client.lengths) <= OBJECT_BYTES
        await create(client, path, ["watched"], DEEP_OBJECTS)
        await create(client, path, ["later"])
        await eventually(lambda: "later" in listener.held)
        assert listener.problems.keys() == {"t120-deep", "watched"}
    async with informing(client, path) as listener:
        assert listener.problems.keys() == {"t120-deep", "watched"}


@pytest.mark.parametrize("payload", [DEEP_LISTS, DEEP_OBJECTS], ids=["lists", "objects"])
async def test_an_unreadable_task_gets_its_final_status(
    client: CountingClient, path: str, payload: str
) -> None:
    await create(client, path, ["deep"], payload, ttlSecondsAfterFinished=60)
    started: Body = {"phase": "Retrying", "attempts": 2, "epoch": 3, "observedGeneration": 1}
    await client.request(
        "PATCH",
        f"{path}/deep/status",
        body={"status": started},
        content_type="application/merge-patch+json",
        accept=METADATA,
        levels=2,
    )
    async with informing(client, path) as listener:
        assert listener.problems.keys() == {"deep"}
        found = read_outline(await outline_of(client, path, "deep"))
        assert (found.spec.queue, found.status.attempts) == ("thumbnails", 2)
        ended = replace(
            found.status, phase=Phase.FAILED, reason="Invalid", completion_time=found.created
        )
        answer = await client.request(
            "PATCH",
            f"{path}/deep/status",
            body=status_patch(found, ended, now=found.created),
            content_type=JSON_PATCH,
            accept=METADATA,
            levels=2,
        )
        assert answer["metadata"]["generation"] == 1
        await eventually(lambda: listener.deleted == ["deep"])
    written = read_outline(await outline_of(client, path, "deep"))
    assert (written.status.phase, written.status.reason) == (Phase.FAILED, "Invalid")
    assert written.status.attempts == 2
    (found_by_list,) = [
        one async for page in finished_tasks(client, path=path, selector=FINISHED) for one in page
    ]
    assert (found_by_list.name, found_by_list.ttl) == ("deep", 60)


async def test_fat_finished_tasks_are_listed_without_reading_them(
    client: CountingClient, path: str, namespace: str
) -> None:
    names = [f"fat-{number}" for number in range(2)]
    await create(client, path, names, FAT, ttlSecondsAfterFinished=7)
    for name in names:
        await client.request(
            "PATCH",
            f"{path}/{name}/status",
            body={"status": SUCCEEDED},
            content_type="application/merge-patch+json",
            accept=METADATA,
        )
    client.requests, client.lengths = 0, []
    (found,) = [page async for page in finished_tasks(client, path=path, selector=FINISHED)]
    assert client.requests == 1
    assert sum(client.lengths) < 100_000
    assert [one.name for one in found] == names
    (queue,) = {one.queue for one in found}
    (completed,) = {one.completed for one in found}
    assert {one.ttl for one in found} == {7}
    assert queue == (namespace, "thumbnails")
    assert completed == from_rfc3339(END)
