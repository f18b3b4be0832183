"""All parts together: what becomes of a Task that leaves, comes again, or is not to be written."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import REGISTRY

from taskqueue.amqp.publisher import Settled
from taskqueue.contract.outcome import EventKind, decode
from taskqueue.controller.tasks import inbox, task_controller
from taskqueue.controller.tasks.tracked_task import TaskStage
from taskqueue.kubernetes.client import ApiError
from taskqueue.kubernetes.task_codec import task_path
from taskqueue.limits import PAYLOAD_BYTES
from taskqueue.model.command import CommandKind
from taskqueue.model.queue import QueueKey
from taskqueue.model.task import Phase
from taskqueue.timestamps import to_rfc3339
from tests.unit.controller.fakes import EPOCH, KEY, TOKENS, TaskHarness, raw_task, turn

pytestmark = pytest.mark.looptime

PATH = task_path("shop", "t")


# The feed.


async def test_an_update_by_our_own_write_changes_nothing() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    harness.event(entry, EventKind.STARTED)
    harness.tasks.on_upserted(raw_task("t", generation=entry.task.generation))
    assert entry.status.phase is Phase.RUNNING


async def test_a_finished_task_is_not_admitted() -> None:
    harness = TaskHarness()
    harness.tasks.on_upserted(raw_task("t", status={"phase": "Failed", "observedGeneration": 1}))
    assert not harness.entries


async def test_an_outdated_update_of_a_finished_task_is_ignored() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    harness.event(entry, EventKind.SUCCEEDED)
    harness.writer.writes[0].succeed()
    harness.tasks.on_upserted(raw_task("t", generation=7))
    assert not harness.entries
    harness.tasks.on_deleted(("shop", "t"), "uid-t")
    assert not harness.tasks._leaving


async def test_a_task_that_left_the_informer_and_still_exists_is_kept() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    harness.api.objects[PATH] = raw_task("t")
    await harness.delete(entry)
    await asyncio.sleep(1)
    assert "uid-t" in harness.entries
    assert (entry.stage, entry.has_left_informer) == (TaskStage.PUBLISHED, False)
    assert not harness.publisher.commands


async def test_a_task_finished_by_another_writer_is_removed() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    status = {"phase": "Failed", "reason": "Boom", "observedGeneration": 1}
    harness.api.objects[PATH] = raw_task("t", status=status)
    waits = harness.add("waits", dependsOn=["t"])
    await harness.delete(entry)
    await asyncio.sleep(1)
    assert list(harness.entries) == ["uid-waits"]
    assert waits.status.reason == "DependencyFailed"
    assert len(harness.publisher.commands) == 1
    assert harness.api.asked == harness.api.rows == [PATH]


@pytest.mark.parametrize("status", [503, 403, 410])
async def test_a_task_is_removed_only_after_a_successful_read(status: int) -> None:
    harness = TaskHarness()
    entry = await harness.published()
    get = harness.api.get

    async def refuse(path: str, **params: str) -> dict[str, Any]:
        raise ApiError(status, "No", "try again")

    harness.api.get = refuse  # type: ignore[method-assign]
    await harness.delete(entry)
    await asyncio.sleep(5)
    assert harness.entries
    harness.api.get = get  # type: ignore[method-assign]
    await asyncio.sleep(20)
    assert not harness.entries


@pytest.mark.parametrize("stage", list(TaskStage))
async def test_a_deleted_task_leaves_nothing_behind_whatever_its_stage(stage: TaskStage) -> None:
    harness = TaskHarness()
    key = "k" if stage is TaskStage.CLAIMING else ""
    entry = harness.add("t", suspend=stage is TaskStage.HELD, concurrencyKey=key)
    if stage not in (TaskStage.NEW, TaskStage.WAITING):
        harness.open()
        await turn()
    if stage is TaskStage.FINISHED:
        harness.publisher.settle(Settled.CONFIRMED)
        harness.event(entry, EventKind.SUCCEEDED)
        harness.writer.writes[-1].refuse(404)
    elif stage is not TaskStage.NEW:
        assert entry.stage is stage
    await harness.delete(entry)
    await asyncio.sleep(10)
    assert not harness.entries
    harness.open()
    await turn()
    assert harness.dispatcher.is_empty
    assert not any(vars(harness.dispatcher.keys._slots).values())
    assert (entry.reconcile_at, entry.write_at) == (None, None)
    assert not harness.recorded


def deleting(raw: dict[str, Any]) -> dict[str, Any]:
    """Return an object that is deleted while a finalizer keeps it."""
    metadata = {**raw["metadata"], "deletionTimestamp": "2026-01-02T03:04:05Z"}
    return {**raw, "metadata": {**metadata, "finalizers": ["example.com/audit"]}}


@pytest.mark.parametrize("key", ["", "k"])
async def test_running_attempt_is_stopped_when_its_task_is_deleted_and_a_finalizer_keeps_it(
    key: str,
) -> None:
    harness = TaskHarness()
    entry = harness.add("t", concurrencyKey=key)
    harness.open()
    await turn()
    if key:
        harness.writer.writes.pop().succeed()
    harness.publisher.settle(Settled.CONFIRMED)
    harness.event(entry, EventKind.STARTED)
    harness.show(deleting(raw_task("t", concurrencyKey=key)))
    (command,) = harness.publisher.commands
    assert (command.kind, command.token) == (CommandKind.CANCEL, harness.token(entry))
    assert not harness.entries
    tag = harness.event(entry, EventKind.CANCELLED)
    await asyncio.sleep(10)
    assert tag in harness.channel.acked
    assert harness.dispatcher.is_empty
    assert not harness.writer.writes


@pytest.mark.parametrize(
    "spec",
    [{}, {"startAfter": to_rfc3339(EPOCH + 5)}, {"suspend": True}, {"dependsOn": ["other"]}],
    ids=["waiting", "scheduled", "suspended", "dependent"],
)
async def test_task_that_waits_is_never_begun_when_it_is_deleted_and_a_finalizer_keeps_it(
    spec: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    harness = TaskHarness()
    harness.add("t", **spec)
    harness.add("other")
    harness.show(deleting(raw_task("t", **spec)))
    for _ in range(2):  # its finalizer's owner goes on writing the object
        harness.tasks.on_upserted(deleting(raw_task("t", generation=2, **spec)))
    harness.open()
    await asyncio.sleep(10)
    assert harness.publisher.names == ["other"]
    assert list(harness.entries) == ["uid-other"]
    assert not harness.publisher.commands
    assert [one.getMessage() for one in caplog.records].count("task.deleted") == 1


async def test_leader_stops_what_a_former_one_published_of_a_task_that_a_finalizer_keeps() -> None:
    harness = TaskHarness()
    harness.synced = False
    running = {"phase": "Running", "attempts": 1, "epoch": 3, "observedGeneration": 1}
    harness.show(deleting(raw_task("t", status=running)))
    harness.synced = True
    harness.open()
    await asyncio.sleep(10)
    (command,) = harness.publisher.commands
    assert (command.kind, command.token) == (CommandKind.CANCEL, TOKENS.sign("uid-t", 1, 3))
    assert not harness.publisher.published
    assert not harness.entries


# Priority.


async def test_a_waiting_task_moves_with_its_priority() -> None:
    harness = TaskHarness(max_published=1)
    harness.add("a")
    harness.add("b")
    harness.add("b", priority=5)
    harness.open()
    await turn()
    assert harness.publisher.names == ["b"]


async def test_a_published_task_stays_where_it_is() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    harness.add("t", priority=5)
    await turn()
    assert (entry.stage, harness.publisher.published) == (TaskStage.PUBLISHED, [])


# Statuses that are refused.


async def test_a_truncated_claim_that_is_refused_is_written_again() -> None:
    harness = TaskHarness()
    harness.add("t", concurrencyKey="k")
    harness.open()
    await turn()
    harness.api.objects[PATH] = raw_task("t")
    harness.writer.writes.pop().refuse(422)
    harness.writer.writes.pop().refuse(422)
    await asyncio.sleep(6)
    harness.writer.writes.pop().succeed()
    assert harness.publisher.names == ["t"]


async def test_a_truncated_status_keeps_the_attempt_number() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    harness.publisher.published.clear()
    harness.failed(entry)
    await asyncio.sleep(2.1)
    harness.writer.writes.pop().refuse(422)
    (one,) = harness.writer.writes.pop().status["history"]
    assert one["attempt"] == 1
    assert not {"message", "worker"} & one.keys()
    await asyncio.sleep(5)
    assert harness.publisher.published.pop().message.attempt == 2


async def test_an_older_status_that_is_refused_does_not_undo_what_is_true_now() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    harness.event(entry, EventKind.STARTED)
    await asyncio.sleep(3)
    tag = harness.event(entry, EventKind.SUCCEEDED)
    assert harness.writer.phases == ["Running", "Succeeded"]
    harness.writer.writes[0].refuse(422)
    assert entry.status.phase is Phase.SUCCEEDED
    harness.writer.writes[1].succeed()
    await turn()
    assert (harness.recorded, harness.channel.acked[-1]) == (["t"], tag)


async def test_a_status_that_changes_back_while_it_is_written_is_written_again() -> None:
    harness = TaskHarness()
    harness.dispatcher.config = None
    harness.add("t")
    await asyncio.sleep(2.1)
    harness.dispatcher.config = harness.config
    harness.tasks.on_queue_changed(KEY)
    await asyncio.sleep(10)
    (blocked,) = harness.writer.writes
    blocked.succeed()
    await asyncio.sleep(2.1)
    assert harness.writer.phases == ["Blocked", "Pending"]


# Payloads and queues.


async def test_a_payload_at_the_limit_is_taken_and_one_byte_more_is_not() -> None:
    harness = TaskHarness()
    room = PAYLOAD_BYTES - len('{"x":""}')
    harness.add("fits", payload={"x": "x" * room})
    harness.add("not", payload={"x": "x" * (room + 1)})
    harness.open()
    await turn()
    assert harness.publisher.names == ["fits"]
    (write,) = harness.writer.writes
    assert write.status["reason"] == "Invalid"
    assert f"{PAYLOAD_BYTES + 1} bytes" in write.status["message"]


@pytest.mark.parametrize("how", ["ended", "deleted"])
async def test_nothing_is_kept_of_a_deleted_queue_without_tasks(how: str) -> None:
    harness = TaskHarness()
    entry = harness.add("t")
    harness.dispatcher.config = None
    harness.tasks.on_queue_changed(KEY)
    assert KEY in harness.tasks._dispatchers
    assert counters_of(KEY)
    if how == "ended":
        harness.add("t", cancel=True)
        harness.writer.writes[-1].succeed()
    else:
        await harness.delete(entry)
        await asyncio.sleep(1)
    assert KEY not in harness.tasks._dispatchers
    assert not counters_of(KEY)


def counters_of(key: QueueKey) -> list[str]:
    labels = {"namespace": key[0], "queue": key[1]}
    return [
        sample.name
        for family in REGISTRY.collect()
        if family.type == "counter"
        for sample in family.samples
        if labels.items() <= sample.labels.items()
    ]


async def test_a_queue_that_comes_back_finds_its_tasks_in_order() -> None:
    harness = TaskHarness(max_published=1)
    harness.dispatcher.config = None
    harness.add("late", created=5.0)
    harness.add("early", created=1.0)
    await asyncio.sleep(3)
    harness.dispatcher.config = harness.config
    harness.tasks.on_queue_changed(KEY)
    harness.open()
    await turn()
    assert harness.publisher.names == ["early"]


async def test_late_news_of_a_finished_task_is_not_taken_for_a_new_one() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    harness.event(entry, EventKind.SUCCEEDED)
    harness.writer.writes[-1].succeed()
    harness.tasks.on_upserted(raw_task("t", generation=2))
    assert not harness.entries
    harness.tasks.on_deleted(("shop", "t"), "uid-t")
    assert not harness.tasks._leaving


async def test_a_task_that_left_the_informer_before_its_end_was_written_is_not_awaited() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    harness.event(entry, EventKind.SUCCEEDED)
    harness.tasks.on_deleted(("shop", "t"), "uid-t")
    harness.writer.writes[-1].succeed()
    assert not harness.entries
    assert not harness.tasks._leaving


async def test_a_queue_with_many_tasks_is_reconciled_in_turns_the_first_in_line_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(task_controller, "_TASKS_A_TURN", 10)
    harness = TaskHarness()
    harness.dispatcher.config = None
    for number in range(35):
        harness.add(f"t-{number}", priority=number)
    harness.dispatcher.config = harness.config
    harness.tasks.on_queue_changed(KEY)
    waiting = [harness.dispatcher.waiting]
    while waiting[-1] < 35:
        await asyncio.sleep(0)
        waiting.append(harness.dispatcher.waiting)
    assert waiting == [10, 20, 30, 35]
    harness.open()
    await turn()
    assert harness.publisher.names[:2] == ["t-34", "t-33"]


# What raises.


async def test_a_result_nested_too_deep_fails_its_task() -> None:
    harness = TaskHarness()
    entry = await harness.published()
    deep = b'{"a":' * 300 + b"null" + b"}" * 300
    message = harness.message
    harness.message = lambda body: message(  # type: ignore[method-assign, misc, assignment]
        body.replace(b'{"a":null}', deep)
    )
    tag = harness.event(entry, EventKind.SUCCEEDED)
    (write,) = harness.writer.writes
    assert (write.status["phase"], write.status["reason"]) == ("Failed", "NonRetryable")
    (attempt,) = write.status["history"]
    assert attempt["reason"] == "InvalidResult"
    assert attempt["message"].startswith("result: nested deeper")
    write.succeed()
    await turn()
    assert harness.channel.acked == [tag]


async def test_a_status_that_cannot_be_encoded_is_written_in_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No event can do that, as far as known: it is the last resort."""
    harness = TaskHarness()
    entry = await harness.published()
    bad = {"a": object()}
    monkeypatch.setattr(inbox, "decode", lambda body: replace(decode(body), result=bad))
    tag = harness.event(entry, EventKind.SUCCEEDED)
    (write,) = harness.writer.writes
    assert (write.status["phase"], write.status.get("result")) == ("Succeeded", None)
    assert "cannot be written as JSON" in write.status["message"]
    write.succeed()
    await turn()
    assert harness.channel.acked == [tag]


async def test_an_effect_that_raises_keeps_no_other_from_being_executed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    harness = TaskHarness()
    first, second = harness.add("a"), harness.add("b")
    for waits in ("c", "d"):
        harness.add(waits, dependsOn=["a"])
    harness.open()
    await turn()
    harness.publisher.settle(Settled.CONFIRMED)
    tag = harness.event(first, EventKind.SUCCEEDED)
    put = harness.writer.put
    harness.writer.put = _raise  # type: ignore[method-assign]
    harness.event(second, EventKind.SUCCEEDED)
    harness.writer.put = put  # type: ignore[method-assign]
    assert [record.getMessage() for record in caplog.records] == ["task.effect_failed"]
    harness.writer.writes[0].succeed()
    await turn()
    assert harness.channel.acked == [tag]
    assert sorted(harness.publisher.names) == ["c", "d"]


def _raise(*_: Any, **__: Any) -> None:
    raise RuntimeError("a bug")
