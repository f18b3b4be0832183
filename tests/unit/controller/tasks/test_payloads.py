"""Payloads: which are kept, which are read when they are needed, and what keeps a Task waiting."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import orjson
import pytest
from prometheus_client import REGISTRY

from taskqueue.controller.tasks.config_maps import SHARED_SECONDS
from taskqueue.controller.tasks.payloads import (
    LONGEST_RETRY_SECONDS,
    RETRY_SECONDS,
    SOURCES_LENGTH,
)
from taskqueue.controller.tasks.read_queue import REPEATS_A_SECOND
from taskqueue.controller.tasks.tracked_task import TaskStage
from taskqueue.kubernetes.client import ApiError
from taskqueue.kubernetes.task_codec import task_path
from taskqueue.limits import PAYLOAD_BYTES
from taskqueue.model.task import Phase
from tests.unit.controller.fakes import TaskHarness, raw_task, turn

pytestmark = pytest.mark.looptime

PATH = "/api/v1/namespaces/shop/configmaps/"


def sources(*names: str) -> list[dict[str, Any]]:
    """Return payloadFrom of ``config map/key`` each."""
    split = [name.split("/") for name in names]
    return [{"configMapKeyRef": {"name": name, "key": key}} for name, key in split]


def put(harness: TaskHarness, name: str, data: dict[str, str] | None) -> None:
    """Have the API server hold a ConfigMap of another version."""
    before = harness.api.objects.get(PATH + name, {"metadata": {"resourceVersion": "1"}})
    version = int(before["metadata"]["resourceVersion"]) + 1
    found: dict[str, Any] = {"metadata": {"resourceVersion": str(version)}}
    harness.api.objects[PATH + name] = found if data is None else {**found, "data": data}


async def opened(**config_maps: dict[str, str] | None) -> TaskHarness:
    harness = TaskHarness()
    for name, data in config_maps.items():
        put(harness, name, data)
    harness.dispatcher.slots = 1000  # the window is no matter here
    harness.open()
    return harness


def bodies(harness: TaskHarness) -> list[Any]:
    return [orjson.loads(one.message.body) for one in harness.publisher.published]


def payload_reads() -> float:
    return REGISTRY.get_sample_value("taskqueue_payload_reads_total") or 0.0


# The Task's own payload.


async def test_a_payload_within_the_budget_is_never_read() -> None:
    harness = TaskHarness()
    harness.dispatcher.slots = 1000
    for number in range(100):
        harness.add(f"t{number}", payload={"n": number})
    harness.open()
    await turn()
    assert bodies(harness) == [{"n": number} for number in range(100)]
    assert not harness.api.asked


async def test_a_payload_that_is_not_kept_is_read_when_its_task_is_dispatched() -> None:
    harness = TaskHarness(max_published=2, payload_budget=500)
    for number in range(5):
        raw = harness.store(raw_task(f"t{number}", created=number, payload={"n": number}))
        harness.show(raw)
    await asyncio.sleep(60)
    assert not harness.api.asked
    harness.open()
    await asyncio.sleep(1)
    assert bodies(harness) == [{"n": 0}, {"n": 1}]
    assert not harness.api.asked  # these two were kept
    before = payload_reads()
    for name in ("t0", "t1"):
        del harness.api.objects[task_path("shop", name)]
        await harness.delete(harness.latest(f"uid-{name}"))
    await asyncio.sleep(1)
    assert bodies(harness)[2:] == [{"n": 2}, {"n": 3}]
    asked = [task_path("shop", name) for name in ("t2", "t3")]
    assert [path for path in harness.api.asked if path in asked] == asked
    assert payload_reads() == before + 2


async def test_the_payload_of_another_task_of_the_name_is_not_published() -> None:
    harness = TaskHarness(payload_budget=0)
    entry = harness.show(harness.store(raw_task("t", payload={"n": 1})))
    other = raw_task("t", payload={"n": 2})
    other["metadata"]["uid"] = "uid-other"
    harness.store(other)
    harness.open()
    await asyncio.sleep(60)
    assert not harness.publisher.published
    assert entry.stage is TaskStage.WAITING
    await harness.delete(entry)  # its name is another's now
    harness.show(other)
    await asyncio.sleep(1)
    assert bodies(harness) == [{"n": 2}]


async def test_a_retry_reads_a_payload_again_that_others_took_the_room_of() -> None:
    harness = TaskHarness(payload_budget=250)
    entry = harness.show(harness.store(raw_task("t", payload={"n": 1})))
    harness.open()
    await turn()
    harness.add("other", payload={"n": 2})
    harness.failed(entry)
    await asyncio.sleep(6)
    assert bodies(harness)[-1] == {"n": 1}
    assert harness.api.asked == [task_path("shop", "t")]


async def test_payloads_of_a_namespace_that_cannot_be_read_hold_up_no_other() -> None:
    harness = TaskHarness(payload_budget=0)
    get = harness.api.get

    async def refuse(path: str, **params: str) -> dict[str, Any]:
        if path.startswith(task_path("shop", "t")):
            raise ApiError(403, "Forbidden", "no")
        return await get(path, **params)

    harness.api.get = refuse  # type: ignore[method-assign]
    entry = harness.show(harness.store(raw_task("t", payload={"n": 1})))
    harness.open()
    await asyncio.sleep(10)
    assert not harness.publisher.published
    assert entry.status.phase is Phase.BLOCKED
    harness.add("cancelled", cancel=True)
    harness.api.get = get  # type: ignore[method-assign]
    await asyncio.sleep(60)
    assert bodies(harness) == [{"n": 1}]


@pytest.mark.parametrize("refusal", [(403, "Forbidden"), (413, "TooLarge"), (0, "NotJson")])
@pytest.mark.parametrize("from_config_map", [False, True])
async def test_a_task_that_cannot_be_read_says_so_until_it_can(
    refusal: tuple[int, str], from_config_map: bool
) -> None:
    harness = TaskHarness(payload_budget=0)
    put(harness, "c", {"k": '{"m": 2}'})
    spec: dict[str, Any] = {"payloadFrom": sources("c/k")} if from_config_map else {}
    entry = harness.show(harness.store(raw_task("t", payload={"n": 1}, **spec)))
    get, broken = harness.api.get, True

    async def refuse(path: str, **params: str) -> dict[str, Any]:
        if broken and path == task_path("shop", "t"):
            raise ApiError(*refusal, "not allowed")
        return await get(path, **params)

    harness.api.get = refuse  # type: ignore[method-assign]
    harness.open()
    for _ in range(5):
        await asyncio.sleep(20)
        status = entry.status
        assert (status.phase, status.reason) == (Phase.BLOCKED, "PayloadUnresolved")
        assert "cannot read this Task" in status.message
        assert "not allowed" in status.message
    assert harness.writer.phases == ["Blocked"]
    broken = False
    await asyncio.sleep(61)
    assert bodies(harness) == [{"m": 2, "n": 1} if from_config_map else {"n": 1}]
    assert (entry.stage, entry.status.phase) == (TaskStage.PUBLISHED, Phase.PENDING)
    assert entry.status.message == ""


async def test_a_task_that_cannot_be_read_obeys_a_cancel() -> None:
    harness = TaskHarness(payload_budget=0)
    entry = harness.show(raw_task("t", payload={"n": 1}))

    async def refuse(path: str, **params: str) -> dict[str, Any]:
        raise ApiError(403, "Forbidden", "no")

    harness.api.get = refuse  # type: ignore[method-assign]
    harness.open()
    await asyncio.sleep(10)
    harness.add("t", cancel=True)
    assert entry.status.phase is Phase.CANCELLED


async def test_a_task_that_is_cancelled_while_its_payload_is_read_is_not_published() -> None:
    harness = TaskHarness(payload_budget=0)
    raw = harness.store(raw_task("t", payload={"n": 1}))
    harness.show(raw)
    harness.open()
    await asyncio.sleep(0)
    assert harness.dispatcher._loading == {"uid-t"}
    harness.add("t", cancel=True)
    await asyncio.sleep(60)
    assert not harness.publisher.published
    assert harness.dispatcher.waiting == 0


async def test_a_task_that_is_suspended_while_its_payload_is_read_is_not_published(
    caplog: pytest.LogCaptureFixture,
) -> None:
    harness = TaskHarness(payload_budget=1000)
    harness.show(harness.store(raw_task("t", payload={"n": 1})))
    harness.tasks.payloads._own.discard("uid-t")
    harness.open()
    await asyncio.sleep(0)
    assert harness.dispatcher._loading == {"uid-t"}
    harness.add("t", suspend=True)
    await asyncio.sleep(60)
    assert not harness.publisher.published
    assert not caplog.records
    harness.add("t", suspend=False)
    await turn()
    assert bodies(harness) == [{"n": 1}]


async def test_a_task_whose_queue_closes_while_its_payload_is_read_waits() -> None:
    harness = TaskHarness(payload_budget=1000)
    harness.tasks.payloads._own._budget = 0
    harness.show(harness.store(raw_task("t", payload={"n": 1})))
    harness.tasks.payloads._own._budget = 1000
    harness.open()
    await asyncio.sleep(0)
    assert harness.dispatcher._loading
    harness.dispatcher.close()
    await asyncio.sleep(60)
    assert not harness.publisher.published
    assert harness.dispatcher.waiting == 1
    harness.open()
    await turn()
    assert bodies(harness) == [{"n": 1}]


@pytest.mark.parametrize("budget", [0, 10_000])
async def test_a_keyed_task_has_its_payload_when_its_claim_is_written(budget: int) -> None:
    harness = TaskHarness(payload_budget=budget)
    for name in ("first", "second"):
        harness.show(harness.store(raw_task(name, payload={"n": name}, concurrencyKey="k")))
    harness.open()
    await asyncio.sleep(1)
    assert not harness.publisher.published
    (write,) = [one for one in harness.writer.writes if one.status.get("concurrencyKey")]
    harness.tasks.payloads._own.discard("uid-first")  # others took its room
    write.succeed()
    await asyncio.sleep(1)
    assert bodies(harness) == [{"n": "first"}]


# ConfigMaps.


async def test_later_sources_win_field_by_field_and_the_tasks_own_wins_over_all() -> None:
    harness = await opened(
        one={"k": '{"a": 1, "b": 1, "c": 1, "deep": {"x": 1}}'},
        two={"k": '{"b": 2, "c": 2, "deep": {"y": 2}}', "l": '{"d": null}'},
    )
    harness.add("t", payloadFrom=sources("one/k", "two/k", "two/l"), payload={"c": 3})
    await turn()
    await asyncio.sleep(0.01)
    assert bodies(harness) == [{"a": 1, "b": 2, "c": 3, "d": None, "deep": {"y": 2}}]


async def test_no_config_map_is_read_before_the_task_is_dispatched() -> None:
    harness = TaskHarness(max_published=1)
    put(harness, "one", {"k": '{"n": 1}'})
    harness.add("now")
    harness.add("later", payloadFrom=sources("one/k"), startAfter="2099-01-01T00:00:00Z")
    entry = harness.add("next", payloadFrom=sources("one/k"), created=1.0)
    await asyncio.sleep(60)
    harness.open()
    await asyncio.sleep(60)
    assert harness.publisher.names == ["now"]
    assert not harness.api.asked
    assert entry.status.phase is Phase.PENDING
    await harness.delete(harness.latest("uid-now"))
    await asyncio.sleep(1)
    assert bodies(harness)[1:] == [{"n": 1}]


async def test_tasks_that_need_a_config_map_at_the_same_time_share_one_read() -> None:
    harness = await opened(one={"k": '{"n": 1}'})
    for number in range(300):
        harness.add(f"t{number}", payloadFrom=sources("one/k"), payload={"t": number})
    await asyncio.sleep(SHARED_SECONDS / 2)
    published = sorted(bodies(harness), key=lambda body: int(body["t"]))
    assert published == [{"n": 1, "t": number} for number in range(300)]
    assert harness.api.asked == [PATH + "one"]


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
        (
            {"k": '{"a":' * 300 + "1" + "}" * 300},
            "spec.payloadFrom[1]: key k of ConfigMap shop/two is not valid JSON (nested deeper "
            "than 100 levels: flatten it): fix it",
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
    put(harness, "two", {"k": '{"two": 2}'})
    await asyncio.sleep(RETRY_SECONDS - 0.2)
    assert not harness.publisher.published
    await asyncio.sleep(0.2)
    assert bodies(harness) == [{"two": 2}]
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
    put(harness, "one", {"k": "{}"})
    await asyncio.sleep(3)
    assert harness.publisher.names == ["t"]


async def test_many_tasks_that_miss_a_config_map_read_it_less_and_less() -> None:
    harness = await opened()
    for number in range(1000):
        harness.add(f"t{number}", payloadFrom=sources("one/k"))
    await asyncio.sleep(600)
    assert len(harness.api.asked) <= 4 + 600 / LONGEST_RETRY_SECONDS
    put(harness, "one", {"k": "{}"})
    await asyncio.sleep(LONGEST_RETRY_SECONDS + 1)
    assert len(harness.publisher.published) == 1000
    assert not harness.tasks.payloads._waiters


async def test_many_missing_config_maps_do_not_delay_one_that_is_there() -> None:
    harness = await opened(there={"k": "{}"})
    for number in range(300):
        harness.add(f"t{number}", payloadFrom=sources(f"missing-{number}/k"))
    await asyncio.sleep(4)
    assert len(Counter(harness.api.asked)) == len(harness.api.asked) == 300
    await asyncio.sleep(10)
    assert len(harness.api.asked) - 300 <= 11 * REPEATS_A_SECOND
    # New names come first, so it does not even matter that this is the same namespace.
    harness.add("new", payloadFrom=sources("there/k"))
    await asyncio.sleep(0.1)
    assert harness.publisher.names == ["new"]


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
    assert not harness.tasks.payloads.is_at_hand(entry.task)  # not kept
    assert not harness.publisher.published


async def test_texts_that_are_too_long_together_are_not_merged() -> None:
    text = '{"x": 1}'.ljust(SOURCES_LENGTH // 2)
    harness = await opened(one={"k": text}, two={"k": text})
    harness.add("fits", payloadFrom=sources("one/k", "two/k"))
    await asyncio.sleep(0.1)
    assert bodies(harness) == [{"x": 1}]
    put(harness, "two", {"k": text + " "})
    await asyncio.sleep(SHARED_SECONDS)
    entry = harness.add("not", payloadFrom=sources("one/k", "two/k"))
    await asyncio.sleep(0.1)
    assert (entry.status.phase, entry.status.reason) == (Phase.FAILED, "Invalid")
    assert f"the limit is {SOURCES_LENGTH}" in entry.status.message


async def test_a_deleted_task_is_not_read_for_any_more() -> None:
    harness = await opened()
    entry = harness.add("t", payloadFrom=sources("one/k"))
    await asyncio.sleep(1)
    await harness.delete(entry)
    asked = len(harness.api.asked)
    await asyncio.sleep(60)
    assert len(harness.api.asked) == asked
    assert not harness.tasks.payloads._problems


async def test_a_retry_gets_what_the_config_map_holds_then_and_its_status_says_so() -> None:
    harness = await opened(one={"k": '{"n": 1}'})
    entry = harness.add("t", payloadFrom=sources("one/k"))
    await asyncio.sleep(0.1)
    first = entry.status.payload_digest
    harness.failed(entry)
    await asyncio.sleep(6)
    assert entry.status.payload_changed_time is None
    put(harness, "one", {"k": '{"n": 2}'})
    harness.failed(entry, attempt=2)
    await asyncio.sleep(6)
    assert bodies(harness) == [{"n": 1}, {"n": 1}, {"n": 2}]
    assert entry.status.payload_digest == first
    harness.failed(entry, attempt=3)
    status = harness.writer.writes[-1].status
    assert status["payloadDigest"] == first
    (condition,) = [one for one in status["conditions"] if one["type"] == "PayloadChanged"]
    assert (condition["status"], condition["reason"]) == ("True", "ConfigMapChanged")


async def test_a_new_leader_knows_what_the_first_attempt_got() -> None:
    harness = await opened(one={"k": '{"n": 1}'})
    entry = harness.add("t", payloadFrom=sources("one/k"))
    await asyncio.sleep(0.1)
    harness.failed(entry)
    await asyncio.sleep(3)
    status = harness.writer.writes[-1].status
    another = await opened(one={"k": '{"n": 2}'})
    entry = another.add("t", payloadFrom=sources("one/k"), status=status)
    await asyncio.sleep(10)
    assert bodies(another) == [{"n": 2}]
    assert entry.status.payload_changed_time is not None


async def test_a_new_leader_reads_again_before_it_publishes_what_ran_before() -> None:
    harness = await opened()
    status = {"phase": "Running", "observedGeneration": 1, "attempts": 1}
    entry = harness.add("t", payloadFrom=sources("one/k"), status=status)
    await asyncio.sleep(1)
    assert not harness.publisher.published
    assert entry.status.reason == "PayloadUnresolved"
    put(harness, "one", {"k": '{"n": 1}'})
    await asyncio.sleep(RETRY_SECONDS)
    assert bodies(harness) == [{"n": 1}]
