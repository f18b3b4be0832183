"""The clients for programs without a loop: the same, from any thread."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from taskqueue.client import TaskCancelled, TaskClient, TaskResult, WaitTimeout
from taskqueue.client.loop_thread import LoopThread
from tests.unit.client.fake_tasks import FakeTasks


@pytest.fixture
def server() -> FakeTasks:
    return FakeTasks()


@pytest.fixture
def client(server: FakeTasks) -> Iterator[TaskClient]:
    with TaskClient(connect=server.connect) as client:
        yield client
    assert server.watching == 0, "a watch was left open"
    assert not [thread for thread in threading.enumerate() if thread.name == "TaskClient"]


def test_submit_wait_and_look(server: FakeTasks, client: TaskClient) -> None:
    handle = client.submit("q", "echo", {"a": 1}, name="a")
    client._thread.run(server.set_status("a", "Succeeded", attempts=1, result={"a": 1}))
    assert handle.wait(5) == TaskResult(
        phase="Succeeded", result={"a": 1}, attempts=1, reason="", message=""
    )
    assert handle.status().finished
    assert client.get("a").uid == handle.uid
    assert [result.phase for result in client.wait_all([handle, handle])] == ["Succeeded"] * 2


def test_errors_come_to_the_caller(server: FakeTasks, client: TaskClient) -> None:
    handle = client.submit("q", "echo", name="a")
    with pytest.raises(WaitTimeout):
        handle.wait(0.01)
    handle.cancel()
    client._thread.run(server.set_status("a", "Cancelled"))
    with pytest.raises(TaskCancelled):
        handle.wait()


def test_a_stream_is_an_iterator_that_may_be_left(server: FakeTasks, client: TaskClient) -> None:
    handle = client.submit("q", "echo", name="a")
    for status in handle.stream():
        assert status.phase == "Pending"
        break
    phases = []
    for status in handle.stream():
        phases.append(status.phase)
        following = {"Pending": "Running", "Running": "Succeeded"}.get(status.phase)
        if following:
            client._thread.run(server.set_status("a", following))
    assert phases == ["Pending", "Running", "Succeeded"]


def test_many_threads_share_a_client(server: FakeTasks, client: TaskClient) -> None:
    threads = [
        threading.Thread(target=client.submit, args=("q", "echo"), kwargs={"name": f"t{n}"})
        for n in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.objects) == 20


def test_a_client_that_was_never_used_has_nothing_to_close(server: FakeTasks) -> None:
    client = TaskClient(connect=server.connect)
    client.close()
    client.close()
    assert server.closed == 0
    with pytest.raises(RuntimeError, match="this TaskClient is closed: make another"):
        client.get("a")


def test_a_client_taken_through_a_fork_says_what_to_do(
    server: FakeTasks, client: TaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.submit("q", "echo", name="a")
    own = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: own + 1)
    with pytest.raises(RuntimeError, match=r"forked from: make one in each process.*@on_start"):
        client.get("a")
    monkeypatch.undo()


def test_an_interrupted_caller_cancels_what_it_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import asyncio
    from concurrent.futures import Future
    from typing import Any

    thread = LoopThread("test")
    cancelled = threading.Event()

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    original = Future.result

    def interrupted(self: Future[Any], timeout: float | None = None) -> Any:
        monkeypatch.setattr(Future, "result", original)
        raise KeyboardInterrupt

    async def begun() -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr(Future, "result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        thread.run(endless())
    thread.run(begun())
    assert cancelled.wait(5)
    thread.finish(begun())


@pytest.mark.parametrize(
    ("name", "unneeded"),
    [
        ("Producer", ["kubernetes", "aiohttp", "pydantic", "kopf"]),
        ("TaskClient", ["pika.connection", "kopf"]),
        ("TaskFailed", ["kubernetes", "aiohttp", "pydantic", "pika", "orjson"]),
    ],
)
def test_each_client_imports_what_it_needs_only(name: str, unneeded: list[str]) -> None:
    code = (
        f"import sys; from taskqueue.client import {name}\n"
        f"print([module for module in {unneeded} if module in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_everything_promised_is_there() -> None:
    import taskqueue.client

    for name in taskqueue.client.__all__:
        assert getattr(taskqueue.client, name).__name__ == name
    with pytest.raises(AttributeError, match="Consumer"):
        _ = taskqueue.client.Consumer
