"""Handlers in real threads and on a real loop of their own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from taskqueue import Context, Retry
from taskqueue.worker.executor import AttemptRequest, AttemptResult, Execution
from taskqueue.worker.executors.function import FunctionExecutor
from taskqueue.worker.sdk import HandlerRegistry

PATIENCE = 60


def attempt(handler: str | None = "f", payload: dict[str, Any] | None = None) -> AttemptRequest:
    return AttemptRequest(
        handler=handler,
        payload=payload or {},
        task="shop/a",
        uid="u",
        queue="q",
        attempt=1,
        max_attempts=3,
        timeout_seconds=30,
    )


class Stage:
    """An executor over one handler called ``f``, and the results it gave."""

    def __init__(self, function: Callable[..., Any]) -> None:
        registry = HandlerRegistry()
        registry.register(function, name="f")
        self.loop = asyncio.get_running_loop()
        self.registry = registry
        self.executor = FunctionExecutor(registry, self.loop)
        self.results: asyncio.Queue[AttemptResult] = asyncio.Queue()
        self.threads: list[threading.Thread] = []

    def start(self, handler: str | None = "f", **payload: Any) -> Execution:
        return self.executor.start(attempt(handler, payload), self._done)

    async def result(self) -> AttemptResult:
        return await asyncio.wait_for(self.results.get(), PATIENCE)

    def _done(self, result: AttemptResult) -> None:
        self.threads.append(threading.current_thread())
        self.results.put_nowait(result)


@pytest.fixture
def open_gate() -> Iterator[threading.Event]:
    """An event sync handlers wait for; set in the end, so that no thread stays behind."""
    gate = threading.Event()
    yield gate
    gate.set()


async def test_a_sync_handler_runs_in_another_thread_and_its_result_comes_back_to_the_loop() -> (
    None
):
    def handler(payload: dict[str, Any], ctx: Context) -> Any:
        return {"thread": threading.current_thread().name, "task": ctx.task, **payload}

    stage = Stage(handler)
    stage.start(width=3)
    result = await stage.result()
    assert result.error is None
    assert result.result is not None
    assert result.result["thread"].startswith("handler-")
    assert (result.result["task"], result.result["width"]) == ("shop/a", 3)
    assert stage.threads == [threading.current_thread()]


async def test_as_many_run_at_once_as_were_started(open_gate: threading.Event) -> None:
    barrier = threading.Barrier(5, timeout=PATIENCE)
    stage = Stage(lambda payload: barrier.wait() and None)
    for _ in range(5):
        stage.start()
    assert [(await stage.result()).error for _ in range(5)] == [None] * 5


async def test_idle_threads_are_used_again() -> None:
    stage = Stage(lambda payload: threading.current_thread().name)
    names = set()
    for _ in range(20):
        stage.start()
        names.add(str((await stage.result()).result))
    assert len(names) == 1


async def test_what_a_handler_raises_is_a_failed_attempt_with_its_run_time() -> None:
    def handler(payload: dict[str, Any]) -> None:
        time.sleep(0.05)
        raise Retry(after=2)

    stage = Stage(handler)
    stage.start()
    result = await stage.result()
    assert result.error is not None
    assert (result.error.type, result.retry_after_seconds) == ("Retry", 2)
    assert result.seconds >= 0.05


@pytest.mark.parametrize("problem", [SystemExit(1), KeyboardInterrupt(), asyncio.CancelledError()])
async def test_no_exception_of_a_handler_ends_the_worker(problem: BaseException) -> None:
    def handler(payload: dict[str, Any]) -> None:
        raise problem

    async def async_handler(payload: dict[str, Any]) -> None:
        raise problem

    for function in (handler, async_handler):
        stage = Stage(function)
        stage.start()
        error = (await stage.result()).error
        assert error is not None
        assert error.type == type(problem).__name__
        await stage.executor.close()


async def test_a_sync_handler_sees_the_cancel_and_ends_when_it_returns(
    open_gate: threading.Event,
) -> None:
    begun = threading.Event()

    def handler(payload: dict[str, Any], ctx: Context) -> Any:
        begun.set()
        open_gate.wait(PATIENCE)
        return ctx.cancelled

    stage = Stage(handler)
    execution = stage.start()
    assert await asyncio.to_thread(begun.wait, PATIENCE)
    execution.cancel()
    assert stage.results.empty()
    open_gate.set()
    assert (await stage.result()).result == {"value": True}


async def test_async_handlers_share_a_loop_that_is_not_ours() -> None:
    loops: set[asyncio.AbstractEventLoop] = set()

    async def handler(payload: dict[str, Any]) -> str:
        loops.add(asyncio.get_running_loop())
        return threading.current_thread().name

    stage = Stage(handler)
    for _ in range(3):
        stage.start()
    results = [(await stage.result()).result for _ in range(3)]
    assert results == [{"value": "async-handlers"}] * 3
    assert len(loops) == 1
    assert stage.loop not in loops
    await stage.executor.close()


async def test_an_async_handler_that_blocks_does_not_block_us(
    open_gate: threading.Event,
) -> None:
    async def handler(payload: dict[str, Any]) -> None:
        open_gate.wait(PATIENCE)

    stage = Stage(handler)
    stage.start()
    await asyncio.wait_for(asyncio.sleep(0.01), 1)
    assert stage.results.empty()
    open_gate.set()
    await stage.result()
    await stage.executor.close()


async def test_an_async_handler_is_cancelled_and_may_clean_up() -> None:
    begun, cleaned = threading.Event(), threading.Event()

    async def handler(payload: dict[str, Any], ctx: Context) -> None:
        begun.set()
        try:
            await asyncio.sleep(PATIENCE)
        finally:
            assert ctx.cancelled
            cleaned.set()

    stage = Stage(handler)
    execution = stage.start()
    assert await asyncio.to_thread(begun.wait, PATIENCE)
    execution.cancel()
    error = (await stage.result()).error
    assert error is not None
    assert error.type == "CancelledError"
    assert cleaned.is_set()
    execution.cancel()  # harmless afterwards
    await stage.executor.close()


async def test_a_cancel_right_after_the_start_is_not_lost() -> None:
    async def handler(payload: dict[str, Any]) -> None:
        await asyncio.sleep(PATIENCE)

    stage = Stage(handler)
    stage.start().cancel()
    assert (await stage.result()).error is not None
    await stage.executor.close()


async def test_closing_cancels_what_runs_on_the_handlers_loop() -> None:
    begun, cleaned = threading.Event(), threading.Event()

    async def handler(payload: dict[str, Any]) -> None:
        begun.set()
        try:
            await asyncio.sleep(PATIENCE)
        finally:
            cleaned.set()

    stage = Stage(handler)
    stage.start()
    assert await asyncio.to_thread(begun.wait, PATIENCE)
    await stage.executor.close()
    assert cleaned.is_set()


async def test_an_unknown_handler_fails_after_the_start_and_names_the_known_ones() -> None:
    stage = Stage(lambda payload: None)
    stage.start("resize").cancel()
    assert stage.results.empty()
    error = (await stage.result()).error
    assert error is not None
    assert (error.type, error.message) == (
        "UnknownHandler",
        "no handler is called 'resize' here; registered: f",
    )


async def test_no_name_means_the_default_handler() -> None:
    stage = Stage(lambda payload: payload["text"])
    stage.start(None, text="hello")
    assert (await stage.result()).result == {"value": "hello"}


async def test_the_latest_progress_can_be_read_while_it_runs(open_gate: threading.Event) -> None:
    told = threading.Event()

    def handler(payload: dict[str, Any], ctx: Context) -> None:
        ctx.progress(50, "half")
        told.set()
        open_gate.wait(PATIENCE)

    stage = Stage(handler)
    execution = stage.start()
    assert await asyncio.to_thread(told.wait, PATIENCE)
    assert execution.progress is not None
    assert execution.progress.percent == 50
    open_gate.set()
    await stage.result()


@pytest.mark.parametrize("fence", [None, 7])
async def test_the_context_has_the_fence_and_the_scheduled_time(fence: int | None) -> None:
    noon = None if fence is None else datetime(2026, 1, 2, 12, tzinfo=UTC)
    registry = HandlerRegistry()
    registry.register(
        lambda payload, ctx: {"fence": ctx.fence, "time": str(ctx.scheduled_time)}, name="f"
    )
    executor = FunctionExecutor(registry, asyncio.get_running_loop())
    results: asyncio.Queue[AttemptResult] = asyncio.Queue()
    executor.start(replace(attempt(), fence=fence, scheduled_time=noon), results.put_nowait)
    result = await asyncio.wait_for(results.get(), PATIENCE)
    assert result.result == {"fence": fence, "time": str(noon)}
    await executor.close()


@pytest.mark.parametrize("problem", [ValueError("no database"), SystemExit(3)])
async def test_start_hooks_are_called_until_they_succeed_and_then_not_again(
    problem: BaseException,
) -> None:
    calls: list[str] = []
    stage = Stage(lambda payload: None)

    def fails_twice() -> None:
        calls.append("second")
        if calls.count("second") < 3:
            raise problem

    stage.registry.start_hooks += [lambda: calls.append("first"), fails_twice]
    seen: list[str] = []
    started = asyncio.ensure_future(stage.executor.run_start_hooks())
    async with asyncio.timeout(PATIENCE):
        while not started.done():
            seen.append(stage.executor.start_failure)
            await asyncio.sleep(0.001)
    await started
    assert calls == ["first", "second", "second", "second"]
    assert any(type(problem).__name__ in each for each in seen)
    assert stage.executor.start_failure == ""
    await stage.executor.close()
