"""The real API server gives the guarantees of tests/unit/client/fake_tasks.py."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from kubernetes.aio.client import Configuration

from taskqueue.amqp.parameters import BrokerParameters
from taskqueue.client import (
    AsyncTaskClient,
    Refused,
    TaskCancelled,
    TaskClient,
    TaskConflict,
    TaskGone,
    TaskResult,
)
from taskqueue.client.access import ApiConnection, open_connection
from taskqueue.client.task_watch import tasks_path
from taskqueue.kubernetes.client import MERGE_PATCH, ApiAccess, ApiClient, load_access
from tests.conftest import Cluster, Kubectl
from tests.e2e.guides import blocks
from tests.faults.relay import relay_to

pytestmark = pytest.mark.cluster

PATIENCE = 60.0


@pytest.fixture(autouse=True)
def no_retries(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail if a client succeeded only by retries."""
    yield
    logged = [vars(one)["fields"] for one in caplog.records if one.name == "taskqueue.client"]
    assert not logged or "break" in request.node.name, logged


async def set_status(connected: ApiConnection, name: str, **status: Any) -> None:
    """Write a status as the operator does; it may write at the same time, but no end changes."""
    await connected.requests.request(
        "PATCH",
        f"{tasks_path(connected.namespace)}/{name}/status",
        body={"status": status},
        content_type=MERGE_PATCH,
    )


async def succeed(connected: ApiConnection, name: str) -> None:
    await set_status(connected, name, phase="Succeeded", attempts=1, result={"pages": 3})


SUCCEEDED = TaskResult(phase="Succeeded", result={"pages": 3}, attempts=1, reason="", message="")


def as_ended(result: TaskResult) -> TaskResult:
    """Leave out words the operator may have put there before the test did."""
    return replace(result, reason="", message="")


async def test_submitting_again_finds_the_task_as_the_server_keeps_it(
    client: AsyncTaskClient,
) -> None:
    spec: dict[str, Any] = {
        "depends_on": ["y", "x"],
        "retry": {"max_attempts": 2, "backoff": {"factor": 2.0}},
        "ttl_seconds_after_finished": 60,
        "priority": 0,
    }
    payload = {"a": 1.0, "b": [True, None, {"c": None}], "large": 2**53, "small": 1e-7, "text": "ä"}
    first = await client.submit("q", "echo", payload, name="a", **spec)
    again = await client.submit("q", "echo", payload, name="a", **spec)
    assert again.uid == first.uid
    with pytest.raises(TaskConflict) as found:
        await client.submit("q", "echo", payload | {"a": True}, name="a", **spec)
    assert found.value.fields == ("payload",)


async def test_refusals_are_in_the_servers_words(client: AsyncTaskClient) -> None:
    with pytest.raises(Refused, match="depends on itself: remove its own name") as found:
        await client.submit("q", "echo", name="a", depends_on=["a"])
    assert (found.value.status, found.value.reason) == (422, "Invalid")
    with pytest.raises(Refused, match=r"namespaces .* not found"):
        await client.submit("q", "echo", namespace="nowhere-at-all")


async def test_a_queue_that_is_not_there_yet_is_shown_and_waited_for(
    client: AsyncTaskClient, connected: ApiConnection
) -> None:
    handle = await client.submit("nowhere", "echo", name="a")
    async with asyncio.timeout(PATIENCE):
        seen = [status async for status in _until(handle.stream(), "Blocked")]
    assert seen[-1].reason == "QueueNotFound"
    await succeed(connected, "a")
    assert as_ended(await handle.wait(PATIENCE)) == SUCCEEDED


async def _until(statuses: AsyncIterator[Any], phase: str) -> AsyncIterator[Any]:
    async for status in statuses:
        yield status
        if status.phase == phase:
            return


async def test_cancel_and_cancel_again(client: AsyncTaskClient, connected: ApiConnection) -> None:
    handle = await client.submit("q", "echo", name="a")
    await handle.cancel()
    with pytest.raises(TaskCancelled):
        await handle.wait(PATIENCE)
    await handle.cancel()
    other = await client.submit("q", "echo", name="b")
    await succeed(connected, "b")
    await other.cancel()
    assert (await other.status()).phase == "Succeeded"


async def test_a_deleted_task_and_its_successor(
    client: AsyncTaskClient, connected: ApiConnection
) -> None:
    handle = await client.submit("q", "echo", name="a")
    path = f"{tasks_path(connected.namespace)}/a"
    waiting = asyncio.create_task(handle.wait(PATIENCE))
    await _watched(waiting)
    await connected.requests.request("DELETE", path)
    with pytest.raises(TaskGone):
        await waiting
    with pytest.raises(TaskGone, match="does not exist"):
        await handle.cancel()
    successor = await client.submit("q", "echo", name="a")
    for ask in (handle.wait, handle.status, handle.cancel):
        with pytest.raises(TaskGone, match="another was created under its name"):
            await ask()
    raw = await connected.requests.request("GET", path)
    assert raw["metadata"]["uid"] == successor.uid
    assert "cancel" not in raw["spec"]


