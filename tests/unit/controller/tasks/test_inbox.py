"""What comes into the inbox about Tasks that are no longer held, and direct messages."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from taskqueue.amqp.publisher import Settled
from taskqueue.contract.outcome import AttemptEvent, EventError, EventKind, encode
from taskqueue.controller.tasks.tracked_task import TaskStage
from taskqueue.kubernetes.task_codec import task_path
from taskqueue.timestamps import to_rfc3339
from tests.unit.controller.fakes import EPOCH, TOKENS, Engine, raw_task, turn

pytestmark = pytest.mark.looptime

FINISHED = {
    "phase": "Succeeded",
    "attempts": 1,
    "observedGeneration": 1,
    "completionTime": to_rfc3339(EPOCH - 5),
    "result": {"a": 1},
}


async def test_an_end_is_told_after_its_write_and_its_outcome_let_go_after_that() -> None:
    engine = Engine()
    entry = await engine.published()
    tag = engine.event(entry, EventKind.SUCCEEDED)
    await asyncio.sleep(5)
    assert not engine.publisher.events
    engine.writer.writes[0].succeed()
    (event,) = engine.publisher.events
    assert (event["id"], event["type"]) == ("uid-t.1", "dev.taskqueue.task.succeeded.v1")
    assert engine.recorded == ["t"]
    assert not engine.channel.acked  # the event is not confirmed yet
    await turn()
    assert engine.channel.acked == [tag]


async def test_a_failed_attempt_that_is_not_the_end_is_told_to_nobody() -> None:
    engine = Engine()
    entry = await engine.published()
    engine.failed(entry)
    await asyncio.sleep(3)
    engine.writer.writes[0].succeed()
    await turn()
    assert not engine.publisher.events


async def test_the_end_of_a_task_no_longer_held_is_told_again() -> None:
    """Its former leader recorded it, and did not live to let the outcome go."""
    engine = Engine()
    engine.open()
    engine.api.objects[task_path("shop", "t")] = raw_task("t", status=FINISHED)
    tag = engine.message(encode(_outcome()))
    assert not engine.channel.acked
    await asyncio.sleep(0.01)
    (event,) = engine.publisher.events
    assert (event["id"], event["data"]["result"]) == ("uid-t.1", {"a": 1})
    assert engine.channel.acked == [tag]


@pytest.mark.parametrize(
    "there",
    [
        None,
        raw_task("t"),
        {**raw_task("t", status=FINISHED), "metadata": {**raw_task("t")["metadata"], "uid": "b"}},
    ],
    ids=["deleted", "unfinished", "another of the name"],
)
async def test_an_outcome_that_tells_nothing_is_let_go(there: dict[str, Any] | None) -> None:
    engine = Engine()
    engine.open()
    if there is not None:
        engine.api.objects[task_path("shop", "t")] = there
    tag = engine.message(encode(_outcome()))
    await asyncio.sleep(0.01)
    assert engine.channel.acked == [tag]
    assert not engine.publisher.events


@pytest.mark.parametrize("kind", [EventKind.RELEASED, EventKind.STARTED])
async def test_what_is_no_end_is_not_looked_up(kind: EventKind) -> None:
    engine = Engine()
    engine.open()
    tag = engine.message(encode(_outcome(kind)))
    await asyncio.sleep(0.01)
    assert engine.channel.acked == [tag]
    assert not engine.api.asked


async def test_a_dead_letter_of_an_attempt_that_is_over_is_let_go() -> None:
    engine = Engine()
    entry = engine.add("t")
    engine.open()
    await turn()
    message = engine.publisher.published[0].message
    engine.failed(entry)
    tag = engine.dead_letter(message, **{"x-last-death-reason": "delivery_limit"})
    assert engine.channel.acked == [tag]
    assert len(entry.status.history) == 1


async def test_a_dead_letter_of_a_direct_message_is_for_people() -> None:
    engine = Engine()
    message = await _message(engine)
    properties = message.properties()
    properties.headers = {}
    tag = engine.message(message.body, exchange="taskqueue.dead", properties=properties)
    assert engine.channel.acked == [tag]
    assert not engine.given_up


async def test_a_forged_dead_letter_is_dropped() -> None:
    engine = Engine()
    message = await _message(engine)
    tag = engine.dead_letter(message, **{"tq-token": "k.00"})
    assert engine.channel.acked == [tag]
    assert engine.entries["uid-t"].stage is TaskStage.PUBLISHED


async def test_an_outcome_is_acknowledged_once_whatever_is_written_meanwhile() -> None:
    engine = Engine(max_attempts=9)
    entry = await engine.published()
    tag = engine.failed(entry)
    await asyncio.sleep(2.1)
    engine.add("t", suspend=True)
    await asyncio.sleep(2.1)
    assert len(engine.writer.writes) == 2
    for write in engine.writer.writes:
        write.succeed()
    await turn()
    assert engine.channel.acked == [tag]


async def test_a_handler_nobody_knows_lets_go_of_the_key_on_record_first() -> None:
    engine = Engine()
    entry = engine.add("t", concurrencyKey="k")
    engine.open()
    await turn()
    engine.writer.writes.pop().succeed()
    engine.publisher.settle(Settled.CONFIRMED)
    error = EventError(type="UnknownHandler", message="no handler 'resize'")
    tag = engine.event(entry, EventKind.FAILED, error=error)
    assert not engine.channel.acked
    await asyncio.sleep(2.1)
    engine.writer.writes.pop().succeed()
    assert engine.channel.acked == [tag]


def _outcome(kind: EventKind = EventKind.SUCCEEDED) -> AttemptEvent:
    return AttemptEvent(
        kind=kind,
        namespace="shop",
        queue="q",
        task="t",
        uid="uid-t",
        token=TOKENS.sign("uid-t", 1, 0),
        attempt=1,
        epoch=0,
        worker="pod-1",
        seconds=0.1,
        result={"a": 1} if kind is EventKind.SUCCEEDED else None,
    )


async def _message(engine: Engine) -> Any:
    engine.add("t")
    engine.open()
    await turn()
    return engine.publisher.published[0].message
