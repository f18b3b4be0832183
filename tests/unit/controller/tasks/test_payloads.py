"""Payloads put together from ConfigMaps: how they merge, and what keeps a Task waiting."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from taskqueue.controller.tasks.payloads import RETRY_SECONDS
from taskqueue.controller.tasks.tracked_task import TaskStage
from taskqueue.kubernetes.client import ApiError
from taskqueue.limits import PAYLOAD_BYTES
from taskqueue.model.task import Phase
from tests.unit.controller.fakes import TaskHarness, turn

pytestmark = pytest.mark.looptime

PATH = "/api/v1/namespaces/shop/configmaps/"


def sources(*names: str) -> list[dict[str, Any]]:
    """Return payloadFrom of ``config map/key`` each."""
    split = [name.split("/") for name in names]
    return [{"configMapKeyRef": {"name": name, "key": key}} for name, key in split]


async def opened(**config_maps: dict[str, str] | None) -> TaskHarness:
    harness = TaskHarness()
    for name, data in config_maps.items():
        harness.api.objects[PATH + name] = {} if data is None else {"data": data}
    harness.open()
    return harness


async def test_later_sources_win_field_by_field_and_the_tasks_own_wins_over_all() -> None:
    harness = await opened(
        one={"k": '{"a": 1, "b": 1, "c": 1, "deep": {"x": 1}}'},
        two={"k": '{"b": 2, "c": 2, "deep": {"y": 2}}', "l": '{"d": null}'},
    )
    harness.add("t", payloadFrom=sources("one/k", "two/k", "two/l"), payload={"c": 3})
    await turn()
    await asyncio.sleep(0.01)
    (publish,) = harness.publisher.published
    assert orjson.loads(publish.message.body) == {
        "a": 1,
        "b": 2,
        "c": 3,
        "d": None,
        "deep": {"y": 2},
    }


async def test_nothing_is_published_or_written_while_the_payload_is_read() -> None:
    harness = await opened(one={"k": "{}"})
    entry = harness.add("t", payloadFrom=sources("one/k"))
    assert entry.stage is TaskStage.HELD
    assert entry.status.phase is Phase.PENDING
    assert not harness.publisher.published


async def test_a_task_without_sources_asks_for_nothing() -> None:
    harness = await opened()
    harness.add("t")
    await turn()
    assert harness.publisher.names == ["t"]
    assert not harness.api.asked


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"other": "{}"},
            "spec.payloadFrom[1]: ConfigMap shop/two has no key k: add it",
        ),
        (None, "spec.payloadFrom[1]: ConfigMap shop/two has no key k: add it"),
        ({"k": "{"}, "spec.payloadFrom[1]: key k of ConfigMap shop/two is not valid JSON ("),
        (
            {"k": "[1]"},
            "spec.payloadFrom[1]: key k of ConfigMap shop/two is not a JSON object: put {...} "
            "there",
        ),
    ],
)
async def test_an_unresolved_payload_is_reported_and_read_again(
    data: dict[str, str] | None, message: str
) -> None:
    harness = await opened(one={"k": "{}"}, two=data)
    entry = harness.add("t", payloadFrom=sources("one/k", "two/k"))
    await asyncio.sleep(0.1)
    assert (entry.status.phase, entry.status.reason) == (Phase.BLOCKED, "PayloadUnresolved")
    assert entry.status.message.startswith(message)
    assert entry.stage is TaskStage.HELD
    harness.api.objects[PATH + "two"] = {"data": {"k": '{"two": 2}'}}
    await asyncio.sleep(RETRY_SECONDS - 0.2)
    assert not harness.publisher.published
    await asyncio.sleep(0.2)
    (publish,) = harness.publisher.published
    assert orjson.loads(publish.message.body) == {"two": 2}
    assert entry.status.phase is Phase.PENDING


async def test_a_missing_config_map_may_come_later() -> None:
    harness = await opened()
    entry = harness.add("t", payloadFrom=sources("one/k"))
    await asyncio.sleep(3)
    assert entry.status.message == (
        "spec.payloadFrom[0]: ConfigMap shop/one does not exist: create it"
    )
    assert harness.writer.phases == ["Blocked"]
    harness.writer.writes[0].succeed()
    harness.api.objects[PATH + "one"] = {"data": {"k": "{}"}}
    await asyncio.sleep(3)
    assert harness.publisher.names == ["t"]


async def test_an_unavailable_api_server_does_not_fail_the_task() -> None:
    harness = await opened(one={"k": "{}"})
    get, harness.api.get = harness.api.get, refusing  # type: ignore[method-assign]
    entry = harness.add("t", payloadFrom=sources("one/k"))
    await asyncio.sleep(1)
    assert "ConfigMap shop/one cannot be read" in entry.status.message
    harness.api.get = get  # type: ignore[method-assign]
    await asyncio.sleep(RETRY_SECONDS)
    assert harness.publisher.names == ["t"]


async def refusing(path: str, **params: str) -> dict[str, Any]:
    raise ApiError(503, "ServiceUnavailable", "try again")


async def test_a_merged_payload_above_the_limit_fails_the_task() -> None:
    half = orjson.dumps({"x": "x" * (PAYLOAD_BYTES // 2)}).decode()
    harness = await opened(one={"k": half}, two={"k": half.replace('"x"', '"y"', 1)})
    entry = harness.add("t", payloadFrom=sources("one/k", "two/k"))
    await asyncio.sleep(0.1)
    (write,) = harness.writer.writes
    assert (write.status["phase"], write.status["reason"]) == ("Failed", "Invalid")
    assert "merged with what spec.payloadFrom names" in write.status["message"]
    assert str(PAYLOAD_BYTES) in write.status["message"]
    assert harness.tasks.payloads.body(entry.task) == b"{}"  # not kept
    assert not harness.publisher.published


async def test_a_deleted_task_is_not_read_for_any_more() -> None:
    harness = await opened()
    entry = harness.add("t", payloadFrom=sources("one/k"))
    await asyncio.sleep(1)
    await harness.delete(entry)
    asked = len(harness.api.asked)
    await asyncio.sleep(60)
    assert len(harness.api.asked) == asked


async def test_a_retry_has_the_payload_of_the_first_attempt() -> None:
    harness = await opened(one={"k": '{"n": 1}'})
    entry = harness.add("t", payloadFrom=sources("one/k"))
    await asyncio.sleep(0.1)
    harness.publisher.published.clear()
    harness.api.objects[PATH + "one"] = {"data": {"k": '{"n": 2}'}}
    harness.failed(entry)
    await asyncio.sleep(6)
    (again,) = harness.publisher.published
    assert orjson.loads(again.message.body) == {"n": 1}


async def test_a_new_leader_reads_again_before_it_publishes_what_ran_before() -> None:
    harness = await opened()
    status = {"phase": "Running", "observedGeneration": 1, "attempts": 1}
    entry = harness.add("t", payloadFrom=sources("one/k"), status=status)
    await asyncio.sleep(1)
    assert not harness.publisher.published
    assert entry.status.reason == "PayloadUnresolved"
    harness.api.objects[PATH + "one"] = {"data": {"k": '{"n": 1}'}}
    await asyncio.sleep(RETRY_SECONDS)
    (publish,) = harness.publisher.published
    assert orjson.loads(publish.message.body) == {"n": 1}


async def test_a_payload_that_is_nested_too_deeply_says_so() -> None:
    harness = await opened(deep={"k": '{"a":' * 300 + "1" + "}" * 300})
    entry = harness.add("t", payloadFrom=sources("deep/k"))
    await asyncio.sleep(1)
    assert entry.status.reason == "PayloadUnresolved"
    assert "nested deeper than 100 levels: flatten it" in entry.status.message
    harness.api.objects[PATH + "deep"] = {"data": {"k": "{}"}}
    await asyncio.sleep(RETRY_SECONDS)
    assert harness.publisher.names == ["t"]
