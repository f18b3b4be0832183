"""What the watch on pods makes of its events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from taskqueue.kubernetes.client import ApiError
from tests.bench.deadline import BenchError
from tests.bench.pod_watch import PodWatch
from tests.bench.removals import Removal


def pod(name: str, *, leaving: bool = False, **container: Any) -> dict[str, Any]:
    metadata = {"name": name, "resourceVersion": "2"}
    if leaving:
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    return {
        "metadata": metadata,
        "status": {"containerStatuses": [{"name": "worker", **container}]},
    }


class Api:
    """Has one pod in its list, then brings these events, then an error or silence."""

    def __init__(self, *events: dict[str, Any], error: Exception | None = None) -> None:
        self._events = list(events)
        self._error = error
        self.brought = asyncio.Event()

    async def get(self, path: str, **_: str) -> dict[str, Any]:
        return {"metadata": {"resourceVersion": "1"}, "items": [pod("first")]}

    async def watch(self, path: str, **_: Any) -> AsyncIterator[dict[str, Any]]:
        while self._events:
            yield self._events.pop(0)
        self.brought.set()
        if self._error:
            raise self._error
        await asyncio.Event().wait()


def watch_of(api: Api, clock: list[float] | None = None) -> PodWatch:
    times = iter(clock or [])
    return PodWatch(
        api,  # type: ignore[arg-type]
        "/pods",
        selector="app=a",
        clock=lambda: next(times),
    )


async def test_a_pod_is_removed_once_when_it_is_first_told_to_go() -> None:
    api = Api(
        {"type": "ADDED", "object": pod("second")},
        {"type": "MODIFIED", "object": pod("first", leaving=True)},
        {"type": "MODIFIED", "object": pod("first", leaving=True)},
        {"type": "DELETED", "object": pod("first", leaving=True)},
        {"type": "ADDED", "object": pod("third")},
        {"type": "DELETED", "object": pod("third")},
    )
    async with watch_of(api, [7.0, 9.0]) as pods:
        await api.brought.wait()
    assert pods.removals == [Removal("first", 7.0), Removal("third", 9.0)]
    assert pods.most == 2


async def test_ends_by_force_and_restarts_are_counted_once_each() -> None:
    def ended(code: int) -> dict[str, Any]:
        return {"terminated": {"exitCode": code, "containerID": f"c{code}"}}

    api = Api(
        {"type": "MODIFIED", "object": pod("first", restartCount=1, lastState=ended(137))},
        {"type": "MODIFIED", "object": pod("first", restartCount=1, lastState=ended(137))},
        {"type": "ADDED", "object": pod("second", restartCount=0, state=ended(0))},
    )
    async with watch_of(api) as pods:
        await api.brought.wait()
    assert (pods.killed_containers, pods.restarts) == (1, 1)


@pytest.mark.parametrize(
    "api",
    [
        Api(error=ApiError(0, "Unreachable", "away")),
        Api({"type": "ERROR", "object": {"code": 410, "metadata": {}}}),
    ],
)
async def test_a_broken_watch_is_no_count(api: Api) -> None:
    with pytest.raises(BenchError, match="pods were not counted"):
        async with watch_of(api):
            await asyncio.sleep(0.01)


async def test_another_error_is_not_hidden_by_a_broken_watch() -> None:
    api = Api(error=ApiError(0, "Unreachable", "away"))

    async def fail_inside() -> None:
        async with watch_of(api):
            await api.brought.wait()
            raise KeyError("what the block raised")

    with pytest.raises(KeyError):
        await fail_inside()
