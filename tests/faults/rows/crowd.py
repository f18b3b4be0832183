"""Thousands of Tasks, or very large ones, in a namespace beside a row's own.

The watches of a `Harness` do not see them, so they cost the row nothing, and what happens to the
row's own Tasks is what another tenant notices.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from taskqueue.kubernetes.client import TABLE, ApiClient, ApiError, load_access
from tests.bench.load import at_once
from tests.e2e.api import GROUP, TASKQUEUE_API, VERSION, Body
from tests.faults.rows.site import Site

_CLIENTS = 16
_TIMEOUT_SECONDS = 60.0
#: Objects deleted by one request, which has to end within the API server's time limit.
_DELETED_AT_ONCE = 250
#: Bytes of text in a payload: one that etcd takes, and one that it does not.
_FITS, _TOO_LARGE = 1_500_000, 1_573_000

MakeBody = Callable[[str], bytes]


class Crowd:
    """The Tasks of another namespace; use `crowd`."""

    def __init__(self, site: Site) -> None:
        self._at = site.at
        self.namespace = f"{site.namespace}-crowd"
        self.tasks = f"{TASKQUEUE_API}/namespaces/{self.namespace}/tasks"
        secret = site.at.api.get(site.harness.core("secrets", "rabbit"))
        post, core = site.at.api.request, f"/api/v1/namespaces/{self.namespace}"
        post("POST", "/api/v1/namespaces", {"metadata": {"name": self.namespace}})
        rabbit = {"metadata": {"name": "rabbit"}, "data": secret["data"]}
        post("POST", f"{core}/secrets", rabbit)
        queue = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "TaskQueue",
            "metadata": {"name": "q"},
            "spec": {"broker": {"connectionSecret": {"name": "rabbit"}}},
        }
        post("POST", f"{TASKQUEUE_API}/namespaces/{self.namespace}/taskqueues", queue)

    def create(self, names: Iterable[str], body_of: MakeBody, clients: int = _CLIENTS) -> None:
        """Create Tasks, as many at once as there are clients, and nearly in this order."""

        async def create() -> None:
            async with self._client() as client:

                async def post(name: str) -> None:
                    await client.send("POST", self.tasks, body=body_of(name))

                await at_once(clients, names, post)

        asyncio.run(create())

    def largest_text(self, name: str) -> int:
        """Return how long a text in the payload of a Task may be; names as long as this one."""

        async def search() -> int:
            fits, too_large = _FITS, _TOO_LARGE
            async with self._client() as client:
                while too_large - fits > 8:
                    size = (fits + too_large) // 2
                    try:
                        body = task_body(name, payload={"text": "x" * size})
                        await client.send("POST", self.tasks, body=body)
                    except ApiError as error:
                        if "too large" not in error.message:
                            raise
                        too_large = size
                    else:
                        await client.send("DELETE", f"{self.tasks}/{name}")
                        fits = size
            return fits

        return asyncio.run(search())

    def columns(self) -> dict[str, Body]:
        """Return what ``kubectl get -o wide`` shows of each Task: values by column, by name."""

        async def read() -> Body:
            async with self._client() as client:
                return await self._table(client)

        table = asyncio.run(read())
        titles = [column["name"] for column in table["columnDefinitions"]]
        rows = [dict(zip(titles, row["cells"], strict=True)) for row in table["rows"] or ()]
        return {row["Name"]: row for row in rows}

    def events(self) -> dict[str, str]:
        """Return the reason of the last Event about each object that has one, by name."""
        found = self._at.api.get(f"/api/v1/namespaces/{self.namespace}/events")
        return {one["involvedObject"]["name"]: one["reason"] for one in found["items"]}

    def config_map(self, name: str, **data: str) -> None:
        """Create a ConfigMap."""
        path = f"/api/v1/namespaces/{self.namespace}/configmaps"
        self._at.api.request("POST", path, {"metadata": {"name": name}, "data": data})

    def delete_tasks(self) -> None:
        """Delete all Tasks, and return when they are gone."""

        async def delete() -> None:
            parts = {"limit": str(_DELETED_AT_ONCE)}
            async with self._client() as client:
                while await self._is_anybody_there(client):
                    try:
                        await client.send("DELETE", self.tasks, params=parts)
                    except ApiError as error:  # a busy API server does not get that far in time
                        if not error.transient:
                            raise

        asyncio.run(delete())

    def close(self) -> None:
        """Delete everything, and return when no Task is left."""
        self._at.api.request("DELETE", f"/api/v1/namespaces/{self.namespace}")
        self.delete_tasks()

    async def _is_anybody_there(self, client: ApiClient) -> bool:
        return bool((await self._table(client, limit="1"))["rows"])

    async def _table(self, client: ApiClient, **more: str) -> Body:
        """Return a Table without objects, whose metadata may be as deep as their payloads."""
        parameters = {"includeObject": "None", **more}
        return await client.request("GET", self.tasks, params=parameters, accept=TABLE)

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[ApiClient]:
        access = await load_access(str(self._at.kubeconfig))
        client = ApiClient(access, max_connections=_CLIENTS, timeout_seconds=_TIMEOUT_SECONDS)
        try:
            yield client
        finally:
            await client.close()


@contextmanager
def crowd(site: Site) -> Iterator[Crowd]:
    """Give a row a second namespace with TaskQueue q, which has no workers, and remove it."""
    made = Crowd(site)
    try:
        yield made
    finally:
        made.close()


def task_body(name: str, *, queue: str = "q", **spec: Any) -> bytes:
    """Return a Task as it is sent."""
    return json.dumps(
        {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "Task",
            "metadata": {"name": name},
            "spec": {"queue": queue, "handler": "echo", **spec},
        }
    ).encode()


def with_payload(name: str, payload: bytes, **spec: Any) -> bytes:
    """Return a Task with a payload that is JSON already, however deep."""
    mark = "0a5f62"
    return task_body(name, payload={mark: 0}, **spec).replace(b'{"%b": 0}' % mark.encode(), payload)
