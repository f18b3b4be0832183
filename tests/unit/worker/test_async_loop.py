"""What handlers do to the loop and the process they share with others: the others go on."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from taskqueue import Context
from taskqueue.worker.executor import AttemptResult
from taskqueue.worker.executors.function import FunctionExecutor
from taskqueue.worker.sdk import HandlerRegistry
from tests.unit.worker.children import attempt
from tests.unit.worker.test_function_executor import PATIENCE, Stage


def leave(error: BaseException) -> None:
    raise error


async def leave_later(error: BaseException) -> None:
    raise error


async def leave_in_a_task(error: BaseException) -> None:
    await asyncio.create_task(leave_later(error))


async def leave_in_a_group(error: BaseException) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(leave_later(error))


async def leave_in_a_callback(error: BaseException) -> None:
    asyncio.get_running_loop().call_soon(leave, error)
    await asyncio.sleep(0.01)


async def stop_the_loop(_: BaseException) -> None:
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0)


async def close_the_loop(_: BaseException) -> None:
    asyncio.get_running_loop().close()


#: Ways to end the loop that all async handlers share.
ENDS: list[Callable[[BaseException], Any]] = [
    leave_in_a_task,
    leave_in_a_group,
    leave_in_a_callback,
    stop_the_loop,
    close_the_loop,
]


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("problem", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
async def test_a_handler_that_ends_the_loop_of_all_ends_only_itself(
    monkeypatch: pytest.MonkeyPatch,
    end: Callable[[BaseException], Any],
    problem: BaseException,
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    monkeypatch.setattr(asyncio, "new_event_loop", new_loop)
    begun = threading.Event()

    async def handler(payload: dict[str, Any]) -> Any:
        if payload["does"] == "ends":
            await end(problem)
        elif payload["does"] == "waits":
            begun.set()
            await asyncio.sleep(0.05)
        return payload["does"]

    stage = Stage(handler)
    stage.start(does="waits")
    assert await asyncio.to_thread(begun.wait, PATIENCE)
    for does in ("ends", "follows"):
        stage.start(does=does)
    results = [await stage.result() for _ in range(3)]
    values = {result.result["value"] for result in results if result.result is not None}
    assert {"waits", "follows"} <= values
    await stage.executor.close()
    assert not [each for each in threading.enumerate() if each.name == "async-handlers"]


async def test_a_task_factory_that_fails_fails_the_attempts_that_meet_it() -> None:
    async def handler(payload: dict[str, Any]) -> Any:
        def fail(loop: Any, coroutine: Any, **_: Any) -> Any:
            coroutine.close()
            raise RuntimeError("no tasks today")

        loop = asyncio.get_running_loop()
        loop.set_task_factory(fail)
        loop.call_later(0.05, loop.set_task_factory, None)
        return "set"

    stage = Stage(handler)
    stage.start()
    assert (await stage.result()).result == {"value": "set"}
    stage.start()
    error = (await stage.result()).error
    assert error is not None
    assert (error.type, error.message) == ("RuntimeError", "no tasks today")
    await asyncio.sleep(0.1)
    stage.start()
    assert (await stage.result()).result == {"value": "set"}
    await stage.executor.close()


async def test_a_loop_whose_thread_cannot_be_started_is_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def handler(payload: dict[str, Any]) -> str:
        return "done"

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    stage = Stage(handler)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            stage.start()
    stage.start()
    assert (await stage.result()).result == {"value": "done"}
    await stage.executor.close()


@pytest.mark.parametrize("kind", ["thread", "async"])
async def test_a_context_saves_nothing_once_its_attempt_has_ended(kind: str) -> None:
    contexts: list[Context] = []

    def save(payload: dict[str, Any], ctx: Context) -> None:
        contexts.append(ctx)
        ctx.checkpoint({"step": 1})

    async def save_async(payload: dict[str, Any], ctx: Context) -> None:
        save(payload, ctx)

    registry = HandlerRegistry()
    registry.register(save, name="thread", thread=True)
    registry.register(save_async, name="async")
    loop = asyncio.get_running_loop()
    executor = FunctionExecutor(registry, loop)
    saved: list[bytes] = []
    ended: asyncio.Future[AttemptResult] = loop.create_future()
    executor.start(attempt(kind, on_checkpoint=saved.append), ended.set_result)
    async with asyncio.timeout(PATIENCE):
        assert (await ended).error is None
    await asyncio.to_thread(contexts[0].checkpoint, {"step": 99})
    await executor.close()
    await asyncio.sleep(0)
    assert saved == [b'{"step":1}']


def fork_and_return(payload: dict[str, Any]) -> Any:
    """Return in both processes; in the first once the copy has ended, and how."""
    pid = os.fork()
    if pid == 0:
        return "copy"
    until = time.monotonic() + 10
    while time.monotonic() < until:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return status
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "the copy went on"


async def fork_and_return_async(payload: dict[str, Any]) -> Any:
    return fork_and_return(payload)


@pytest.mark.parametrize("function", [fork_and_return, fork_and_return_async])
async def test_a_copy_of_the_worker_that_a_handler_has_forked_ends_with_it(
    function: Callable[..., Any],
) -> None:
    stage = Stage(function)
    stage.start()
    assert (await stage.result()).result == {"value": 0}
    await stage.executor.close()


@pytest.mark.parametrize("problem", [SystemExit(3), KeyboardInterrupt(), ValueError("bad")])
async def test_a_stop_hook_that_fails_keeps_no_other_from_being_called(
    problem: BaseException,
) -> None:
    called: list[str] = []
    registry = HandlerRegistry()
    registry.register(lambda payload: None, name="f", thread=True)
    registry.stop_hooks.append(lambda: called.append("first"))
    registry.stop_hooks.append(lambda: leave(problem))
    registry.stop_hooks.append(lambda: called.append("last"))
    executor = FunctionExecutor(registry, asyncio.get_running_loop())
    await executor.run_start_hooks()
    await executor.close()
    assert called == ["last", "first"]
