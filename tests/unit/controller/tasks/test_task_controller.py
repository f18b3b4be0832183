"""All parts together: what becomes of a Task that leaves, comes again, or is not to be written."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from taskqueue.amqp.publisher import Settled
from taskqueue.contract.outcome import EventKind
from taskqueue.controller.tasks.task_controller import PAYLOAD_LIMIT_BYTES
from taskqueue.controller.tasks.tracked_task import TaskStage
from taskqueue.kubernetes.client import ApiError
from taskqueue.kubernetes.task_codec import task_path
from taskqueue.model.task import Phase
from tests.unit.controller.fakes import KEY, Engine, raw_task, turn

pytestmark = pytest.mark.looptime

PATH = task_path("shop", "t")


# The feed.


async def test_our_own_write_that_comes_back_changes_nothing() -> None:
    engine = Engine()
    entry = await engine.published()
    engine.event(entry, EventKind.STARTED)
    engine.tasks.on_upserted(raw_task("t", generation=entry.task.generation))
    assert entry.status.phase is Phase.RUNNING


async def test_a_finished_task_is_not_taken() -> None:
    engine = Engine()
    engine.tasks.on_upserted(raw_task("t", status={"phase": "Failed", "observedGeneration": 1}))
    assert not engine.entries


async def test_late_news_of_a_finished_task_is_not_a_new_one() -> None:
    engine = Engine()
    entry = await engine.published()
    engine.event(entry, EventKind.SUCCEEDED)
    engine.writer.writes[0].succeed()
    engine.tasks.on_upserted(raw_task("t", generation=7))
    assert not engine.entries
    engine.tasks.on_deleted(("shop", "t"), "uid-t")
    assert not engine.tasks._leaving


async def test_a_task_that_left_the_feed_and_is_still_there_is_held_on() -> None:
    engine = Engine()
    entry = await engine.published()
    engine.api.objects[PATH] = raw_task("t")
    await engine.delete(entry)
    await asyncio.sleep(1)
    assert engine.entries["uid-t"] is entry
    assert (entry.stage, entry.left_feed) == (TaskStage.PUBLISHED, False)
    assert not engine.publisher.orders


async def test_a_task_finished_by_somebody_else_is_let_go() -> None:
    engine = Engine()
    entry = await engine.published()
    status = {"phase": "Failed", "reason": "Boom", "observedGeneration": 1}
    engine.api.objects[PATH] = raw_task("t", status=status)
    waits = engine.add("waits", dependsOn=["t"])
    await engine.delete(entry)
    await asyncio.sleep(1)
    assert list(engine.entries) == ["uid-waits"]
    assert waits.status.reason == "DependencyFailed"
    assert len(engine.publisher.orders) == 1


async def test_an_api_server_that_is_away_is_asked_again_before_a_task_is_let_go() -> None:
    engine = Engine()
    entry = await engine.published()
    get = engine.api.get

    async def refuse(path: str, **params: str) -> dict[str, Any]:
        raise ApiError(503, "ServiceUnavailable", "try again")

    engine.api.get = refuse  # type: ignore[method-assign]
    await engine.delete(entry)
    await asyncio.sleep(5)
    assert engine.entries
    engine.api.get = get  # type: ignore[method-assign]
    await asyncio.sleep(1.1)
    assert not engine.entries


@pytest.mark.parametrize("stage", list(TaskStage))
async def test_a_deleted_task_leaves_nothing_behind_whatever_its_stage(stage: TaskStage) -> None:
    engine = Engine()
    key = "k" if stage is TaskStage.CLAIMING else ""
    entry = engine.add("t", suspend=stage is TaskStage.HELD, concurrencyKey=key)
    if stage not in (TaskStage.NEW, TaskStage.WAITING):
        engine.open()
        await turn()
    if stage is TaskStage.FINISHED:
        engine.publisher.settle(Settled.CONFIRMED)
        engine.event(entry, EventKind.SUCCEEDED)
        engine.writer.writes[-1].refuse(404)
    elif stage is not TaskStage.NEW:
        assert entry.stage is stage
    await engine.delete(entry)
    await asyncio.sleep(10)
    assert not engine.entries
    engine.open()
    await turn()
    assert engine.dispatcher.empty
    assert not any(vars(engine.dispatcher._keys).values())
    assert (entry.reconcile_timer, entry.write_timer) == (None, None)
    assert not engine.recorded


# Priority.


async def test_a_waiting_task_moves_with_its_priority() -> None:
    engine = Engine(max_published=1)
    engine.add("a")
    engine.add("b")
    engine.add("b", priority=5)
    engine.open()
    await turn()
    assert engine.publisher.names == ["b"]


async def test_a_published_task_stays_where_it_is() -> None:
    engine = Engine()
    entry = await engine.published()
    engine.add("t", priority=5)
    await turn()
    assert (entry.stage, engine.publisher.published) == (TaskStage.PUBLISHED, [])


# Statuses that are refused.


async def test_a_claim_refused_even_in_short_is_written_again() -> None:
    engine = Engine()
    engine.add("t", concurrencyKey="k")
    engine.open()
    await turn()
    engine.api.objects[PATH] = raw_task("t")
    engine.writer.writes.pop().refuse(422)
    engine.writer.writes.pop().refuse(422)
    await asyncio.sleep(6)
    engine.writer.writes.pop().succeed()
    assert engine.publisher.names == ["t"]


async def test_a_status_in_short_still_knows_which_attempt_comes_next() -> None:
    engine = Engine()
    entry = await engine.published()
    engine.publisher.published.clear()
    engine.failed(entry)
    await asyncio.sleep(2.1)
    engine.writer.writes.pop().refuse(422)
    (one,) = engine.writer.writes.pop().status["history"]
    assert (one["attempt"], one["message"], one["worker"]) == (1, "", "")
    await asyncio.sleep(5)
    assert engine.publisher.published.pop().message.attempt == 2


async def test_an_older_status_that_is_refused_does_not_undo_what_is_true_now() -> None:
    engine = Engine()
    entry = await engine.published()
    engine.event(entry, EventKind.STARTED)
    await asyncio.sleep(3)
    tag = engine.event(entry, EventKind.SUCCEEDED)
    assert engine.writer.phases == ["Running", "Succeeded"]
    engine.writer.writes[0].refuse(422)
    assert entry.status.phase is Phase.SUCCEEDED
    engine.writer.writes[1].succeed()
    await turn()
    assert (engine.recorded, engine.channel.acked[-1]) == (["t"], tag)


async def test_a_status_that_changes_back_while_it_is_written_is_written_again() -> None:
    engine = Engine()
    engine.dispatcher.config = None
    engine.add("t")
    await asyncio.sleep(2.1)
    engine.dispatcher.config = engine.config
    engine.tasks.on_queue_changed(KEY)
    await asyncio.sleep(10)
    (blocked,) = engine.writer.writes
    blocked.succeed()
    await asyncio.sleep(2.1)
    assert engine.writer.phases == ["Blocked", "Pending"]


# Payloads and queues.


async def test_a_payload_at_the_limit_is_taken_and_one_byte_more_is_not() -> None:
    engine = Engine()
    room = PAYLOAD_LIMIT_BYTES - len('{"x":""}')
    engine.add("fits", payload={"x": "x" * room})
    engine.add("not", payload={"x": "x" * (room + 1)})
    engine.open()
    await turn()
    assert engine.publisher.names == ["fits"]
    (write,) = engine.writer.writes
    assert write.status["reason"] == "Invalid"
    assert f"{PAYLOAD_LIMIT_BYTES + 1} bytes" in write.status["message"]


@pytest.mark.parametrize("how", ["ended", "deleted"])
async def test_nothing_is_kept_of_a_queue_that_is_gone_with_its_tasks(how: str) -> None:
    engine = Engine()
    entry = engine.add("t")
    engine.dispatcher.config = None
    engine.tasks.on_queue_changed(KEY)
    assert KEY in engine.tasks._dispatchers
    if how == "ended":
        engine.add("t", cancel=True)
        engine.writer.writes[-1].succeed()
    else:
        await engine.delete(entry)
        await asyncio.sleep(1)
    assert KEY not in engine.tasks._dispatchers


async def test_a_queue_that_comes_back_finds_its_tasks_in_order() -> None:
    engine = Engine(max_published=1)
    engine.dispatcher.config = None
    engine.add("late", created=5.0)
    engine.add("early", created=1.0)
    await asyncio.sleep(3)
    engine.dispatcher.config = engine.config
    engine.tasks.on_queue_changed(KEY)
    engine.open()
    await turn()
    assert engine.publisher.names == ["early"]
