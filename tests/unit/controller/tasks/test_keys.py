"""Concurrency keys: claimed on record, held to the limit, and given back when nothing can run."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from taskqueue.amqp.publisher import Settled
from taskqueue.contract.outcome import EventError, EventKind
from taskqueue.controller.tasks.tracked_task import TaskStage, TrackedTask
from taskqueue.model.queue import StopPolicy
from taskqueue.model.task import Phase
from tests.unit.controller.fakes import Engine, turn

pytestmark = pytest.mark.looptime


async def keyed(engine: Engine, name: str = "t", **spec: Any) -> TrackedTask:
    """Hold a Task with key k, in line for it."""
    entry = engine.add(name, concurrencyKey="k", **spec)
    engine.open()
    await turn()
    return entry


async def claimed(
    engine: Engine, name: str = "t", *, version: int = 101, **spec: Any
) -> TrackedTask:
    """Hold a Task that has key k and is published."""
    entry = await keyed(engine, name, **spec)
    engine.writer.writes.pop().succeed(version=version)
    await turn()
    assert engine.publisher.names[-1] == name
    return entry


async def test_a_keyed_task_is_published_once_its_claim_is_on_record() -> None:
    engine = Engine()
    entry = await keyed(engine)
    (write,) = engine.writer.writes
    assert (write.status["concurrencyKey"], write.urgent) == ("k", True)
    await asyncio.sleep(60)
    assert (entry.stage, engine.publisher.published) == (TaskStage.CLAIMING, [])
    assert (engine.dispatcher.waiting, engine.dispatcher.published) == (1, 0)
    write.succeed(version=4711)
    assert engine.publisher.published[0].message.fence == 4711
    assert entry.stage is TaskStage.PUBLISHED


async def test_a_task_without_a_key_has_no_fence_and_waits_for_no_write() -> None:
    engine = Engine()
    await engine.published()
    assert not engine.writer.writes


async def test_nothing_keyed_is_published_by_a_process_that_leads_no_more() -> None:
    engine = Engine()
    await keyed(engine)
    engine.leads = False
    engine.writer.writes[0].succeed()
    await asyncio.sleep(10)
    assert not engine.publisher.published
    engine.leads = True  # its renewal was only slow
    await asyncio.sleep(1)
    assert engine.publisher.names == ["t"]


async def test_a_claim_on_record_is_not_published_while_the_queue_holds() -> None:
    engine = Engine()
    await keyed(engine)
    engine.dispatcher.config = replace(engine.config, stop_policy=StopPolicy.HOLD)
    engine.writer.writes[0].succeed()
    await asyncio.sleep(10)
    assert not engine.publisher.published
    engine.dispatcher.config = engine.config
    await turn()
    assert engine.publisher.names == ["t"]


async def test_a_claim_on_record_waits_for_the_broker() -> None:
    engine = Engine()
    await keyed(engine)
    engine.dispatcher.close()
    engine.writer.writes[0].succeed(version=7)
    await asyncio.sleep(10)
    assert not engine.publisher.published
    engine.open()
    await turn()
    assert engine.publisher.published[0].message.fence == 7


async def test_a_claim_that_is_not_wanted_any_more_is_given_back() -> None:
    engine = Engine()
    entry = await keyed(engine)
    claim = engine.writer.writes.pop()
    engine.add("t", concurrencyKey="k", suspend=True)
    other = engine.add("other", concurrencyKey="k")
    await turn()
    assert other.stage is TaskStage.CLAIMING
    claim.succeed()
    assert entry.stage is TaskStage.HELD
    engine.add("t", concurrencyKey="k", suspend=False)
    await turn()
    assert not engine.publisher.published
    assert entry.status.reason == "ConcurrencyLimit"


@pytest.mark.parametrize("limit", [1, 2, 5])
async def test_no_more_than_the_limit_have_a_key(limit: int) -> None:
    engine = Engine(per_key=limit)
    for number in range(6):
        await keyed(engine, f"t{number}")
    assert len(engine.writer.writes) == limit
    for write in engine.writer.writes:
        write.succeed()
    await asyncio.sleep(3)
    assert engine.publisher.names == [f"t{number}" for number in range(limit)]
    parked = engine.entries["uid-t5"]
    assert (parked.stage, parked.status.phase) == (TaskStage.WAITING, Phase.BLOCKED)
    assert parked.status.reason == "ConcurrencyLimit"
    assert "Tasks of key k" in parked.status.message


async def test_another_key_and_no_key_go_on() -> None:
    engine = Engine()
    await claimed(engine, "first")
    await keyed(engine, "second")
    engine.add("other", concurrencyKey="l")
    engine.add("plain")
    await turn()
    engine.writer.writes.pop().succeed()
    assert engine.publisher.names == ["first", "plain", "other"]


@pytest.mark.parametrize("how", ["success", "failure", "deletion", "limit", "unknown handler"])
async def test_whoever_is_next_claims_a_key_that_is_free(how: str) -> None:
    engine = Engine()
    first = await claimed(engine, "first")
    late = await keyed(engine, "late")
    next_one = await keyed(engine, "next", priority=5)
    match how:
        case "success":
            engine.event(first, EventKind.SUCCEEDED)
        case "failure":
            engine.failed(first)
        case "deletion":
            await engine.delete(first)
            engine.event(first, EventKind.CANCELLED)
        case "limit":
            engine.dispatcher.config = replace(engine.config, per_key=2)
        case _:
            error = EventError(type="UnknownHandler", message="none")
            engine.event(first, EventKind.FAILED, error=error)
    await turn()
    assert next_one.stage is TaskStage.CLAIMING
    assert late.status.reason == "ConcurrencyLimit"
    assert engine.writer.writes[-1].status["phase"] == "Pending"  # no longer Blocked


@pytest.mark.parametrize(
    ("verdict", "copies"), [(Settled.UNKNOWN, 0), (Settled.RETURNED, 1), (Settled.CONFIRMED, 0)]
)
async def test_no_second_copy_is_published_where_a_first_may_be_about(
    verdict: Settled, copies: int
) -> None:
    engine = Engine()
    entry = await claimed(engine)
    engine.publisher.settle(verdict)
    await asyncio.sleep(5)
    assert len(engine.publisher.published) == copies
    assert entry.stage is TaskStage.PUBLISHED


async def test_a_lost_queue_loses_no_key() -> None:
    engine = Engine()
    await claimed(engine)
    engine.publisher.settle(Settled.CONFIRMED)
    assert engine.dispatcher.republish_all() == 0
    await asyncio.sleep(5)
    assert not engine.publisher.published


async def test_a_key_that_is_free_wakes_no_more_than_may_have_it() -> None:
    engine = Engine()
    first = await claimed(engine, "first")
    for number in range(5):
        await keyed(engine, f"t{number}")
    assert engine.dispatcher.waiting == 0
    engine.event(first, EventKind.SUCCEEDED)
    assert engine.dispatcher.waiting == 1


async def test_the_number_of_a_dispatch_grows() -> None:
    engine = Engine(max_attempts=9)
    entry = await claimed(engine, version=10)
    engine.failed(entry)
    await asyncio.sleep(5.1)
    engine.writer.writes[-1].succeed(version=12)
    engine.event(entry, EventKind.RELEASED, attempt=2)
    await turn()
    engine.writer.writes[-1].succeed(version=15)
    await turn()
    assert [one.message.fence for one in engine.publisher.published] == [10, 12, 15]


@pytest.mark.parametrize("answer", [EventKind.CANCELLED, EventKind.SUCCEEDED, None])
async def test_the_key_of_a_stopped_attempt_lingers_until_its_worker_answers(
    answer: EventKind | None,
) -> None:
    engine = Engine(attempt_timeout_seconds=20)
    first = await claimed(engine, "first")
    second = await keyed(engine, "second")
    engine.add("first", concurrencyKey="k", cancel=True)
    assert first.stage is TaskStage.FINISHED
    await asyncio.sleep(29.9)
    assert second.status.reason == "ConcurrencyLimit"
    if answer is not None:
        engine.event(first, answer)
    else:
        await asyncio.sleep(0.2)
    await turn()
    assert second.stage is TaskStage.CLAIMING
    assert not engine.dispatcher._key_holds


async def test_the_key_of_a_suspended_attempt_lingers_too() -> None:
    engine = Engine()
    first = await claimed(engine, "first")
    second = await keyed(engine, "second")
    engine.add("first", concurrencyKey="k", suspend=True)
    assert engine.writer.writes[-1].status.get("concurrencyKey") is None
    engine.writer.writes[-1].succeed()
    await turn()
    assert second in engine.dispatcher._keys
    engine.event(first, EventKind.RELEASED)
    await turn()
    assert second.stage is TaskStage.CLAIMING


async def test_a_dead_letter_is_an_answer_too() -> None:
    engine = Engine()
    await claimed(engine, "first")
    message = engine.publisher.published[0].message
    second = await keyed(engine, "second")
    engine.add("first", concurrencyKey="k", cancel=True)
    engine.dead_letter(message, **{"x-last-death-reason": "delivery_limit"})
    await turn()
    assert second.stage is TaskStage.CLAIMING


CLAIMED = {"phase": "Pending", "observedGeneration": 1, "concurrencyKey": "k"}


async def test_a_former_leaders_claim_stands_and_is_not_published_beside_itself() -> None:
    engine = Engine(attempt_timeout_seconds=20)
    second = engine.add("second", concurrencyKey="k")
    first = engine.add("first", concurrencyKey="k", created=5.0, status=CLAIMED)
    engine.open()
    await asyncio.sleep(3)
    assert not engine.publisher.published
    assert (first.stage, second.status.reason) == (TaskStage.PUBLISHED, "ConcurrencyLimit")
    engine.event(first, EventKind.SUCCEEDED)
    await turn()
    assert second.stage is TaskStage.CLAIMING


async def test_a_former_leaders_claim_nobody_knows_of_is_taken_back_uncounted() -> None:
    engine = Engine(attempt_timeout_seconds=20)
    first = engine.add("first", concurrencyKey="k", status=CLAIMED)
    engine.open()
    for _ in range(4):
        engine.dispatcher.on_ready_count(0, reporting=True)
        await asyncio.sleep(10.1)
    assert (first.status.epoch, first.status.history) == (1, ())
    for write in engine.writer.writes:
        write.succeed()
    await turn()
    assert engine.publisher.published[0].message.epoch == 1
