"""Submitting, waiting, streaming and cancelling, through everything an API server does."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from taskqueue.client import (
    AsyncTaskClient,
    AsyncTaskHandle,
    QuotaExceeded,
    Refused,
    TaskCancelled,
    TaskConflict,
    TaskFailed,
    TaskGone,
    TaskProgress,
    TaskResult,
    Unavailable,
    WaitTimeout,
)
from taskqueue.kubernetes.client import ApiError
from tests.unit.client.fake_tasks import NAMESPACE, FakeTasks

pytestmark = pytest.mark.looptime

AWAY = ApiError(0, "Unreachable", "connection refused")
QUOTA = ApiError(
    403,
    "Forbidden",
    'tasks.taskqueue.dev "b" is forbidden: exceeded quota: tasks, requested: '
    "count/tasks.taskqueue.dev=1, used: count/tasks.taskqueue.dev=2, limited: "
    "count/tasks.taskqueue.dev=2",
)
FORBIDDEN = ApiError(403, "Forbidden", "may not watch")


@pytest.fixture
def server() -> FakeTasks:
    return FakeTasks()


@pytest.fixture
async def client(server: FakeTasks) -> AsyncIterator[AsyncTaskClient]:
    async with AsyncTaskClient(connect=server.connect) as client:
        yield client
    assert server.watching == 0, "a watch was left open"


@pytest.fixture
async def handle(client: AsyncTaskClient) -> AsyncTaskHandle:
    return await client.submit("q", "echo", name="a")


async def test_submit_creates_the_task_with_the_given_fields(
    server: FakeTasks, client: AsyncTaskClient
) -> None:
    handle = await client.submit(
        "q",
        "echo",
        {"a": 1},
        name="a",
        labels={"team": "x"},
        priority=3,
        depends_on=["b"],
        retry={"max_attempts": 2, "backoff": {"max_seconds": 5}},
        ttl_seconds_after_finished=60,
        concurrency_key=None,
    )
    assert (handle.namespace, handle.name, handle.uid) == (NAMESPACE, "a", "uid-1")
    assert server.objects["a"]["metadata"]["labels"] == {"team": "x"}
    spec = server.objects["a"]["spec"]
    assert spec == spec | {
        "queue": "q",
        "handler": "echo",
        "payload": {"a": 1},
        "priority": 3,
        "dependsOn": ["b"],
        "retry": {"maxAttempts": 2, "backoff": {"maxSeconds": 5.0}},
        "ttlSecondsAfterFinished": 60,
    }


async def test_submit_prefers_its_own_namespace_to_the_clients(server: FakeTasks) -> None:
    async with AsyncTaskClient(connect=server.connect, namespace="mine") as client:
        assert (await client.submit("q", "echo")).namespace == "mine"
        assert (await client.submit("q", "echo", namespace="theirs")).namespace == "theirs"
    assert server.closed == 2


async def test_submit_generates_unique_names(client: AsyncTaskClient) -> None:
    one, other = [await client.submit("q", "echo") for _ in range(2)]
    assert one.name != other.name
    assert one.name.startswith("q-")
    assert (await client.submit("q", "echo", generate_name="job-")).name.startswith("job-")


async def test_submit_returns_the_existing_task_in_any_phase(
    server: FakeTasks, client: AsyncTaskClient, handle: AsyncTaskHandle
) -> None:
    server.objects["a"]["spec"]["cancel"] = True
    await server.set_status("a", "Cancelled")
    assert (await client.submit("q", "echo", name="a")).uid == handle.uid


async def test_submit_of_another_spec_is_a_conflict_that_names_the_fields(
    client: AsyncTaskClient, handle: AsyncTaskHandle
) -> None:
    with pytest.raises(TaskConflict, match=r"Task shop/a exists.* payload, priority") as found:
        await client.submit("q", "echo", {"a": 1}, name="a", priority=1)
    assert found.value.fields == ("payload", "priority")


async def test_submit_creates_one_task_when_the_response_is_lost(
    server: FakeTasks, client: AsyncTaskClient
) -> None:
    server.answers_lost = 1
    handle = await client.submit("q", "echo", {"a": 1})
    assert list(server.objects) == [handle.name]


async def test_submit_retries_through_an_outage_until_its_patience_ends(
    server: FakeTasks, client: AsyncTaskClient
) -> None:
    server.answers.extend([AWAY, ApiError(503, "", "starting"), ApiError(429, "", "slow down")])
    await client.submit("q", "echo")
    server.answers.extend([AWAY] * 100)
    begun = asyncio.get_running_loop().time()
    with pytest.raises(Unavailable, match=r"cannot submit Task shop/b: connection refused"):
        await client.submit("q", "echo", name="b")
    assert 3 < asyncio.get_running_loop().time() - begun <= 10


async def test_submit_raises_a_refusal_at_once_with_the_servers_message(
    server: FakeTasks, client: AsyncTaskClient
) -> None:
    server.answers.append(ApiError(422, "Invalid", "the Task depends on itself"))
    with pytest.raises(Refused, match="shop/b: the Task depends on itself") as found:
        await client.submit("q", "echo", name="b")
    assert (found.value.status, found.value.reason) == (422, "Invalid")
    server.answers.append(ApiError(403, "Forbidden", "cannot create tasks"))
    with pytest.raises(Refused, match=r"cannot create tasks: give .*service account a role"):
        await client.submit("q", "echo", name="b")


async def test_submit_beyond_a_quota_raises_an_error_of_its_own_without_advice_about_roles(
    server: FakeTasks, client: AsyncTaskClient
) -> None:
    server.answers.append(QUOTA)
    with pytest.raises(
        QuotaExceeded, match=r"exceeded quota: tasks, .*: submit it again later"
    ) as found:
        await client.submit("q", "echo", name="b")
    assert (found.value.status, found.value.reason) == (403, "Forbidden")
    assert "role" not in str(found.value)
    assert not server.objects


async def test_submit_finds_an_existing_task_though_the_quota_is_full(
    server: FakeTasks, client: AsyncTaskClient, handle: AsyncTaskHandle
) -> None:
    server.answers.append(QUOTA)
    assert (await client.submit("q", "echo", name="a")).uid == handle.uid
    server.answers.append(QUOTA)
    with pytest.raises(TaskConflict, match="differs in payload"):
        await client.submit("q", "echo", {"a": 1}, name="a")


@pytest.mark.parametrize(
    "error",
    [
        ApiError(
            409,
            "Conflict",
            'Operation cannot be fulfilled on resourcequotas "tasks": the object has been modified',
        ),
        ApiError(403, "Forbidden", 'tasks "b" is forbidden: status unknown for quota: tasks'),
    ],
)
async def test_submit_is_repeated_when_a_quota_could_not_be_counted(
    server: FakeTasks, client: AsyncTaskClient, error: ApiError
) -> None:
    server.answers.extend([error, error])
    await client.submit("q", "echo", name="b")
    assert list(server.objects) == ["b"]


async def test_submit_creates_the_task_when_its_name_is_freed_meanwhile(
    server: FakeTasks, client: AsyncTaskClient
) -> None:
    server.answers.append(ApiError(409, "AlreadyExists", "exists"))
    assert (await client.submit("q", "echo", name="b")).uid == "uid-1"


async def test_waiting_for_success(
    server: FakeTasks, client: AsyncTaskClient, handle: AsyncTaskHandle
) -> None:
    waiting = asyncio.create_task(handle.wait())
    await server.until_watched()
    await server.set_status("a", "Running", attempts=1)
    await server.set_status("a", "Succeeded", attempts=2, result={"pages": 3})
    assert await waiting == TaskResult(
        phase="Succeeded", result={"pages": 3}, attempts=2, reason="", message=""
    )
    assert await handle.wait(0.1) == await waiting  # of one that has ended


async def test_waiting_for_a_failure_and_for_a_cancelled_one(
    server: FakeTasks, client: AsyncTaskClient, handle: AsyncTaskHandle
) -> None:
    await server.set_status(
        "a", "Failed", attempts=3, reason="RetriesExhausted", message="the network is away"
    )
    with pytest.raises(
        TaskFailed, match=r"shop/a has failed after 3 attempts: .*RetriesExhausted: the network"
    ) as failed:
        await handle.wait()
    assert failed.value.status.attempts == 3
    other = await client.submit("q", "echo", name="b")
    await server.set_status("b", "Cancelled", reason="Cancelled")
    with pytest.raises(TaskCancelled, match="shop/b was cancelled") as cancelled:
        await other.wait()
    assert cancelled.value.status.phase == "Cancelled"


async def test_wait_timeout_has_the_last_status(
    server: FakeTasks, client: AsyncTaskClient, handle: AsyncTaskHandle
) -> None:
    await server.set_status("a", "Blocked", reason="QueueNotFound", message="create it")
    begun = asyncio.get_running_loop().time()
    with pytest.raises(
        WaitTimeout, match=r"within 30 s: it is Blocked, QueueNotFound: create it$"
    ) as found:
        await handle.wait(30)
    assert asyncio.get_running_loop().time() - begun == 30
    assert found.value.status is not None
    assert found.value.status.reason == "QueueNotFound"
    assert isinstance(found.value, TimeoutError)


async def test_wait_timeout_in_an_outage_has_its_cause(
    server: FakeTasks, client: AsyncTaskClient, handle: AsyncTaskHandle
) -> None:
    server.answers.extend([AWAY] * 100)
    with pytest.raises(WaitTimeout, match=r"its status is unknown; .*connection refused"):
        await handle.wait(30)
    assert len(server.requests) < 20, "the API server is hammered"


async def test_a_stream_shows_each_change_once_and_ends(
    server: FakeTasks, client: AsyncTaskClient, handle: AsyncTaskHandle
) -> None:
    collecting = asyncio.create_task(_all(handle.stream()))
    await server.until_watched()
    for phase in ("Running", "Running", "Retrying"):
        await server.set_status("a", phase)
    await server.set_status("a", "Running", progress={"percent": 50, "message": "half"})
    await asyncio.sleep(1)
    await server.break_watches()
    await server.set_status("a", "Succeeded")
    seen = await collecting
    assert [status.phase for status in seen] == [
        "Pending",
        "Running",
        "Retrying",
        "Running",
        "Succeeded",
    ]
    assert seen[3].progress == TaskProgress(50, "half")


async def test_a_stream_leaves_out_what_cannot_be_read_as_a_whole(
    server: FakeTasks, client: AsyncTaskClient, handle: AsyncTaskHandle
) -> None:
    collecting = asyncio.create_task(_all(handle.stream()))
    await server.until_watched()
    await server.send_outline("a", phase="Succeeded", result=None)
    await asyncio.sleep(1)
    assert not collecting.done()
    await server.set_status("a", "Succeeded", result={"a": 1})
    assert [status.phase for status in await collecting] == ["Pending", "Succeeded"]


@pytest.mark.parametrize("how", ["break", "error event", "refused"])
async def test_wait_starts_a_new_watch_when_one_ends(
    server: FakeTasks, client: AsyncTaskClient, handle: AsyncTaskHandle, how: str
) -> None:
    waiting = asyncio.create_task(handle.wait())
    await server.until_watched()
    if how == "error event":
        await server.send_error(410)
    elif how == "refused":
        server.watch_answers.extend([ApiError(410, "Expired", "too old"), AWAY])
        await server.break_watches()
    else:
        await server.break_watches()
    await asyncio.sleep(10)
    assert (server.watching, server.watches > 1) == (1, True)
    await server.set_status("a", "Succeeded")
    assert (await waiting).phase == "Succeeded"


async def test_stream_skips_old_versions_of_a_stale_cache(
    server: FakeTasks, client: AsyncTaskClient, handle: AsyncTaskHandle
) -> None:
    pending = copy.deepcopy(server.objects["a"])
    predecessor = copy.deepcopy(pending)
    predecessor["metadata"] |= {"uid": "uid-0", "resourceVersion": "1"}
    await server.set_status("a", "Running")
    server.cached["a"] = [predecessor, pending]
    stream = handle.stream()
    assert (await anext(stream)).phase == "Running"
    rest = asyncio.create_task(_all(stream))
    await asyncio.sleep(20)
    await server.set_status("a", "Succeeded")
    assert [status.phase for status in await rest] == ["Succeeded"]
    assert server.watches == 1


async def _all(stream: AsyncIterator[Any]) -> list[Any]:
    return [status async for status in stream]


async def test_wait_reads_again_when_a_watch_sends_nothing(
    server: FakeTasks, client: AsyncTaskClient, handle: AsyncTaskHandle
) -> None:
    server.cached["a"] = []
    waiting = asyncio.create_task(handle.wait())
    await server.until_watched()
    del server.objects["a"]  # between the read and the watch
    begun = asyncio.get_running_loop().time()
    with pytest.raises(TaskGone, match="no longer exists"):
        await waiting
    assert asyncio.get_running_loop().time() - begun < 10


async def test_wait_backs_off_when_watches_end_at_once(
    server: FakeTasks, client: AsyncTaskClient, handle: AsyncTaskHandle
) -> None:
    async def end_them() -> None:
        while True:
            await server.until_watched()
            await server.break_watches()
            await asyncio.sleep(0)

    ending = asyncio.create_task(end_them())
    with pytest.raises(WaitTimeout):
        await handle.wait(60)
    ending.cancel()
    assert server.watches < 20


async def test_wait_for_a_deleted_task_raises_with_its_last_status(
    server: FakeTasks, client: AsyncTaskClient, handle: AsyncTaskHandle
) -> None:
    await server.set_status("a", "Running")
    waiting = asyncio.create_task(handle.wait())
    await server.until_watched()
    await server.delete("a")
    with pytest.raises(TaskGone, match=r"shop/a was deleted; its last status was Running") as found:
        await waiting
    assert found.value.status is not None
    for ask in (handle.wait, handle.status, handle.cancel, lambda: client.get("a")):
        with pytest.raises(TaskGone, match=r"does not exist|no longer exists"):
            await ask()


async def test_a_task_created_again_under_the_name_is_another_one(
    server: FakeTasks, client: AsyncTaskClient, handle: AsyncTaskHandle
) -> None:
    waiting = asyncio.create_task(handle.wait())
    await server.until_watched()
    await server.break_watches()
    await server.delete("a")
    await client.submit("q", "echo", name="a")
    with pytest.raises(TaskGone, match="another was created under its name"):
        await waiting
    for ask in (handle.status, handle.cancel):
        with pytest.raises(TaskGone, match="another was created under its name"):
            await ask()
    assert not server.objects["a"]["spec"]["cancel"]


async def test_a_task_deleted_with_its_end_has_ended(
    server: FakeTasks, client: AsyncTaskClient, handle: AsyncTaskHandle
) -> None:
    waiting = asyncio.create_task(handle.wait())
    await server.until_watched()
    server.objects["a"]["status"] = {"phase": "Succeeded", "result": {"a": 1}}
    await server.delete("a")
    assert (await waiting).result == {"a": 1}


async def test_wait_raises_a_refused_watch_at_once(
    server: FakeTasks, client: AsyncTaskClient, handle: AsyncTaskHandle
) -> None:
    server.watch_answers.append(FORBIDDEN)
    with pytest.raises(Refused, match="cannot watch Task shop/a: may not watch"):
        await handle.wait()


async def test_a_server_that_has_just_started_may_refuse_for_a_while(
    server: FakeTasks, client: AsyncTaskClient, handle: AsyncTaskHandle
) -> None:
    waiting = asyncio.create_task(handle.wait())
    await server.until_watched()
    await server.set_status("a", "Running")
    await asyncio.sleep(1)
    server.watch_answers.extend([FORBIDDEN] * 3)
    await server.break_watches()
    await asyncio.sleep(20)
    assert server.watching == 1
    server.watch_answers.extend([FORBIDDEN] * 100)
    await server.break_watches()
    with pytest.raises(Refused):
        await waiting


async def test_cancel_sets_the_field_and_has_no_effect_after_the_end(
    server: FakeTasks, client: AsyncTaskClient, handle: AsyncTaskHandle
) -> None:
    await handle.cancel()
    assert server.objects["a"]["spec"]["cancel"] is True
    await server.set_status("a", "Cancelled")
    await handle.cancel()


async def test_waiting_for_all_raises_no_failures_and_keeps_the_order(
    server: FakeTasks, client: AsyncTaskClient
) -> None:
    handles = [await client.submit("q", "echo", name=f"t{n}") for n in range(30)]
    waiting = asyncio.create_task(client.wait_all(handles))
    most = 0
    for n in reversed(range(30)):
        await asyncio.sleep(0.01)
        most = max(most, server.watching)
        await server.set_status(f"t{n}", "Failed" if n == 7 else "Succeeded", result={"n": n})
    results = await waiting
    assert [result.result for result in results] == [{"n": n} for n in range(30)]
    assert results[7].phase == "Failed"
    assert most == 8


async def test_waiting_for_all_has_one_clock(server: FakeTasks, client: AsyncTaskClient) -> None:
    handles = [await client.submit("q", "echo", name=f"t{n}") for n in range(9)]
    begun = asyncio.get_running_loop().time()
    waiting = asyncio.create_task(client.wait_all(handles, 30))
    await asyncio.sleep(10)
    for n in range(8):  # as many as are watched at a time
        await server.set_status(f"t{n}", "Succeeded")
    with pytest.raises(WaitTimeout, match="t8 has not ended within 30 s"):
        await waiting
    assert asyncio.get_running_loop().time() - begun == 30


async def test_a_stream_that_is_left_closes_its_watch(
    server: FakeTasks, client: AsyncTaskClient, handle: AsyncTaskHandle
) -> None:
    stream = handle.stream()
    assert (await anext(stream)).phase == "Pending"
    later = asyncio.ensure_future(anext(stream))
    await server.until_watched()
    later.cancel()
    await asyncio.gather(later, return_exceptions=True)
    assert server.watching == 0


@pytest.mark.parametrize("name", ["a?watch=1", "a#b", "%61", "Ä"])
async def test_names_are_quoted_in_paths(
    server: FakeTasks, client: AsyncTaskClient, name: str
) -> None:
    with pytest.raises(TaskGone):
        await client.get(name, namespace="b/c")
    ((_, path),) = server.requests
    *above, last = path.split("/")
    assert above == ["", "apis", "taskqueue.dev", "v1alpha1", "namespaces", "b%2Fc", "tasks"]
    assert unquote(last) == name
    assert not set(last) & set("?#")


@pytest.mark.parametrize("name", ["", "a/status", "../taskqueues/q"])
async def test_get_refuses_a_name_with_a_slash(
    server: FakeTasks, client: AsyncTaskClient, name: str
) -> None:
    with pytest.raises(ValueError, match=f"no Task can be called '{name}'"):
        await client.get(name)
    assert not server.requests


def test_a_client_of_another_loop_says_so(server: FakeTasks) -> None:
    client = AsyncTaskClient(connect=server.connect)
    with asyncio.Runner() as first:
        first.run(client.submit("q", "echo", name="a"))
        with asyncio.Runner() as second, pytest.raises(RuntimeError, match="another event loop"):
            second.run(client.get("a"))
        first.run(client.get("a"))


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "does not exist"), ("{}", "current-context"), ("a: [", "parsing"), ("", "")],
)
async def test_malformed_kubeconfig_is_unavailable(
    tmp_path: Path, content: str | None, words: str
) -> None:
    if content is not None:
        (tmp_path / "config").write_text(content)
    async with AsyncTaskClient(kubeconfig=str(tmp_path / "config")) as client:
        with pytest.raises(Unavailable, match="cannot find a Kubernetes API server") as raised:
            await client.get("a")
    assert words in str(raised.value)


async def test_a_closed_client_says_so(server: FakeTasks) -> None:
    client = AsyncTaskClient(connect=server.connect)
    await client.close()
    with pytest.raises(RuntimeError, match="closed"):
        await client.submit("q", "echo")


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"prioriti": 1}, TypeError, "no argument prioriti: .*priority"),
        ({"priority": 5000}, ValueError, "priority: .*1000"),
        ({"retry": {"max_attemps": 3}}, ValueError, r"retry\.max_attemps"),
        ({"payload": [1]}, TypeError, "a JSON object, not list"),
        ({"payload": {"raw": b""}}, TypeError, "bytes"),
    ],
)
async def test_mistakes_are_found_before_anything_is_sent(
    server: FakeTasks,
    client: AsyncTaskClient,
    arguments: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    with pytest.raises(error, match=words):
        await client.submit("q", "echo", **arguments)
    assert not server.requests
