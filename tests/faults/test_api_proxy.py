"""The API proxy: each fault as a real client sees it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
from aiohttp import web

from taskqueue.kubernetes.client import ApiClient, ApiError, load_access
from taskqueue.kubernetes.informer import Informer
from tests.conftest import Cluster, Kubectl
from tests.faults.api_faults import (
    Answer,
    ApiFault,
    Cut,
    Delay,
    End,
    ErrorEvent,
    Hang,
    Silence,
    describe_request,
)
from tests.faults.api_proxy import ApiProxy, open_api_proxy
from tests.faults.api_upstream import Upstream
from tests.faults.relay import address_towards
from tests.unit.kubernetes.fake_api import FakeApi, eventually, make, serve
from tests.unit.kubernetes.test_informer import Listener

PATH = "/apis/example.dev/v1/namespaces/ns/things/a"


@pytest.fixture
async def api() -> AsyncIterator[tuple[FakeApi, str]]:
    """An API server that executes each PATCH at once, and its URL."""
    fake = FakeApi()
    fake.gate.set()
    async with serve(fake) as client:
        yield fake, client._base


@pytest.fixture
def proxy(api: tuple[FakeApi, str]) -> Iterator[ApiProxy]:
    with open_api_proxy(Upstream(api[1])) as proxy:
        yield proxy


@pytest.fixture
async def client(proxy: ApiProxy, tmp_path: Path) -> AsyncIterator[ApiClient]:
    access = await load_access(str(proxy.write_kubeconfig(tmp_path / "kubeconfig")))
    client = ApiClient(access, timeout_seconds=30)
    yield client
    await client.close()


@asynccontextmanager
async def informing(client: ApiClient) -> AsyncIterator[tuple[Informer, Listener]]:
    listener = Listener()
    informer = Informer(client, "/things", listener, random=Random(1))
    task = asyncio.create_task(informer.run())
    try:
        yield informer, listener
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def refusal(client: ApiClient, path: str = PATH) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await client.merge(path, {})
    return caught.value


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (403, "Forbidden"),
        (409, "Conflict"),
        (410, "Expired"),
        (429, "TooManyRequests"),
        (500, "InternalError"),
    ],
)
async def test_proxy_answers_in_place_of_the_api_server(
    api: tuple[FakeApi, str], proxy: ApiProxy, client: ApiClient, status: int, reason: str
) -> None:
    with proxy.fault(Answer(status, retry_after=7), method="PATCH") as rule:
        error = await refusal(client)
        assert (error.status, error.reason, error.retry_after) == (status, reason, 7)
    assert rule.applied == 1
    assert api[0].patches == []
    await client.merge(PATH, {"x": 1})
    assert api[0].patches == [(PATH, {"x": 1})]
    assert [one.status for one in proxy.seen] == [status, 200]


async def test_rule_hits_one_object_from_its_second_request_for_two(
    proxy: ApiProxy, client: ApiClient
) -> None:
    other = PATH.removesuffix("a") + "b"
    with proxy.fault(Answer(409), name="a", path="/things/", skip=1, times=2) as rule:
        await client.merge(PATH, {})
        await client.merge(other, {})
        await refusal(client)
        await refusal(client)
        await client.merge(PATH, {})
        assert (rule.matched, rule.applied) == (4, 2)
    assert proxy.count(method="PATCH", name="a") == 4
    assert proxy.count(method="PATCH", name="b") == 1


async def test_rule_ends_by_itself_after_its_seconds(proxy: ApiProxy, client: ApiClient) -> None:
    with proxy.fault(Answer(500), seconds=2) as rule:
        await refusal(client)
        await eventually(lambda: rule.has_ended)
        await client.merge(PATH, {})


async def test_proxy_hangs_until_the_client_gives_up(
    api: tuple[FakeApi, str], proxy: ApiProxy, client: ApiClient
) -> None:
    hasty = ApiClient(client._access, timeout_seconds=0.5)
    with proxy.fault(Hang()) as rule:
        assert "TimeoutError" in str(await refusal(hasty))
    await hasty.close()
    assert rule.applied == 1
    assert api[0].patches == []


async def test_proxy_cuts_a_hanging_connection_when_the_rule_ends(
    api: tuple[FakeApi, str], proxy: ApiProxy, client: ApiClient
) -> None:
    with proxy.fault(Hang(), seconds=0.5):
        began = time.monotonic()
        assert "reset by peer" in str(await refusal(client))
        assert time.monotonic() - began > 0.3
    assert api[0].patches == []


async def test_proxy_cuts_a_connection_whose_request_was_executed(
    api: tuple[FakeApi, str], proxy: ApiProxy, client: ApiClient
) -> None:
    with proxy.fault(Cut(), after_execution=True):
        assert (await refusal(client)).status == 0
    assert len(api[0].patches) == 1


async def test_proxy_delays_a_request(proxy: ApiProxy, client: ApiClient) -> None:
    with proxy.fault(Delay(0.3)):
        began = time.monotonic()
        await client.merge(PATH, {})
        assert time.monotonic() - began >= 0.3


async def test_informer_starts_its_list_again_when_page_three_has_expired(
    api: tuple[FakeApi, str], proxy: ApiProxy, client: ApiClient
) -> None:
    api[0].objects = {f"o{n}": make(f"o{n}") for n in range(450)}
    with proxy.fault(Answer(410), page=3, times=1) as rule:
        async with informing(client) as (informer, listener):
            await asyncio.wait_for(informer.synced.wait(), 10)
            assert len(listener.held) == 450
    assert rule.applied == 1
    assert [proxy.count(page=page) for page in range(1, 7)] == [2, 2, 2, 1, 1, 0]


async def test_informer_hears_nothing_while_its_watch_is_silent(
    api: tuple[FakeApi, str], proxy: ApiProxy, client: ApiClient
) -> None:
    async with informing(client) as (_, listener):
        await eventually(lambda: proxy.open_watches == 1)
        await api[0].emit("ADDED", make("before"))
        await eventually(lambda: "before" in listener.held)
        assert proxy.disturb_watches(Silence()) == 1
        await api[0].emit("ADDED", make("silenced"))
        await asyncio.sleep(0.3)
        assert list(listener.held) == ["before"]
        assert proxy.open_watches == 1
        assert proxy.count(is_watch=True) == 1


@pytest.mark.parametrize(
    ("fault", "lists"), [(End(), 1), (Cut(), 1), (ErrorEvent(410), 2)], ids=repr
)
async def test_informer_recovers_from_a_watch_that_breaks(
    api: tuple[FakeApi, str], proxy: ApiProxy, client: ApiClient, fault: Any, lists: int
) -> None:
    async with informing(client) as (_, listener):
        await eventually(lambda: proxy.open_watches == 1)
        assert proxy.disturb_watches(fault) == 1
        await api[0].emit("ADDED", make("after"))
        await eventually(lambda: "after" in listener.held)
        await eventually(lambda: proxy.count(is_watch=True) == 2)
    assert proxy.count(page=1) == lists


@pytest.mark.parametrize(
    ("fault", "lists"), [(Answer(410), 2), (ErrorEvent(), 2), (End(), 1)], ids=repr
)
async def test_rule_hits_a_watch_as_it_opens(
    api: tuple[FakeApi, str], proxy: ApiProxy, client: ApiClient, fault: ApiFault, lists: int
) -> None:
    with proxy.fault(fault, is_watch=True, times=1):
        async with informing(client) as (_, listener):
            await eventually(lambda: proxy.open_watches == 1 and proxy.count(is_watch=True) == 2)
            await api[0].emit("ADDED", make("after"))
            await eventually(lambda: "after" in listener.held)
    assert proxy.count(page=1) == lists


async def test_proxy_with_tls_passes_the_token_of_its_client(tmp_path: Path) -> None:
    tokens: list[str | None] = []

    async def answer(request: web.Request) -> web.Response:
        tokens.append(request.headers.get("Authorization"))
        return web.json_response({})

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    upstream = Upstream(f"http://127.0.0.1:{runner.addresses[0][1]}")
    try:
        with open_api_proxy(upstream, tls=True) as proxy:
            access = await load_access(str(proxy.write_kubeconfig(tmp_path / "kubeconfig")))
            client = ApiClient(access)
            await client.get("/version")
            access.configuration.api_key = {"BearerToken": "Bearer secret"}
            await client.get("/version")
            await client.close()
    finally:
        await runner.cleanup()
    assert tokens == [None, "Bearer secret"]


@pytest.mark.cluster
def test_proxy_disturbs_a_pod_that_keeps_its_own_identity(
    cluster: Cluster, kubectl: Kubectl, namespace: str, node_address: str, tmp_path: Path
) -> None:
    program = """
