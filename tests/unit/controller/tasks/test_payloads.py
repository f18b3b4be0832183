"""Payloads put together from ConfigMaps: how they merge, and what keeps a Task waiting."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from taskqueue.controller.tasks.payloads import RETRY_SECONDS
from taskqueue.controller.tasks.task_controller import PAYLOAD_LIMIT_BYTES
from taskqueue.controller.tasks.tracked_task import TaskStage
from taskqueue.kubernetes.client import ApiError
from taskqueue.model.task import Phase
from tests.unit.controller.fakes import Engine, turn

pytestmark = pytest.mark.looptime

PATH = "/api/v1/namespaces/shop/configmaps/"


def sources(*names: str) -> list[dict[str, Any]]:
    """Return payloadFrom of ``config map/key`` each."""
    split = [name.split("/") for name in names]
    return [{"configMapKeyRef": {"name": name, "key": key}} for name, key in split]


async def opened(**config_maps: dict[str, str] | None) -> Engine:
    engine = Engine()
    for name, data in config_maps.items():
        engine.api.objects[PATH + name] = {} if data is None else {"data": data}
    engine.open()
    return engine


async def test_later_sources_win_field_by_field_and_the_tasks_own_wins_over_all() -> None:
    engine = await opened(
        one={"k": '{"a": 1, "b": 1, "c": 1, "deep": {"x": 1}}'},
        two={"k": '{"b": 2, "c": 2, "deep": {"y": 2}}', "l": '{"d": null}'},
    )
    engine.add("t", payloadFrom=sources("one/k", "two/k", "two/l"), payload={"c": 3})
    await turn()
    await asyncio.sleep(0.01)
    (publish,) = engine.publisher.published
    assert orjson.loads(publish.message.body) == {
        "a": 1,
        "b": 2,
        "c": 3,
        "d": None,
        "deep": {"y": 2},
    }


async def test_nothing_is_published_or_said_while_the_payload_is_being_read() -> None:
    engine = await opened(one={"k": "{}"})
    entry = engine.add("t", payloadFrom=sources("one/k"))
    assert entry.stage is TaskStage.HELD
    assert entry.status.phase is Phase.PENDING
    assert not engine.publisher.published


async def test_a_task_without_sources_asks_for_nothing() -> None:
    engine = await opened()
    engine.add("t")
    await turn()
    assert engine.publisher.names == ["t"]
    assert not engine.api.asked


@pytest.mark.parametrize(
    ("data", "told"),
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
async def test_what_is_wrong_is_told_by_name_and_tried_again(
    data: dict[str, str] | None, told: str
) -> None:
    engine = await opened(one={"k": "{}"}, two=data)
    entry = engine.add("t", payloadFrom=sources("one/k", "two/k"))
    await asyncio.sleep(0.1)
    assert (entry.status.phase, entry.status.reason) == (Phase.BLOCKED, "PayloadUnresolved")
    assert entry.status.message.startswith(told)
    assert entry.stage is TaskStage.HELD
    engine.api.objects[PATH + "two"] = {"data": {"k": '{"two": 2}'}}
    await asyncio.sleep(RETRY_SECONDS - 0.2)
    assert not engine.publisher.published
    await asyncio.sleep(0.2)
    (publish,) = engine.publisher.published
    assert orjson.loads(publish.message.body) == {"two": 2}
    assert entry.status.phase is Phase.PENDING


async def test_a_missing_config_map_may_come_later() -> None:
    engine = await opened()
    entry = engine.add("t", payloadFrom=sources("one/k"))
    await asyncio.sleep(3)
    assert entry.status.message == (
        "spec.payloadFrom[0]: ConfigMap shop/one does not exist: create it"
    )
    assert engine.writer.phases == ["Blocked"]
    engine.writer.writes[0].succeed()
    engine.api.objects[PATH + "one"] = {"data": {"k": "{}"}}
    await asyncio.sleep(3)
    assert engine.publisher.names == ["t"]


async def test_an_api_server_that_is_away_is_no_reason_to_fail() -> None:
    engine = await opened(one={"k": "{}"})
    get, engine.api.get = engine.api.get, refusing  # type: ignore[method-assign]
    entry = engine.add("t", payloadFrom=sources("one/k"))
    await asyncio.sleep(1)
    assert "ConfigMap shop/one cannot be read" in entry.status.message
    engine.api.get = get  # type: ignore[method-assign]
    await asyncio.sleep(RETRY_SECONDS)
    assert engine.publisher.names == ["t"]


async def refusing(path: str, **params: str) -> dict[str, Any]:
    raise ApiError(503, "ServiceUnavailable", "try again")


async def test_too_large_once_merged_is_the_end() -> None:
    half = orjson.dumps({"x": "x" * (PAYLOAD_LIMIT_BYTES // 2)}).decode()
    engine = await opened(one={"k": half}, two={"k": half.replace('"x"', '"y"', 1)})
    entry = engine.add("t", payloadFrom=sources("one/k", "two/k"))
    await asyncio.sleep(0.1)
    (write,) = engine.writer.writes
    assert (write.status["phase"], write.status["reason"]) == ("Failed", "Invalid")
    assert "merged with what spec.payloadFrom names" in write.status["message"]
    assert str(PAYLOAD_LIMIT_BYTES) in write.status["message"]
    assert entry.payload is None  # not to be held
    assert not engine.publisher.published


async def test_a_deleted_task_is_not_read_for_any_more() -> None:
    engine = await opened()
    entry = engine.add("t", payloadFrom=sources("one/k"))
    await asyncio.sleep(1)
    await engine.delete(entry)
    asked = len(engine.api.asked)
    await asyncio.sleep(60)
    assert len(engine.api.asked) == asked


async def test_a_retry_has_the_payload_of_the_first_attempt() -> None:
    engine = await opened(one={"k": '{"n": 1}'})
    entry = engine.add("t", payloadFrom=sources("one/k"))
    await asyncio.sleep(0.1)
    engine.publisher.published.clear()
    engine.api.objects[PATH + "one"] = {"data": {"k": '{"n": 2}'}}
    engine.failed(entry)
    await asyncio.sleep(6)
    (again,) = engine.publisher.published
    assert orjson.loads(again.message.body) == {"n": 1}


async def test_a_new_leader_reads_again_before_it_publishes_what_ran_before() -> None:
    engine = await opened()
    status = {"phase": "Running", "observedGeneration": 1, "attempts": 1}
    entry = engine.add("t", payloadFrom=sources("one/k"), status=status)
    await asyncio.sleep(1)
    assert not engine.publisher.published
    assert entry.status.reason == "PayloadUnresolved"
    engine.api.objects[PATH + "one"] = {"data": {"k": '{"n": 1}'}}
    await asyncio.sleep(RETRY_SECONDS)
    (publish,) = engine.publisher.published
    assert orjson.loads(publish.message.body) == {"n": 1}
