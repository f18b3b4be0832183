"""Where an operator that serves a list of namespaces looks, and what it leaves out."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, cast

import pytest

from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.kubernetes.watch_scope import EVERYWHERE, PATIENCE_SECONDS, WatchScope, permitted

TASKS, PODS = "/apis/taskqueue.dev/v1alpha1/tasks", "/api/v1/pods"


class FakeApi:
    """Refuses lists in some namespaces, until a time."""

    def __init__(self, refused_until: Mapping[str, float], status: int = 403) -> None:
        self.refused_until = refused_until
        self.status = status
        self.asked: list[str] = []

    async def send(self, method: str, path: str, *, params: Mapping[str, str]) -> bytes:
        assert (method, params) == ("GET", {"limit": "1"})
        self.asked.append(path)
        for name, until in self.refused_until.items():
            if f"/namespaces/{name}/" in path and asyncio.get_running_loop().time() < until:
                raise ApiError(self.status, "Forbidden", "no")
        return b"{}"


def test_all_namespaces_are_one_list() -> None:
    assert EVERYWHERE.paths(TASKS) == (TASKS,)


def test_each_namespace_has_a_list_of_its_own() -> None:
    assert WatchScope(("a", "b")).paths(TASKS) == (
        "/apis/taskqueue.dev/v1alpha1/namespaces/a/tasks",
        "/apis/taskqueue.dev/v1alpha1/namespaces/b/tasks",
    )
    assert WatchScope(("a",)).paths(PODS) == ("/api/v1/namespaces/a/pods",)


async def ask(api: FakeApi, *names: str) -> tuple[str, ...]:
    found = await permitted(cast(ApiClient, api), WatchScope(names), (TASKS, PODS))
    return found.namespaces


@pytest.mark.looptime
async def test_a_cluster_wide_operator_asks_for_nothing() -> None:
    api = FakeApi({})
    assert await ask(api) == ()
    assert api.asked == []


@pytest.mark.looptime
async def test_what_is_permitted_is_asked_for_once() -> None:
    api = FakeApi({})
    assert await ask(api, "a", "b") == ("a", "b")
    assert len(api.asked) == 4
    assert asyncio.get_running_loop().time() == 0


@pytest.mark.looptime
async def test_a_namespace_that_refuses_is_left_out_after_a_while(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert await ask(FakeApi({"b": float("inf")}), "a", "b", "c") == ("a", "c")
    assert asyncio.get_running_loop().time() == pytest.approx(PATIENCE_SECONDS, abs=1)
    (record,) = caplog.records
    fields: Any = record
    assert record.getMessage() == "namespace.refused"
    assert fields.fields["namespace"] == "b"


@pytest.mark.looptime
async def test_a_role_that_comes_late_is_waited_for() -> None:
    assert await ask(FakeApi({"a": 3, "b": 5}), "a", "b") == ("a", "b")


@pytest.mark.looptime
async def test_while_nothing_is_permitted_it_goes_on_asking() -> None:
    assert await ask(FakeApi({"a": 10 * PATIENCE_SECONDS}), "a") == ("a",)


@pytest.mark.looptime
async def test_another_failure_says_nothing_of_permissions() -> None:
    assert await ask(FakeApi({"a": float("inf")}, status=500), "a") == ("a",)