import asyncio, sys
from taskqueue.kubernetes.client import ApiClient, ApiError, load_access

async def main():
    client = ApiClient(await load_access())
    try:
        print(await client.get(sys.argv[1]))
    except ApiError as error:
        print(error.status, error.message)
    await client.close()

asyncio.run(main())
"""
    container = {
        "name": "only",
        "image": "taskqueue-operator:dev",
        "command": ["sleep", "infinity"],
    }
    address = address_towards(node_address)
    with open_api_proxy(cluster.kubeconfig, address=address, tls=True) as proxy:
        addition = proxy.pod_addition()
        spec = {"terminationGracePeriodSeconds": 0, "containers": [container]}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "client"},
            "spec": addition.added_to(spec),
        }
        for manifest in (addition.config_map, pod):
            kubectl.ok("create", "-n", namespace, "-f", "-", input=json.dumps(manifest))
        kubectl.ok("wait", "-n", namespace, "--for=condition=Ready", "pod/client", "--timeout=60s")

        def get(path: str) -> str:
            command = ("exec", "-n", namespace, "client", "--", "python3", "-c", program, path)
            return kubectl.ok(*command)

        assert "gitVersion" in get("/version")
        with proxy.fault(Answer(429), path="^/version$") as rule:
            assert get("/version") == "429 answered by a test\n"
        assert rule.applied == 1
        refused = get(f"/api/v1/namespaces/{namespace}/secrets")
        assert refused.startswith("403")
        assert f"system:serviceaccount:{namespace}:default" in refused
        # A program on this machine has the rights of the kubeconfig behind the proxy.
        own = proxy.write_kubeconfig(tmp_path / "kubeconfig")
        here = Kubectl(Cluster(own, cluster.kubectl))
        assert "client" in here.ok("get", "pods", "-n", namespace)


@pytest.mark.parametrize(
    ("path", "query", "body", "name"),
    [
        ("/api/v1/namespaces/x", {}, b"", "x"),
        ("/api/v1/namespaces/x/pods", {}, b"", ""),
        ("/api/v1/namespaces/x/pods/p/log", {}, b"", "p"),
        ("/api/v1/nodes/n", {}, b"", "n"),
        ("/apis/apps/v1/namespaces/x/deployments/d/scale", {}, b"", "d"),
        ("/api/v1/pods", {"fieldSelector": "metadata.name=p"}, b"", "p"),
        ("/api/v1/namespaces/x/pods", {}, b'{"metadata": {"name": "p"}}', "p"),
        ("/api/v1/namespaces/x/pods", {}, b"no JSON", ""),
        ("/version", {}, b"", ""),
    ],
)
def test_name_of_the_object_that_a_request_is_about(
    path: str, query: dict[str, str], body: bytes, name: str
) -> None:
    assert describe_request("GET", path, query, body, {}).name == name
