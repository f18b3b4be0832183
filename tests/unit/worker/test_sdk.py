"""Registering handlers: which functions are taken, under which names, with which arguments."""

from __future__ import annotations

import functools
import logging
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from taskqueue import Context, Retry, on_start, on_stop, task
from taskqueue.worker import sdk
from taskqueue.worker.sdk import HandlerRegistry, decorators, mark_cancelled


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> HandlerRegistry:
    fresh = HandlerRegistry()
    monkeypatch.setattr(decorators, "registry", fresh)
    return fresh


def context() -> Context:
    return Context(task="shop/a", uid="u", queue="q", attempt=2, max_attempts=3, timeout_seconds=30)


def plain(payload: dict[str, Any]) -> Any:
    return payload


def with_context(payload: dict[str, Any], ctx: Context) -> Any:
    return payload, ctx.attempt


def with_option(payload: dict[str, Any], size: int = 3) -> Any:
    return payload, size


def with_optional_context(payload: dict[str, Any], ctx: Context | None = None) -> Any:
    return payload, ctx.attempt if ctx else None


class CallableObject:
    async def __call__(self, payload: dict[str, Any]) -> Any:
        return payload


def test_a_bare_decorator_uses_the_functions_name_and_leaves_it_callable(
    registry: HandlerRegistry,
) -> None:
    @task
    def resize(payload: dict[str, Any]) -> Any:
        return payload

    assert list(registry) == ["resize"]
    assert resize({"a": 1}) == {"a": 1}


@pytest.mark.parametrize(
    "decorate", [lambda: task("small"), lambda: task(name="small")], ids=["positional", "keyword"]
)
def test_a_name_replaces_the_functions_own(
    registry: HandlerRegistry, decorate: Callable[[], Callable[..., Any]]
) -> None:
    decorate()(plain)
    assert list(registry) == ["small"]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (plain, {"a": 1}),
        (with_context, ({"a": 1}, 2)),
        (with_option, ({"a": 1}, 3)),
        (with_optional_context, ({"a": 1}, 2)),
        (functools.partial(with_context), ({"a": 1}, 2)),
    ],
)
def test_the_context_is_given_to_who_asks_for_it(
    registry: HandlerRegistry, function: Callable[..., Any], expected: Any
) -> None:
    handler = registry.register(function, name="f")
    assert handler({"a": 1}, context()) == expected


def test_async_functions_and_objects_are_recognised(registry: HandlerRegistry) -> None:
    async def fetch(payload: dict[str, Any]) -> None: ...

    assert registry.register(fetch).is_async
    assert registry.register(CallableObject(), name="object").is_async
    assert not registry.register(plain).is_async


@pytest.mark.parametrize(
    "function", [lambda: None, lambda a, b, c: None, lambda **fields: None, lambda *, payload: None]
)
def test_a_function_that_cannot_take_a_payload_is_refused(
    registry: HandlerRegistry, function: Callable[..., Any]
) -> None:
    with pytest.raises(TypeError, match=r"must take \(payload\) or \(payload, ctx\)"):
        registry.register(function, name="f")


def test_two_functions_of_one_name_are_refused_and_both_are_named(
    registry: HandlerRegistry,
) -> None:
    registry.register(plain, name="f")
    registry.register(plain, name="f")  # the same one, from a module imported twice
    with pytest.raises(ValueError, match=r"test_sdk\.plain and .*test_sdk\.with_context"):
        registry.register(with_context, name="f")


def test_the_default_is_the_marked_one_or_the_only_one(registry: HandlerRegistry) -> None:
    assert registry.default is None
    only = registry.register(plain)
    assert registry.default is only
    registry.register(with_context)
    assert registry.default is None
    marked = registry.register(with_option, default=True)
    assert registry.default is marked
    with pytest.raises(ValueError, match="both say default=True"):
        registry.register(with_optional_context, default=True)


def test_something_else_than_a_function_or_a_name_is_refused() -> None:
    wrong: Any = 5
    with pytest.raises(TypeError, match="a function or a name"):
        task(wrong)


def test_where_a_handler_runs_is_kept(registry: HandlerRegistry) -> None:
    task("shared", thread=True)(plain)
    task("heavy", memory_mib=512)(plain)
    assert (registry["shared"].thread, registry["shared"].memory_mib) == (True, None)
    assert (registry["heavy"].thread, registry["heavy"].memory_mib) == (False, 512)


async def nothing(payload: dict[str, Any]) -> None: ...


@pytest.mark.parametrize(
    ("function", "options", "error"),
    [
        (plain, {"memory_mib": 0}, "give MiB"),
        (plain, {"memory_mib": 64, "thread": True}, "child process"),
        (nothing, {"memory_mib": 64}, "child process"),
        (nothing, {"thread": True}, "async"),
    ],
)
def test_contradictions_are_refused(
    registry: HandlerRegistry, function: Callable[..., Any], options: dict[str, Any], error: str
) -> None:
    with pytest.raises(ValueError, match=error):
        task("f", **options)(function)
    assert not registry


def test_hooks_are_kept_in_order_and_stay_callable(registry: HandlerRegistry) -> None:
    called: list[str] = []

    @on_start
    def open_pool() -> None:
        called.append("open")

    @on_stop
    def close_pool(quickly: bool = True) -> None:
        called.append("close")

    assert registry.start_hooks == [open_pool]
    assert registry.stop_hooks == [close_pool]
    open_pool()
    assert called == ["open"]


def test_a_hook_that_cannot_be_called_is_refused(registry: HandlerRegistry) -> None:
    wrong: Any = plain
    with pytest.raises(TypeError, match=r"@on_start: plain is called without arguments"):
        on_start(wrong)
    with pytest.raises(TypeError, match=r"@on_stop: .*is async"):
        on_stop(nothing)  # type: ignore[type-var]
    assert not registry.start_hooks


@pytest.mark.parametrize("after", [-1, float("nan"), float("inf")])
def test_a_retry_at_no_possible_time_is_refused(after: float) -> None:
    with pytest.raises(ValueError, match="give seconds"):
        Retry(after=after)


def test_the_latest_progress_counts() -> None:
    ctx = context()
    assert ctx.latest_progress is None
    ctx.progress(10, "reading")
    ctx.progress(20, "writing")
    assert ctx.latest_progress == sdk.Progress(20, "writing")
    with pytest.raises(ValueError, match="0 to 100"):
        ctx.progress(101)


def test_a_handler_sees_that_it_is_no_longer_wanted() -> None:
    ctx = context()
    assert not ctx.cancelled
    mark_cancelled(ctx)
    assert ctx.cancelled


def test_the_logger_carries_the_attempt(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        context().logger.info("read %s pages", 3)
    (record,) = caplog.records
    assert record.getMessage() == "read 3 pages"
    assert vars(record)["fields"] == {"task": "shop/a", "uid": "u", "attempt": 2}


def test_importing_the_sdk_loads_nothing_heavy() -> None:
    heavy = ["pydantic", "kopf", "kubernetes", "aiohttp", "pika", "rich", "orjson"]
    code = f"import taskqueue, sys; print([name for name in {heavy} if name in sys.modules])"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == "[]"
