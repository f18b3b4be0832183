"""What a handler returned, read from the status or from the store that the TaskQueue names."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from taskqueue.client import (
    AsyncTaskClient,
    BinaryResult,
    ResultExpired,
    ResultUnavailable,
    TaskClient,
    TaskFailed,
)
from taskqueue.kubernetes.client import ApiError
from taskqueue.model.result import result_key
from taskqueue.results.connection import StoreConnection
from taskqueue.results.reference import StoredResult, reference_to
from taskqueue.results.store import StoreError
from tests.unit.client.fake_tasks import NAMESPACE, FakeTasks
from tests.unit.results.memory import MemoryStore

pytestmark = pytest.mark.looptime

QUEUE = f"/apis/taskqueue.dev/v1alpha1/namespaces/{NAMESPACE}/taskqueues/q"
SECRET = f"/api/v1/namespaces/{NAMESPACE}/secrets/results"
STORED = StoredResult(b'{"pages":3}', "application/json")


class Server(FakeTasks):
    """A server of Tasks that has a TaskQueue and the Secret of its store, too."""

    def __init__(self) -> None:
        super().__init__()
        uri = base64.b64encode(b"redis://:s3cret@store").decode()
        store = {"connectionSecret": {"name": "results"}}
        self.others: dict[str, dict[str, Any] | ApiError] = {
            QUEUE: {"spec": {"results": {"store": store}}},
            SECRET: {"data": {"uri": uri}},
        }
        self.asked: list[str] = []

    async def request(self, method: str, path: str, **more: Any) -> dict[str, Any]:
        if "/tasks" in path:
            return await super().request(method, path, **more)
        self.asked.append(path)
        found = self.others.get(path, ApiError(404, "NotFound", f"{path} not found"))
        if isinstance(found, ApiError):
            raise found
        return found

    async def get(self, path: str, **more: Any) -> dict[str, Any]:
        return await self.request("GET", path, **more)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    made = MemoryStore()

    def open_store(connection: StoreConnection) -> MemoryStore:
        assert connection.uri in ("redis://:s3cret@store", "redis://given")
        return made

    monkeypatch.setattr("taskqueue.client.results.open_store", open_store)
    return made


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
async def client(server: Server) -> AsyncIterator[AsyncTaskClient]:
    async with AsyncTaskClient(connect=server.connect) as made:
        yield made


async def ended(
    server: Server, client: AsyncTaskClient, stored: StoredResult | None, **status: Any
) -> Any:
    """Return a Task that has succeeded, with its result in the store."""
    task = await client.submit("q", "h")
    if stored is not None:
        key = result_key(namespace=NAMESPACE, queue="q", uid=task.uid, attempt=1, epoch=0)
        fields = reference_to(key, stored).fields()
        status = {"resultRef": {**fields, **status}}
    await server.set_status(task.name, "Succeeded", **status)
    return task


def key_of(task: Any) -> str:
    return result_key(namespace=NAMESPACE, queue="q", uid=task.uid, attempt=1, epoch=0)


async def test_a_result_in_the_status_needs_no_store(
    server: Server, client: AsyncTaskClient, store: MemoryStore
) -> None:
    task = await ended(server, client, None, result={"a": 1})
    assert await task.result() == {"a": 1}
    assert not server.asked
    assert await (await ended(server, client, None)).result() is None


@pytest.mark.parametrize(
    ("stored", "value"),
    [
        (STORED, {"pages": 3}),
        (StoredResult(b"\x89PNG", "image/png"), BinaryResult(b"\x89PNG", "image/png")),
    ],
)
async def test_a_result_in_the_store_is_read_and_the_store_opened_once(
    server: Server,
    client: AsyncTaskClient,
    store: MemoryStore,
    stored: StoredResult,
    value: Any,
) -> None:
    for _ in range(2):
        task = await ended(server, client, stored)
        store.kept[key_of(task)] = stored
        assert await task.result(timeout=5) == value
        status = await task.status()
        assert status.result_ref is not None
        assert status.result_ref.key == key_of(task)
        assert (await task.wait()).result_ref == status.result_ref
    assert server.asked == [QUEUE, SECRET]
    await client.close()
    assert store.closed == 1


async def test_the_address_may_be_given(server: Server, store: MemoryStore) -> None:
    for given in ("redis://given", {"uri": "redis://given", "unknown": "x"}):
        async with AsyncTaskClient(connect=server.connect, results=given) as client:
            task = await ended(server, client, STORED)
            store.kept[key_of(task)] = STORED
            assert await task.result() == {"pages": 3}
    assert not server.asked
    with pytest.raises(ValueError, match="begins with"):
        AsyncTaskClient(results="mysql://h")


@pytest.mark.parametrize(
    ("seconds", "kind"), [(None, ResultUnavailable), (60, ResultUnavailable), (-60, ResultExpired)]
)
async def test_a_result_that_is_not_there_has_expired_or_is_lost(
    server: Server,
    client: AsyncTaskClient,
    store: MemoryStore,
    seconds: float | None,
    kind: type[Exception],
) -> None:
    fields: dict[str, Any] = {}
    if seconds is not None:
        at = time.gmtime(time.time() + seconds)
        fields = {"expirationTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", at)}
    task = await ended(server, client, STORED, **fields)
    with pytest.raises(ResultUnavailable, match=key_of(task)) as caught:
        await task.result()
    assert type(caught.value) is kind
    assert not caught.value.transient


@pytest.mark.parametrize(
    "found",
    [
        StoredResult(b'{"pages":4}', "application/json"),
        StoredResult(b"", "application/json"),
    ],
)
async def test_a_result_that_is_another_one_is_damaged(
    server: Server, client: AsyncTaskClient, store: MemoryStore, found: StoredResult
) -> None:
    task = await ended(server, client, STORED)
    store.kept[key_of(task)] = found
    with pytest.raises(ResultUnavailable, match="damaged"):
        await task.result()


async def test_json_that_is_none_is_damaged(
    server: Server, client: AsyncTaskClient, store: MemoryStore
) -> None:
    broken = StoredResult(b'{"pages":', "application/json")
    task = await ended(server, client, broken)
    store.kept[key_of(task)] = broken
    with pytest.raises(ResultUnavailable, match="damaged"):
        await task.result()


@pytest.mark.parametrize(
    ("path", "answer", "message"),
    [
        (QUEUE, ApiError(403, "Forbidden", "no"), "service account a role"),
        (SECRET, ApiError(403, "Forbidden", "no"), "service account a role"),
        (QUEUE, ApiError(404, "NotFound", "no such"), "no such"),
        (SECRET, ApiError(404, "NotFound", "no"), "Secret shop/results does not exist"),
        (QUEUE, {"spec": {}}, "spec.results.store is absent"),
        (SECRET, {"data": {}}, "the key uri must be an address"),
    ],
)
async def test_a_store_that_is_not_known_says_what_to_do(
    server: Server,
    client: AsyncTaskClient,
    store: MemoryStore,
    path: str,
    answer: Any,
    message: str,
) -> None:
    task = await ended(server, client, STORED)
    store.kept[key_of(task)] = STORED
    well, server.others[path] = server.others[path], answer
    with pytest.raises(ResultUnavailable, match=message) as caught:
        await task.result()
    assert "s3cret" not in str(caught.value)
    server.others[path] = well
    assert await task.result() == {"pages": 3}


async def test_a_store_that_is_away_is_waited_for(
    server: Server, client: AsyncTaskClient, store: MemoryStore
) -> None:
    task = await ended(server, client, STORED)
    store.kept[key_of(task)] = STORED
    store.away_until = asyncio.get_running_loop().time() + 4
    assert await task.result() == {"pages": 3}
    store.away_until = asyncio.get_running_loop().time() + 100
    with pytest.raises(ResultUnavailable) as caught:
        await task.result()
    assert caught.value.transient
    assert store.closed == 1  # its Secret is read again
    store.away_until = 0
    assert await task.result() == {"pages": 3}
    assert server.asked == [QUEUE, SECRET] * 2


async def test_whoever_gives_up_a_store_leaves_the_others_their_time(
    server: Server, client: AsyncTaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores: list[MemoryStore] = []

    def open_store(connection: StoreConnection) -> MemoryStore:
        stores.append(ClosableStore(away_until=began + 70))
        return stores[-1]

    class ClosableStore(MemoryStore):
        async def get(self, key: str) -> StoredResult | None:
            if self.closed:
                raise StoreError("it is closed", transient=True)
            await super().get(key)
            return STORED

    monkeypatch.setattr("taskqueue.client.results.open_store", open_store)
    tasks = [await ended(server, client, STORED) for _ in range(2)]
    began = asyncio.get_running_loop().time()
    client._results._patience = 60.0
    early = asyncio.create_task(tasks[0].result())
    await asyncio.sleep(40)
    late = asyncio.create_task(tasks[1].result())
    with pytest.raises(ResultUnavailable):
        await early
    assert [one.closed for one in stores] == [1]
    assert await late == {"pages": 3}


async def test_a_failed_task_has_no_result(
    server: Server, client: AsyncTaskClient, store: MemoryStore
) -> None:
    task = await client.submit("q", "h")
    await server.set_status(task.name, "Failed")
    with pytest.raises(TaskFailed):
        await task.result()


def test_programs_without_a_loop_read_it_too(server: Server, store: MemoryStore) -> None:
    with TaskClient(connect=server.connect) as client:
        handle = client.submit("q", "h")
        store.kept[key_of(handle)] = STORED
        fields = reference_to(key_of(handle), STORED).fields()
        client._thread.run(server.set_status(handle.name, "Succeeded", resultRef=fields))
        assert handle.result(5) == {"pages": 3}
    assert store.closed == 1
