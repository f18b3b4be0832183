"""How many finished Tasks namespaces have: counted, not listed, and never guessed."""

import asyncio
from collections.abc import Mapping
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from taskqueue.controller.tasks.stored_tasks import COUNT_SECONDS, StoredTasks
from taskqueue.controller.tasks.tracked_task import TrackedTask
from taskqueue.kubernetes.client import METADATA_LIST, ApiClient, ApiError
from taskqueue.kubernetes.task_codec import TASKS_PATH, read_task
from tests.unit.controller.fakes import raw_task

pytestmark = pytest.mark.looptime

THRESHOLD = 10


class FakeApi:
    """Answers a list of Tasks as an API server does that stores so many."""

    def __init__(self, stored: Mapping[str, int]) -> None:
        self.stored = dict(stored)
        self.asked: list[str] = []
        self.failure: Exception | None = None
        self.says_how_many = True

    async def request(
        self, method: str, path: str, *, params: Mapping[str, str], accept: str, levels: int
    ) -> dict[str, Any]:
        assert (method, accept, params) == ("GET", METADATA_LIST, {"limit": "1"})
        self.asked.append(path)
        if self.failure is not None:
            raise self.failure
        if path == TASKS_PATH:
            count = sum(self.stored.values())
        else:
            count = self.stored.get(path.split("/")[-2], 0)
        metadata: dict[str, Any] = {"resourceVersion": "1"}
        if count > 1:
            metadata["continue"] = "token"
            if self.says_how_many:
                metadata["remainingItemCount"] = count - 1
        return {"metadata": metadata, "items": [{}] if count else None}


class Case:
    def __init__(self, finished: Mapping[str, int], unfinished: Mapping[str, int]) -> None:
        self.tracked = {
            f"{namespace}-{number}": tracked(namespace, number)
            for namespace, count in unfinished.items()
            for number in range(count)
        }
        names = {*finished, *unfinished}
        self.api = FakeApi({one: finished.get(one, 0) + unfinished.get(one, 0) for one in names})
        self.queues = [(namespace, "q") for namespace in sorted(names)]
        self.tasks = StoredTasks(
            cast(ApiClient, self.api),
            unfinished=lambda: self.tracked,
            queues=lambda: self.queues,
            threshold=THRESHOLD,
        )

    async def count(self, namespace: str) -> int | None:
        await self.tasks.count()
        return self.tasks.many_finished(namespace)


def tracked(namespace: str, number: int) -> TrackedTask:
    raw = raw_task(f"{namespace}-{number}")
    raw["metadata"]["namespace"] = namespace
    task = read_task(raw)
    return TrackedTask(task=task, status=task.status, written=task.status)


async def test_one_request_is_enough_while_no_namespace_can_have_many() -> None:
    case = Case({"shop": 5, "mill": 3}, {"shop": 40})
    assert case.tasks.many_finished("shop") is None
    assert await case.count("shop") == 0
    assert case.api.asked == [TASKS_PATH]
    assert REGISTRY.get_sample_value("taskqueue_tasks_stored") == 48


async def test_namespaces_without_taskqueues_are_not_asked_about() -> None:
    case = Case({"shop": 10, "mill": 10}, {})
    case.queues = [("shop", "a"), ("shop", "b")]
    assert await case.count("shop") == 10
    assert case.tasks.many_finished("mill") == 0
    assert len(case.api.asked) == 2


@given(
    finished=st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers(0, 25)),
    unfinished=st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), st.integers(0, 25)),
)
def test_a_namespace_has_many_from_the_threshold_on_whatever_else_is_stored(
    finished: dict[str, int], unfinished: dict[str, int]
) -> None:
    case = Case(finished, unfinished)
    asyncio.run(case.tasks.count())
    for namespace in "abcd":
        count = finished.get(namespace, 0)
        assert case.tasks.many_finished(namespace) == (count if count >= THRESHOLD else 0)


async def test_a_namespace_has_many_until_it_is_well_below_the_threshold() -> None:
    case = Case({"shop": 9}, {})
    found = []
    for count in (9, 10, 9, 8, 9, 10):
        case.api.stored["shop"] = count
        found.append(await case.count("shop"))
    assert found == [0, 10, 9, 0, 0, 10]


async def test_a_count_that_fails_changes_nothing() -> None:
    case = Case({"shop": 12}, {})
    assert await case.count("shop") == 12
    case.api.failure = ApiError(503, "Unavailable", "no")
    with pytest.raises(ApiError):
        await case.tasks.count()
    assert case.tasks.many_finished("shop") == 12


async def test_a_list_that_does_not_say_how_many_follow_is_not_taken_for_one_task() -> None:
    case = Case({"shop": 12}, {})
    case.api.says_how_many = False
    with pytest.raises(ApiError, match="does not say how many follow"):
        await case.tasks.count()
    assert case.tasks.many_finished("shop") is None


@pytest.mark.parametrize("failure", [ApiError(503, "Unavailable", "no"), KeyError("metadata")])
async def test_counting_begins_when_the_unfinished_are_known_and_goes_on_after_a_failure(
    failure: Exception,
) -> None:
    case, synced = Case({"shop": 12}, {}), asyncio.Event()
    case.api.failure = failure
    task = asyncio.create_task(case.tasks.run(after=synced))
    await asyncio.sleep(2 * COUNT_SECONDS)
    assert not case.api.asked
    synced.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    case.api.failure = None
    await asyncio.sleep(COUNT_SECONDS + 1)
    assert case.tasks.many_finished("shop") == 12
    task.cancel()
