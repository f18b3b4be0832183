"""The janitor: what it deletes, when, and how it copes with refusals. Virtual time."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import pytest

from taskqueue.controller.metrics import TTL_DELETIONS
from taskqueue.controller.tasks.finished_tasks import FinishedTask
from taskqueue.controller.tasks.ttl import (
    DELETES_AT_ONCE,
    GRACE_SECONDS,
    NEEDED_SECONDS,
    TtlController,
)
from taskqueue.kubernetes.client import ApiClient, ApiError
from taskqueue.model.task import Phase
from tests.unit.controller.fakes import now, turn, until_time

pytestmark = pytest.mark.looptime

QUEUE = ("shop", "q")


class FakeApi:
    """Takes deletes and lists; keeps when and of what."""

    def __init__(self) -> None:
        self.deleted: list[tuple[str, float]] = []
        self.tried: list[tuple[str, float]] = []
        self.lists: list[tuple[str, str]] = []
        self.items: list[dict[str, Any]] = []
        #: Answers to the next requests, by Task name; "" for lists.
        self.problems: defaultdict[str, deque[ApiError]] = defaultdict(deque)
        self.gate = asyncio.Event()
        self.gate.set()
        self.under_way = 0
        self.most = 0

    async def send(self, method: str, path: str, *, body: Any) -> bytes:
        assert method == "DELETE"
        assert body["kind"] == "DeleteOptions"
        assert body["propagationPolicy"] == "Background"
        prefix, _, name = path.rpartition("/")
        assert prefix == "/apis/taskqueue.dev/v1alpha1/namespaces/shop/tasks"
        assert body["preconditions"] == {"uid": f"uid-{name}"}
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await self.gate.wait()
        self.under_way -= 1
        at = round(asyncio.get_running_loop().time(), 2)
        self.tried.append((name, at))
        if self.problems[name]:
            raise self.problems[name].popleft()
        self.deleted.append((name, at))
        return b"{}"

    async def request(self, method: str, path: str, *, params: Mapping[str, str]) -> Any:
        assert method == "GET"
        self.lists.append((path, params["fieldSelector"]))
        if self.problems[""]:
            raise self.problems[""].popleft()
        return {"items": self.items, "metadata": {}}

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.deleted]


def raw(name: str, *, ttl: int | None = None) -> dict[str, Any]:
    return {
        "metadata": {
            "namespace": "shop",
            "name": name,
            "uid": f"uid-{name}",
            "creationTimestamp": "2023-11-14T22:00:00Z",
        },
        "spec": {"queue": "q", **({} if ttl is None else {"ttlSecondsAfterFinished": ttl})},
        "status": {"phase": "Failed", "completionTime": "2023-11-14T22:13:20Z"},
    }


class Stage:
    """A janitor at work on an API server."""

    def __init__(self) -> None:
        self.api = FakeApi()
        self.defaults: dict[tuple[str, str], int] = {}
        self.needed: set[str] = set()
        self.janitor = TtlController(
            cast(ApiClient, self.api),
            clock=now,
            random=lambda: 1.0,
            ttl_of=self.defaults.get,
            is_needed=lambda namespace, name: name in self.needed,
        )

    def finished(self, name: str, *, ttl: int | None = None) -> None:
        self.janitor.add("shop", name, f"uid-{name}", queue=QUEUE, completed=now(), ttl=ttl)

    def found(self, name: str, *, ttl: int | None = None) -> FinishedTask:
        return FinishedTask(
            uid=f"uid-{name}",
            queue=QUEUE,
            phase=Phase.SUCCEEDED,
            completed=now() - 1000,
            name=name,
            ttl=ttl,
        )


@asynccontextmanager
async def at_work() -> AsyncIterator[Stage]:
    stage = Stage()
    running = asyncio.create_task(stage.janitor.run())
    await turn()
    try:
        yield stage
        assert not running.done()
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def test_each_is_deleted_when_its_own_time_is_over() -> None:
    async with at_work() as stage:
        before = TTL_DELETIONS._value.get()
        stage.finished("late", ttl=600)
        stage.finished("soon", ttl=10)
        stage.finished("at-once", ttl=0)
        await until_time(700)
        assert stage.api.deleted == [("at-once", 0), ("soon", 10), ("late", 600)]
        assert TTL_DELETIONS._value.get() == before + 3
        assert len(stage.janitor) == 0


async def test_what_has_no_time_to_live_is_not_even_held() -> None:
    async with at_work() as stage:
        stage.finished("a")
        assert len(stage.janitor) == 0
        await until_time(100)
        assert stage.api.tried == []


async def test_the_queues_default_counts_where_a_task_says_nothing() -> None:
    async with at_work() as stage:
        stage.defaults[QUEUE] = 20
        stage.finished("by-default")
        stage.finished("own", ttl=5)
        await until_time(30)
        assert stage.api.deleted == [("own", 5), ("by-default", 20)]


async def test_a_default_raised_meanwhile_is_obeyed() -> None:
    async with at_work() as stage:
        stage.defaults[QUEUE] = 20
        stage.finished("a")
        stage.defaults[QUEUE] = 50
        await until_time(60)
        assert stage.api.deleted == [("a", 50)]


async def test_a_default_withdrawn_meanwhile_is_obeyed() -> None:
    async with at_work() as stage:
        stage.defaults[QUEUE] = 20
        stage.finished("a")
        stage.finished("own", ttl=30)
        del stage.defaults[QUEUE]
        await until_time(60)
        assert stage.api.deleted == [("own", 30)]
        assert len(stage.janitor) == 0


async def test_a_new_default_is_for_the_finished_too() -> None:
    async with at_work() as stage:
        stage.api.items = [raw("old"), raw("own", ttl=40)]
        stage.defaults[QUEUE] = 30
        stage.janitor.on_queue_changed(QUEUE)
        await until_time(60)
        ((path, selector),) = stage.api.lists
        assert path == "/apis/taskqueue.dev/v1alpha1/namespaces/shop/tasks"
        assert selector.startswith("spec.queue=q,status.phase!=")
        assert "status.phase!=Failed" not in selector
        assert stage.api.deleted == [("old", 30), ("own", 40)]


async def test_a_lowered_default_is_for_those_held_too() -> None:
    async with at_work() as stage:
        stage.defaults[QUEUE] = 500
        stage.janitor.add("shop", "old", "uid-old", queue=QUEUE, completed=now(), ttl=None)
        stage.api.items = [raw("old")]
        stage.defaults[QUEUE] = 30
        stage.janitor.on_queue_changed(QUEUE)
        await until_time(600)
        assert stage.api.tried == [("old", 30)]


async def test_no_default_asks_for_no_list() -> None:
    async with at_work() as stage:
        stage.janitor.on_queue_changed(QUEUE)
        await turn()
        assert stage.api.lists == []


async def test_what_is_found_by_listing_is_left_alone_at_first() -> None:
    async with at_work() as stage:
        stage.janitor.add_listed([stage.found("long-over", ttl=1), stage.found("for-ever")])
        await until_time(GRACE_SECONDS - 1)
        assert stage.api.tried == []
        await until_time(GRACE_SECONDS)
        assert stage.api.deleted == [("long-over", GRACE_SECONDS)]


async def test_a_list_that_fails_is_asked_for_again() -> None:
    async with at_work() as stage:
        stage.api.items = [raw("old", ttl=1)]
        stage.api.problems[""].extend(
            [ApiError(500, "Internal", "no"), ApiError(429, "Busy", "no", retry_after=7)]
        )
        stage.janitor.list_all()
        await until_time(7.5)
        assert len(stage.api.lists) == 2
        await until_time(60)
        assert [path for path, _ in stage.api.lists] == ["/apis/taskqueue.dev/v1alpha1/tasks"] * 3
        assert stage.api.names == ["old"]


async def test_what_is_told_twice_is_deleted_once() -> None:
    async with at_work() as stage:
        stage.finished("a", ttl=30)
        stage.finished("a", ttl=30)
        stage.janitor.add_listed([stage.found("a", ttl=1015)])
        assert len(stage.janitor) == 1
        await until_time(60)
        assert stage.api.tried == [("a", 15)]


async def test_what_an_unfinished_task_needs_stays_until_it_does_not() -> None:
    async with at_work() as stage:
        stage.needed.add("a")
        stage.finished("a", ttl=10)
        stage.finished("b", ttl=10)
        await until_time(10 + 3 * NEEDED_SECONDS + 1)
        assert stage.api.names == ["b"]
        stage.needed.clear()
        await until_time(10 + 4 * NEEDED_SECONDS + 1)
        assert stage.api.deleted[1:] == [("a", 10 + 4 * NEEDED_SECONDS)]


@pytest.mark.parametrize("status", [404, 409])
async def test_gone_or_made_anew_is_fine(status: int) -> None:
    async with at_work() as stage:
        before = TTL_DELETIONS._value.get()
        stage.api.problems["a"].append(ApiError(status, "", "no"))
        stage.finished("a", ttl=1)
        await until_time(1000)
        assert stage.api.tried == [("a", 1)]
        assert TTL_DELETIONS._value.get() == before


@pytest.mark.parametrize("status", [0, 403, 422, 500])
async def test_a_delete_that_fails_is_tried_again_ever_more_slowly(status: int) -> None:
    async with at_work() as stage:
        stage.api.problems["a"].extend([ApiError(status, "", "no")] * 3)
        stage.finished("a", ttl=1)
        await until_time(100)
        assert stage.api.tried == [("a", 1), ("a", 2), ("a", 4), ("a", 8)]
        assert stage.api.names == ["a"]


async def test_those_that_fail_do_not_hold_up_the_others() -> None:
    async with at_work() as stage:
        for number in range(2 * DELETES_AT_ONCE):
            name = f"bad-{number}"
            stage.api.problems[name].extend([ApiError(403, "Forbidden", "no")] * 100)
            stage.finished(name, ttl=1)
        for number in range(20):
            stage.finished(f"good-{number}", ttl=2)
        await until_time(10)
        assert len(stage.api.names) == 20


async def test_one_success_ends_the_slowness_of_all() -> None:
    async with at_work() as stage:
        stage.api.problems["bad"].extend([ApiError(403, "Forbidden", "no")] * 100)
        stage.finished("bad", ttl=1)
        stage.finished("good", ttl=40)
        stage.finished("next", ttl=65)
        await until_time(100)
        assert [at for name, at in stage.api.tried if name == "bad"] == [1, 2, 4, 8, 16, 32, 64]
        assert stage.api.deleted == [("good", 40), ("next", 65)]


async def test_the_list_of_all_is_enough_for_every_queue() -> None:
    async with at_work() as stage:
        for number in range(3):
            stage.defaults[("shop", f"q{number}")] = 5
            stage.janitor.on_queue_changed(("shop", f"q{number}"))
        stage.janitor.list_all()
        await until_time(1)
        assert [path for path, _ in stage.api.lists] == ["/apis/taskqueue.dev/v1alpha1/tasks"]


async def test_nothing_is_deleted_before_it_is_known_who_needs_whom() -> None:
    stage = Stage()
    synced = asyncio.Event()
    running = asyncio.create_task(stage.janitor.run(after=synced))
    stage.finished("needed", ttl=1)
    stage.finished("other", ttl=1)
    await until_time(30)
    stage.needed.add("needed")
    synced.set()
    await until_time(31)
    assert stage.api.names == ["other"]
    running.cancel()


async def test_while_nothing_succeeds_little_is_asked() -> None:
    async with at_work() as stage:
        for number in range(200):
            stage.api.problems[f"t{number}"].extend([ApiError(500, "", "no")] * 100)
            stage.finished(f"t{number}", ttl=1)
        await until_time(121)
        assert len(stage.api.tried) < 150


async def test_all_wait_as_long_as_the_server_asks() -> None:
    async with at_work() as stage:
        stage.api.problems["a"].append(ApiError(429, "Busy", "no", retry_after=30))
        stage.finished("a", ttl=1)
        stage.finished("b", ttl=2)
        await until_time(40)
        assert stage.api.tried == [("a", 1), ("b", 31), ("a", 31)]


async def test_few_deletes_are_under_way_at_once() -> None:
    async with at_work() as stage:
        stage.api.gate.clear()
        for number in range(20):
            stage.finished(f"t{number}", ttl=1)
        await until_time(2)
        assert stage.api.under_way == DELETES_AT_ONCE
        stage.api.gate.set()
        await until_time(3)
        assert (len(stage.api.names), stage.api.most) == (20, DELETES_AT_ONCE)
