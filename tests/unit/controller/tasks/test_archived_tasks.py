"""Ends of Tasks whose TaskQueue has an archive: what is published, and when the TTL may begin."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from taskqueue.amqp.publisher import Settled
from taskqueue.contract.outcome import EventKind
from taskqueue.controller.tasks.tracked_task import TrackedTask
from taskqueue.kubernetes.task_codec import task_path
from taskqueue.model.queue import ArchiveConfig
from tests.unit.controller.fakes import KEY, FakePublisher, TaskHarness, raw_task, turn

pytestmark = pytest.mark.looptime

PATH = task_path("shop", "t")
METADATA = {"labels": {"app": "x"}, "annotations": {"taskqueue.dev/submitted-by": "ada"}}


def archived(*, keep: bool = False) -> TaskHarness:
    harness = TaskHarness()
    archive = ArchiveConfig(secret="archive", keep_payloads=keep)
    harness.config = replace(harness.config, archive=archive)
    harness.dispatcher.config = harness.config
    return harness


def ends(harness: TaskHarness) -> list[tuple[str, str]]:
    return [(one["data"]["phase"], one["data"]["reason"]) for one in harness.publisher.events]


async def test_an_end_has_what_a_row_needs() -> None:
    harness = archived()
    entry = await harness.published()
    harness.event(entry, EventKind.SUCCEEDED)
    harness.writer.writes[0].succeed(metadata=METADATA)
    await turn()
    (event,) = harness.publisher.events
    record = event["data"]["record"]
    assert (record["labels"], record["submittedBy"]) == ({"app": "x"}, "ada")
    assert (record["handler"], len(record["history"])) == (entry.task.spec.handler, 1)
    assert "payload" not in record
    assert harness.channel.acked == [1]
    assert harness.completed == ["t"]


async def test_without_an_archive_an_event_has_no_record() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    harness.event(entry, EventKind.SUCCEEDED)
    harness.writer.writes[0].succeed(metadata=METADATA)
    (event,) = harness.publisher.events
    assert "record" not in event["data"]
    await harness.delete(harness.add("other"))
    await asyncio.sleep(1)
    assert len(harness.publisher.events) == 1


async def test_a_payload_that_is_kept_is_read_and_published() -> None:
    harness = archived(keep=True)
    entry = await harness.published(payload={"n": 1})
    harness.store(raw_task("t", payload={"n": 1}))
    harness.event(entry, EventKind.SUCCEEDED)
    harness.writer.writes[0].succeed(metadata=METADATA)
    await asyncio.sleep(1)
    (event,) = harness.publisher.events
    assert event["data"]["record"]["payload"] == {"n": 1}
    assert harness.channel.acked == [1]


async def test_a_payload_that_is_gone_does_not_hold_up_the_end() -> None:
    harness = archived(keep=True)
    entry = await harness.published()
    harness.event(entry, EventKind.SUCCEEDED)
    harness.writer.writes[0].succeed()
    await asyncio.sleep(1)
    (event,) = harness.publisher.events
    assert "payload" not in event["data"]["record"]
    assert harness.completed == ["t"]


@pytest.mark.parametrize("is_archived", [True, False])
async def test_the_ttl_of_an_end_without_a_worker_waits_for_the_confirm(is_archived: bool) -> None:
    harness = archived() if is_archived else TaskHarness()
    harness.add("t", cancel=True)
    harness.writer.writes[0].succeed()
    await turn()
    assert harness.completed == ([] if is_archived else ["t"])  # there is no broker yet
    harness.open()
    await turn()
    assert ends(harness) == [("Cancelled", "Cancelled")]
    await turn()
    assert harness.completed == ["t"]


@pytest.mark.parametrize("published", [True, False])
async def test_a_task_that_is_deleted_unfinished_has_an_end(published: bool) -> None:
    harness = archived()
    entry = await harness.published() if published else harness.add("t", suspend=True)
    harness.open()
    await harness.delete(entry, METADATA)
    await asyncio.sleep(1)
    (event,) = harness.publisher.events
    assert ends(harness) == [("Cancelled", "Deleted")]
    assert event["type"] == "dev.taskqueue.task.cancelled.v1"
    assert event["data"]["record"]["labels"] == {"app": "x"}
    assert not harness.entries
    assert harness.completed == []  # there is nothing to delete


async def test_the_outcome_of_a_deleted_task_is_acknowledged_after_its_end_is_confirmed() -> None:
    harness = archived()
    entry = await harness.published()
    tag = harness.event(entry, EventKind.SUCCEEDED)
    confirm: list[Any] = []
    publish = harness.publisher.publish

    def hold(*arguments: Any, **more: Any) -> None:
        confirm.append(arguments[4])

    harness.publisher.publish = hold  # type: ignore[method-assign]
    harness.writer.writes[0].refuse(404)
    await asyncio.sleep(1)
    await harness.delete(entry)
    await asyncio.sleep(30)
    assert not harness.entries
    assert harness.channel.acked == []
    confirm[-1](Settled.CONFIRMED, "")
    assert harness.channel.acked == [tag]
    harness.publisher.publish = publish  # type: ignore[method-assign]


async def test_a_task_finished_by_somebody_else_is_looked_for() -> None:
    harness = archived()
    entry = await harness.published()
    status = {"phase": "Failed", "reason": "Boom", "observedGeneration": 1}
    harness.api.objects[PATH] = raw_task("t", status=status)
    await harness.delete(entry)
    await asyncio.sleep(1)
    assert harness.missed == [(KEY, False)]
    assert ends(harness) == []


async def test_an_end_that_is_given_up_is_looked_for_before_its_ttl_may_begin() -> None:
    harness = archived()
    entry = await harness.published()

    def refuse(*arguments: Any, **more: Any) -> None:
        asyncio.get_running_loop().call_soon(arguments[4], Settled.UNKNOWN, "full")

    order: list[str] = []
    harness.publisher.publish = refuse  # type: ignore[method-assign]
    harness.on_end_missed = lambda key, uid, *, dropped: order.append("missed")  # type: ignore[method-assign]
    harness.tasks._runner._on_announced = lambda entry: order.append("ttl")
    harness.event(entry, EventKind.SUCCEEDED)
    harness.writer.writes[0].succeed()
    await asyncio.sleep(10)
    assert order == ["missed", "ttl"]
    assert harness.channel.acked == [1]


async def test_the_end_of_a_late_outcome_has_a_record() -> None:
    harness = archived()
    status = {
        "phase": "Succeeded",
        "observedGeneration": 1,
        "completionTime": "2026-01-01T00:00:00Z",
    }
    raw = raw_task("t", status=status)
    raw["metadata"]["labels"] = {"app": "x"}
    harness.api.objects[PATH] = raw
    task = SimpleNamespace(name="t", uid="uid-t")
    harness.event(cast(TrackedTask, SimpleNamespace(task=task)), EventKind.SUCCEEDED)
    await asyncio.sleep(1)
    (event,) = harness.publisher.events
    assert event["data"]["record"]["labels"] == {"app": "x"}
    assert harness.completed == ["t"]


async def test_the_end_of_a_deleted_task_with_an_outcome_survives_a_lost_broker() -> None:
    harness = archived()
    entry = await harness.published()
    harness.event(entry, EventKind.SUCCEEDED)
    harness.writer.writes[0].refuse(404)
    lost = harness.publisher

    def lose(*arguments: Any, **more: Any) -> None:
        if not lost.closed.done():
            lost.closed.set_result("lost")
        asyncio.get_running_loop().call_soon(arguments[4], Settled.UNKNOWN, "lost")

    lost.publish = lose  # type: ignore[method-assign]
    await harness.delete(entry)
    await asyncio.sleep(30)
    assert not harness.entries
    harness.publisher = FakePublisher()
    harness.open()
    await turn()
    assert ends(harness) == [("Cancelled", "Deleted")]


@pytest.mark.parametrize("published", [True, False])
async def test_a_task_that_is_left_to_another_installation_has_no_end(published: bool) -> None:
    harness = archived()
    if published:
        await harness.published()
    else:
        harness.add("t", suspend=True)
    harness.open()
    harness.tasks.leave_queue(KEY)
    await asyncio.sleep(1)
    assert harness.publisher.events == []
    assert not harness.entries
