"""When an object has ended, and what a wait does with what the watch brings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from taskqueue.kubernetes.client import ApiError
from tests.bench.deadline import BenchError, until
from tests.bench.load import at_once
from tests.bench.watches import EndWatch, available, ended


def task(name: str, kind: str, status: str = "True") -> dict[str, Any]:
    condition = {"type": kind, "status": status, "reason": "Because", "message": "of that"}
    return {
        "metadata": {"name": name, "resourceVersion": "2"},
        "status": {"conditions": [condition]},
    }


class Api:
    """Answers as the client does, with these events and then silence, or an error."""

    def __init__(self, *events: dict[str, Any], error: Exception | None = None) -> None:
        self._events = list(events)
        self._error = error

    async def request(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {"metadata": {"resourceVersion": "1"}, "items": []}

    async def watch(self, *_: Any, **__: Any) -> AsyncIterator[dict[str, Any]]:
        while self._events:
            yield {"type": "MODIFIED", "object": self._events.pop(0)}
        if self._error:
            raise self._error
        await until(self._never, seconds=60, what="the end of the test")

    async def _never(self) -> bool:
        return False


def watch_of(*events: dict[str, Any], error: Exception | None = None) -> EndWatch:
    return EndWatch(Api(*events, error=error), "/things")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({}, None),
        ({"status": {}}, None),
        (task("a", "Complete"), ""),
        (task("a", "Complete", "False"), None),
        (task("a", "Reconciling"), None),
        (task("a", "Failed"), "Because: of that"),
    ],
)
def test_an_end_is_a_true_condition(raw: dict[str, Any], expected: str | None) -> None:
    assert ended(raw) == expected


def test_a_deployment_is_available_with_its_first_pod() -> None:
    assert available({"status": {"replicas": 1}}) is None
    assert available({"status": {"availableReplicas": 1}}) == ""


async def test_a_wait_ends_when_all_have_ended_and_keeps_the_first_time() -> None:
    events = [task("a", "Complete"), task("other", "Failed"), task("b", "Complete")]
    async with watch_of(*events, task("a", "Complete")) as watch:
        seen = await watch.all_ended(["a", "b"], seconds=5)
        assert seen["a"] <= seen["b"]
        assert await watch.all_ended(["a"], seconds=5) == {"a": seen["a"]}


async def test_an_object_that_failed_ends_the_benchmark_with_its_reason() -> None:
    async with watch_of(task("a", "Failed")) as watch:
        with pytest.raises(BenchError, match="Because: of that"):
            await watch.all_ended(["a"], seconds=5)


async def test_a_wait_in_vain_names_what_is_left() -> None:
    async with watch_of(task("a", "Complete")) as watch:
        with pytest.raises(BenchError, match=r"1 of 2 are left, such as b"):
            await watch.all_ended(["a", "b"], seconds=0.05)


@pytest.mark.parametrize("events", [(), (task("a", "Complete"),)])
async def test_a_broken_watch_ends_the_wait(events: tuple[dict[str, Any], ...]) -> None:
    problem = ApiError(0, "Unreachable", "it is gone")
    async with watch_of(*events, error=problem) as watch:
        with pytest.raises((ApiError, BenchError), match="it is gone"):
            await watch.all_ended(["b"], seconds=5)


async def test_the_load_does_every_item_once_and_stops_at_the_first_error() -> None:
    done: list[str] = []

    async def action(item: str) -> None:
        await asyncio.sleep(0)  # as any request does
        done.append(item)
        if item == "3":
            raise BenchError("three")

    await at_once(4, ["0", "1", "2"], action)
    assert sorted(done) == ["0", "1", "2"]
    with pytest.raises(BenchError, match="three"):
        await at_once(2, map(str, range(3, 1000)), action)
    assert len(done) < 100
