"""The clients for programs without a loop: the same, from any thread."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator

import pytest

from taskqueue.client import TaskCancelled, TaskClient, TaskResult, WaitTimeout
from taskqueue.loop_thread import LoopThread
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


def test_submit_wait_and_status(server: FakeTasks, client: TaskClient) -> None:
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


def test_client_used_after_a_fork_raises(
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


def test_stream_may_be_garbage_collected_in_any_thread(
    server: FakeTasks, client: TaskClient
) -> None:
    client.submit("q", "echo", name="a")
    done = threading.Event()

    async def collect() -> None:
        streams.clear()  # what a garbage collector would do, in the thread it happens to be in

    def leave() -> None:
        client._thread.run(collect())
        done.set()

    streams = [client.get("a").stream()]
    next(streams[0])
    threading.Thread(target=leave, daemon=True).start()
    assert done.wait(5), "the loop waits for itself"


def test_a_client_may_be_closed_by_the_garbage_collector(server: FakeTasks) -> None:
    client = TaskClient(connect=server.connect)
    client.submit("q", "echo", name="a")
    thread = client._thread._thread
    assert thread is not None

    async def collect() -> None:
        client.close()

    with pytest.raises(RuntimeError, match="this TaskClient was closed meanwhile"):
        client._thread.run(asyncio.wait_for(forever(collect), 5))
    thread.join(5)
    assert not thread.is_alive()
    assert server.closed == 2  # requests and watches


async def forever(first: Callable[[], Awaitable[None]]) -> None:
    await first()
    await asyncio.Event().wait()


def test_client_refuses_calls_from_its_own_loop(client: TaskClient) -> None:
    async def inner() -> None:
        client.get("a")

    with pytest.raises(RuntimeError, match="cannot be waited for by what runs in it"):
        client._thread.run(inner())


def test_stream_closed_during_another_call(server: FakeTasks, client: TaskClient) -> None:
    handle = client.submit("q", "echo", name="a")
    stream = handle.stream()
    next(stream)
    done = threading.Event()

    def close() -> None:
        with client._thread._guard:  # as a garbage collector may, in the midst of a call
            stream.close()  # type: ignore[attr-defined]
        done.set()

    threading.Thread(target=close, daemon=True).start()
    assert done.wait(5)


def test_client_in_a_child_forked_during_a_call_raises(
    client: TaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, over = threading.Event(), threading.Event()

    def hold() -> None:
        with client._thread._guard:
            held.set()
            over.wait(5)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(5)
    own = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: own + 1)
    with pytest.raises(RuntimeError, match="forked from"):
        client.get("a")
    client._thread.finish(asyncio.sleep(0))
    assert holder.is_alive()
    monkeypatch.undo()
    over.set()
    holder.join()


def test_close_ends_calls_of_other_threads(server: FakeTasks) -> None:
    client = TaskClient(connect=server.connect)
    handle = client.submit("q", "echo", name="a")
    errors: list[str] = []

    def wait() -> None:
        try:
            handle.wait()
        except RuntimeError as problem:
            errors.append(str(problem))

    waiting = threading.Thread(target=wait)
    waiting.start()
    client._thread.run(server.until_watched())
    client.close()
    waiting.join(5)
    assert errors == ["this TaskClient was closed meanwhile"]


def test_a_program_that_leaves_a_stream_open_ends() -> None:
    code = """
from taskqueue.client import TaskClient
from tests.unit.client.fake_tasks import FakeTasks
client = TaskClient(connect=FakeTasks().connect)
stream = client.submit("q", "echo").stream()
print(next(stream))
"""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "Pending\n", "")


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


def test_every_exported_name_can_be_imported() -> None:
    import taskqueue.client

    for name in taskqueue.client.__all__:
        assert getattr(taskqueue.client, name).__name__ == name
    with pytest.raises(AttributeError, match="Consumer"):
        _ = taskqueue.client.Consumer