async def _watched(waiting: asyncio.Task[Any]) -> None:
    """Give a wait the time to look and to watch; what it tests holds at any time."""
    await asyncio.wait({waiting}, timeout=0.5)


async def test_a_task_that_ends_and_is_deleted_at_once_has_ended(
    client: AsyncTaskClient, connected: ApiConnection
) -> None:
    handle = await client.submit("q", "echo", name="a")
    waiting = asyncio.create_task(handle.wait(PATIENCE))
    await _watched(waiting)
    await succeed(connected, "a")
    await connected.requests.request("DELETE", f"{tasks_path(connected.namespace)}/a")
    assert as_ended(await waiting) == SUCCEEDED


class ExpiredFirstWatch(ApiClient):
    """A client whose first watch starts at an expired resource version."""

    def __init__(self, api: ApiClient) -> None:
        # Not the base's: the connections are those of ``api``.
        self.api = api
        self.watches_opened = 0

    def watch(
        self, path: str, *, timeout_seconds: int, **params: str
    ) -> AsyncGenerator[dict[str, Any], None]:
        self.watches_opened += 1
        if self.watches_opened == 1:
            params["resourceVersion"] = "1"
        return self.api.watch(path, timeout_seconds=timeout_seconds, **params)

    async def request(self, *arguments: Any, **more: Any) -> dict[str, Any]:
        return await self.api.request(*arguments, **more)

    async def close(self) -> None:
        await self.api.close()


async def test_wait_recovers_from_an_expired_resource_version(connected: ApiConnection) -> None:
    expiring = ExpiredFirstWatch(connected.watches)

    async def connect() -> ApiConnection:
        return ApiConnection(connected.requests, expiring, connected.namespace)

    async with AsyncTaskClient(connect=connect) as client:
        handle = await client.submit("q", "echo", name="a")
        waiting = asyncio.create_task(handle.wait(PATIENCE))
        async with asyncio.timeout(PATIENCE):
            while expiring.watches_opened < 2:  # noqa: ASYNC110 - counted where nobody waits
                await asyncio.sleep(0.01)
        await succeed(connected, "a")
        assert as_ended(await waiting) == SUCCEEDED


async def test_connections_that_break_while_it_waits(
    cluster: Cluster, connected: ApiConnection
) -> None:
    access = await load_access(str(cluster.kubeconfig))
    place = urlsplit(access.base_url)
    target = BrokerParameters(
        host=place.hostname or "", port=place.port or 443, username="", password=""
    )
    async with relay_to(target) as (relay, reached):
        configuration = Configuration()
        configuration.host = f"https://{reached.host}:{reached.port}"
        assert access.ssl_context is not None
        access.ssl_context.check_hostname = False
        through = open_connection(ApiAccess(configuration, access.ssl_context), connected.namespace)

        async def connect() -> ApiConnection:
            return through

        async with AsyncTaskClient(connect=connect) as client:
            handle = await client.submit("q", "echo", name="a")
            waiting = asyncio.create_task(handle.wait(PATIENCE))
            for _ in range(3):
                await _watched(waiting)
                relay.cut()
            await succeed(connected, "a")
            assert as_ended(await waiting) == SUCCEEDED


def test_a_program_without_a_loop(cluster: Cluster, namespace: str) -> None:
    with TaskClient(kubeconfig=str(cluster.kubeconfig), namespace=namespace) as client:
        handle = client.submit("q", "echo", {"a": 1})
        for status in handle.stream():
            if status.phase in ("Pending", "Blocked"):
                handle.cancel()
        assert status.phase == "Cancelled"
        assert [result.phase for result in client.wait_all([handle], PATIENCE)] == ["Cancelled"]


async def test_the_role_of_the_guide_is_enough_and_no_more(
    cluster: Cluster, kubectl: Kubectl, namespace: str, connected: ApiConnection
) -> None:
    (manifests,) = [block for block in blocks("clients.md", "yaml") if "kind: Role" in block.text]
    kubectl.ok("apply", "-n", namespace, "-f", "-", input=manifests.text)
    account = next(
        one["metadata"]["name"]
        for one in yaml.safe_load_all(manifests.text)
        if one["kind"] == "ServiceAccount"
    )
    token = kubectl.ok("create", "token", account, "-n", namespace).strip()
    access = await load_access(str(cluster.kubeconfig))
    configuration = Configuration()
    configuration.host = access.configuration.host
    configuration.api_key = {"BearerToken": f"Bearer {token}"}
    context = ssl.create_default_context(cafile=access.configuration.ssl_ca_cert)

    async def connect() -> ApiConnection:
        return open_connection(ApiAccess(configuration, context), namespace)

    async with AsyncTaskClient(connect=connect) as client:
        handle = await client.submit("q", "echo", name="a")
        assert (await client.submit("q", "echo", name="a")).uid == handle.uid
        await handle.status()
        await handle.cancel()
        with pytest.raises(TaskCancelled):
            await handle.wait(PATIENCE)
        with pytest.raises(Refused, match=r"give the program's service account a role") as found:
            await client.submit("q", "echo", namespace="default")
        assert found.value.status == 403
