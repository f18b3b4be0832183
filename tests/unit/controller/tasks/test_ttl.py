"""The TTL controller: what it deletes, when, and how it handles refusals, in virtual time."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import orjson
import pytest

from taskqueue.controller.metrics import TTL_DELETIONS
from taskqueue.controller.tasks.finished_tasks import FinishedTask
from taskqueue.controller.tasks.ttl import (
    DELETES_AT_ONCE,
    GRACE_SECONDS,
    NEEDED_SECONDS,
    TtlController,
)
from taskqueue.kubernetes.client import TABLE, ApiClient, ApiError
from tests.unit.controller.fakes import now, turn
from tests.unit.controller.virtual_time import until_time
from tests.unit.kubernetes.fake_api import as_table

pytestmark = pytest.mark.looptime

QUEUE = ("shop", "q")


class FakeApi:
    """Records deletes and lists with their times."""

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

    async def send(self, method: str, path: str, *, body: Any = None, **more: Any) -> bytes:
        if method == "GET":
            return self._list(path, **more)
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

    def _list(self, path: str, *, params: Mapping[str, str], accept: str, most_bytes: int) -> bytes:
        assert accept == TABLE
        self.lists.append((path, params["fieldSelector"]))
        if self.problems[""]:
            raise self.problems[""].popleft()
        return orjson.dumps(as_table(self.items))

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


class Harness:
    """A TTL controller on a fake API server."""

    def __init__(self) -> None:
        self.api = FakeApi()
        self.defaults: dict[tuple[str, str], int] = {}
        self.needed: set[str] = set()
        self.archived: set[tuple[str, str]] = set()
        self.controller = TtlController(
            cast(ApiClient, self.api),
            clock=now,
            random=lambda: 1.0,
            ttl_of=self.defaults.get,
            is_needed=lambda namespace, name: name in self.needed,
            is_held=self.archived.__contains__,
        )

    def finished(self, name: str, *, ttl: int | None = None) -> None:
        self.controller.add("shop", name, f"uid-{name}", queue=QUEUE, completed=now(), ttl=ttl)

    def found(self, name: str, *, ttl: int | None = None) -> FinishedTask:
        return FinishedTask(
            uid=f"uid-{name}",
            queue=QUEUE,
            completed=now() - 1000,
            name=name,
            ttl=ttl,
        )


@asynccontextmanager
async def at_work() -> AsyncIterator[Harness]:
    harness = Harness()
    running = asyncio.create_task(harness.controller.run())
    await turn()
    try:
        yield harness
        assert not running.done()
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def test_tasks_are_deleted_when_their_own_ttl_is_over() -> None:
    async with at_work() as harness:
        before = TTL_DELETIONS._value.get()
        harness.finished("late", ttl=600)
        harness.finished("soon", ttl=10)
        harness.finished("at-once", ttl=0)
        await until_time(700)
        assert harness.api.deleted == [("at-once", 0), ("soon", 10), ("late", 600)]
        assert TTL_DELETIONS._value.get() == before + 3
        assert len(harness.controller) == 0


async def test_a_task_without_a_ttl_is_not_held() -> None:
    async with at_work() as harness:
        harness.finished("a")
        assert len(harness.controller) == 0
        await until_time(100)
        assert harness.api.tried == []


async def test_the_queues_default_ttl_applies_to_a_task_without_its_own() -> None:
    async with at_work() as harness:
        harness.defaults[QUEUE] = 20
        harness.finished("by-default")
        harness.finished("own", ttl=5)
        await until_time(30)
        assert harness.api.deleted == [("own", 5), ("by-default", 20)]


async def test_a_raised_default_applies_to_held_tasks() -> None:
    async with at_work() as harness:
        harness.defaults[QUEUE] = 20
        harness.finished("a")
        harness.defaults[QUEUE] = 50
        await until_time(60)
        assert harness.api.deleted == [("a", 50)]


async def test_a_removed_default_applies_to_held_tasks() -> None:
    async with at_work() as harness:
        harness.defaults[QUEUE] = 20
        harness.finished("a")
        harness.finished("own", ttl=30)
        del harness.defaults[QUEUE]
        await until_time(60)
        assert harness.api.deleted == [("own", 30)]
        assert len(harness.controller) == 0


async def test_a_new_default_applies_to_finished_tasks() -> None:
    async with at_work() as harness:
        harness.api.items = [raw("old"), raw("own", ttl=40)]
        harness.defaults[QUEUE] = 30
        harness.controller.on_queue_changed(QUEUE)
        await until_time(60)
        ((path, selector),) = harness.api.lists
        assert path == "/apis/taskqueue.dev/v1alpha1/namespaces/shop/tasks"
        assert selector.startswith("spec.queue=q,status.phase!=")
        assert "status.phase!=Failed" not in selector
        assert harness.api.deleted == [("old", 30), ("own", 40)]


async def test_a_lowered_default_applies_to_held_tasks() -> None:
    async with at_work() as harness:
        harness.defaults[QUEUE] = 500
        harness.controller.add("shop", "old", "uid-old", queue=QUEUE, completed=now(), ttl=None)
        harness.api.items = [raw("old")]
        harness.defaults[QUEUE] = 30
        harness.controller.on_queue_changed(QUEUE)
        await until_time(600)
        assert harness.api.tried == [("old", 30)]


async def test_a_queue_without_a_default_causes_no_list() -> None:
    async with at_work() as harness:
        harness.controller.on_queue_changed(QUEUE)
        await turn()
        assert harness.api.lists == []


async def test_listed_tasks_stay_for_the_grace_period() -> None:
    async with at_work() as harness:
        harness.controller.add_listed(
            [harness.found("long-over", ttl=1), harness.found("for-ever")]
        )
        await until_time(GRACE_SECONDS - 1)
        assert harness.api.tried == []
        await until_time(GRACE_SECONDS)
        assert harness.api.deleted == [("long-over", GRACE_SECONDS)]


async def test_a_failed_list_is_repeated() -> None:
    async with at_work() as harness:
        harness.api.items = [raw("old", ttl=1)]
        harness.api.problems[""].extend(
            [ApiError(500, "Internal", "no"), ApiError(429, "Busy", "no", retry_after=7)]
        )
        harness.controller.list_all()
        await until_time(7.5)
        assert len(harness.api.lists) == 2
        await until_time(60)
        assert [path for path, _ in harness.api.lists] == ["/apis/taskqueue.dev/v1alpha1/tasks"] * 3
        assert harness.api.names == ["old"]


async def test_a_task_added_twice_is_deleted_once() -> None:
    async with at_work() as harness:
        harness.finished("a", ttl=30)
        harness.finished("a", ttl=30)
        harness.controller.add_listed([harness.found("a", ttl=1015)])
        assert len(harness.controller) == 1
        await until_time(60)
        assert harness.api.tried == [("a", 15)]


async def test_a_task_stays_while_an_unfinished_one_depends_on_it() -> None:
    async with at_work() as harness:
        harness.needed.add("a")
        harness.finished("a", ttl=10)
        harness.finished("b", ttl=10)
        await until_time(10 + 3 * NEEDED_SECONDS + 1)
        assert harness.api.names == ["b"]
        harness.needed.clear()
        await until_time(10 + 4 * NEEDED_SECONDS + 1)
        assert harness.api.deleted[1:] == [("a", 10 + 4 * NEEDED_SECONDS)]


@pytest.mark.parametrize("status", [404, 409])
async def test_a_task_already_deleted_or_replaced_needs_no_retry(status: int) -> None:
    async with at_work() as harness:
        before = TTL_DELETIONS._value.get()
        harness.api.problems["a"].append(ApiError(status, "", "no"))
        harness.finished("a", ttl=1)
        await until_time(1000)
        assert harness.api.tried == [("a", 1)]
        assert TTL_DELETIONS._value.get() == before


@pytest.mark.parametrize("status", [0, 403, 422, 500])
async def test_a_failed_delete_is_retried_with_backoff(status: int) -> None:
    async with at_work() as harness:
        harness.api.problems["a"].extend([ApiError(status, "", "no")] * 3)
        harness.finished("a", ttl=1)
        await until_time(100)
        assert harness.api.tried == [("a", 1), ("a", 2), ("a", 4), ("a", 8)]
        assert harness.api.names == ["a"]


async def test_failed_deletes_do_not_delay_others() -> None:
    async with at_work() as harness:
        for number in range(2 * DELETES_AT_ONCE):
            name = f"bad-{number}"
            harness.api.problems[name].extend([ApiError(403, "Forbidden", "no")] * 100)
            harness.finished(name, ttl=1)
        for number in range(20):
            harness.finished(f"good-{number}", ttl=2)
        await until_time(10)
        assert len(harness.api.names) == 20


async def test_a_successful_delete_resets_the_common_backoff() -> None:
    async with at_work() as harness:
        harness.api.problems["bad"].extend([ApiError(403, "Forbidden", "no")] * 100)
        harness.finished("bad", ttl=1)
        harness.finished("good", ttl=40)
        harness.finished("next", ttl=65)
        await until_time(100)
        assert [at for name, at in harness.api.tried if name == "bad"] == [1, 2, 4, 8, 16, 32, 64]
        assert harness.api.deleted == [("good", 40), ("next", 65)]


async def test_the_list_of_all_is_enough_for_every_queue() -> None:
    async with at_work() as harness:
        for number in range(3):
            harness.defaults[("shop", f"q{number}")] = 5
            harness.controller.on_queue_changed(("shop", f"q{number}"))
        harness.controller.list_all()
        await until_time(1)
        assert [path for path, _ in harness.api.lists] == ["/apis/taskqueue.dev/v1alpha1/tasks"]


async def test_nothing_is_deleted_before_dependencies_are_known() -> None:
    harness = Harness()
    synced = asyncio.Event()
    running = asyncio.create_task(harness.controller.run(after=synced))
    harness.finished("needed", ttl=1)
    harness.finished("other", ttl=1)
    await until_time(30)
    harness.needed.add("needed")
    synced.set()
    await until_time(31)
    assert harness.api.names == ["other"]
    running.cancel()


async def test_deletes_slow_down_while_all_fail() -> None:
    async with at_work() as harness:
        for number in range(200):
            harness.api.problems[f"t{number}"].extend([ApiError(500, "", "no")] * 100)
            harness.finished(f"t{number}", ttl=1)
        await until_time(121)
        assert len(harness.api.tried) < 150


async def test_all_deletes_respect_retry_after() -> None:
    async with at_work() as harness:
        harness.api.problems["a"].append(ApiError(429, "Busy", "no", retry_after=30))
        harness.finished("a", ttl=1)
        harness.finished("b", ttl=2)
        await until_time(40)
        assert harness.api.tried == [("a", 1), ("b", 31), ("a", 31)]


async def test_concurrent_deletes_are_limited() -> None:
    async with at_work() as harness:
        harness.api.gate.clear()
        for number in range(20):
            harness.finished(f"t{number}", ttl=1)
        await until_time(2)
        assert harness.api.under_way == DELETES_AT_ONCE
        harness.api.gate.set()
        await until_time(3)
        assert (len(harness.api.names), harness.api.most) == (20, DELETES_AT_ONCE)


async def test_a_task_found_by_listing_waits_for_its_archive() -> None:
    async with at_work() as harness:
        harness.archived.add(QUEUE)
        harness.controller.add_listed([harness.found("t", ttl=10)])
        await until_time(100)
        assert harness.api.tried == []
        harness.controller.add_safe([harness.found("t", ttl=10)])
        await until_time(101)
        assert harness.api.deleted == [("t", 100)]


async def test_a_task_whose_end_is_with_the_broker_does_not_wait_for_the_archive() -> None:
    async with at_work() as harness:
        harness.archived.add(QUEUE)
        harness.finished("t", ttl=10)
        await until_time(20)
        assert harness.api.deleted == [("t", 10)]
