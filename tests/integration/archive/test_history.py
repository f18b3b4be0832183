"""`TaskClient.history` and `AsyncTaskClient.history`, on a real PostgreSQL."""

from __future__ import annotations

import base64
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, cast

import pytest

from taskqueue.archive.archive import Archive
from taskqueue.archive.history import HistoryFilter
from taskqueue.client import NoArchive, Refused, TaskClient, Unavailable
from taskqueue.client.access import ApiConnection
from taskqueue.client.async_tasks import AsyncTaskClient
from taskqueue.kubernetes.client import ApiClient, ApiError
from tests.integration.archive.ended_tasks import EPOCH, new_task
from tests.integration.results.servers import PASSWORD, PostgresqlServer

pytestmark = pytest.mark.timeout(900)


class FakeApi:
    """Has a TaskQueue and a Secret, or raises."""

    def __init__(self, uri: str) -> None:
        self.spec: dict[str, Any] = {"archive": {"connectionSecret": {"name": "kept"}}}
        self.uri = uri
        self.problems: dict[str, ApiError] = {}
        self.asked: list[str] = []

    async def request(self, method: str, path: str, **_: Any) -> dict[str, Any]:
        return await self.get(path)

    async def get(self, path: str, **_: str) -> dict[str, Any]:
        self.asked.append(path)
        kind = path.rpartition("/")[0].rpartition("/")[2]
        if kind in self.problems:
            raise self.problems[kind]
        if kind == "secrets":
            assert path == "/api/v1/namespaces/shop/secrets/kept"
            return {"data": {"uri": base64.b64encode(self.uri.encode()).decode()}}
        return {"spec": self.spec}

    async def close(self) -> None: ...


class Case:
    def __init__(self, server: PostgresqlServer) -> None:
        self.api = FakeApi(server.connection().uri)

    async def connect(self) -> ApiConnection:
        client = cast(ApiClient, self.api)
        return ApiConnection(requests=client, watches=client, namespace="shop")


@pytest.fixture
def case(server: PostgresqlServer) -> Case:
    return Case(server)


@pytest.fixture
async def client(case: Case) -> AsyncIterator[AsyncTaskClient]:
    async with AsyncTaskClient(connect=case.connect, patience_seconds=0) as client:
        yield client


async def test_one_task_is_found_by_its_uid(archive: Archive) -> None:
    queue = uuid.uuid4().hex
    tasks = [new_task(queue=queue) for _ in range(3)]
    await archive.write(tasks)
    wanted = HistoryFilter(namespace=tasks[1].namespace, queue=queue, uid=tasks[1].uid)
    found = await archive.read(wanted, after=None, rows=10)
    assert [task.uid for task in found] == [tasks[1].uid]


async def test_pages_follow_one_another(client: AsyncTaskClient, archive: Archive) -> None:
    queue = uuid.uuid4().hex
    tasks = [
        new_task(queue=queue, name=f"t-{number}", completed=EPOCH + timedelta(seconds=number))
        for number in range(25)
    ]
    await archive.write(tasks)
    names: list[str] = []
    page, count = "", 0
    while count == 0 or page:
        found = await client.history(queue, limit=10, page=page)
        names += [task.name for task in found.tasks]
        page, count = found.next_page, count + 1
    assert names == [f"t-{number}" for number in reversed(range(25))]
    assert count == 3


async def test_conditions_are_passed_on(client: AsyncTaskClient, archive: Archive) -> None:
    queue = uuid.uuid4().hex
    wanted = new_task(
        queue=queue,
        phase="Failed",
        reason="Boom",
        message="it has exploded",
        labels={"app": "x"},
        payload={"customer": {"id": 7}},
    )
    others = [new_task(queue=queue) for _ in range(3)]
    await archive.write([wanted, *others])
    for conditions in (
        {"phases": ["Failed"]},
        {"reason": "Boom"},
        {"error_text": "EXPLODED"},
        {"labels": {"app": "x"}},
        {"payload": {"customer.id": 7}},
    ):
        page = await client.history(queue, **cast(Any, conditions))
        assert [task.uid for task in page.tasks] == [wanted.uid]
    assert (await client.history(queue, handler="other")).tasks == ()


async def test_an_address_of_ones_own_needs_no_right_to_the_secret(
    case: Case, client: AsyncTaskClient, archive: Archive
) -> None:
    task = new_task(queue=uuid.uuid4().hex)
    await archive.write([task])
    case.api.problems = dict.fromkeys(
        ("secrets", "taskqueues"), ApiError(403, "Forbidden", "not you")
    )
    page = await client.history(task.queue, archive=case.api.uri)
    assert [one.uid for one in page.tasks] == [task.uid]
    page = await client.history(archive=case.api.uri, limit=1000)
    assert task.uid in {one.uid for one in page.tasks}
    assert case.api.asked == []


async def test_what_is_missing_is_said_with_what_to_do(case: Case, client: AsyncTaskClient) -> None:
    case.api.problems = {"secrets": ApiError(403, "Forbidden", "not you")}
    with pytest.raises(
        NoArchive, match="grant get on secrets in namespace shop, or give its address"
    ):
        await client.history("q")
    case.api.problems = {"taskqueues": ApiError(404, "NotFound", "no")}
    with pytest.raises(NoArchive, match="TaskQueue shop/q does not exist"):
        await client.history("q")
    case.api.problems = {"taskqueues": ApiError(403, "Forbidden", "not you")}
    with pytest.raises(Refused, match="find the archive of TaskQueue shop/q"):
        await client.history("q")
    case.api.problems, case.api.spec = {}, {}
    with pytest.raises(NoArchive, match="has no archive: set"):
        await client.history("q")


async def test_invalid_arguments_are_refused(case: Case, client: AsyncTaskClient) -> None:
    for limit in (0, 1001):
        with pytest.raises(ValueError, match="limit"):
            await client.history("q", limit=limit)
    with pytest.raises(ValueError, match="name a queue"):
        await client.history()
    with pytest.raises(ValueError, match="where a page ended"):
        await client.history("q", page="elsewhere")
    with pytest.raises(TypeError, match="colour"):
        await client.history("q", **cast(Any, {"colour": "red"}))
    case.api.uri = "redis://somewhere"
    with pytest.raises(NoArchive, match="postgresql://"):
        await client.history("q")


async def test_a_database_that_is_away_or_not_the_archive_is_an_error_of_ours(
    client: AsyncTaskClient, case: Case
) -> None:
    with pytest.raises(Unavailable) as caught:
        await client.history("q", archive="postgresql://user:hidden@127.0.0.1:1/x")
    assert "hidden" not in str(caught.value)
    with pytest.raises(NoArchive, match="user, password and database"):
        await client.history("q", archive=case.api.uri.replace("/postgres", "/nowhere"))


async def test_an_archive_restored_elsewhere_is_read_by_its_address(
    client: AsyncTaskClient, server: PostgresqlServer, case: Case
) -> None:
    server.execute("DROP DATABASE IF EXISTS copy")
    server.execute("CREATE DATABASE copy")
    uri = case.api.uri.replace("/postgres", "/copy")
    with pytest.raises(NoArchive, match="no table taskqueue_archive"):
        await client.history("q", archive=uri)


def test_a_program_without_asyncio_reads_the_same(server: PostgresqlServer, case: Case) -> None:
    with TaskClient(connect=case.connect) as client:
        page = client.history("nobody-has-it")
        assert (page.tasks, page.next_page) == ((), "")
        assert PASSWORD not in repr(page)
