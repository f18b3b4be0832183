"""Tasks that cannot be read: each ends, and says why and what to do."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from taskqueue.contract.outcome import EventKind
from taskqueue.controller.tasks.tracked_task import TaskStage
from taskqueue.kubernetes.client import PROBLEMS, UNREADABLE, ApiError
from taskqueue.kubernetes.task_codec import task_path
from taskqueue.limits import JSON_DEPTH
from taskqueue.model.command import CommandKind
from tests.unit.controller.fakes import TaskHarness, raw_task, turn

pytestmark = pytest.mark.looptime

PATH = task_path("shop", "t")
PROBLEM = PROBLEMS[UNREADABLE]
MESSAGE = (
    "the operator cannot read this Task: it is nested too deep: flatten it, and create it again"
)
RETRYING = {"phase": "Retrying", "observedGeneration": 1, "attempts": 2, "epoch": 3}


def nested(levels: int) -> dict[str, Any]:
    """Return an object of as many levels of objects and lists."""
    value: Any = {}
    for level in range(levels - 1):
        value = {"a": value} if level % 2 or level == levels - 2 else [value]
    assert isinstance(value, dict)
    return value


def show(harness: TaskHarness, raw: dict[str, Any] | None = None) -> None:
    """Have the informer show a Task that cannot be parsed."""
    raw = harness.api.objects[PATH] = raw or raw_task("t")
    harness._shown["shop", "t"] = raw["metadata"]["uid"]
    harness.tasks.on_unreadable({"metadata": raw["metadata"]}, PROBLEM)


async def test_an_unreadable_task_ends_as_invalid() -> None:
    harness = TaskHarness()
    harness.open()
    show(harness, raw_task("t", status=RETRYING, ttlSecondsAfterFinished=7))
    await asyncio.sleep(0.1)
    (write,) = harness.writer.writes
    assert write.urgent
    assert (write.status["phase"], write.status["reason"]) == ("Failed", "Invalid")
    assert write.status["message"] == MESSAGE
    assert write.status["attempts"] == 2
    assert "epoch" not in write.status  # not known, and not to be set back
    assert harness.states.latest["uid-t"].task.spec.overrides.ttl_seconds == 7
    write.succeed()
    await turn()
    assert (harness.recorded, harness.completed) == (["t"], ["t"])
    assert harness.publisher.events[0]["data"]["reason"] == "Invalid"
    assert not harness.entries
    harness.tasks.on_deleted(("shop", "t"), "uid-t")
    assert not harness.tasks._leaving


@pytest.mark.parametrize("levels", [JSON_DEPTH + 1, 254, 255, 300, 900])
async def test_a_payload_nested_too_deep_ends_as_invalid(levels: int) -> None:
    harness = TaskHarness()
    harness.api.objects[PATH] = raw_task("t", payload=nested(levels))
    harness.tasks.on_upserted(harness.api.objects[PATH])
    await asyncio.sleep(0.1)
    (write,) = harness.writer.writes
    assert (write.status["phase"], write.status["reason"]) == ("Failed", "Invalid")
    assert write.status["message"] == (
        f"the operator cannot read this Task: spec.payload: nested deeper than {JSON_DEPTH} "
        "levels: flatten it, and create it again"
    )


async def test_a_payload_of_as_many_levels_as_allowed_is_dispatched() -> None:
    harness = TaskHarness()
    harness.add("t", payload=nested(JSON_DEPTH))
    harness.open()
    await turn()
    assert harness.publisher.names == ["t"]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"priority": 5000}, "spec.priority: Input should be less than or equal to 1000"),
        ({"handler": None}, "spec.handler: Input should be a valid string"),
        ({"dependsOn": ["a", ""]}, "spec.dependsOn.1: String should have at least 1 character"),
    ],
)
async def test_what_another_version_may_have_accepted_ends_as_invalid(
    spec: dict[str, Any], says: str
) -> None:
    harness = TaskHarness()
    harness.api.objects[PATH] = raw_task("t", **spec)
    harness.tasks.on_upserted(harness.api.objects[PATH])
    await asyncio.sleep(0.1)
    (write,) = harness.writer.writes
    assert write.status["message"] == (
        f"the operator cannot read this Task: {says}: correct it, and create it again"
    )


async def test_those_that_depend_on_an_unreadable_task_fail() -> None:
    harness = TaskHarness()
    harness._spawn(harness.tasks.dependencies.run(), "dependencies")
    show(harness)
    waits = harness.add("waits", dependsOn=["t"])
    await asyncio.sleep(0.1)
    assert waits.status.reason == "WaitingForDependencies"
    harness.writer.writes[0].succeed()
    await turn()
    assert waits.status.reason == "DependencyFailed"


@pytest.mark.parametrize(
    "there",
    [
        None,
        raw_task("t", status={"phase": "Succeeded", "observedGeneration": 1}),
        {**raw_task("t"), "metadata": {**raw_task("t")["metadata"], "uid": "another"}},
    ],
    ids=["deleted", "finished", "another"],
)
async def test_what_has_ended_meanwhile_is_not_written(there: dict[str, Any] | None) -> None:
    harness = TaskHarness()
    show(harness)
    harness.api.objects = {} if there is None else {PATH: there}
    await asyncio.sleep(0.1)
    assert not harness.writer.writes
    assert not harness.entries
    assert not harness.tasks._unreadable


async def test_it_is_read_and_written_once_however_often_it_is_shown() -> None:
    harness = TaskHarness()
    for _ in range(3):
        show(harness)
    await asyncio.sleep(0.1)
    show(harness)
    await asyncio.sleep(0.1)
    assert (harness.api.asked, len(harness.writer.writes)) == ([PATH], 1)
    harness.writer.writes[0].succeed()
    show(harness)  # the watch lags
    await asyncio.sleep(0.1)
    assert (harness.api.asked, len(harness.writer.writes)) == ([PATH], 1)


async def test_one_that_becomes_readable_meanwhile_goes_on() -> None:
    harness = TaskHarness()
    show(harness)
    harness.add("t")
    harness.open()
    await asyncio.sleep(0.1)
    assert harness.publisher.names == ["t"]
    assert not harness.writer.writes


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (ApiError(503, "No", "try again"), False),
        (ApiError(429, "No", "ask less"), False),
        (ApiError(403, "No", "not you"), True),
        (ApiError(500, "No", "cannot be converted"), True),
        (ValueError("no time"), True),
    ],
)
async def test_a_read_that_fails_is_repeated_and_a_refusal_has_an_event(
    error: Exception, refused: bool
) -> None:
    harness = TaskHarness()
    get = harness.api.get

    async def refuse(path: str, **params: str) -> dict[str, Any]:
        raise error

    harness.api.get = refuse  # type: ignore[method-assign]
    show(harness)
    await asyncio.sleep(5)
    assert not harness.writer.writes
    why = f"{MESSAGE}; nor can what is needed to end it be read: {error}"
    assert harness.refused == ([("t", why)] if refused else [])
    harness.api.get = get  # type: ignore[method-assign]
    await asyncio.sleep(20)
    assert harness.writer.phases == ["Failed"]


async def test_a_running_task_whose_spec_becomes_unreadable_is_stopped() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    harness.event(entry, EventKind.STARTED)
    raw = raw_task("t", generation=2, status=RETRYING)
    show(harness, raw)
    (write,) = harness.writer.writes
    assert write.status["message"] == MESSAGE
    assert "epoch" in write.status  # all of it is known
    assert [command.kind for command in harness.publisher.commands] == [CommandKind.CANCEL]
    assert entry.stage is TaskStage.FINISHED


async def test_a_running_task_whose_status_cannot_be_read_goes_on() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    harness.event(entry, EventKind.STARTED)
    show(harness, raw_task("t", generation=entry.task.generation))
    assert not harness.writer.writes
    assert entry.is_running
    assert not harness.publisher.commands


async def test_a_refused_end_is_written_again_until_it_is_accepted() -> None:
    harness = TaskHarness()
    show(harness)
    await asyncio.sleep(0.1)
    for number in range(2):
        harness.writer.writes[number].refuse(422)
    await asyncio.sleep(6)
    assert harness.writer.phases == ["Failed"] * 3
    harness.writer.writes[2].succeed()
    assert harness.recorded == ["t"]
